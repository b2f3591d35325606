"""The tree of a round: the key holder outside, everyone else in a binary tree, a complete one by default.

The key holder has exactly one neighbour, the *apex*, so it never receives anything but the sum over
all other parties. In a plain heap with the key holder at its root, a federation of three hands it two
individual ciphertexts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
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

    @property
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
        return max((1 + self.height(child) for child in self.children[name]), default=0)

    def subtree(self, name: str) -> frozenset[str]:
        """A party and everyone below it."""
        return frozenset({name}).union(*(self.subtree(child) for child in self.children[name]))


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


def place(roster: Roster, live: Collection[str], seed: bytes, shape: Shape = "balanced") -> Tree:
    """The tree over the living parties: a pure function, so every node computes the same one.

    The parties are ordered by ``sha256(seed, name)``; those who listen take the inner positions, everyone else
    the leaves. Either shape of n parties beside the key holder has n // 2 inner positions.

    Raises:
        TopologyError: the key holder is not alive, nobody else is, or too few parties listen.
    """
    members = [member for member in roster.members if member.name in live]
    if roster.key_holder not in live:
        raise TopologyError(f"the key holder {roster.key_holder!r} is not among the living")
    check_placeable(members, roster.key_holder)

    def rank(member: Member) -> bytes:
        return hashlib.sha256(b"wardtree/place\0" + seed + member.name.encode()).digest()

    others = sorted((m for m in members if m.name != roster.key_holder), key=rank)
    inner = [m.name for m in others if m.listens][: inner_positions(len(others))]
    order = inner + [m.name for m in others if m.name not in set(inner)]
    above = _above_in_a_chain if shape == "chain" else _above_in_a_complete_tree
    parent = {name: order[above(index, len(order))] if index else roster.key_holder for index, name in enumerate(order)}
    children = {name: tuple(child for child in order if parent[child] == name) for name in (*order, roster.key_holder)}
    return Tree(roster.key_holder, order[0], MappingProxyType(parent), MappingProxyType(children))


def _above_in_a_complete_tree(index: int, _: int) -> int:
    return (index - 1) // 2


def _above_in_a_chain(index: int, others: int) -> int:
    """The inner nodes one below another; then the leaves, one an inner node, the last of them with two if odd."""
    inner = inner_positions(others)
    return index - 1 if index < inner else min(index - inner, inner - 1)
