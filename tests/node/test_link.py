"""Two links over a line that loses, breaks and meets restarted neighbours."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol.link import CREDIT, DATA, HELLO, Link, Wire

Item = tuple[bytes, ...]


@dataclass
class Life:
    """One process at one end: its link, and what it sent to and got from each life of its neighbour."""

    link: Link
    sent: dict[int, list[Item]] = field(default_factory=dict)
    arrived: dict[int, list[Item]] = field(default_factory=dict)
    unconsumed: deque[Item] = field(default_factory=deque)
    established: int = 0


class Line:
    """A child that dials its parent, and what is under way between them."""

    def __init__(self, seed: int, window: int) -> None:
        self.random, self.window, self.count = random.Random(seed), window, 0
        self.wires: dict[str, deque[Wire]] = {"child": deque(), "parent": deque()}
        self.lives = {"child": [self._born()], "parent": [self._born()]}
        self.connect()

    def _born(self) -> Life:
        return Life(Link(self.random.getrandbits(63) | 1, self.window))

    def now(self, side: str) -> Life:
        return self.lives[side][-1]

    def put(self, side: str, wires: list[Wire]) -> None:
        """Under way to the other side, as the bytes of a message."""
        for wire in wires:
            parsed = Wire.parse(wire.parts())
            assert parsed == wire
            self.wires[_other(side)].append(parsed)

    def connect(self) -> None:
        self.put("child", [self.now("child").link.hello()])

    def cut(self) -> None:
        """The connection breaks: any part of what was under way is lost, and the child dials again."""
        for queue in self.wires.values():
            kept = [wire for wire in queue if self.random.random() < 0.5]
            queue.clear()
            queue.extend(kept)
        self.connect()

    def restart(self, side: str) -> None:
        for queue in self.wires.values():
            queue.clear()
        self.lives[side].append(self._born())
        self.connect()

    def send(self, side: str) -> None:
        life = self.now(side)
        if not life.established:
            return  # a round machine speaks to neighbours that it knows
        self.count += 1
        item = (f"{side} {self.count}".encode(), b"payload")
        if life.link.is_up:  # else it is for a predecessor, which is gone
            life.sent.setdefault(life.link.peer_session or 0, []).append(item)
        self.put(side, life.link.send(item))

    def deliver(self, side: str) -> None:
        life = self.now(side)
        wire = self.wires[side].popleft()
        assert life.link.fault(wire) is None, "an honest neighbour is never blamed"
        items, replies = life.link.receive(wire)
        self.put(side, replies)
        if life.link.established != life.established:
            life.established = life.link.established
            life.unconsumed.clear()  # a round machine forgets what a restarted neighbour said
        if items:
            life.arrived.setdefault(life.link.peer_session or 0, []).extend(items)
        life.unconsumed.extend(items)
        assert len(life.unconsumed) <= self.window, "a reader never holds more than its window"

    def consume(self, side: str) -> None:
        life = self.now(side)
        life.unconsumed.popleft()
        self.put(side, life.link.consumed())

    def step(self, faults: bool) -> bool:
        """One thing that can happen, drawn by chance; False when nothing can."""
        choices = [(self.deliver, side) for side in self.wires if self.wires[side]]
        choices += [(self.consume, side) for side in self.wires if self.now(side).unconsumed]
        if faults:
            choices += [(self.send, "child"), (self.send, "parent")]
            if self.random.random() < 0.1:
                self.restart(self.random.choice(("child", "parent"))) if self.random.random() < 0.3 else self.cut()
                return True
        if choices:
            happen, side = self.random.choice(choices)
            happen(side)
        return bool(choices)


def _other(side: str) -> str:
    return "parent" if side == "child" else "child"


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.integers(0, 300))
def test_in_order_exactly_once_within_the_window_and_all_of_it(seed: int, window: int, steps: int) -> None:
    line = Line(seed, window)
    for _ in range(steps):
        line.step(faults=True)
    line.cut()
    for _ in range(20_000):
        if not line.step(faults=False):
            break
    for side in ("child", "parent"):
        for reader in line.lives[side]:
            for session, items in reader.arrived.items():
                writer = next(life for life in line.lives[_other(side)] if life.link.session == session)
                sent = writer.sent.get(reader.link.session, [])
                assert items == sent[: len(items)], "in order, nothing twice, nothing skipped"
        reader, writer = line.now(side), line.now(_other(side))
        arrived, sent = reader.arrived.get(writer.link.session, []), writer.sent.get(reader.link.session, [])
        assert arrived == sent, "everything arrives once faults stop"
        assert (writer.link.pending, writer.link.flushed) == (0, True)


def test_only_a_window_goes_out_before_the_reader_consumes() -> None:
    line = Line(0, window=2)
    while line.step(faults=False):
        pass
    for _ in range(5):
        line.send("child")
    assert [wire.sequence for wire in line.wires["parent"]] == [1, 2]
    assert line.now("child").link.pending == 5
    for _ in range(2):
        line.deliver("parent")
    line.consume("parent")
    line.deliver("child")
    assert [wire.sequence for wire in line.wires["parent"]] == [3]
    assert line.now("child").link.pending == 4


def test_a_restarted_neighbour_begins_with_an_empty_link() -> None:
    line = Line(0, window=2)
    while line.step(faults=False):
        pass
    for _ in range(4):
        line.send("child")
        line.send("parent")
    line.deliver("parent")
    line.restart("child")
    while line.wires["parent"] or line.wires["child"]:
        line.deliver("parent" if line.wires["parent"] else "child")
    for side in ("child", "parent"):
        link = line.now(side).link
        assert (link.pending, link.flushed) == (0, True), "what was queued for its predecessor is gone"
        line.send(side)
    assert line.now("parent").link.established == 2
    while line.step(faults=False):
        pass
    assert [len(items) for items in line.now("child").arrived.values()] == [1]


def test_what_is_queued_while_a_neighbour_is_introduced_is_not_for_it() -> None:
    link = Link(1, window=2)
    link.receive(Wire(HELLO, 99, 1, 1, 0, 2))
    link.receive(Wire(HELLO, 98, 0, 0, 0, 2))
    assert link.send((b"for its predecessor", b"")) == []
    _, wires = link.receive(Wire(HELLO, 98, 1, 1, 0, 2))
    assert not [wire for wire in wires if wire.kind == DATA]
    assert [wire.sequence for wire in link.send((b"for it", b""))] == [1]


def test_credit_for_what_a_predecessor_sent_is_no_credit() -> None:
    link = Link(1, window=2)
    link.receive(Wire(HELLO, 99, 1, 1, 0, 2))
    link.receive(Wire(DATA, 99, 1, 1, 0, 2, (b"item", b"")))
    link.receive(Wire(HELLO, 98, 1, 1, 0, 2))
    assert link.consumed()[0].limit == 2


def test_wires_of_a_session_that_was_never_introduced_only_ask_for_an_introduction() -> None:
    link = Link(1, window=2)
    for kind in (DATA, CREDIT):
        item = (b"envelope", b"payload") if kind == DATA else ()
        assert link.receive(Wire(kind, 99, 1, 1, 0, 4, item)) == ([], [link.hello()])
    assert link.peer_session is None


def test_a_wire_that_speaks_to_our_predecessor_gives_no_credit_and_delivers_nothing() -> None:
    link = Link(2, window=2)
    link.receive(Wire(HELLO, 99, 2, 1, 0, 0))
    link.send((b"envelope", b"payload"))
    assert link.receive(Wire(DATA, 99, 1, 1, 5, 7, (b"item", b""))) == ([], [])
    items, replies = link.receive(Wire(HELLO, 99, 1, 0, received=5, limit=7))
    assert (items, [wire.kind for wire in replies]) == ([], [HELLO])
    assert (link.pending, link.flushed) == (1, False)


def test_a_repeated_or_later_item_is_not_delivered() -> None:
    link = Link(1, window=4)
    link.receive(Wire(HELLO, 99, 1, 1, 0, 4))
    data = {n: Wire(DATA, 99, 1, n, 0, 4, (b"item %d" % n, b"")) for n in range(1, 7)}
    given = [link.receive(data[n])[0] for n in (1, 1, 3, 2, 2, 3, 4, 5, 6)]
    items = [item[0] for batch in given for item in batch]
    assert items == [b"item 1", b"item 2", b"item 3", b"item 4"], "the fifth is beyond the window"


HEAD = Wire(CREDIT, 1, 2, 3, 4, 5).parts()[0]
GARBAGE = {
    "nothing": [],
    "an empty part": [b""],
    "a short header": [HEAD[:-1]],
    "a long header": [HEAD + b"\0"],
    "an unknown kind": [b"\x05" + HEAD[1:]],
    "kind zero": [b"\0" + HEAD[1:]],
    "a credit with an item": [HEAD, b"e", b"p"],
    "data without an item": [bytes([DATA]) + HEAD[1:]],
    "data with half an item": [bytes([DATA]) + HEAD[1:], b"e"],
    "data with three parts": [bytes([DATA]) + HEAD[1:], b"e", b"p", b"x"],
}


@pytest.mark.parametrize("parts", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_no_wire(parts: list[bytes]) -> None:
    assert Wire.parse(parts) is None


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=40) | st.binary(min_size=29, max_size=29), max_size=4))
def test_any_parts_at_all_are_a_wire_or_none_and_hurt_no_link(parts: list[bytes]) -> None:
    wire = Wire.parse(parts)
    if wire is not None:
        assert wire.parts() == parts
        link = Link(7, window=2)
        items, replies = link.receive(wire)
        assert not items, "whoever has not said hello is not heard"
        assert [reply.kind for reply in replies] == [HELLO], "and is asked who it is"
