"""Processes of a node: fork, name, tie to the parent, end."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import resource
import signal
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

from keys.errors import WardtreeError
from node.channel import ChannelClosedError
from node.sandbox.kernel import EXIT_UNAVAILABLE, SandboxError, conceal, join_namespace, prctl

_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 15, 36
_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)
_CLONE_NEWNET = 0x40000000
ENDED_FROM_OUTSIDE = os.EX_TEMPFAIL
"""The exit code of a node of which a process was killed: started again, it goes on."""


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


def own_python(module: str, *arguments: str) -> list[str]:
    """The command of a fresh Python that calls ``main(*arguments)`` of a module, with packages where this one has them:
    instead of a fork, where that would inherit too much, or another's threads."""
    count = 1 + len(arguments)
    program = f"import sys; sys.path[:] = sys.argv[{count}:]; from {module} import main; main(*sys.argv[1:{count}])"
    return [sys.executable, "-c", program, *arguments, *sys.path]


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

    Exit codes: 0, the target's own SystemExit, 1 for an error that a user can cause, 69 (EX_UNAVAILABLE) where
    the sandbox cannot be had, which is said, and 70 (EX_SOFTWARE) for a bug of ours, which alone prints a
    traceback.
    """
    code = 1
    try:
        # What the parent forgot is never collected here: a socket or file among it would close a number that this
        # process may have closed itself, and given to something else.
        gc.freeze()
        harden()
        target(*arguments)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except SandboxError as error:
        print(f"wardtree: {error}", file=sys.stderr)
        code = EXIT_UNAVAILABLE
    except (KeyboardInterrupt, WardtreeError):
        pass
    except (ChannelClosedError, BrokenPipeError, ConnectionResetError):
        pass  # the process at the other end is gone: all of a node's are being ended, and nobody is left to be told
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
    conceal()
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


def enter_network(name: str) -> None:
    """Go into a network namespace that ``ip netns add`` made; for root only."""
    descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        join_namespace(descriptor, _CLONE_NEWNET)
    finally:
        os.close(descriptor)


def reap(child: int) -> int:
    """Wait for a child; gives its exit code, or minus the signal that ended it."""
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def adopt_orphans() -> None:
    """Processes whose parent, a child of ours, dies become ours, so that :func:`see_end` waits for them too."""
    prctl(_PR_SET_CHILD_SUBREAPER, 1)


def see_end(child: int) -> tuple[int, int]:
    """Wait for a child, and for all that it left behind; these must be about to end.

    Returns:
        Its exit code as from :func:`reap`, and the most bytes that one of them ever had resident.
    """
    _, status, usage = os.wait4(child, 0)
    peak = usage.ru_maxrss
    with contextlib.suppress(ChildProcessError):
        while True:
            peak = max(peak, os.wait4(-1, 0)[2].ru_maxrss)
    return os.waitstatus_to_exitcode(status), 1024 * peak


def describe(error: BaseException) -> str:
    """An exception's type and place, without its message: that may quote data.

    The place is the last line that is neither Python's nor a package's: there somebody can do something.
    """
    frames = traceback.extract_tb(error.__traceback__)
    libraries = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    own = [frame for frame in frames if not frame.filename.startswith((*libraries, "<"))]
    place = "".join(f" at {os.path.basename(frame.filename)}:{frame.lineno}" for frame in (own or frames)[-1:])
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
