"""One connection that we dial: a DEALER and the monitor of its handshakes, dialled again when it was refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from node.address import is_ipv6
from node.connections import Connections

REDIAL_SECONDS = 1.0
PATIENT_FAILURES = 5

KEY_REFUSED, HANDSHAKE_REFUSED = "our key", "the handshake"
"""The other side told us, by ZAP's answer, that it does not know our key; or it understood nothing and hung up, as when
it has another key than we think."""

ENDED = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED
_MONITORED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_CONNECTED
    | ENDED
)

Log = Callable[[str, str, str], None]
Configure = Callable[[Any], None]


@dataclass(frozen=True)
class Peer:
    """A party as the network sees it."""

    name: str
    curve_key: bytes
    endpoint: str | None


class Line:
    """See above."""

    def __init__(
        self,
        context: zmq.Context[Any],
        poller: zmq.Poller,
        peer: Peer,
        configure: Configure,
        connections: Connections,
        log: Log,
    ) -> None:
        self._context, self._poller, self._peer, self._configure = context, poller, peer, configure
        self._connections, self._log = connections, log
        self._descriptor = -1
        self._failures = 0
        self.refusal: str | None = None
        self._open()

    def _open(self) -> None:
        self.socket = self._context.socket(zmq.DEALER)
        self._configure(self.socket)
        self.socket.curve_serverkey = z85.encode(self._peer.curve_key)
        self.socket.immediate = True
        self.monitor = self.socket.get_monitor_socket(_MONITORED)
        self.socket.ipv6 = is_ipv6(self._peer.endpoint or "")
        self.socket.connect(f"tcp://{self._peer.endpoint}")
        self.redial_at: float | None = None
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self.monitor, zmq.POLLIN)

    def close(self, linger: int = 0) -> None:
        self._poller.unregister(self.socket)
        self._poller.unregister(self.monitor)
        self._connections.forget(self._descriptor)
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger)

    def redial_if_due(self) -> None:
        """After a refusal ZeroMQ may never try again, so we do."""
        if self.redial_at is not None and time.monotonic() >= self.redial_at:
            self.close()
            self._open()

    def has_connected(self) -> bool:
        """Follow the handshakes; whether one succeeded."""
        connected = False
        while self.monitor.poll(0):
            event: Any = parse_monitor_message(self.monitor.recv_multipart())
            if event["event"] == zmq.EVENT_CONNECTED:
                self._descriptor = event["value"]
                self._connections.opened(self._descriptor, self._peer.name)
                continue
            if event["event"] & ENDED:
                self._connections.closed(event["value"])
                continue
            if event["event"] == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                connected, self.refusal = True, None
                continue
            known = event["event"] == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            self.refusal = KEY_REFUSED if known else HANDSHAKE_REFUSED
            self.redial_at = time.monotonic() + REDIAL_SECONDS
            self._failures += 1
            # Without detail it may be a parent that is just starting or ending; a wrong key looks the same.
            if event["event"] != zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL or self._failures == PATIENT_FAILURES:
                self._log(self._peer.name, "a CURVE handshake", "a refusal: do both sides have one manifest?")
        self._failures = 0 if connected else self._failures
        return connected
