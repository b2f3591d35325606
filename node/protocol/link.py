"""One link between two neighbours: in order, exactly once, never faster than the receiver consumes.

ZeroMQ loses messages without an error when a connection breaks or a peer restarts, and its queues
count messages, not what their reader can hold. So every item carries a sequence number, is kept until
its receipt is known, is sent again after a reconnection, and waits for credit. Pure: wires in, wires
out. What a wire says is protected by CURVE alone; the frames inside are signed.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

HELLO, DATA, CREDIT = 1, 2, 3
_HEADER = struct.Struct(">BQQIII")
_ITEMS = {HELLO: 1, DATA: 2, CREDIT: 0}

Item = tuple[bytes, ...]


@dataclass(frozen=True)
class Wire:
    """What goes over the socket: a fixed header of 29 bytes, and an item when it is DATA or HELLO.

    ``session`` is drawn at the start of a process, ``peer`` is the other side's (0: not known yet);
    ``sequence`` counts DATA from 1, and in a HELLO 0 asks for an answer; ``received`` is the last
    sequence number that arrived from ``peer``, ``limit`` the last one it may send. A HELLO has one item of one
    part, a greeting that means nothing here: whoever owns the links compares it before it hands the wire on.
    """

    kind: int
    session: int
    peer: int
    sequence: int
    received: int
    limit: int
    item: Item = ()

    def parts(self) -> list[bytes]:
        head = _HEADER.pack(self.kind, self.session, self.peer, self.sequence, self.received, self.limit)
        return [head, *self.item]

    @classmethod
    def parse(cls, parts: list[bytes]) -> Wire | None:
        """The wire in a multipart message, or None when it is none."""
        if not parts or len(parts[0]) != _HEADER.size:
            return None
        kind, session, peer, sequence, received, limit = _HEADER.unpack(parts[0])
        wire = cls(kind, session, peer, sequence, received, limit, tuple(parts[1:]))
        return wire if _ITEMS.get(kind) == len(wire.item) else None


class Link:
    """Our side of the link to one neighbour."""

    def __init__(self, session: int, window: int, greeting: bytes = b"") -> None:
        self.session = session
        self.window = window
        self.greeting = greeting
        self.peer_session: int | None = None
        self._outbox: deque[tuple[int, Item]] = deque()
        self._last_queued = 0
        self._last_sent = 0
        self._limit = 0
        self._received = 0
        self._consumed = 0

    @property
    def pending(self) -> int:
        """Items of ours that the neighbour has not consumed yet."""
        return self._last_queued - max(self._limit - self.window, 0) if self.peer_session else self._last_queued

    @property
    def flushed(self) -> bool:
        return not self._outbox

    def hello(self) -> Wire:
        """To be sent whenever a connection is made; the other side answers with its own state."""
        return self._wire(HELLO)

    def send(self, item: Item) -> list[Wire]:
        """Queue an item; gives what may go out now."""
        self._last_queued += 1
        self._outbox.append((self._last_queued, item))
        return self._flow()

    def receive(self, wire: Wire) -> tuple[list[Item], list[Wire]]:
        """Take a wire from the neighbour: items to deliver, wires to send."""
        replies: list[Wire] = []
        if wire.session != self.peer_session:
            if wire.kind != HELLO:
                return [], []  # a session is introduced first: its numbering is not known
            self.peer_session = wire.session
            self._consumed -= self._received  # what its predecessor left unconsumed still takes up the window
            self._received = 0
            self._renumber()
        knows_us = wire.peer == self.session
        if wire.kind == HELLO and (wire.sequence == 0 or not knows_us):
            replies.append(self._wire(HELLO, sequence=int(knows_us)))
        if knows_us:  # else it speaks of a predecessor of ours
            if wire.kind == HELLO:  # what was sent and not received is lost: go back to it
                self._last_sent = min(self._last_sent, wire.received)
            self._limit = max(self._limit, wire.limit)
            while self._outbox and self._outbox[0][0] <= wire.received:
                self._outbox.popleft()
        items: list[Item] = []
        if wire.kind == DATA and wire.sequence == self._received + 1 <= self._consumed + self.window:
            self._received += 1
            items.append(wire.item)
        return items, replies + self._flow()

    def consumed(self) -> list[Wire]:
        """One delivered item is done with: the neighbour may send one more."""
        self._consumed += 1
        return [self._wire(CREDIT)]

    def _flow(self) -> list[Wire]:
        if self.peer_session is None:
            return []
        wires = []
        for sequence, item in self._outbox:
            if self._last_sent < sequence <= self._limit:
                wires.append(self._wire(DATA, sequence, item))
                self._last_sent = sequence
        return wires

    def _renumber(self) -> None:
        """A new session at the other side counts from one: so do we, with what it has not received."""
        items = [item for _, item in self._outbox]
        self._outbox = deque(enumerate(items, start=1))
        self._last_queued, self._last_sent, self._limit = len(items), 0, 0

    def _wire(self, kind: int, sequence: int = 0, item: Item = ()) -> Wire:
        limit = self._consumed + self.window
        item = (self.greeting,) if kind == HELLO else item
        return Wire(kind, self.session, self.peer_session or 0, sequence, self._received, limit, item)
