"""The rule that keeps every party hidden in a published total."""

from __future__ import annotations

from collections.abc import Collection


def hidden(contributors: Collection[str]) -> int:
    """In how many others the worst-placed party is hidden.

    Whoever is outside the set sees all of its members' sum; a contributor can subtract itself and
    sees the sum of the others. The smallest sum that anyone can form is what counts.
    """
    return len(set(contributors)) - 1 if contributors else 0


def quorum_met(contributors: Collection[str], min_hidden: int) -> bool:
    """Whether, for every party p, the set without p has at least ``min_hidden`` members.

    ``contributors`` includes the key holder if, and only if, its own update is in the total.
    """
    return hidden(contributors) >= min_hidden
