"""Enter a room: everything that confines a process, in the one order in which it can be done."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from node.protocol.posture import Posture
from node.sandbox import landlock, seccomp
from node.sandbox.kernel import SandboxError, conceal, drop_capabilities, wipe_freed_memory
from node.sandbox.landlock import Reach, covers
from node.sandbox.policy import Room

_QUIET = {
    "JOBLIB_MULTIPROCESSING": "0",  # it would make a semaphore, which is a file
    "TORCHINDUCTOR_CACHE_DIR": "/",  # torch would make a folder; this one exists
}

_entered: list[Reach] = []


def enter(room: Room, posture: Posture, keep: Iterable[int] = ()) -> None:
    """Confine this process, and all that it will fork, to a room: call it first, before there is a second thread.

    Closes every inherited descriptor but standard output, standard error and ``keep``: what a process was
    given open, no rule takes away.

    Raises:
        SandboxError: a part of the sandbox cannot be had, or does not hold. The process must end then.
    """
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:  # Landlock is each thread's own
        raise SandboxError(f"{room.name}: expected one thread when it is confined, came {threads}")
    _only(keep)
    wipe_freed_memory()
    if posture.policy == "off":
        return
    os.umask(0o077)
    sys.dont_write_bytecode = True
    tempfile.tempdir = "/tmp"  # said, so that nobody tries out where it can write
    os.environ.update(_QUIET)
    conceal()
    drop_capabilities()
    _confine(room, posture)
    _prove(room, posture)
    if room.reach:
        _entered.append(room.reach)


def entered() -> Reach | None:
    """What this process may reach since it, or the one that forked it, entered a room; None: it is not confined."""
    return _entered[-1] if _entered else None


def narrow(room: Room, posture: Posture) -> None:
    """Take away more, in a process that a confined one forked. Raises SandboxError, as :func:`enter`."""
    if posture.policy != "off":
        _confine(room, posture)


def silence() -> None:
    """Nothing that is printed from here on is seen: a stranger's code may print what a patient's record holds."""
    void = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    for descriptor in _output():
        os.dup2(void, descriptor)
    os.close(void)


def _confine(room: Room, posture: Posture) -> None:
    if posture.landlock and room.reach:
        landlock.restrict(room.reach, posture.landlock)
    if "seccomp" not in posture.gaps:
        seccomp.install(room.rules())


def _prove(room: Room, posture: Posture) -> None:
    """Try what must not work: a kernel or container may take rules and not keep them; and what must."""
    attempts: list[tuple[bool, str, Callable[[], object]]] = [
        (posture.landlock > 0 and _is_beyond("/", room.reach), "Landlock", lambda: os.listdir("/")),
        ("seccomp" not in posture.gaps, "seccomp", lambda: socket.socket(socket.AF_UNIX).close()),
    ]
    for in_force, part, attempt in attempts:
        if in_force and _succeeds(attempt):
            raise SandboxError(f"{room.name}: {part} took the rules, but does not keep them; the node does not start")
    if os.geteuid() == 0 and not _succeeds(lambda: open(tempfile.__file__).close()):
        raise SandboxError(
            f"{room.name}: Python's library {Path(tempfile.__file__).parent} cannot be read without root's privileges; "
            "run as an ordinary user, with a Python that this user may read"
        )


def _is_beyond(path: str, reach: Reach | None) -> bool:
    return reach is not None and not covers((*reach.list, *reach.read, *reach.replace), Path(path))


def _succeeds(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except OSError:
        return False
    return True


def _output() -> set[int]:
    """Standard output and standard error, and where Python writes to if that is elsewhere."""
    streams = {1, 2}
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            streams.add(stream.fileno())
    return streams


def _only(keep: Iterable[int]) -> None:
    """Standard input reads nothing; of the other descriptors 1, 2 and ``keep`` stay open."""
    void = os.open(os.devnull, os.O_RDONLY)
    os.dup2(void, 0)
    kept = sorted({0, *_output(), *keep})
    for below, above in zip(kept, [*kept[1:], os.sysconf("SC_OPEN_MAX")], strict=True):
        os.closerange(below + 1, above)
