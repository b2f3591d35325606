"""ZeroMQ sockets with CURVE: the only module that touches a network.

A node binds one ROUTER for its children and dials its parent with one DEALER. Who may connect is decided
by the manifest's CURVE keys alone (ZAP, a named domain that fails closed); who is speaking is the key that
the handshake proved, never the routing id, which the peer picks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import zmq
from nacl.public import PrivateKey
from zmq.auth.base import Authenticator
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from keys.errors import WardtreeError

DOMAIN = "wardtree"
HANDSHAKE_MS, HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS = 5_000, 5_000, 15_000
REDIAL_SECONDS = 1.0
PATIENT_FAILURES = 5
_MONITORED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)

Log = Callable[[str, str, str], None]


class TransportError(WardtreeError):
    """The network does not let this node do what it must."""


@dataclass(frozen=True)
class Peer:
    """A party as the network sees it."""

    name: str
    curve_key: bytes
    endpoint: str | None


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
        self,
        curve_secret: bytes,
        roster: Iterable[Peer],
        bind: str | None,
        parent: Peer | None,
        log: Log,
        max_message: int,
    ) -> None:
        """Bind and dial.

        Args:
            curve_secret: this node's X25519 secret, 32 bytes.
            roster: every party that may connect.
            bind: ``host:port`` for children, None for a node that has none.
            parent: whom to dial, None for the key holder.
            log: called with who, what was expected, what came, for everything refused.
            max_message: bytes of one part of a message; a peer that sends more is disconnected.

        Raises:
            TransportError: the port is in use, or the address is not ours.
        """
        self._names = {z85.encode(peer.curve_key): peer.name for peer in roster}
        self._log, self._parent, self._max_message = log, parent, max_message
        self._public = z85.encode(bytes(PrivateKey(curve_secret).public_key))
        self._secret = z85.encode(curve_secret)
        self.traffic = Traffic()
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
        self._peers: dict[bytes, str] = {}
        self._router = self._bind(bind) if bind else None
        self._dealer: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._redial_at: float | None = None
        self._failures = 0
        if parent:
            self._dial(parent)

    # ---- sending and receiving --------------------------------------------------------------------------

    def watch(self, descriptor: int) -> None:
        """Report this descriptor from :meth:`poll` when it is readable."""
        self._poller.register(descriptor, zmq.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        self._poller.unregister(descriptor)

    def send(self, peer: str, parts: list[bytes]) -> bool:
        """Hand a message to the sockets. False when the peer is not connected: its link sends it again."""
        to_parent = self._parent is not None and peer == self._parent.name
        try:
            if to_parent and self._dealer:
                self._dealer.send_multipart(parts, zmq.NOBLOCK)
            elif not to_parent and self._router and peer in self._routes:
                self._router.send_multipart([self._routes[peer], *parts], zmq.NOBLOCK)
            else:
                return False
        except zmq.ZMQError:  # EAGAIN: not connected; EHOSTUNREACH: the route is gone
            return False
        self.traffic.count(self.traffic.sent, peer, parts)
        return True

    def poll(self, seconds: float | None) -> tuple[list[tuple[str, list[bytes]]], set[int], bool]:
        """Wait for what happens next, at most ``seconds``.

        Returns:
            Messages as (peer, parts); readable descriptors; whether a connection to the parent was made.
        """
        if self._redial_at is not None:
            seconds = min(seconds if seconds is not None else REDIAL_SECONDS, REDIAL_SECONDS)
        ready = dict(self._poller.poll(None if seconds is None else max(0, int(seconds * 1000) + 1)))
        messages: list[tuple[str, list[bytes]]] = []
        if self._zap in ready:
            self._authenticate()
        connected = self._monitor in ready and self._watch_handshakes()
        for socket in (self._router, self._dealer):
            if socket in ready and socket is not None:
                messages += self._drain(socket)
        if self._redial_at is not None and time.monotonic() >= self._redial_at and self._parent:
            self._close_dealer()
            self._dial(self._parent)
        return messages, {fd for fd in ready if isinstance(fd, int)}, connected

    def close(self) -> None:
        """Close everything; what is queued has a moment to leave."""
        if self._router:
            self._router.close(linger=500)
        self._close_dealer(linger=500)
        self._authenticator.stop()
        self._context.term()

    def _drain(self, socket: zmq.Socket[bytes], most: int = 64) -> list[tuple[str, list[bytes]]]:
        messages = []
        for _ in range(most):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            parts = [frame.bytes for frame in frames]
            if socket is self._router:
                peer = self._names.get(str(frames[-1].get("User-Id")).encode())
                if peer is None or not self._is_current(peer, parts[0]):
                    continue
                parts = parts[1:]
            else:
                assert self._parent is not None
                peer = self._parent.name
            self.traffic.count(self.traffic.received, peer, parts)
            messages.append((peer, parts))
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
        try:
            router.bind(f"tcp://{address}")
        except zmq.ZMQError as error:
            router.close()
            self._authenticator.stop()
            self._context.term()  # left to the garbage collector, it would wait for ever for the ZAP socket
            raise TransportError(f"cannot listen on {address}: {zmq.strerror(error.errno or 0)}") from error
        self._poller.register(router, zmq.POLLIN)
        return router

    def _dial(self, parent: Peer) -> None:
        dealer = self._context.socket(zmq.DEALER)
        self._configure(dealer)
        dealer.curve_serverkey = z85.encode(parent.curve_key)
        dealer.immediate = True
        self._monitor = dealer.get_monitor_socket(_MONITORED)
        dealer.connect(f"tcp://{parent.endpoint}")
        self._dealer, self._redial_at = dealer, None
        self._poller.register(dealer, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def _configure(self, socket: zmq.Socket[bytes]) -> None:
        socket.curve_publickey, socket.curve_secretkey = self._public, self._secret
        socket.maxmsgsize = self._max_message
        socket.handshake_ivl = HANDSHAKE_MS
        socket.heartbeat_ivl, socket.heartbeat_timeout = HEARTBEAT_MS, HEARTBEAT_TIMEOUT_MS
        socket.sndhwm = socket.rcvhwm = 256
        socket.linger = 0
        socket.reconnect_ivl, socket.reconnect_ivl_max = 100, 2_000

    def _close_dealer(self, linger: int = 0) -> None:
        if self._dealer and self._monitor:
            self._poller.unregister(self._dealer)
            self._poller.unregister(self._monitor)
            self._dealer.disable_monitor()
            self._monitor.close(0)
            self._dealer.close(linger)
            self._dealer = self._monitor = None

    def _watch_handshakes(self) -> bool:
        """Follow the DEALER's handshakes: after a refusal ZeroMQ may never try again, so we do."""
        connected = False
        assert self._monitor is not None
        while self._monitor.poll(0):
            event: Any = parse_monitor_message(self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                connected = True
                continue
            self._redial_at = time.monotonic() + REDIAL_SECONDS
            self._failures += 1
            # Without detail it may be a parent that is just starting or ending; a wrong key looks the same.
            if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._failures == PATIENT_FAILURES:
                assert self._parent is not None
                self._log(self._parent.name, "a CURVE handshake", "a refusal: do both sides have one manifest?")
        self._failures = 0 if connected else self._failures
        return connected

    def _authenticate(self) -> None:
        """Answer ZAP requests in our own loop: the handler is a coroutine that never waits."""
        while self._zap.poll(0):
            handler = self._authenticator.handle_zap_message(self._zap.recv_multipart())
            try:
                handler.send(None)
            except StopIteration:
                continue
            raise RuntimeError("the ZAP handler waits for something")


REFUSED = b"wardtree: another node with your identity is connected"
