"""The rule that keeps every party hidden in a published total."""

from __future__ import annotations

from collections.abc import Collection, Iterable


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


def tells_apart(contributors: Collection[str], earlier: Iterable[Collection[str]], min_hidden: int) -> bool:
    """Whether counts over this set, beside the same counts over an earlier one, would tell of too few parties.

    The difference of the two totals is about those who are in one set only: nobody is, or everyone must be hidden among
    them as in a total. Pairs of totals are compared, not what could be computed from three or more.
    """
    new = frozenset(contributors)
    differences = (new ^ frozenset(old) for old in earlier)
    return any(difference and not quorum_met(difference, min_hidden) for difference in differences)
