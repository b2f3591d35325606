"""Who is there, as far as the key holder knows: where everyone says that it stands, and on which state."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

MOST_MISSED = 2
"""Who gives nothing in so many rounds in a row must first say again that it is there."""


@dataclass
class Place:
    """What a party said last, and how many rounds in a row went without its update."""

    parent: str
    base: bytes
    missed: int = 0


@dataclass
class Attendance:
    """``expected``: those whom the next round should not begin without, unless they take too long."""

    key_holder: str
    expected: frozenset[str]
    places: dict[str, Place] = field(default_factory=dict)

    def joined(self, name: str, parent: str, base: bytes) -> bool:
        """A party said where it is; whether it was not there before."""
        is_new = name not in self.places
        self.places[name] = Place(parent, base)
        return is_new

    def gone(self, name: str, parent: str) -> bool:
        """Its parent says that a party is gone; whether it was that one's to say."""
        place = self.places.get(name)
        if place is None or place.parent != parent:
            return False
        self._forget(name)
        return True

    def _forget(self, name: str) -> None:
        del self.places[name]
        self.expected -= {name}

    def live(self, base: bytes, known: Collection[bytes], neighbours: Collection[str], resumed: bool) -> frozenset[str]:
        """Who holds the state ``base`` and has a way to us, and we ourselves.

        What a party said of its state may be old when it comes by another way: of those who were in the last
        round, and of all after our own restart (``resumed``), any of the ``known`` states of this study will do.
        Who is really behind is brought forward by its parent before the round's opening reaches it.
        """
        reached = {self.key_holder}
        waiting = dict(self.places)
        while True:
            near = {n for n, p in waiting.items() if self._has_way(n, p, reached, neighbours)}
            if not near:
                break
            reached |= near
            for name in near:
                del waiting[name]
        trusted = self.places.keys() if resumed else self.expected
        return frozenset(
            {self.key_holder}
            | {
                name
                for name in reached - {self.key_holder}
                if self.places[name].base == base or (name in trusted and self.places[name].base in known)
            }
        )

    def _has_way(self, name: str, place: Place, reached: set[str], neighbours: Collection[str]) -> bool:
        return name in neighbours if place.parent == self.key_holder else place.parent in reached

    def closed(
        self, base: bytes, live: Collection[str], asked: Collection[str], contributors: Collection[str], state: bytes
    ) -> None:
        """A round on ``base`` was closed: who was in it, or held that, follows it to ``state``. Who was ``asked`` to
        contribute and gave nothing has missed it."""
        for name, place in self.places.items():
            if name in live or place.base == base:
                place.base = state
        for name in set(asked) & self.places.keys():
            place = self.places[name]
            place.missed = 0 if name in contributors else place.missed + 1
            if place.missed == MOST_MISSED:
                self._forget(name)
