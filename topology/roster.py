"""The roster: every party of a federation, in one order that all parties share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property


class TopologyError(Exception):
    """The roster cannot be placed; ``str()`` of it is the text for the user."""


@dataclass(frozen=True)
class Member:
    """One party. ``listens`` is False for a party that can only dial out (a hospital firewall)."""

    name: str
    listens: bool = True


@dataclass(frozen=True)
class Roster:
    """All parties, sorted by name, and which of them holds the secret key.

    The order is part of the protocol: a contributor set travels as a bitmap over it.
    """

    members: tuple[Member, ...]
    key_holder: str

    def __post_init__(self) -> None:
        names = [member.name for member in self.members]
        if names != sorted(set(names)):
            raise TopologyError("a roster lists each party once, sorted by name")
        if self.key_holder not in names:
            raise TopologyError(f"the key holder {self.key_holder!r} is not on the roster")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(member.name for member in self.members)

    @property
    def others(self) -> tuple[Member, ...]:
        """Every party but the key holder."""
        return tuple(member for member in self.members if member.name != self.key_holder)

    def to_bitmap(self, names: Iterable[str]) -> bytes:
        """A contributor set as ceil(n / 8) bytes, bit i (little-endian) for the i-th name."""
        bits = sum(self._bits[name] for name in names)
        return bits.to_bytes((len(self.members) + 7) // 8, "little")

    def from_bitmap(self, bitmap: bytes) -> frozenset[str]:
        """The inverse of :meth:`to_bitmap`.

        Raises:
            ValueError: the bitmap has another length, or a bit beyond the last party.
        """
        bits = int.from_bytes(bitmap, "little")
        if len(bitmap) != (len(self.members) + 7) // 8 or bits >> len(self.members):
            raise ValueError(f"a contributor set of {len(self.members)} parties was expected")
        return frozenset(name for name, bit in self._bits.items() if bits & bit)

    @cached_property
    def _bits(self) -> Mapping[str, int]:
        return {name: 1 << index for index, name in enumerate(self.names)}
