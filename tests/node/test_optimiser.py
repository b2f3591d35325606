"""The server's step: against the published recursions in plain floats, and bit for bit the same by any segments."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.optimiser import Optimiser, RateSchedule, Server

KINDS: tuple[Server, ...] = ("average", "momentum", "adam", "yogi")


def published(optimiser: Optimiser, start: float, updates: list[float]) -> float:
    """Hsu et al. 2019, equation 1; Reddi et al. 2021, algorithm 2; one parameter, textbook form."""
    x, m = start, 0.0
    v = optimiser.adaptivity**2
    b1, b2 = optimiser.momentum, optimiser.second_moment
    for delta in updates:
        if optimiser.server == "average":
            step = delta
        elif optimiser.server == "momentum":
            m = b1 * m + delta
            step = m
        else:
            m = b1 * m + (1 - b1) * delta
            if optimiser.server == "adam":
                v = b2 * v + (1 - b2) * delta**2
            else:
                v = v - (1 - b2) * delta**2 * math.copysign(1.0, v - delta**2)
            step = m / (math.sqrt(v) + optimiser.adaptivity)
        x += optimiser.learning_rate * step
    return x


@pytest.mark.parametrize("server", KINDS)
@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=8), st.floats(0.01, 2))
def test_a_step_is_the_published_one(server: Server, updates: list[float], rate: float) -> None:
    optimiser = Optimiser(server, rate)
    model, moments = np.ones(1, np.float32), optimiser.begin(1)
    for update in updates:
        optimiser.step(model, moments, np.array([float(update)]))
    assert model[0] == pytest.approx(published(optimiser, 1.0, updates), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("server", KINDS)
def test_the_bits_do_not_depend_on_the_segments(server: Server) -> None:
    optimiser, generator = Optimiser(server, 0.1), np.random.default_rng(1)
    updates = generator.uniform(-1, 1, (5, 1000))
    results = set()
    for size in (1000, 7, 333):
        model, moments = np.zeros(1000, np.float32), optimiser.begin(1000)
        for update in updates:
            for start in range(0, 1000, size):
                part = slice(start, start + size)
                optimiser.step(model[part], moments[:, part], update[part].copy())
        results.add(model.tobytes() + moments.tobytes())
    assert len(results) == 1
    assert optimiser.begin(5).shape == (optimiser.moments, 5)


@given(st.integers(1, 100), st.integers(0, 20), st.sampled_from(["constant", "cosine", "step"]))
def test_rates_rise_to_one_and_then_never_rise_again(rounds: int, warmup: int, kind: str) -> None:
    schedule = RateSchedule(kind, warmup, every=3, factor=0.5)  # type: ignore[arg-type]
    rates = [schedule.rate(number, rounds + warmup) for number in range(1, rounds + warmup + 1)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == sorted(set(rates[:warmup]))
    assert rates[warmup] == 1.0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
