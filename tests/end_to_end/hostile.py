"""A living federation of real nodes, one of whose members is played by the test: it can say what it likes.

``Mallory`` has a real member's keys and the node's own transport, links and codec, but no round machine: it says
only what it is told to, and remembers what it heard.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import psutil

from keys import ceremony, steps
from keys.canaries import round_key
from keys.ceremony import PUBLIC_KEY, load_identity
from keys.ckks import Sealer
from keys.transcript import TRANSCRIPT
from node.federation import Succession, next_cards, propose
from node.gauge import peak_memory
from node.home import Home, load_home
from node.launcher import Launcher
from node.local import prepare
from node.neighbours import BEAT_SECONDS, Neighbours
from node.protocol import events as ev
from node.protocol.codec import Frame
from node.protocol.messages import Absent, Close, Joined, Message, Open, Partial, Snapshot, Total
from node.simulation import Federation, simulated_parties
from node.study import parse_study
from node.update import Model, seal_segment
from tests.node.played_node import CONFINED
from topology import Tree

STUDY = """\
[study]
name = "hostile"
rounds = 10000
seed = 1
[task]
class = "synthetic"
[task.options]
params = 20000
seconds = 0.05
[aggregation]
segment_ciphertexts = 1
[deadlines]
join_seconds = 20.0
round_seconds = 8.0
"""

REVOKED = "party-06"
MAY_GROW = 48 << 20
"""Bytes that hostile input may add to the most memory that a node ever had."""
Dropped = tuple[str, str, str]


def leaf_below_the_apex(tree: Tree) -> set[str]:
    return {next(name for name in tree.children[tree.apex] if not tree.children[name])}


class Mallory:
    """A malicious member, linked to one honest node; until a test plays it (``behaves``) it contributes like any."""

    def __init__(self, home: Path, passphrase: str, target: str) -> None:
        made = load_home(home, datetime.now(UTC))
        self.home: Home = replace(made, bind=None)
        self.name, self.target = made.name, target
        self.identity = load_identity(home, passphrase)
        self.sealer = Sealer(made.plan, (home / PUBLIC_KEY).read_bytes())
        self.refused: list[Dropped] = []
        self.neighbours = Neighbours(self.home, self.identity, lambda *line: self.refused.append(line))
        self.heard: list[ev.Received] = []
        self.base = Model(-1, np.zeros(20_000, np.float32)).digest(made.digest)
        self.opening: Open | None = None
        self.is_up, self.behaves = False, True
        self._beat = time.monotonic()
        self.neighbours.dial(target)

    def turn(self) -> None:
        """Hear what there is, and answer as far as one must to be kept."""
        messages, _, connected = self.neighbours.transport.poll(0.005)
        for peer in connected:
            self.neighbours.introduce(peer)
        for peer, parts in messages:
            for event in self.neighbours.take(peer, parts):
                self._hear(event)
        if time.monotonic() - self._beat > BEAT_SECONDS:
            self._beat = time.monotonic()
            for down in self.neighbours.beat():
                self._hear(down)

    def _hear(self, event: ev.Event) -> None:
        match event:
            case ev.Up():
                self.is_up = True
                self.join()
            case ev.Down():
                self.is_up = False
            case ev.Received(peer, _, _, message):
                self.heard.append(event)
                self.neighbours.consume(peer)
                match message:
                    case Open(base=base):
                        self.opening, self.base = message, base
                        if self.behaves and self.name in message.contributors:
                            self.contribute()
                    case Close(state=state) | Snapshot(base=state):
                        self.base = state
                        if self.opening is None or self.opening.base != state:
                            self.join()

    def join(self) -> None:
        """Say that we are here, so that the next round counts on us."""
        if self.is_up:
            self.say(Joined(0, self.base, 0, 0, self.target, CONFINED), self.home.manifest.key_holder)

    def vanish(self) -> None:
        """Without a goodbye, as if it were killed."""
        self.neighbours.transport.close()

    # ---- what it says -----------------------------------------------------------------------------------

    def say(self, message: Message, recipient: str | None = None) -> Frame:
        """A message, signed and sent as an honest node would."""
        frame = self.neighbours.sign(message, self.target if recipient is None else recipient)
        self.neighbours.forward(self.target, frame)
        return frame

    def forward(self, envelope: bytes, payload: bytes = b"") -> None:
        """Any bytes as a frame, over the link."""
        self.neighbours.forward(self.target, Frame(self.name, self.target, Total, envelope, payload))  # type: ignore[arg-type]

    def signed(self, packed: bytes) -> bytes:
        """Any bytes as a header, rightly signed."""
        return self.identity.sign("frame", packed) + packed

    def header(self, message: Message) -> list[Any]:
        header = msgpack.unpackb(self.neighbours.sign(message, self.target).envelope[64:])
        assert isinstance(header, list)
        return header

    def forged(self, message: Message, **change: Any) -> bytes:
        """A message's envelope with other fields than the codec would let it have."""
        header = self.header(message)
        places = ("version", "kind", "manifest", "round", "segment", "contributors", "base", "sender", "recipient")
        for name, value in change.items():
            header[places.index(name)] = value
        return self.signed(msgpack.packb(header, use_bin_type=True))

    def ciphertexts(self, segment: int, round_: int | None = None, value: int = 1) -> bytes:
        """This round's segment of an update whose every integer is ``value``, with our canaries."""
        assert self.opening is not None
        round_ = self.opening.round if round_ is None else round_
        length = self.home.rules.segment_length(self.opening.length, segment)
        box_key = self.home.manifest.card(self.home.manifest.key_holder).box_key
        key = round_key(self.identity.box_secret, box_key, self.home.digest, round_, self.opening.base)
        return seal_segment(np.full(length, value, np.int64), segment, self.sealer, key)

    def contribute(self) -> None:
        """The whole of our own part, as an honest node would."""
        self.finish(0)

    def finish(self, begin: int = 1) -> None:
        """What is left of it."""
        for segment in range(begin, self.segments):
            self.say(self.partial(segment))

    @property
    def segments(self) -> int:
        assert self.opening is not None
        return self.home.rules.segments(self.opening.length)

    def stay_away(self) -> None:
        """Nothing (more) comes from us in the round in hand: it need not wait."""
        assert self.opening is not None
        self.say(Absent(self.opening.round, self.opening.base))

    def partial(self, segment: int = 0, ciphertexts: bytes | None = None, **change: Any) -> Partial:
        """Our own part of the round in hand."""
        assert self.opening is not None
        ours = self.ciphertexts(segment) if ciphertexts is None else ciphertexts
        partial = Partial(self.opening.round, self.opening.base, segment, frozenset({self.name}), 0, ours)
        return replace(partial, **change)


@dataclass
class World:
    """The federation: real processes, what they told, and mallory if it is there."""

    federation: Federation
    launcher: Launcher
    events: list[dict[str, Any]] = field(default_factory=list)
    mallories: list[Mallory] = field(default_factory=list)

    def home(self, name: str) -> Path:
        return self.federation.home(name)

    @cached_property
    def tree(self) -> Tree:
        return load_home(self.home(self.federation.key_holder), datetime.now(UTC)).tree

    @property
    def everyone(self) -> set[str]:
        return set(self.tree.children)

    def sibling(self, mallory: Mallory) -> str:
        return next(name for name in self.tree.children[self.tree.apex] if name != mallory.name)

    def passphrase(self, name: str) -> str:
        return os.pread(self.launcher._seats[name].passphrase, 4096, 0).decode()

    def mallory(self, name: str, target: str) -> Mallory:
        made = Mallory(self.home(name), self.passphrase(name), target)
        self.mallories.append(made)
        return made

    def end(self, mallory: Mallory) -> None:
        self.mallories.remove(mallory)
        mallory.vanish()

    # ---- time -------------------------------------------------------------------------------------------

    def turn(self) -> None:
        self.events += self.launcher.listen(0.005)
        for mallory in self.mallories:
            mallory.turn()

    def until(self, done: Callable[[], object], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            told = [event for event in self.events if event["kind"] in ("dropped", "warning", "stopped", "ended")][-5:]
            assert time.monotonic() < deadline, f"it never came; lately: {told}"
            self.turn()

    def next_round(self, mallory: Mallory) -> Open:
        """Wait for a round to open that counts on mallory."""
        before = mallory.opening

        def opened() -> bool:
            opening = mallory.opening
            return opening is not None and opening is not before and mallory.name in opening.contributors

        self.until(opened)
        assert mallory.opening is not None
        return mallory.opening

    # ---- what the nodes told ----------------------------------------------------------------------------

    def dropped(self, node: str, since: int = 0) -> list[Dropped]:
        return [
            (event["who"], event["expected"], event["came"])
            for event in self.events[since:]
            if event["kind"] == "dropped" and event["party"] == node
        ]

    def counted(self, node: str, who: str, expected: str, since: int) -> int:
        """How often this node says that it refused what this one sent, for this reason: shown or summed up."""
        told = [event for event in self.events[since:] if event["kind"] == "dropped" and event["party"] == node]
        return sum(event["times"] for event in told if event["who"] == who and expected in event["expected"])

    def rounds(self, node: str) -> int:
        """How many rounds this node has applied."""
        return sum(event["kind"] == "applied" and event["party"] == node for event in self.events)

    def refusal(self, node: str, who: str, expected: str, since: int) -> Dropped:
        """Wait until this node says that it refused what this one sent, for this reason."""

        def found() -> Dropped | None:
            return next((line for line in self.dropped(node, since) if line[0] == who and expected in line[1]), None)

        self.until(found)
        line = found()
        assert line is not None
        assert all("\n" not in text for text in line)
        return line

    def honest_rounds_go_on(self, rounds: int = 1) -> None:
        """Every living node applies so many more."""
        assert self.launcher.running, "they have all ended"
        goal = {name: self.rounds(name) + rounds for name in self.launcher.running}
        self.until(lambda: all(self.rounds(name) >= count for name, count in goal.items()))

    def closed_over(self, round_: int) -> set[str]:
        """Wait for the end of a round; gives its contributors."""

        def applied() -> list[list[str]]:
            mine = [event for event in self.events if event["kind"] == "applied" and event["party"] == self.tree.apex]
            return [event["contributors"] for event in mine if event["round"] == round_]

        self.until(applied)
        return set(applied()[0])

    def relay(self, node: str) -> psutil.Process:
        supervisor = psutil.Process(self.launcher.process(node))
        return next(p for p in supervisor.children(recursive=True) if p.name().startswith("relay"))

    def peak(self, node: str) -> int:
        """The most memory, in bytes, that the node's relay ever had."""
        return peak_memory(self.relay(node).pid)


@contextmanager
def living(
    folder: Path, parties: int, played: Callable[[Tree], set[str]], revoked: str = "", study: str = STUDY
) -> Iterator[World]:
    """A federation of which ``played`` are left to the test, the others real processes; under a second version of its
    manifest if somebody was ``revoked``."""
    names, key_holder = simulated_parties(parties, {})
    federation = Federation(study, parse_study(study, "study"), names, key_holder, folder / "run")
    world = World(federation, prepare(federation))
    try:
        if revoked:
            next_version(world, revoked)
        for name in set(federation.names) - played(world.tree) - {revoked}:
            world.launcher.start(name)
        yield world
    finally:
        for mallory in list(world.mallories):
            world.end(mallory)
        world.launcher.end_all()


def next_version(world: World, without: str) -> None:
    """A new manifest without one member: proposed, signed and joined by all others, who have not started yet."""
    federation, table = world.federation, world.federation.out / "next"
    keys, now = federation.out / "ceremony", datetime.now(UTC)
    holder = world.home(federation.key_holder)
    coordinator, record = load_identity(holder, world.passphrase(federation.key_holder)), keys / TRANSCRIPT
    old = ceremony.verify(holder / ceremony.MANIFEST, now)
    propose(
        old.study,
        federation.study,
        "study",
        next_cards(old, (), (without,)),
        old.public_key_digest,
        federation.key_holder,
        now,
        now + timedelta(hours=1),
        table / "proposal.json",
        old.sandbox_gaps,
        succession=Succession(old, None),
    )
    steps.note_proposal(holder, coordinator, table / "proposal.json", record, now)
    names = [name for name in federation.names if name != without]
    signatures = [table / f"{name}.signature" for name in names]
    for name, signature in zip(names, signatures, strict=True):
        ceremony.sign(world.home(name), world.passphrase(name), table / "proposal.json", signature)
    steps.agree(holder, coordinator, table / "proposal.json", signatures, record, table / "manifest.json", now)
    for name in names:
        steps.join(world.home(name), table / "manifest.json", keys / "public.key", record, now)
