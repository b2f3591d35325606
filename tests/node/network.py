"""An in-memory network for the real round machines and the real links, with a clock of its own.

Everything but the machines and the links is played. A "ciphertext" is the sorted list of the names whose update
it holds, and of the rounds these are from, so that every opened total can be compared with its listed set; a
node's disk outlives its process. A seed decides how long everything takes, and what goes wrong: connections
break, nodes die, come back, stop and go on, links are cut, wires arrive late or twice.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any

from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.link import Link, Wire
from node.protocol.messages import EVALUATE, IDLE, STATISTICS, TRAIN, Message, Partial, Snapshot, Total
from node.protocol.party import Party, Rules
from node.protocol.posture import Posture
from node.protocol.schedule import Schedule
from topology import Member, Placement, Roster

GONE, RETRY = 2.0, 0.4
FIRST = b"\0" * 32
CONFINED = Posture("required", 7, frozenset()).text


@dataclass(frozen=True)
class FakeFrame:
    sender: str
    recipient: str
    message: Message


@dataclass
class Opening:
    round: int
    segment: int
    base: bytes
    listed: frozenset[str]
    held: list[str]


@dataclass
class Disk:
    """What a node finds again after a restart."""

    state: bytes = FIRST
    chain: tuple[ev.Published, ...] = ()
    records: list[tuple[str, int, int]] = field(default_factory=list)
    staged: list[ev.Stage] = field(default_factory=list)
    history: list[bytes] = field(default_factory=list)
    evaluated: list[frozenset[str]] = field(default_factory=list)


@dataclass
class Node:
    """One life of a node's process."""

    name: str
    machine: Party
    links: dict[str, Link] = field(default_factory=dict)
    dials: set[str] = field(default_factory=set)
    timers: dict[str, float] = field(default_factory=dict)
    staged: list[ev.Stage] = field(default_factory=list)
    training: bool = False
    ended: bool = False
    error: str | None = None
    frozen: list[tuple[str, tuple[Any, ...]]] | None = None  # stopped: what waits for it


class Network:
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
        self.postures, self.ends_after = postures, ends_after
        self.random = random.Random(seed)
        names = [f"p{i:02}" for i in range(parties)]
        members = tuple(Member(name, i < parties - dial_out) for i, name in enumerate(names))
        self.placement = Placement(Roster(members, names[0]), b"seed")
        self.names, self.key_holder = tuple(names), names[0]
        self.tree = self.placement.tree(names)
        self.lengths = {TRAIN: length, STATISTICS: statistics, EVALUATE: statistics}
        self.rules = Rules(Schedule(rounds, every), min_hidden, 10, window, 20.0, 30.0, sample=sample)
        self.machines, self.bases = machines, bases or {}
        self.now, self._count = 0.0, itertools.count()
        self._queue: list[tuple[float, int, str, tuple[Any, ...]]] = []
        self._line_free: dict[tuple[str, str], float] = {}
        self._broken_at: dict[frozenset[str], float] = {}
        self.connected: dict[tuple[str, str], int] = {}  # dialler, listener: a number for this connection
        self.cut_off: set[frozenset[str]] = set()
        self.frames: dict[bytes, FakeFrame] = {}
        self.openings: list[Opening] = []
        self.lose_own: set[tuple[str, int]] = set()
        self.withheld_from = 1_000  # the first round for which the key room has no privacy left
        self.lose_own_at: set[tuple[int, int]] = set()  # at the key holder, when the key room asks: round, segment
        self.disks = {name: Disk(state=self.bases.get(name, FIRST)) for name in names}
        self.nodes: dict[str, Node] = {}
        self.violations: list[str] = []
        self.drops: list[tuple[str, ev.Drop]] = []
        self.reports: list[tuple[str, ev.Report]] = []
        self.published: list[Total] = []
        self.ciphertexts_at_key_holder: dict[int, set[frozenset[str]]] = {}
        self.slow, self.doubled, self.key_holder_seconds, self.train_seconds = 0.0, 0.0, 2.0, 2.0
        self.moments: dict[tuple[str, int], Callable[[str], None]] = {}
        for name in names:
            self.start(name)

    # ---- faults -----------------------------------------------------------------------------------------

    def start(self, name: str) -> None:
        """A new process of this party, with what its disk holds."""
        machine = self.machines[name != self.key_holder](name, self.placement, self.rules)
        node = self.nodes[name] = Node(name, machine)
        disk = self.disks[name]
        records = disk.records
        tried = max((r for w, r, _ in records if w in ("training", "skipped")), default=-1)
        forwarded = max((r for w, r, _ in records if w == "forwarded"), default=-1)
        self._at(
            self.random.uniform(0.1, 1.0),
            "event",
            node,
            ev.Ready(
                disk.state,
                self.lengths,
                self._size(disk),
                self._size(disk) + 8 * self.lengths[STATISTICS],
                self.postures.get(name, CONFINED),
                disk.chain,
                tried,
                forwarded,
                -1,
                self._resumed(disk),
                self.is_over(disk),
                tuple(disk.evaluated),
            ),
        )

    def _size(self, disk: Disk) -> int:
        return 17 + 4 * self.lengths[TRAIN] + (8 * self.lengths[STATISTICS] if disk.chain else 0)

    def is_over(self, disk: Disk) -> bool:
        """Whether the state says that the study ends: here after so many closed rounds."""
        return len(disk.history) >= self.ends_after

    def _resumed(self, disk: Disk) -> ev.Resumed | None:
        if not disk.staged:
            return None
        first, purpose = disk.staged[0].total, disk.staged[0].purpose
        applied = disk.state != first.base
        return ev.Resumed(first.round, first.base, purpose, first.contributors, len(disk.staged), applied)

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

    def _soon(self, node: Node, event: ev.Event, low: float = 0.001, high: float = 0.02) -> None:
        self._at(self.random.uniform(low, high), "event", node, event)

    def _do(self, node: Node, command: ev.Command) -> None:
        disk = self.disks[node.name]
        match command:
            case ev.Send(peer, message, recipient):
                key = self._frame(FakeFrame(node.name, recipient, message))
                self._out(node, peer, node.links[peer].send((key,)))
            case ev.Forward(peer, frame):
                self._out(node, peer, node.links[peer].send((self._frame(frame),)))
            case ev.SendState(peer, part, parts):
                content = disk.state if part == 0 else b""
                key = self._frame(FakeFrame(node.name, peer, Snapshot(disk.state, part, parts, content)))
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
            case ev.Train(round_, purpose):
                node.training = (node.name, round_) not in self.lose_own
                if purpose == IDLE:
                    pass
                elif not node.training:
                    self._soon(node, ev.OwnLost(round_))
                elif node.name == self.key_holder:
                    self._soon(node, ev.Contributed(round_), 0.01, self.key_holder_seconds)
            case ev.PullSegment(round_, segment):
                if node.training:
                    slow = self.train_seconds if segment == 0 else 0.02
                    own = f"{node.name}:{round_}".encode()
                    self._soon(node, ev.Sealed(round_, segment, own), 0.001, slow)
            case ev.Merge(round_, attempt, segment, parts):
                names = sorted(name for part in parts for name in part.decode().split())
                self._soon(node, ev.Merged(round_, attempt, segment, " ".join(names).encode()))
            case ev.Record(what, round_, segment, contributors):
                disk.records.append((what, round_, segment))
                if what == "opening" and self.rules.schedule.purpose(round_) == EVALUATE:
                    disk.evaluated.append(contributors)
                fault = self.moments.pop((what, round_), None)
                if fault:
                    self._at(self.random.choice((0.0, 0.05, 0.5)), "fault", partial(fault, node.name))
            case ev.OpenTotal(round_, segment) if round_ >= self.withheld_from:
                self._soon(node, ev.OpeningRefused(round_, segment, "privacy budget: nothing was opened"))
            case ev.OpenTotal(round_, segment, own=True) if (round_, segment) in self.lose_own_at:
                self._soon(node, ev.OwnLost(round_))
            case ev.OpenTotal(round_, segment, others, own, ciphertexts):
                held = sorted([*ciphertexts.decode().split(), *([f"{node.name}:{round_}"] if own else [])])
                listed = others | ({node.name} if own else frozenset())
                self.openings.append(Opening(round_, segment, node.machine.base, listed, held))
                size = 4 * command.length
                self._soon(node, ev.Opened(round_, segment, f"{held}".encode().ljust(size)[:size]))
            case ev.Stage():
                node.staged.append(command)
                if node.name == self.key_holder:
                    disk.staged.append(command)
                    self.published.append(command.total)
            case ev.Apply():
                self._apply(node, command)
            case ev.Keep(published):
                disk.chain += (published,)
                if node.name == self.key_holder:
                    disk.staged.clear()
            case ev.Adopt(closes, parts):
                state = parts[0]
                if state == closes[-1].close.state:
                    disk.state = state
                    disk.history += [published.close.state for published in closes]
                    self.event(node, ev.Adopted(state, self._size(Disk(chain=closes)), self.is_over(disk)))
                else:
                    self.event(node, ev.NotAdopted())
            case ev.Wipe():
                node.staged, node.training = [], False
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

    def _apply(self, node: Node, command: ev.Apply) -> None:
        disk = self.disks[node.name]
        staged = disk.staged if node.name == self.key_holder else node.staged
        integers = [stage.total.integers for stage in staged[: command.segments]]
        names = " ".join(sorted(command.contributors)).encode()
        parts = [disk.state, command.purpose.encode(), b"%d" % command.round, names]
        disk.state = hashlib.sha256(b"|".join(parts + integers)).digest()
        disk.history.append(disk.state)
        if disk.state not in self.disks[self.key_holder].history:
            self.violations.append(f"{node.name} applied round {command.round} before the key holder closed it")
        size = self._size(Disk(chain=(None,)))  # type: ignore[arg-type]
        self.event(node, ev.Applied(command.round, disk.state, size, self.is_over(disk)))
