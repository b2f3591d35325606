"""Whoever took over a room gets nowhere: every attempt, in every room, and outside, where it works."""

from __future__ import annotations

import os

import pytest

from tests.node.sandbox.attempts import ATTEMPTS
from tests.node.sandbox.kernel import needs_landlock
from tests.node.sandbox.prove import ORDINARY, OUTSIDE, WENT_THROUGH, prove, summary, table
from tests.node.sandbox.scene import ROOMS

USERS = [None, pytest.param(ORDINARY, marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another"))]


@needs_landlock
@pytest.mark.parametrize("user", USERS, ids=["as whoever runs this", "as an ordinary user"])
def test_every_attempt_from_inside_the_rooms_is_refused_and_works_outside(user: int | None) -> None:
    results = prove(user)
    assert len(results) == (1 + len(ROOMS)) * len(ATTEMPTS)
    wrong = [f"{each.attempt.name}, {each.where}: {each.outcome}" for each in results if not each.as_it_must]
    unavailable = [line for line in wrong if f", {OUTSIDE}: " in line and "ENOSYS" in line]  # not in this kernel at all
    assert sorted(wrong) == sorted(unavailable)
    assert "WRONG" not in table(results) or unavailable
    assert summary(results).startswith(f"{len(ATTEMPTS)} attempts; outside ")
    assert sum(each.outcome == WENT_THROUGH for each in results if each.where == OUTSIDE) >= 30
