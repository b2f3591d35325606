"""The tree of a round: the key holder outside, everyone else in a binary tree, a complete one by default.

The key holder has exactly one neighbour, the *apex*, so it never receives anything but the sum over
all other parties. In a plain heap with the key holder at its root, a federation of three hands it two
individual ciphertexts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Literal

from topology.roster import Member, Roster, TopologyError

Shape = Literal["balanced", "chain"]
"""How the parties below the key holder hang together: a complete binary tree, or one inner node below another,
each with a leaf of its own: as deep as a tree can be whose inner nodes have two children."""


@dataclass(frozen=True)
class Tree:
    """Where each living party of a round sits.

    ``parent`` maps every party but the key holder to whom it dials (the apex dials the key holder);
    ``children`` maps every party to those who dial it, in order.
    """

    key_holder: str
    apex: str
    parent: Mapping[str, str]
    children: Mapping[str, tuple[str, ...]]

    @cached_property
    def parties(self) -> frozenset[str]:
        return frozenset(self.children)

    def depth(self, name: str) -> int:
        """Links between a party and the key holder: 0 for the key holder, 1 for the apex."""
        links = 0
        while name != self.key_holder:
            name = self.parent[name]
            links += 1
        return links

    def height(self, name: str) -> int:
        """Links between a party and the deepest party below it: 0 for a leaf."""
        return self._heights[name]

    @cached_property
    def _heights(self) -> Mapping[str, int]:
        downwards = [self.key_holder]
        for name in downwards:
            downwards.extend(self.children[name])
        heights: dict[str, int] = {}
        for name in reversed(downwards):
            heights[name] = max((1 + heights[child] for child in self.children[name]), default=0)
        return heights

    def subtree(self, name: str) -> frozenset[str]:
        """A party and everyone below it; of one that has no place, nobody."""
        if name not in self.children:
            return frozenset()
        return frozenset({name}).union(*(self.subtree(child) for child in self.children[name]))

    def is_within(self, name: str, top: str) -> bool:
        """Whether a party is in another's :meth:`subtree`."""
        at: str | None = name if name in self.children else None
        while at is not None and at != top:
            at = self.parent.get(at)
        return at is not None


def inner_positions(others: int) -> int:
    """How many of ``others`` parties (the key holder not counted) have someone dial them."""
    return others // 2


def check_placeable(members: Collection[Member], key_holder: str) -> None:
    """Refuse a roster with more dial-out-only members than there are leaves.

    Raises:
        TopologyError: says how many listening members are missing.
    """
    by_name = {member.name: member for member in members}
    if len(by_name) < 2:
        raise TopologyError(f"a federation needs at least 2 parties, came {len(by_name)}")
    if not by_name[key_holder].listens:
        raise TopologyError(f"the key holder {key_holder!r} must listen: the apex dials it")
    others = [member for member in by_name.values() if member.name != key_holder]
    missing = inner_positions(len(others)) - sum(member.listens for member in others)
    if missing > 0:
        raise TopologyError(
            f"{missing} listening member{'s are' if missing > 1 else ' is'} missing: of {len(others)} parties "
            f"beside the key holder {inner_positions(len(others))} must listen, and only "
            f"{len(others) - inner_positions(len(others))} can be leaves that dial out"
        )


@dataclass(frozen=True)
class Placement:
    """Where everyone sits, for any set of living parties: what the manifest fixes once for all rounds."""

    roster: Roster
    seed: bytes
    shape: Shape = "balanced"

    def __post_init__(self) -> None:
        check_placeable(self.roster.members, self.roster.key_holder)

    @cached_property
    def order(self) -> tuple[str, ...]:
        """Everyone but the key holder, by ``sha256(seed, name)``: who listens first.

        It is the tree of the whole roster, the inner positions first. Everyone's parent, also after any
        deaths, stands before it.
        """

        def rank(member: Member) -> tuple[bool, bytes]:
            digest = hashlib.sha256(b"wardtree/place\0" + self.seed + member.name.encode()).digest()
            return not member.listens, digest

        return tuple(member.name for member in sorted(self.roster.others, key=rank))

    def tree(self, live: Collection[str]) -> Tree:
        """The tree over the living parties: a pure function, so every node computes the same one.

        Everyone has its place in the tree of the whole roster, complete and binary or a chain; the children of
        the dead move to their nearest living ancestor, and nobody else moves. If the apex is dead, the first
        living party that listens takes its place, with everyone who has no living ancestor.

        Raises:
            TopologyError: the key holder is not alive, or nobody else who listens is.
        """
        living = frozenset(live)
        if self.roster.key_holder not in living:
            raise TopologyError(f"the key holder {self.roster.key_holder!r} is not among the living")
        apex = next((name for name in self._listeners if name in living), None)
        if apex is None:
            raise TopologyError("nobody beside the key holder is alive and listens")
        order = [name for name in self.order if name in living]
        parent = {name: next((up for up in self._ancestors(name) if up in living), apex) for name in order}
        parent[apex] = self.roster.key_holder
        children: dict[str, list[str]] = {name: [] for name in (self.roster.key_holder, *order)}
        for name in order:
            children[parent[name]].append(name)
        frozen = {name: tuple(below) for name, below in children.items()}
        return Tree(self.roster.key_holder, apex, MappingProxyType(parent), MappingProxyType(frozen))

    def ladder(self, me: str) -> tuple[str, ...]:
        """Whom a party dials when it must find a parent by itself: the nearest first.

        Its ancestors, then everyone else who listens and stands before it, then, if it could be the apex,
        the key holder. Whoever follows it dials only those before itself, so no circle can form.
        """
        before = self.order[: self.order.index(me)]
        candidates = dict.fromkeys((*self._ancestors(me), *(name for name in self._listeners if name in before)))
        return (*candidates, self.roster.key_holder) if me in self._listeners else tuple(candidates)

    @cached_property
    def _listeners(self) -> tuple[str, ...]:
        """Who can be the apex: whoever others can dial, or the only one there is."""
        listening = {member.name for member in self.roster.members if member.listens}
        return tuple(name for name in self.order if name in listening or len(self.order) == 1)

    @cached_property
    def _above(self) -> Mapping[str, str]:
        """Who stands above whom in the tree of the whole roster."""
        above = _above_in_a_chain if self.shape == "chain" else _above_in_a_complete_tree
        count = len(self.order)
        return {name: self.order[above(index, count)] for index, name in enumerate(self.order) if index}

    def _ancestors(self, name: str) -> Iterator[str]:
        """The nearest first."""
        while name in self._above:
            name = self._above[name]
            yield name


def place(roster: Roster, live: Collection[str], seed: bytes, shape: Shape = "balanced") -> Tree:
    """See :meth:`Placement.tree`."""
    return Placement(roster, seed, shape).tree(live)


def _above_in_a_complete_tree(index: int, _: int) -> int:
    return (index - 1) // 2


def _above_in_a_chain(index: int, others: int) -> int:
    """The inner nodes one below another; then the leaves, one an inner node, the last of them with two if odd."""
    inner = inner_positions(others)
    return index - 1 if index < inner else min(index - inner, inner - 1)
