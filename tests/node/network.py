"""An in-memory network for the real round machines and the real links, with a clock of its own.

Everything but the machines and the links is played: what is inside of a node in ``played_node.py``, and here what is
between them. A seed decides how long everything takes, and what goes wrong: connections break, nodes die, come back,
stop and go on, links are cut, wires arrive late or twice.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.link import Link, Wire
from node.protocol.messages import EVALUATE, STATISTICS, TRAIN, Message, Partial, Snapshot
from node.protocol.party import Rules
from node.protocol.schedule import Schedule
from tests.node.played_node import Node, PlayedNodes
from topology import Member, Placement, Roster

GONE, RETRY = 2.0, 0.4


@dataclass(frozen=True)
class FakeFrame:
    sender: str
    recipient: str
    message: Message


class Network(PlayedNodes):
    """``parties`` nodes in one process's memory."""

    def __init__(
        self,
        parties: int,
        seed: int,
        *,
        rounds: int = 2,
        length: int = 25,
        statistics: int = 3,
        window: int = 2,
        min_hidden: int = 2,
        bases: dict[str, bytes] | None = None,
        machines: tuple[type[KeyHolder], type[Contributor]] = (KeyHolder, Contributor),
        dial_out: int = 0,
        postures: Mapping[str, str] = MappingProxyType({}),
        every: int = 0,
        sample: float = 1.0,
        ends_after: int = 1_000,
    ) -> None:
        names = [f"p{i:02}" for i in range(parties)]
        members = tuple(Member(name, i < parties - dial_out) for i, name in enumerate(names))
        self.placement = Placement(Roster(members, names[0]), b"seed")
        self.names, self.tree = tuple(names), self.placement.tree(names)
        lengths = {TRAIN: length, STATISTICS: statistics, EVALUATE: statistics}
        rules = Rules(Schedule(rounds, every), min_hidden, 10, window, 20.0, 30.0, sample=sample)
        super().__init__(seed, names, names[0], rules, lengths, bases or {}, postures, ends_after)
        self.machines = machines
        self.now, self._count = 0.0, itertools.count()
        self._queue: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._line_free: dict[tuple[str, str], float] = {}
        self._broken_at: dict[frozenset[str], float] = {}
        self.connected: dict[tuple[str, str], int] = {}  # dialler, listener: a number for this connection
        self.cut_off: set[frozenset[str]] = set()
        self.frames: dict[bytes, FakeFrame] = {}
        self.nodes: dict[str, Node] = {}
        self.drops: list[tuple[str, ev.Drop]] = []
        self.reports: list[tuple[str, ev.Report]] = []
        self.ciphertexts_at_key_holder: dict[int, set[frozenset[str]]] = {}
        self.slow, self.doubled = 0.0, 0.0
        for name in names:
            self.start(name)

    # ---- faults -----------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A new process of this party, with what its disk holds."""
        machine = self.machines[name != self.key_holder](name, self.placement, self.rules)
        node = self.nodes[name] = Node(name, machine)
        self._at(self.random.uniform(0.1, 1.0), "event", node, self.ready(name))

    def kill(self, name: str) -> None:
        self.nodes[name].ended = True
        for pair in [pair for pair in self.connected if name in pair]:
            self._break(pair)

    def is_alive(self, name: str) -> bool:
        return not self.nodes[name].ended

    def stop(self, name: str) -> None:
        """SIGSTOP: its neighbours hear nothing, and it hears all of it later."""
        node = self.nodes[name]
        if node.frozen is None and not node.ended:
            node.frozen = []
            for pair in [pair for pair in self.connected if name in pair]:
                other = self.nodes[pair[0] if pair[1] == name else pair[1]]
                self._at(GONE, "silent", other, name, node)

    def go_on(self, name: str) -> None:
        node = self.nodes[name]
        waiting, node.frozen = node.frozen or [], None
        for kind, arguments in waiting:
            self._at(0.0, kind, *arguments)

    def cut(self, a: str, b: str) -> None:
        """No connection between the two until :meth:`mend`."""
        self.cut_off.add(frozenset((a, b)))
        for pair in ((a, b), (b, a)):
            if pair in self.connected:
                self._break(pair)

    def mend(self) -> None:
        self.cut_off.clear()

    def flicker(self) -> None:
        """A connection breaks, and is dialled again at once."""
        if self.connected:
            self._break(self.random.choice(sorted(self.connected)))

    def _break(self, pair: tuple[str, str]) -> None:
        number = self.connected.pop(pair)
        self._broken_at[frozenset(pair)] = self.now
        dialler, listener = (self.nodes[name] for name in pair)
        self._at(GONE, "broken", dialler, listener.name, number)
        self._at(GONE, "broken", listener, dialler.name, number)
        self._at(RETRY, "connect", dialler, listener.name)

    # ---- running ----------------------------------------------------------------------------------------

    def _at(self, seconds: float, kind: str, *arguments: Any) -> None:
        heapq.heappush(self._queue, (self.now + seconds, next(self._count), kind, arguments))

    def soon(self, node: Node, event: ev.Event, low: float = 0.001, high: float = 0.02) -> None:
        self._at(self.random.uniform(low, high), "event", node, event)

    def plan(self, seconds: float, fault: Callable[[], None]) -> None:
        """Let something go wrong at this time."""
        self._at(seconds - self.now, "fault", fault)

    def run(self, seconds: float = 10_000.0, steps: int = 500_000) -> bool:
        """Until every living node has ended (True), or for so long."""
        end = self.now + seconds
        for _ in range(steps):
            if all(node.ended for node in self.nodes.values()) or not self._queue:
                return all(node.ended for node in self.nodes.values())
            if self._queue[0][0] > end:
                self.now = end
                return False
            self.now, _, kind, arguments = heapq.heappop(self._queue)
            if kind == "fault":
                arguments[0]()
            else:
                self._happen(kind, arguments)
        raise AssertionError("the network never comes to rest")

    def _happen(self, kind: str, arguments: tuple[Any, ...]) -> None:
        node = arguments[0]
        if node.ended or self.nodes[node.name] is not node:
            return
        if node.frozen is not None:
            node.frozen.append((kind, arguments))
            return
        match kind, arguments:
            case "event", (_, event):
                self.event(node, event)
            case "timer", (_, timer, due):
                if node.timers.get(timer) == due:
                    del node.timers[timer]
                    self.event(node, ev.Expired(timer))
            case "connect", (_, peer):
                self._connect(node, peer)
            case "wire", (_, peer, number, wire):
                pairs = ((node.name, peer), (peer, node.name))
                if number in [self.connected.get(pair) for pair in pairs]:
                    self._deliver(node, peer, wire)
            case "broken", (_, peer, _):
                since = self._broken_at.get(frozenset((node.name, peer)), 0.0)
                together = (node.name, peer) in self.connected or (peer, node.name) in self.connected
                if not together and self.now >= since + GONE - 0.001:
                    self._down(node, peer)
            case "silent", (_, peer, its):
                if self.nodes[peer] is its and its.frozen is not None:
                    self._down(node, peer)

    def _connect(self, node: Node, peer: str) -> None:
        if peer not in node.dials or (node.name, peer) in self.connected:
            return
        listens = next(member.listens for member in self.placement.roster.members if member.name == peer)
        if not self.is_alive(peer) or not listens or frozenset((node.name, peer)) in self.cut_off:
            self._at(RETRY, "connect", node, peer)
            return
        self.connected[node.name, peer] = next(self._count)
        self._out(node, peer, [node.links[peer].hello()])

    def _down(self, node: Node, peer: str, left: bool = False) -> None:
        link = node.links.get(peer)
        if link is None:
            return
        if peer not in node.dials:
            del node.links[peer]
        elif not link.established:
            return
        else:
            node.links[peer] = Link(self.random.getrandbits(63) | 1, self.rules.window)
        self.event(node, ev.Down(peer, left))

    def _deliver(self, node: Node, peer: str, wire: Wire) -> None:
        if peer not in node.links:
            node.links[peer] = Link(self.random.getrandbits(63) | 1, self.rules.window)
        link = node.links[peer]
        before = link.established
        assert link.fault(wire) is None, "an honest neighbour is never blamed"
        items, replies = link.receive(wire)
        self._out(node, peer, replies)
        if link.established != before:
            self.event(node, ev.Up(peer))
        for (key,) in items:
            frame = self.frames[key]
            if node.name == self.key_holder and isinstance(frame.message, Partial):
                sets = self.ciphertexts_at_key_holder.setdefault(frame.message.round, set())
                sets.add(frame.message.contributors)
            self.event(node, ev.Received(peer, frame.sender, frame.recipient, frame.message, frame))
        if node.links.get(peer) is link:
            self.event(node, ev.Room(peer, link.pending))

    def _out(self, node: Node, peer: str, wires: list[Wire]) -> None:
        number = self.connected.get((node.name, peer), self.connected.get((peer, node.name)))
        if number is None:
            return
        for wire in wires:
            line = (node.name, peer)
            delay = self.random.uniform(0.001, 0.05)
            if self.random.random() < self.slow:
                delay += self.random.uniform(0.1, 3.0)
            due = max(self._line_free.get(line, 0.0), self.now + delay)
            self._line_free[line] = due
            for _ in range(1 + (self.random.random() < self.doubled)):
                self._at(due - self.now, "wire", self.nodes[peer], node.name, number, wire)

    def event(self, node: Node, event: ev.Event) -> None:
        for command in node.machine.handle(event):
            if not node.ended:
                self._do(node, command)

    def _frame(self, frame: FakeFrame) -> bytes:
        key = repr(frame).encode()
        self.frames[key] = frame
        return key

    def _do(self, node: Node, command: ev.Command) -> None:
        match command:
            case ev.Send(peer, message, recipient):
                key = self._frame(FakeFrame(node.name, recipient, message))
                self._out(node, peer, node.links[peer].send((key,)))
            case ev.Forward(peer, frame):
                self._out(node, peer, node.links[peer].send((self._frame(frame),)))
            case ev.SendState(peer, part, parts):
                state = self.disks[node.name].state
                content = state if part == 0 else b""
                key = self._frame(FakeFrame(node.name, peer, Snapshot(state, part, parts, content)))
                self._out(node, peer, node.links[peer].send((key,)))
            case ev.Consume(peer):
                if peer in node.links:
                    self._out(node, peer, node.links[peer].consumed())
            case ev.Dial(peer):
                node.links[peer] = Link(self.random.getrandbits(63) | 1, self.rules.window)
                node.dials.add(peer)
                self._at(self.random.uniform(0.001, 0.02), "connect", node, peer)
            case ev.HangUp(peer):
                node.dials.discard(peer)
                node.links.pop(peer, None)
                if self.connected.pop((node.name, peer), None) is not None:
                    other = self.nodes[peer]
                    if other.frozen is None:
                        self._down(other, node.name, left=True)
                    else:
                        self._at(GONE, "broken", other, node.name, 0)
            case ev.Drop():
                self.drops.append((node.name, command))
            case ev.SetTimer(timer, seconds):
                node.timers[timer] = self.now + seconds
                self._at(seconds, "timer", node, timer, self.now + seconds)
            case ev.StopTimer(timer):
                node.timers.pop(timer, None)
            case ev.Report():
                self.reports.append((node.name, command))
            case ev.Stop(error):
                node.error = error
                self.kill(node.name)
            case _:
                self.do_inside(node, command)
