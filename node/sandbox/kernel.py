"""The few kernel interfaces that Python's library does not have, through ctypes."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

from keys.errors import WardtreeError

EXIT_UNAVAILABLE = os.EX_UNAVAILABLE
"""69: the exit code where the sandbox that the manifest asks for cannot be had on this machine."""

_PR_SET_SECCOMP, _MODE_FILTER, _PR_CAPBSET_DROP, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 22, 2, 24, 47, 4
_PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 4, 38
_CAPABILITY_VERSION = 0x20080522
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_PERTURB = -1, -3, -6
_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class SandboxError(WardtreeError):
    """A room cannot be confined as it must be; the text names the part of the kernel and what to do."""


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Make a system call. Raises OSError."""
    made = [ctypes.c_char_p(a) if a is None or isinstance(a, bytes) else ctypes.c_long(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *made))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def prctl(option: int, value: int, *more: int) -> int:
    """``prctl``. Raises OSError."""
    arguments = (value, *more, 0, 0, 0)[:4]
    result = int(_libc.prctl(option, *map(ctypes.c_ulong, arguments)))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}: {os.strerror(ctypes.get_errno())}")
    return result


def conceal() -> None:
    """No dumping or tracing by others of this user, and no new privileges, for this process and its children."""
    prctl(_PR_SET_DUMPABLE, 0)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)


def join_namespace(descriptor: int, kind: int) -> None:
    """``setns``. Raises OSError."""
    if _libc.setns(descriptor, kind) < 0:
        raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")


def has_seccomp() -> bool:
    """Whether the kernel filters system calls."""
    try:
        prctl(_PR_SET_SECCOMP, _MODE_FILTER, 0)
    except OSError as error:
        return error.errno == errno.EFAULT  # it would have read a filter, had there been one
    return False


def drop_capabilities() -> None:
    """Give up every privilege that root, or whoever started us, has beyond an ordinary user's.

    Raises:
        OSError: the kernel refused.
    """
    prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            prctl(_PR_CAPBSET_DROP, capability)
        except OSError as error:
            if error.errno == errno.EINVAL:  # beyond the last one that this kernel knows
                break
            if error.errno != errno.EPERM:  # an ordinary user has none to drop
                raise
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    if _libc.capset(header, bytes(24)) < 0:
        raise OSError(ctypes.get_errno(), "capset")


def wipe_freed_memory() -> None:
    """Overwrite what malloc frees, and give large blocks back to the kernel at once: the second layer of wiping.

    The first is that a room's process ends. Another C library than glibc has no such options; nothing is lost.
    Blocks below the threshold are kept, overwritten, for the next: SEAL takes and frees 2 MB with every object that it
    saves, and pages that come and go each time made that six times as slow.
    """
    for option, value in ((_M_PERTURB, 165), (_M_TRIM_THRESHOLD, 1 << 24), (_M_MMAP_THRESHOLD, 1 << 23)):
        mallopt = getattr(_libc, "mallopt", None)
        if mallopt is not None:
            mallopt(option, value)
