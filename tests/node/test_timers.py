"""Timers of a node."""

from __future__ import annotations

import pytest

from node import timers as module
from node.timers import Timers


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_each_is_due_once_and_the_first_says_how_long_to_wait(clock: list[float]) -> None:
    timers = Timers()
    assert timers.patience is None
    timers.set("a", 3.0)
    timers.set("b", 1.0)
    assert timers.patience == 1.0
    clock[0] += 2.0
    assert list(timers.expired()) == ["b"]
    assert list(timers.expired()) == []
    timers.set("a", 5.0)
    clock[0] += 4.0
    assert timers.patience == 1.0
    clock[0] += 9.0
    assert timers.patience == 0.0
    assert list(timers.expired()) == ["a"]


def test_one_that_another_stops_is_not_due_any_more(clock: list[float]) -> None:
    timers = Timers()
    timers.set("a", 1.0)
    timers.set("b", 1.0)
    clock[0] += 1.0
    for timer in timers.expired():
        assert timer == "a"
        timers.stop("b")
