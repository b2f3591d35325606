"""An in-memory network for the real round machines and the real links.

Everything but the machines and the links is played: a "ciphertext" is the sorted list of the names whose
update it holds, so every opened total can be compared with its listed set. A seed decides the order in
which things happen, and what goes wrong.
"""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.link import Link, Wire
from node.protocol.messages import Message
from node.protocol.party import Party, Rules
from node.protocol.posture import Posture
from topology import Member, Roster, Tree, place

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
class Node:
    name: str
    machine: Party
    links: dict[str, Link]
    state: bytes = b"\0" * 32
    jobs: deque[ev.Event] = field(default_factory=deque)
    timers: set[str] = field(default_factory=set)
    staged: list[bytes] = field(default_factory=list)
    training: bool = False
    pulls: int = 0
    alive: bool = True
    stopped: bool = False
    error: str | None = None
    drops: list[ev.Drop] = field(default_factory=list)
    reports: list[ev.Report] = field(default_factory=list)
    history: list[bytes] = field(default_factory=list)


class Network:
    """``parties`` nodes on one machine's memory."""

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
        postures: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.random = random.Random(seed)
        names = [f"p{i:02}" for i in range(parties)]
        self.roster = Roster(tuple(Member(name) for name in names), names[0])
        self.tree: Tree = place(self.roster, names, b"seed")
        self.lengths = (length, statistics)
        rules = Rules(rounds, min_hidden, 10, window, 10.0, 10.0)
        self.wires: dict[tuple[str, str], deque[Wire]] = {}
        self.frames: dict[bytes, FakeFrame] = {}
        self.openings: list[Opening] = []
        self.published: dict[tuple[int, int], frozenset[str]] = {}
        self.lose_own: set[tuple[str, int]] = set()
        self.nodes: dict[str, Node] = {}
        for name in names:
            machine = (KeyHolder if name == names[0] else Contributor)(name, self.tree, rules)
            neighbours = [*self.tree.children[name], *([self.tree.parent[name]] if name != names[0] else [])]
            links = {peer: Link(self.random.getrandbits(63) | 1, window) for peer in neighbours}
            self.nodes[name] = Node(name, machine, links)
            if bases and name in bases:
                self.nodes[name].state = bases[name]
            self.nodes[name].jobs.append(
                ev.Ready(self.nodes[name].state, length, statistics, postures.get(name, CONFINED))
            )
        for child, parent in self.tree.parent.items():
            self.wires[child, parent], self.wires[parent, child] = deque(), deque()
            self.connect(child)

    # ---- faults -----------------------------------------------------------------------------------------

    def connect(self, child: str) -> None:
        parent = self.tree.parent[child]
        self.wires[child, parent].append(self.nodes[child].links[parent].hello())

    def cut(self, child: str) -> None:
        """Break a connection: what was under way is lost, and the child dials again."""
        parent = self.tree.parent[child]
        self.wires[child, parent].clear()
        self.wires[parent, child].clear()
        self.connect(child)

    def kill(self, name: str) -> None:
        self.nodes[name].alive = False

    # ---- running ----------------------------------------------------------------------------------------

    def run(self, *, cuts: float = 0.0, limit: int = 200_000) -> bool:
        """Until nothing can happen any more (True), or for ``limit`` steps; timers fire when nothing else can."""
        for _ in range(limit):
            choices = self._choices()
            if not choices:
                return True
            if cuts and self.random.random() < cuts:
                self.cut(self.random.choice(sorted(self.tree.parent)))
                choices = self._choices()
            kind, name = self.random.choice(choices)
            if kind == "job":
                self.event(name, self.nodes[name].jobs.popleft())
            elif kind == "timer":
                node = self.nodes[name]
                timer = min(node.timers)
                node.timers.discard(timer)
                self.event(name, ev.Expired(timer))
            else:
                self._deliver(kind, name)
        return False

    def _choices(self) -> list[tuple[str, str]]:
        living = [node for node in self.nodes.values() if node.alive and not node.stopped]
        choices = [("job", node.name) for node in living if node.jobs]
        choices += [(a, b) for (a, b), queue in self.wires.items() if queue]
        if not choices:
            waiting = [node for node in living if node.timers - {"silence"}]
            deepest = sorted(waiting, key=lambda node: -self.tree.depth(node.name))[:1]
            deepest = deepest or [node for node in living if node.timers][:1]
            choices = [("timer", node.name) for node in deepest]
        return choices

    def _deliver(self, sender: str, receiver: str) -> None:
        wire = self.wires[sender, receiver].popleft()
        node = self.nodes[receiver]
        if not node.alive or node.stopped or not self.nodes[sender].alive:
            return
        link = node.links[sender]
        items, replies = link.receive(wire)
        self._out(receiver, sender, replies)
        for (key,) in items:
            frame = self.frames[key]
            self.event(receiver, ev.Received(sender, frame.sender, frame.recipient, frame.message, frame))
        self.event(receiver, ev.Room(sender, link.pending))

    def _out(self, sender: str, receiver: str, wires: list[Wire]) -> None:
        self.wires[sender, receiver].extend(wires)

    def event(self, name: str, event: ev.Event) -> None:
        for command in self.nodes[name].machine.handle(event):
            self._do(self.nodes[name], command)

    def _frame(self, frame: FakeFrame) -> bytes:
        key = repr(frame).encode()
        self.frames[key] = frame
        return key

    def _do(self, node: Node, command: ev.Command) -> None:
        match command:
            case ev.Send(peer, message, recipient):
                key = self._frame(FakeFrame(node.name, recipient, message))
                self._out(node.name, peer, node.links[peer].send((key,)))
            case ev.Forward(peer, frame):
                self._out(node.name, peer, node.links[peer].send((self._frame(frame),)))
            case ev.Consume(peer):
                self._out(node.name, peer, node.links[peer].consumed())
            case ev.Drop():
                node.drops.append(command)
            case ev.Train(round_, _):
                node.training, node.staged = (node.name, round_) not in self.lose_own, []
                if not node.training:
                    node.jobs.append(ev.OwnLost(round_))
                elif node.name == self.tree.key_holder:
                    node.jobs.append(ev.Contributed(round_))
            case ev.PullSegment(round_, segment):
                if node.training:
                    node.jobs.append(ev.Sealed(round_, segment, node.name.encode()))
            case ev.Merge(round_, segment, parts):
                names = sorted(name for part in parts for name in part.decode().split())
                node.jobs.append(ev.Merged(round_, segment, " ".join(names).encode()))
            case ev.OpenTotal(round_, segment, others, own, ciphertexts):
                held = sorted([*ciphertexts.decode().split(), *([node.name] if own else [])])
                listed = others | ({node.name} if own else frozenset())
                self.openings.append(Opening(round_, segment, node.machine.base, listed, held))
                length = node.machine.rules.segment_length(self.lengths[round_ == 0], segment)
                node.jobs.append(ev.Opened(round_, segment, f"{held}".encode().ljust(4 * length)[: 4 * length]))
            case ev.Stage(_, _, integers):
                node.staged.append(integers)
            case ev.Apply(round_, purpose, contributors, segments, _):
                parts = [node.state, purpose.encode(), " ".join(sorted(contributors)).encode()]
                digest = hashlib.sha256(b"|".join(parts + node.staged[:segments])).digest()
                node.state = digest
                node.history.append(digest)
                self.event(node.name, ev.Applied(round_, digest))
            case ev.Wipe():
                node.staged, node.training = [], False
            case ev.SetTimer(timer, _):
                node.timers.add(timer)
            case ev.StopTimer(timer):
                node.timers.discard(timer)
            case ev.Report():
                node.reports.append(command)
            case ev.Stop(error):
                node.stopped, node.error = True, error
