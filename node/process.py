"""Processes of a node: fork, name, tie to the parent, end."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from keys.errors import WardtreeError

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 4, 15, 38
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_CLONE_NEWNET = 0x40000000
ENDED_FROM_OUTSIDE = os.EX_TEMPFAIL
"""The exit code of a node of which a process was killed: started again, it goes on."""

_libc = ctypes.CDLL(None, use_errno=True)


def spawn(parent_signal: int, target: Callable[..., None], *arguments: Any) -> int:
    """Fork a process that runs ``target`` and ends; it gets ``parent_signal`` when its parent dies.

    The child leaves no core, cannot be dumped or traced by others of its user, and gains no privileges.
    """
    parent = os.getpid()
    # A Ctrl-C between fork and the child's first line would unwind the parent's code in the child.
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    child = os.fork()
    if child:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        return child
    prctl(_PR_SET_PDEATHSIG, parent_signal)
    if os.getppid() != parent:  # it died between the two lines above
        os._exit(1)
    end_process(target, *arguments)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a Ctrl-C wait: in the middle of an import of compiled code it would be a traceback."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)


def end_process(target: Callable[..., None], *arguments: Any) -> NoReturn:
    """Run ``target`` in a freshly forked process and end it, whatever happens.

    Exit codes: 0, the target's own SystemExit, 1 for an error that a user can cause, and 70 (EX_SOFTWARE)
    for a bug of ours, which alone prints a traceback.
    """
    code = 1
    try:
        harden()
        target(*arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except (KeyboardInterrupt, WardtreeError):
        pass
    except BaseException:
        code = os.EX_SOFTWARE
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def harden() -> None:
    """No core files, no dumping or tracing by the same user, no new privileges; default signals."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    prctl(_PR_SET_DUMPABLE, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the supervisor, which ends the rest
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)


def allow_descriptors() -> None:
    """As many open files as the machine allows this process: strangers may hold many of them for a moment."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def name_process(name: str) -> None:
    """What ``ps -o comm`` shows: at most 15 characters of it are kept by the kernel."""
    buffer = ctypes.create_string_buffer(name.encode()[:15])
    prctl(_PR_SET_NAME, ctypes.addressof(buffer))


def prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def enter_network(name: str) -> None:
    """Go into a network namespace that ``ip netns add`` made; for root only."""
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.setns(descriptor, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"setns {name}")
    finally:
        os.close(descriptor)


def reap(child: int) -> int:
    """Wait for a child; gives its exit code, or minus the signal that ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def describe(error: BaseException) -> str:
    """An exception's type and place, without its message: that may quote data."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {os.path.basename(frames[-1].filename)}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"


def end_all(children: Mapping[str, int]) -> None:
    """Kill what still runs; every process of a node dies with its supervisor."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for child in children.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for child in children.values():
        with contextlib.suppress(ChildProcessError):
            reap(child)
    signal.signal(signal.SIGINT, previous)
