"""The TCP connections behind the sockets: who says too much of what never ends, and strangers who say nothing.

ZeroMQ hands out whole messages only. Until the last part of one has come, all others wait inside of it, and
none of its limits counts them: a peer could fill our memory with one message. So the bytes that came over
each connection since its last whole message are counted, from the kernel's own figures, and who exceeds
what an honest peer can have under way is disconnected. No ZeroMQ here; descriptors come from its monitors.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from node.address import neighbourhood, plain

MOST_STRANGERS = 64
"""Connections over which nothing was said yet."""

MOST_PER_PARTY = 4
"""Connections with the key of one party: its present one, and what is left of those before."""

_ESTABLISHED = 1
_INFO_BYTES = 136
_RECEIVED = struct.Struct("=128xQ")  # struct tcp_info, tcpi_bytes_received; tcpi_state is the first byte

_HANDSHAKE = ("a CURVE handshake", "something else")
_MESSAGES = ("messages of the agreed size, and signs of life", "neither")

Log = Callable[[str, str, str], None]


@dataclass
class Connection:
    """A second descriptor of a connection's socket, ours to close: libzmq closes its own."""

    socket: socket.socket
    host: str
    name: str | None
    heard: bool = False
    read: int = 0  # bytes that had come when its last whole message was seen
    came: int = 0  # bytes that had come at the last look

    @property
    def who(self) -> str:
        return self.name or f"a connection from {self.host}"

    def info(self) -> tuple[int, int]:
        """The connection's state, and the bytes that ever came over it."""
        data = self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
        return data[0], _RECEIVED.unpack(data)[0]

    def end(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)


class Connections:
    """All of one node's, by libzmq's descriptor."""

    def __init__(self, log: Log, most_unread: int) -> None:
        """``most_unread``: bytes of unfinished messages that one connection may have here."""
        self._log, self._most_unread = log, most_unread
        self._all: dict[int, Connection] = {}
        self._news = select.epoll()

    @property
    def descriptor(self) -> int:
        """Readable when something came over a connection since the last look."""
        return self._news.fileno()

    def opened(self, descriptor: int, name: str | None = None) -> None:
        """A connection was made: accepted, or by us to the party ``name``."""
        self.forget(descriptor)
        try:
            copy = socket.socket(fileno=os.dup(descriptor))
        except OSError:
            self._log(name or "a connection", *_HANDSHAKE)  # libzmq ended it before we looked
            return
        try:
            host = plain(str(copy.getpeername()[0]))
        except OSError:
            self._log(name or "a connection", *_HANDSHAKE)
            copy.close()
            return
        self._all[descriptor] = Connection(copy, host, name)
        self._news.register(copy, select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET)
        if name is None:
            self._limit_strangers()

    def heard(self, descriptor: int, name: str) -> None:
        """A whole message came from a party."""
        connection = self._all.get(descriptor)
        if connection is None:
            return
        connection.heard = True
        if connection.name is None:
            connection.name = name
            if sum(other.name == name for other in self._all.values()) > MOST_PER_PARTY:
                self._log(name, f"at most {MOST_PER_PARTY} connections of one party", "one more")
                connection.end()

    def closed(self, descriptor: int) -> None:
        """libzmq let a connection go. Unless the other side ended it, that one is to blame."""
        connection = self._all.get(descriptor)
        if connection is not None:
            if connection.info()[0] == _ESTABLISHED:
                self._log(connection.who, *(_MESSAGES if connection.name else _HANDSHAKE))
            self.forget(descriptor)

    def forget(self, descriptor: int) -> None:
        """We end a connection ourselves."""
        connection = self._all.pop(descriptor, None)
        if connection is not None:
            self._news.unregister(connection.socket)  # closing our copy alone would leave libzmq's there
            connection.socket.close()

    def close(self) -> None:
        for descriptor in list(self._all):
            self.forget(descriptor)
        self._news.close()

    def look(self) -> bool:
        """Disconnect who has more under way than it may. Gives whether anything came since the last look: while
        something comes this is to be called often, and else when :attr:`descriptor` is readable."""
        self._news.poll(0)  # what comes from here on is news again
        is_busy = False
        for descriptor, connection in list(self._all.items()):
            _, came = connection.info()
            is_busy |= came != connection.came
            connection.came = came
            if not _is_same(descriptor, connection.socket):
                self.closed(descriptor)  # libzmq's word of it may come later, or never
            elif connection.heard:
                connection.heard, connection.read = False, came
            elif came - connection.read > self._most_unread:
                expected = f"an end to its message after {self._most_unread} bytes"
                self._log(connection.who, expected, f"{came - connection.read} without")
                connection.end()
        return is_busy

    def _limit_strangers(self) -> None:
        """The oldest of whoever has most of them goes first, so that one flood leaves room for others."""
        strangers = [connection for connection in self._all.values() if connection.name is None]
        if len(strangers) > MOST_STRANGERS:
            ((busiest, _),) = Counter(neighbourhood(connection.host) for connection in strangers).most_common(1)
            oldest = next(connection for connection in strangers if neighbourhood(connection.host) == busiest)
            self._log(oldest.who, f"at most {MOST_STRANGERS} connections that say nothing", "one more")
            oldest.end()
            oldest.name = "a stranger"


def _is_same(descriptor: int, copy: socket.socket) -> bool:
    """Whether libzmq still has the connection: it tells of most ends, not of all."""
    try:
        return os.fstat(descriptor).st_ino == os.fstat(copy.fileno()).st_ino
    except OSError:
        return False
