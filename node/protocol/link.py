"""One link between two neighbours: in order, exactly once, never faster than the receiver consumes.

ZeroMQ loses messages without an error when a connection breaks or a peer restarts, and its queues
count messages, not what their reader can hold. So every item carries a sequence number, is kept until
its receipt is known, is sent again after a reconnection, and waits for credit. Nothing outlives a session:
when a neighbour restarts, or gave us up, both sides begin anew, and the round machine says what is needed.
Pure: wires in, wires out. What a wire says is protected by CURVE alone; the frames inside are signed.
"""

from __future__ import annotations

import struct
from collections import deque
from dataclasses import dataclass

HELLO, DATA, CREDIT, BYE = 1, 2, 3, 4
_HEADER = struct.Struct(">BQQIII")
_ITEMS = {HELLO: 1, DATA: 2, CREDIT: 0, BYE: 0}

Item = tuple[bytes, ...]


@dataclass(frozen=True)
class Wire:
    """What goes over the socket: a fixed header of 29 bytes, and an item when it is DATA or HELLO.

    ``session`` is drawn at the start of a link, ``peer`` is the other side's (0: not known yet);
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
        self.established = 0
        """How often both sides came to know each other: each time the link is new, and empty."""
        self._outbox: deque[tuple[int, Item]] = deque()
        self._reset()

    def _reset(self) -> None:
        self._outbox.clear()
        self._last_queued = self._last_sent = self._limit = 0
        self._received = self._consumed = 0
        self._is_new = True

    @property
    def is_up(self) -> bool:
        """Whether both sides know each other: what is queued before is dropped."""
        return not self._is_new

    @property
    def pending(self) -> int:
        """Items of ours that the neighbour has not consumed yet."""
        return self._last_queued - max(self._limit - self.window, 0)

    @property
    def flushed(self) -> bool:
        return not self._outbox

    def hello(self) -> Wire:
        """To be sent whenever a connection is made; the other side answers with its own state."""
        return self._wire(HELLO)

    def beat(self) -> Wire:
        """To be sent now and then, so that the other side knows that we live."""
        return self._wire(CREDIT) if self.established else self.hello()

    def bye(self) -> Wire:
        """We leave on purpose: the other side need not wait for us."""
        return self._wire(BYE)

    def is_left_by(self, wire: Wire) -> bool:
        """Whether this is the goodbye of the neighbour that we know."""
        return wire.kind == BYE and (wire.session, wire.peer) == (self.peer_session, self.session)

    def send(self, item: Item) -> list[Wire]:
        """Queue an item; gives what may go out now."""
        self._last_queued += 1
        self._outbox.append((self._last_queued, item))
        return self._flow()

    def fault(self, wire: Wire) -> tuple[str, str] | None:
        """What was expected and what came, of a wire that no honest neighbour sends: it must not be received.

        Who grants itself more than a window of us, or says that it received what we never sent, would have us
        queue our whole state for it at once; data beyond the credit that we gave would be ours to hold.
        """
        if wire.peer != self.session:
            return None  # it does not know us: none of its numbers count
        sent = self._last_queued if wire.session == self.peer_session and self.is_up else 0
        if wire.received > sent:
            return f"receipts for the {sent} items that were sent", f"one for item {wire.received}"
        if wire.limit > wire.received + self.window:
            return f"credit for {self.window} items", f"credit for {wire.limit - wire.received}"
        if wire.kind == DATA and wire.session == self.peer_session and wire.sequence > self._consumed + self.window:
            return f"data within a credit of {self.window} items", f"item {wire.sequence - self._consumed} of it"
        return None

    def receive(self, wire: Wire) -> tuple[list[Item], list[Wire]]:
        """Take a wire from the neighbour, one without :meth:`fault`: items to deliver, wires to send."""
        if wire.session != self.peer_session:
            if wire.kind != HELLO:  # a session is introduced first: its numbering is not known
                return [], [self.hello()]
            self.peer_session = wire.session
            self._reset()
        knows_us = wire.peer == self.session
        replies: list[Wire] = []
        if wire.kind == HELLO and (wire.sequence == 0 or not knows_us):
            replies.append(self._wire(HELLO, sequence=int(knows_us)))
        if not knows_us:  # it speaks of a predecessor of ours
            return [], replies
        if self._is_new:
            self._outbox.clear()  # meant for its predecessor, by who had not heard that it is gone
            self._last_queued = 0
            self._is_new = False
            self.established += 1
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
        self._consumed = min(self._consumed + 1, self._received)
        return [self._wire(CREDIT)]

    def _flow(self) -> list[Wire]:
        if self._is_new:
            return []
        wires = []
        for sequence, item in self._outbox:
            if self._last_sent < sequence <= self._limit:
                wires.append(self._wire(DATA, sequence, item))
                self._last_sent = sequence
        return wires

    def _wire(self, kind: int, sequence: int = 0, item: Item = ()) -> Wire:
        limit = self._consumed + self.window
        item = (self.greeting,) if kind == HELLO else item
        return Wire(kind, self.session, self.peer_session or 0, sequence, self._received, limit, item)
