"""What goes up in one round: the parts of our own update and of those below us, and the set they make.

A *source* is ourselves or a neighbour below us. Segment 0 of every source says whose updates it holds; once
all who are awaited have spoken, or the deadline has passed, disjoint sources are merged. Until the published
total of segment 0 proves the set final, all parts are kept: should a source be lost, the sum begins again
without it. Pure bookkeeping; the round machine decides when.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from node.protocol.messages import Open

ATTEMPTS_PER_PARTY = 8
"""A sum begins again when somebody in it was lost. Whoever begins again more often than this for each party below it
is not heard any more in the round; and as its parent may begin as often as all below it together, no child can use up
what its parent may."""


@dataclass
class Source:
    """Segments that came from one neighbour, or from our own enclave."""

    contributors: frozenset[str]
    attempt: int
    parts: dict[int, bytes] = field(default_factory=dict)
    arrived: int = 0
    used: int = 0  # segments that were merged at least once: their sender has its credit back


@dataclass
class Gathering:
    """One round's contributions as this node sees them."""

    opening: Open
    segments: int
    awaited: set[str]
    sources: dict[str, Source] = field(default_factory=dict)
    merged_from: tuple[str, ...] = ()
    attempt: int = 0
    next: int = 0
    merging: bool = False
    is_final: bool = False  # a total was published: the set cannot change any more
    cut: bool = False  # nothing (more) of ours goes up in this round
    begun: Counter[str] = field(default_factory=Counter)  # how often each source began

    @property
    def contributors(self) -> frozenset[str]:
        """Who is in the sum that we pass up."""
        return frozenset().union(*(self.sources[name].contributors for name in self.merged_from))

    def take(self, name: str, segment: int, contributors: frozenset[str], attempt: int, part: bytes) -> None:
        """One more segment; the first one begins a source anew."""
        if segment == 0:
            self.sources[name] = Source(contributors, attempt)
            self.begun[name] += 1
        source = self.sources[name]
        source.parts[segment] = part
        source.arrived = segment + 1
        self.awaited.discard(name)

    def is_complete(self, name: str) -> bool:
        """Whether all segments of a source are here: then its death changes nothing."""
        return name in self.sources and self.sources[name].arrived == self.segments

    def choose(self, me: str) -> None:
        """Fix whom we merge: our own first, then the largest sets that share nobody with those before."""
        taken: frozenset[str] = frozenset()
        chosen = []
        for name in sorted(self.sources, key=lambda n: (n != me, -len(self.sources[n].contributors), n)):
            if taken.isdisjoint(self.sources[name].contributors):
                taken |= self.sources[name].contributors
                chosen.append(name)
        self.merged_from = tuple(sorted(chosen))

    def parts(self) -> tuple[bytes, ...] | None:
        """The next segment of all that we merge, if everything of it is here."""
        sources = [self.sources[name] for name in self.merged_from]
        if self.cut or self.merging or self.next == self.segments or not sources:
            return None
        if any(self.next not in source.parts for source in sources):
            return None
        return tuple(source.parts[self.next] for source in sources)

    def passed(self) -> list[str]:
        """The next segment went up: gives the sources whose segment was used for the first time."""
        fresh = []
        for name in self.merged_from:
            source = self.sources[name]
            if source.used == self.next:
                source.used += 1
                fresh.append(name)
        self.next += 1
        self._forget()
        return fresh

    def settle(self) -> None:
        """The set is final: what was passed up is not needed any more."""
        self.is_final = True
        self._forget()

    def _forget(self) -> None:
        if self.is_final:
            for source in self.sources.values():
                for segment in [number for number in source.parts if number < self.next]:
                    del source.parts[segment]

    def begin_again(self) -> None:
        """The sum starts from segment 0 once more."""
        self.attempt += 1
        self.next, self.merging, self.merged_from = 0, False, ()

    def lose(self, name: str) -> Source | None:
        """Nothing more comes from a source."""
        self.awaited.discard(name)
        return self.sources.pop(name, None)

    def stop(self) -> dict[str, int]:
        """Nothing more goes up: forget all parts; gives how many unused ones each source had."""
        unused = {name: source.arrived - source.used for name, source in self.sources.items()}
        self.cut = True
        for source in self.sources.values():
            source.parts.clear()
            source.used = source.arrived
        return unused
