"""Quorum: for every party p, the published set without p has at least min_hidden members."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from topology import quorum_met

names = st.frozensets(st.sampled_from("abcdefgh"), max_size=8)


@given(names, st.integers(2, 6))
def test_the_rule_is_the_sentence_of_the_design(contributors: frozenset[str], min_hidden: int) -> None:
    everyone = frozenset("abcdefghK")
    literally = all(len(contributors - {p}) >= min_hidden for p in everyone)
    assert quorum_met(contributors, min_hidden) == literally


def test_the_smallest_sets() -> None:
    assert quorum_met({"K", "a", "b"}, 2), "three parties: each learns the sum of two, no less"
    assert not quorum_met({"a", "b"}, 2), "without the key holder a and b learn each other's"
    assert not quorum_met({"K", "a"}, 2)
    assert not quorum_met(set(), 2)
