"""The inside of a node that is played: its disk, which outlives its process, its enclave and its key room.

A "ciphertext" is the sorted list of the names whose update it holds, and of the rounds these are from, so that every
opened total can be compared with its listed set.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from node.protocol import events as ev
from node.protocol.link import Link
from node.protocol.messages import EVALUATE, IDLE, STATISTICS, TRAIN, Total
from node.protocol.party import Party, Rules
from node.protocol.posture import Posture

FIRST = b"\0" * 32
CONFINED = Posture("required", 7, frozenset()).text


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


class PlayedNodes:
    """What the machines' commands do inside of all the nodes; the network between them is the subclass's."""

    now: float

    def __init__(
        self,
        seed: int,
        names: Iterable[str],
        key_holder: str,
        rules: Rules,
        lengths: Mapping[str, int],
        bases: Mapping[str, bytes],
        postures: Mapping[str, str],
        ends_after: int,
    ) -> None:
        self.random = random.Random(seed)
        self.key_holder, self.rules, self.lengths = key_holder, rules, lengths
        self.postures, self.ends_after = postures, ends_after
        self.disks = {name: Disk(state=bases.get(name, FIRST)) for name in names}
        self.openings: list[Opening] = []
        self.published: list[Total] = []
        self.violations: list[str] = []
        self.key_holder_seconds, self.train_seconds = 2.0, 2.0
        self.lose_own: set[tuple[str, int]] = set()
        self.lose_own_at: set[tuple[int, int]] = set()  # at the key holder, when the key room asks: round, segment
        self.withheld_from = 1_000  # the first round for which the key room has no privacy left
        self.moments: dict[tuple[str, int], Callable[[str], None]] = {}

    # ---- for the subclass -------------------------------------------------------------------------------

    def event(self, node: Node, event: ev.Event) -> None:
        """It happens to a node now."""
        raise NotImplementedError

    def soon(self, node: Node, event: ev.Event, low: float = 0.001, high: float = 0.02) -> None:
        """It happens to a node after a while between these."""
        raise NotImplementedError

    def plan(self, seconds: float, fault: Callable[[], None]) -> None:
        """Let something go wrong at this time."""
        raise NotImplementedError

    # ---- at the start -----------------------------------------------------------------------------------

    def ready(self, name: str) -> ev.Ready:
        """What a new process finds on its disk."""
        disk = self.disks[name]
        records = disk.records
        tried = max((r for w, r, _ in records if w in ("training", "skipped")), default=-1)
        forwarded = max((r for w, r, _ in records if w == "forwarded"), default=-1)
        return ev.Ready(
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

    # ---- commands ---------------------------------------------------------------------------------------

    def do_inside(self, node: Node, command: ev.Command) -> None:
        """A command that is for the node's rooms, its model or its disk."""
        disk = self.disks[node.name]
        match command:
            case ev.Train(round_, purpose):
                node.training = (node.name, round_) not in self.lose_own
                if purpose == IDLE:
                    pass
                elif not node.training:
                    self.soon(node, ev.OwnLost(round_))
                elif node.name == self.key_holder:
                    self.soon(node, ev.Contributed(round_), 0.01, self.key_holder_seconds)
            case ev.PullSegment(round_, segment):
                if node.training:
                    slow = self.train_seconds if segment == 0 else 0.02
                    own = f"{node.name}:{round_}".encode()
                    self.soon(node, ev.Sealed(round_, segment, own), 0.001, slow)
            case ev.Merge(round_, attempt, segment, parts):
                names = sorted(name for part in parts for name in part.decode().split())
                self.soon(node, ev.Merged(round_, attempt, segment, " ".join(names).encode()))
            case ev.Record(what, round_, segment, contributors):
                disk.records.append((what, round_, segment))
                if what == "opening" and self.rules.schedule.purpose(round_) == EVALUATE:
                    disk.evaluated.append(contributors)
                fault = self.moments.pop((what, round_), None)
                if fault:
                    self.plan(self.now + self.random.choice((0.0, 0.05, 0.5)), partial(fault, node.name))
            case ev.OpenTotal(round_, segment) if round_ >= self.withheld_from:
                self.soon(node, ev.OpeningRefused(round_, segment, "privacy budget: nothing was opened"))
            case ev.OpenTotal(round_, segment, own=True) if (round_, segment) in self.lose_own_at:
                self.soon(node, ev.OwnLost(round_))
            case ev.OpenTotal(round_, segment, others, own, ciphertexts):
                held = sorted([*ciphertexts.decode().split(), *([f"{node.name}:{round_}"] if own else [])])
                listed = others | ({node.name} if own else frozenset())
                self.openings.append(Opening(round_, segment, node.machine.base, listed, held))
                size = 4 * command.length
                self.soon(node, ev.Opened(round_, segment, f"{held}".encode().ljust(size)[:size]))
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
