"""ZeroMQ sockets with CURVE: the only module that touches a network.

A node that listens binds one ROUTER, and dials those above it with one DEALER each. Who may connect is decided
by the manifest's CURVE keys alone (ZAP, a named domain that fails closed); who is speaking is the key that
the handshake proved, never the routing id, which the peer picks. What a connection may hold of us before we
can see it is limited in ``connections.py``.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import zmq
from nacl.public import PrivateKey
from zmq.auth.base import Authenticator
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from keys.errors import WardtreeError
from node.address import is_ipv6
from node.connections import Connections
from node.line import ENDED, Line, Log, Peer

DOMAIN = "wardtree"
HANDSHAKE_MS, CONNECT_MS = 5_000, 3_000
DEAD_SECONDS = 15
"""After so long without a sign of life the kernel closes a connection. ZeroMQ's own heartbeats are off: libzmq 4.3.5
aborts the process (``!_io_error``) when a peer fills our queue, hangs up, and a heartbeat is due."""

REFUSED = b"wardtree: another node with your identity is connected"
LOOK_SECONDS = 0.1
"""So often we look at what came over connections, while something does, whether or not it makes a message: between two
looks a peer can fill as much memory as its link carries."""
QUIET_LOOK_SECONDS = 1.0
"""While nothing comes: the kernel tells when something does, but not of a descriptor that libzmq closed by itself."""

MOST_PARTS = 4
"""Of a message: the route at a ROUTER, a link's header, and its item of two."""

MOST_MESSAGES, MOST_BYTES = 64, 8 << 20
"""Taken from one socket in one turn, so that others have theirs; bytes are counted after a message."""

UNREAD_MESSAGES = 8
"""Of the largest size, that one connection may have under way: an honest peer's credit is for less."""


class TransportError(WardtreeError):
    """The network does not let this node do what it must."""


@dataclass
class Traffic:
    """Bytes of messages, by neighbour."""

    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    def count(self, table: dict[str, int], peer: str, parts: Iterable[bytes]) -> None:
        table[peer] = table.get(peer, 0) + sum(map(len, parts))


class _AllowList:
    """pyzmq's credentials provider: a key is let in if it is on the manifest."""

    def __init__(self, names: Mapping[bytes, str], log: Log) -> None:
        self._names, self._log = names, log

    def callback(self, domain: str, key: bytes) -> bool:
        if key in self._names:
            return True
        self._log(f"key {key.decode()}", "a CURVE key of the manifest", "a stranger's")
        return False


class Transport:
    """The sockets of one node. Not thread-safe; everything happens in :meth:`poll`."""

    def __init__(
        self, curve_secret: bytes, roster: Iterable[Peer], bind: str | None, log: Log, max_message: int
    ) -> None:
        """Bind.

        Args:
            curve_secret: this node's X25519 secret, 32 bytes.
            roster: every party that may connect or be dialled.
            bind: ``host:port``, None for a node that only dials out.
            log: called with who, what was expected, what came, for everything refused.
            max_message: bytes of one part of a message; a peer that sends more is disconnected.

        Raises:
            TransportError: the port is in use, or the address is not ours.
        """
        self._roster = {peer.name: peer for peer in roster}
        self._names = {z85.encode(peer.curve_key): peer.name for peer in self._roster.values()}
        self._log = log
        keys = z85.encode(bytes(PrivateKey(curve_secret).public_key)), z85.encode(curve_secret)
        self._configure = partial(_configure, keys=keys, max_message=max_message)
        self.traffic = Traffic()
        self._look_due = 0.0
        self._context = zmq.Context()
        self._poller = zmq.Poller()
        self._authenticator = Authenticator(self._context)
        self._authenticator.start()
        self._authenticator.configure_curve_callback(DOMAIN, _AllowList(self._names, log))
        zap = self._authenticator.zap_socket
        assert zap is not None
        self._zap: zmq.Socket[bytes] = zap
        self._poller.register(self._zap, zmq.POLLIN)
        self._routes: dict[str, bytes] = {}
        self._connections = Connections(log, UNREAD_MESSAGES * max_message)
        self._monitor: zmq.Socket[bytes] | None = None
        self._router = self._bind(bind) if bind else None
        self._lines: dict[str, Line] = {}

    def dial(self, name: str) -> None:
        """Connect to a party of the roster, and again whenever the connection breaks."""
        self._lines[name] = Line(
            self._context, self._poller, self._roster[name], self._configure, self._connections, self._log
        )

    def hang_up(self, name: str) -> None:
        """Close the connection that we dialled; what is queued has a moment to leave."""
        line = self._lines.pop(name, None)
        if line:
            line.close(linger=500)

    def refusal(self, name: str) -> str | None:
        """How a party that we dial refused the last handshake, :data:`KEY_REFUSED` or :data:`HANDSHAKE_REFUSED`; None
        if it did not."""
        return self._lines[name].refusal

    def forget(self, name: str) -> None:
        """A party that dialled us said goodbye: its next connection is not a second one."""
        self._routes.pop(name, None)

    # ---- sending and receiving --------------------------------------------------------------------------

    def watch(self, descriptor: int) -> None:
        """Report this descriptor from :meth:`poll` when it is readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)

    def send(self, peer: str, parts: list[bytes]) -> bool:
        """Hand a message to the sockets. False when the peer is not connected: its link sends it again."""
        try:
            if peer in self._lines:
                self._lines[peer].socket.send_multipart(parts, zmq.NOBLOCK)
            elif self._router and peer in self._routes:
                self._router.send_multipart([self._routes[peer], *parts], zmq.NOBLOCK)
            else:
                return False
        except zmq.ZMQError:  # EAGAIN: not connected; EHOSTUNREACH: the route is gone
            return False
        self.traffic.count(self.traffic.sent, peer, parts)
        return True

    def poll(self, seconds: float | None) -> tuple[list[tuple[str, list[bytes]]], set[int], list[str]]:
        """Wait for what happens next, at most ``seconds``.

        Returns:
            Messages as (peer, parts); readable descriptors; the parties to whom a connection was made.
        """
        now = time.monotonic()
        waits = [self._look_due - now] if seconds is None else [self._look_due - now, seconds]
        waits += [line.redial_at - now for line in self._lines.values() if line.redial_at is not None]
        ready = dict(self._poller.poll(max(0, int(min(waits) * 1000) + 1)))
        messages: list[tuple[str, list[bytes]]] = []
        if self._zap in ready:
            self._authenticate()
        if self._monitor in ready:
            self._follow_callers()
        connected = [name for name, line in self._lines.items() if line.monitor in ready and line.has_connected()]
        if self._router in ready:
            messages += self._drain_router()
        for name, line in self._lines.items():
            if line.socket in ready:
                for descriptor, frames in _receive(line.socket):
                    self._connections.heard(descriptor, name)
                    messages.append((name, [frame.bytes for frame in frames]))
            line.redial_if_due()
        self._look_at_connections(ready.pop(self._connections.descriptor, 0) != 0)
        for peer, parts in messages:
            self.traffic.count(self.traffic.received, peer, parts)
        return messages, {fd for fd in ready if isinstance(fd, int)}, connected

    def _look_at_connections(self, has_news: bool) -> None:
        now = time.monotonic()
        if has_news:
            self._poller.unregister(self._connections.descriptor)
            self._look_due = min(self._look_due, now + LOOK_SECONDS)
        if now >= self._look_due:
            if self._connections.look():
                self._look_due = now + LOOK_SECONDS
            else:
                self._poller.register(self._connections.descriptor, zmq.POLLIN)
                self._look_due = now + QUIET_LOOK_SECONDS

    def close(self) -> None:
        """Close everything; what is queued has a moment to leave."""
        if self._router and self._monitor:
            self._follow_callers()  # or its thread may wait for us to read, and we for it to end
            self._router.disable_monitor()
            self._monitor.close(0)
            self._router.close(linger=500)
        for name in list(self._lines):
            self.hang_up(name)
        self._connections.close()
        self._authenticator.stop()
        self._context.term()

    def _drain_router(self) -> list[tuple[str, list[bytes]]]:
        assert self._router is not None
        messages = []
        for descriptor, frames in _receive(self._router):
            peer = self._names.get(str(frames[-1].get("User-Id")).encode())
            if peer is None:
                continue
            self._connections.heard(descriptor, peer)
            if self._is_current(peer, frames[0].bytes):
                messages.append((peer, [frame.bytes for frame in frames[1:]]))
        return messages

    def _is_current(self, peer: str, route: bytes) -> bool:
        """Whether this connection speaks for the peer. A second one does only when the first is gone."""
        known = self._routes.get(peer)
        if known is not None and known != route:
            assert self._router is not None
            try:
                self._router.send_multipart([known, b""], zmq.NOBLOCK)
            except zmq.ZMQError:
                pass  # EHOSTUNREACH: the old connection is closed
            else:
                self._log(peer, "one connection for one identity", "a second node with it")
                with contextlib.suppress(zmq.ZMQError):  # it has gone again, or reads nothing
                    self._router.send_multipart([route, REFUSED], zmq.NOBLOCK)
                return False
        self._routes[peer] = route
        return True

    # ---- sockets ----------------------------------------------------------------------------------------

    def _bind(self, address: str) -> zmq.Socket[bytes]:
        router = self._context.socket(zmq.ROUTER)
        self._configure(router)
        router.curve_server = True
        router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN.encode())
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        router.router_mandatory = True
        router.ipv6 = is_ipv6(address)
        try:
            router.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            router.close()
            self._authenticator.stop()
            self._context.term()  # left to the garbage collector, it would wait for ever for the ZAP socket
            raise TransportError(f"cannot listen on {address}: {zmq.strerror(error.errno or 0)}") from error
        self._poller.register(router, zmq.POLLIN)
        router.monitor(f"inproc://callers-{id(self)}", zmq.EVENT_ACCEPTED | ENDED)
        self._monitor = self._context.socket(zmq.PAIR)
        self._monitor.rcvhwm = 0  # with a limit, a flood of connections would stop libzmq's own thread
        self._monitor.connect(f"inproc://callers-{id(self)}")
        self._poller.register(self._monitor, zmq.POLLIN)
        return router

    def _follow_callers(self) -> None:
        """Keep track of the connections that others made."""
        assert self._monitor is not None
        while self._monitor.poll(0):
            event: Any = parse_monitor_message(self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_ACCEPTED:
                self._connections.opened(event["value"])
            else:
                self._connections.closed(event["value"])

    def _authenticate(self) -> None:
        """Answer ZAP requests in our own loop: the handler is a coroutine that never waits."""
        for _ in range(MOST_MESSAGES):
            if not self._zap.poll(0):
                return
            handler = self._authenticator.handle_zap_message(self._zap.recv_multipart())
            try:
                handler.send(None)
            except StopIteration:
                continue
            raise RuntimeError("the ZAP handler waits for something")


def _configure(socket: zmq.Socket[bytes], keys: tuple[bytes, bytes], max_message: int) -> None:
    socket.curve_publickey, socket.curve_secretkey = keys
    socket.maxmsgsize = max_message
    socket.handshake_ivl = HANDSHAKE_MS
    socket.connect_timeout = CONNECT_MS
    socket.tcp_keepalive, socket.tcp_keepalive_cnt = 1, 2
    socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = DEAD_SECONDS // 3
    socket.tcp_maxrt = 1000 * DEAD_SECONDS
    # What a peer sends without credit waits in its own process, not here.
    socket.sndhwm, socket.rcvhwm = 64, 16
    socket.linger = 0
    socket.reconnect_ivl, socket.reconnect_ivl_max = 100, 2_000


def _receive(socket: zmq.Socket[bytes]) -> Iterator[tuple[int, list[zmq.Frame]]]:
    """What waits at a socket, with the descriptor that it came over. Of a message with too many parts only so
    many that it is seen to have too many."""
    taken = 0
    for _ in range(MOST_MESSAGES):
        try:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        frames = [frame]
        while frame.more:
            frame = socket.recv(zmq.NOBLOCK, copy=False)
            if len(frames) <= MOST_PARTS:
                frames.append(frame)
        yield int(frame.get(zmq.SRCFD)), frames
        taken += sum(map(len, frames))
        if taken > MOST_BYTES:
            return
