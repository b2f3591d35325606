"""Landlock: which files and TCP ports a process, and all that it will fork, may still reach.

Rights and versions ("ABI") as in linux/landlock.h and Documentation/userspace-api/landlock.rst. Every right
that the kernel knows is denied, then a few are given back.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntFlag
from pathlib import Path

from node.sandbox.kernel import SandboxError, prctl, syscall

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers on every architecture
_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2
_BIND, _CONNECT = 1, 2
_NO_ABSTRACT_SOCKETS, _NO_SIGNALS = 1, 2
_PR_SET_NO_NEW_PRIVS = 38
NEWEST = 7
"""The newest version that is used here; a newer kernel keeps it."""
TRUNCATE_FROM, PORTS_FROM, SCOPES_FROM = 3, 4, 6


class Right(IntFlag):
    """Rights over files, by the bits of ``LANDLOCK_ACCESS_FS_*``."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13  # from version 2
    TRUNCATE = 1 << 14  # from version 3
    IOCTL_DEV = 1 << 15  # from version 5


LIST = Right.READ_DIR
READ = Right.READ_FILE | Right.READ_DIR
WRITE = READ | Right.WRITE_FILE | Right.TRUNCATE
REPLACE = WRITE | Right.MAKE_REG | Right.MAKE_DIR | Right.REMOVE_FILE | Right.REFER
_OF_A_FILE = Right.EXECUTE | Right.WRITE_FILE | Right.READ_FILE | Right.TRUNCATE | Right.IOCTL_DEV


@dataclass(frozen=True)
class Reach:
    """What stays within reach.

    Attributes:
        list: folders whose names, and those of the folders below, may be listed.
        read: files and folders, with all below.
        write: existing files, to be read and written.
        replace: folders, in which files and folders may be made, written and removed.
        bind, connect: TCP ports, at any address.
        signals: whether processes outside may be signalled, where system calls decide it more finely.
    """

    list: tuple[Path, ...] = ()
    read: tuple[Path, ...] = ()
    write: tuple[Path, ...] = ()
    replace: tuple[Path, ...] = ()
    bind: tuple[int, ...] = ()
    connect: tuple[int, ...] = ()
    signals: bool = False


def landlock_version() -> int:
    """The kernel's version of Landlock, at most :data:`NEWEST`; 0 where there is none, or it is off.

    Asked by the system call: what securityfs lists is not mounted everywhere.
    """
    try:
        return min(syscall(_CREATE, None, 0, _VERSION), NEWEST)
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EOPNOTSUPP):
            return 0
        raise SandboxError(f"Landlock: asked for it, the kernel answered: {os.strerror(error.errno or 0)}") from error


def restrict(reach: Reach, version: int) -> None:
    """Confine this thread and all that it forks. A second time narrows the first.

    Args:
        reach: paths that do not exist are left out.
        version: of the kernel's Landlock, from 1.

    Raises:
        SandboxError: the kernel refused.
    """
    rights = Right((1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1)
    ports = _BIND | _CONNECT if version >= PORTS_FROM else 0
    scopes = _NO_ABSTRACT_SOCKETS | (0 if reach.signals else _NO_SIGNALS) if version >= SCOPES_FROM else 0
    attributes = struct.pack("=QQQ", rights, ports, scopes)
    # A kernel takes a longer struct than its own if the rest is 0, and it is.
    with _naming(), _open(syscall(_CREATE, attributes, len(attributes), 0)) as ruleset:
        for paths, granted in (
            (reach.list, LIST),
            (reach.read, READ),
            (reach.write, WRITE),
            (reach.replace, REPLACE),
        ):
            for path in paths:
                _allow_path(ruleset, path, granted & rights)
        for numbers, access in ((reach.bind, _BIND), (reach.connect, _CONNECT)):
            for port in numbers if ports else ():
                syscall(_ADD, ruleset, _NET_PORT, struct.pack("=QQ", access, port), 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1)
        syscall(_RESTRICT, ruleset, 0)


def _allow_path(ruleset: int, path: Path, rights: Right) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return
    with _open(descriptor):
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _OF_A_FILE
        if rights:
            syscall(_ADD, ruleset, _PATH_BENEATH, struct.pack("=Qi", rights, descriptor), 0)


@contextmanager
def _open(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _naming() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SandboxError(f"Landlock: the kernel refused the rules: {os.strerror(error.errno or 0)}") from error


def covers(paths: Iterable[Path], path: Path) -> bool:
    """Whether a path is one of some, or lies below one."""
    return any(path == each or each in path.parents for each in paths)
