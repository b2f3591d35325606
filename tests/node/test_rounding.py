"""Clipping and conditional rounding: whatever the values, the integers keep their bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.privacy.rounding import BETA, TRIES, Bound, Norm, clip, l1_bound, l2_bound, round_within


@pytest.mark.parametrize(
    ("bits", "dimension", "times"),
    [(8, 1_000_000, 4.1), (8, 11_500_000, 13), (14, 1_000_000, 1.00), (14, 11_500_000, 1.02)],
)
def test_rounding_inflates_the_l2_norm_by_the_known_factors(bits: int, dimension: int, times: float) -> None:
    steps = 2 ** (bits - 1) - 1
    assert l2_bound(steps, dimension).sensitivity / steps == pytest.approx(times, rel=0.035 if bits == 8 else 0.005)


def test_the_two_parts_of_the_bound() -> None:
    assert l2_bound(100.0, 4, 0.5).limit == math.floor(100**2 + 1 + math.sqrt(2 * math.log(2)) * 101)
    assert l2_bound(100.0, 4, 1e-300).limit == 102**2
    assert l1_bound(100.0, 4, 0.5).limit == math.floor(100 + math.sqrt(2 * math.log(2)))
    assert l1_bound(100.0, 4, 1e-300).limit == 104
    with pytest.raises(ValueError, match="expected to be positive"):
        l2_bound(0, 4)


vectors = st.lists(st.floats(-1e200, 1e200), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(vectors, st.floats(1e-3, 1e3), st.sampled_from([1, 2]))
def test_a_clipped_vector_is_as_long_as_allowed_and_points_where_it_did(
    values: list[float], limit: float, norm: Norm
) -> None:
    array = np.clip(np.array(values), -1e150, 1e150)
    clipped = clip(array, limit, norm)
    length = np.linalg.norm(clipped, norm)
    assert length <= limit * (1 + 1e-9)
    if np.linalg.norm(array, norm) <= limit * (1 - 1e-9):
        assert np.array_equal(clipped, array)
    assert (np.sign(clipped) * np.sign(array) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(vectors, st.floats(0.5, 5000), st.sampled_from([l1_bound, l2_bound]), st.sampled_from([1e-9, 0.4]))
def test_integers_keep_their_bound_whatever_comes_clipped_or_not(
    values: list[float], steps: float, make: object, beta: float
) -> None:
    array = np.array(values)
    bound: Bound = make(steps, array.size, beta)  # type: ignore[operator]
    for vector in (array, clip(np.clip(array, -1e150, 1e150), 1.0, bound.norm)):
        with np.errstate(over="ignore"):
            integers = round_within(vector, 1 / steps, bound, 8191)
        assert bound.holds(integers)
        assert abs(integers).max() <= 8191


@pytest.mark.parametrize("make", [l1_bound, l2_bound])
def test_rounding_within_a_usual_bound_is_unbiased_and_to_a_neighbour(make: object) -> None:
    """5 standard errors: once in two million."""
    count, steps = 100_000, 127.0
    norm: Norm = 1 if make is l1_bound else 2
    vector = clip(np.full(count, 0.3), 1.0, norm)
    bound: Bound = make(steps, count)  # type: ignore[operator]
    integers = round_within(vector, 1 / steps, bound, 127)
    place = vector[0] * steps
    assert abs(integers.mean() - place) <= 5 * math.sqrt(place * (1 - place) / count)
    assert set(np.unique(integers)) <= {0, 1}


def test_a_bound_that_is_hard_to_keep_is_kept_at_the_price_of_a_bias() -> None:
    count = 400
    vector = clip(np.full(count, 0.3), 1.0, 2)  # 20 steps long, each value 1: nothing to round
    exact = Bound(2, 400, 0.5)
    assert round_within(vector, 1 / 20, exact, 127).sum() in range(0, 401)
    tight = Bound(2, 50, 0.5)  # never met by chance: 1/2 a value gives 200 of 400
    halves = np.full(count, 0.5)
    assert np.array_equal(round_within(halves, 1.0, tight, 127), np.zeros(count))  # towards zero
    assert BETA**TRIES < 1e-150


def test_a_failed_try_is_as_rare_as_beta_says() -> None:
    """Of 2,000 tries at beta = 0.1 no more than 10% fail; the bound is far from tight, so far fewer do."""
    rng = np.random.default_rng(3)
    vector = clip(rng.normal(size=400), 1.0, 2)
    bound = l2_bound(10.0, 400, 0.1)
    free = Bound(2, 10**9, 0.1)
    failed = sum(not bound.holds(round_within(vector, 0.1, free, 127)) for _ in range(2000))
    assert failed <= 200
