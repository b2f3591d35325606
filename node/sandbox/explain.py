"""Which rule of the sandbox a task ran into: a refused system call is only an ``OSError`` to who made it."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from node.sandbox.landlock import Reach, covers

RULES = {
    "network": "an enclave has no network, not even a socket",
    "processes": "an enclave starts no process and no program; threads it may",
    "reading": "an enclave reads what node.toml names under [data] or [sandbox] read, and its task; nothing else",
    "writing": "an enclave writes nowhere, not even temporary files; what it returns is what leaves it",
    "other": "an enclave reads its data, computes, and returns its result; the kernel refuses all else",
}
"""What a task may not do, by the name of the rule."""

_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_EVENTS = {
    **dict.fromkeys(("socket.__new__", "socket.getaddrinfo", "socket.gethostbyname"), "network"),
    **dict.fromkeys(
        ("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen"), "processes"
    ),
    **dict.fromkeys(("os.listdir", "os.scandir"), "reading"),
    **dict.fromkeys(
        (
            *("os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate"),
            *("os.chmod", "os.chown", "os.utime", "os.setxattr", "os.removexattr"),
        ),
        "writing",
    ),
}


class Witness:
    """Remembers the last things that Python code asked the operating system for, so that an error can be told."""

    def __init__(self, reach: Reach | None) -> None:
        """``reach``: what the enclave may read; None: it is not confined, and no error is the sandbox's."""
        self._reach = reach
        self._seen: deque[tuple[str, str]] = deque(maxlen=64)

    def watch(self) -> None:
        """From now on, for as long as this process lives."""
        if self._reach:
            sys.addaudithook(self._hear)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        rule = _EVENTS.get(event)
        if event == "open":
            rule = "writing" if (arguments[2] or 0) & _WRITES else "reading"
        if rule:
            self._seen.append((rule, str(arguments[0]) if arguments else ""))

    def rule(self, error: BaseException) -> str | None:
        """The rule that an exception, or one that it came from, ran into; None if it is none of the sandbox's.

        Quotes nothing: a path that a task made up may hold a patient's name.
        """
        if not self._reach:
            return None
        seen = list(reversed(self._seen))
        for each in _chain(error):
            if isinstance(each, socket.gaierror):
                return RULES["network"]
            if not isinstance(each, OSError) or each.errno not in _REFUSALS:
                continue
            name = None if each.filename is None else str(each.filename)
            rule = next(
                (rule for rule, path in seen if path == name or (name is None and rule in ("network", "processes"))),
                "other",
            )
            if name and rule == "reading" and covers(self._reach.read, Path(name).resolve()):
                return None  # the file's own permissions
            return RULES[rule]
        return None

    def refusal(self, error: BaseException) -> str:
        """What a message about an exception ends with: the rule that it ran into, or nothing."""
        rule = self.rule(error)
        return f"; refused by the sandbox: {rule}" if rule else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those during whose handling it was raised."""
    met: set[int] = set()
    following: BaseException | None = error
    while following is not None and id(following) not in met:
        met.add(id(following))
        yield following
        following = following.__cause__ or following.__context__
