"""One update's steps: train, quantise, apply, wipe."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from keys.plan import Plan
from node.protocol.messages import STATISTICS, TRAIN
from node.tasks.base import Evaluation, StatisticsSpec, Task, TrainingRound
from node.update import Grid, Model, Recipe, UpdateError, apply, quantise, train, wipe

PLAN = Plan()
GRID = Grid(2.0, PLAN)
WEIGHTS = {"ada": 256, "bo": 128, "cy": 32, "di": 1}
RECIPE = Recipe(PLAN, GRID.bound, WEIGHTS, statistics=StatisticsSpec(4, 10.0))
ROUND = TrainingRound(1, 5, np.ones(3), 4)
MANIFEST = b"m" * 32


# ---- train ----------------------------------------------------------------------------------------------


class Returns(Task):
    """A task that gives whatever it was made with."""

    examples, parameters = 1, 3

    def __init__(self, value: Any) -> None:
        self.value = value
        self.seen: list[TrainingRound] = []

    def statistics_spec(self) -> StatisticsSpec | None:
        return StatisticsSpec(3, 10.0)

    def statistics(self) -> Any:
        return self.value

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(3, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> Any:
        self.seen.append(round)
        model += 1  # a careless task
        return self.value

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        return Evaluation(0)


@pytest.mark.parametrize("purpose", [STATISTICS, TRAIN])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 4711.0, math.nan], "not finite"),
        ([1.0, 4711.0, math.inf], "not finite"),
        ([1.0, 4711.0, -math.inf], "not finite"),
        ([4711.0] * 4, r"should have shape \(3,\), came \(4,\)"),
        ([[4711.0] * 3], r"should have shape \(3,\), came \(1, 3\)"),
        (4711.0, r"should have shape \(3,\), came \(\)"),
    ],
)
def test_what_cannot_be_summed_is_refused_without_quoting_it(purpose: str, value: Any, message: str) -> None:
    with pytest.raises(UpdateError, match=message) as caught:
        train(Returns(value), purpose, Model(0, np.zeros(3, np.float32)), ROUND)
    assert "4711" not in str(caught.value)


def test_a_task_is_told_the_round_and_cannot_change_the_model() -> None:
    task = Returns([1, 2, 3])
    model = Model(0, np.zeros(3, np.float32), np.ones(3), 4)
    assert train(task, TRAIN, model, ROUND).tolist() == [1, 2, 3]
    assert model.parameters.tolist() == [0, 0, 0]
    assert task.seen == [ROUND]
    assert train(task, STATISTICS, model, ROUND).dtype == np.float64


# ---- quantise -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", [0.0, 0.01, 0.25, 0.5, 0.9, 1.0, -0.3, -17.75, 8190.5])
@pytest.mark.parametrize("share", [1.0, 0.125])
def test_rounding_is_unbiased_and_to_a_neighbour(place: float, share: float) -> None:
    """5 standard errors: an honest rounding fails one such test in two million."""
    count = 100_000
    values = np.full(count, place * GRID.step)
    rounded = quantise(values, GRID, share)
    expected = place * share
    fraction = expected - math.floor(expected)
    assert abs(rounded.mean() - expected) <= 5 * math.sqrt(fraction * (1 - fraction) / count) + 1e-9
    assert set(np.unique(rounded)) <= {math.floor(expected), math.floor(expected) + 1}


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(-1e300, 1e300), min_size=1, max_size=50), st.floats(2**-20, 1), st.floats(1e-6, 1e6))
def test_whatever_the_values_the_integers_keep_the_plan(values: list[float], share: float, bound: float) -> None:
    grid = Grid(bound, PLAN)
    rounded = quantise(np.array(values), grid, share)
    assert np.abs(rounded).max() <= PLAN.max_value
    clipped = np.clip(values, -bound, bound)
    assert np.abs(rounded * grid.step - clipped * share).max() <= grid.step * 1.001, "within one step of the value"


def test_values_beyond_the_bound_count_as_the_bound() -> None:
    beyond = np.array([2.0, 2.5, 1e30, -2.0, -7.0])
    assert quantise(beyond, GRID, 1.0).tolist() == [8191, 8191, 8191, -8191, -8191]


def test_rounding_differs_each_time_whatever_the_seeds() -> None:
    halves = np.full(256, GRID.step / 2)
    drawn = []
    for _ in range(2):
        np.random.seed(1)
        drawn.append(quantise(halves, GRID, 1.0).tobytes())
    assert drawn[0] != drawn[1]


# ---- apply ----------------------------------------------------------------------------------------------


def applied(model: Model, names: Any, total: Any, segment: int = 400, purpose: str = TRAIN, **recipe: Any) -> Model:
    """Of a copy: applying changes the model where it lies. ``total`` comes in segments of so many integers."""
    model = replace(model, parameters=model.parameters.copy(), moments=model.moments.copy())
    total = np.array(total, "<i4")
    staged = [total[start : start + segment].tobytes() for start in range(0, total.size, segment)]
    return apply(model, 3, purpose, staged, names, replace(RECIPE, **recipe))


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(sorted(WEIGHTS)), min_size=1), st.integers(0, 2**32))
def test_the_weighted_mean_is_that_of_the_listed_set(names: set[str], seed: int) -> None:
    """Against a direct computation in floats: each update as it was, no grid, no sum of integers."""
    generator = np.random.default_rng(seed)
    updates = {name: generator.uniform(-2, 2, 100) for name in sorted(names)}
    start = generator.uniform(-1, 1, 100).astype(np.float32)
    total = sum(quantise(update, GRID, WEIGHTS[name] / 256) for name, update in updates.items())
    new = applied(Model(2, start), names, total)
    mean = sum(WEIGHTS[name] * update for name, update in updates.items()) / sum(map(WEIGHTS.__getitem__, names))
    rounding = len(names) * GRID.step / (sum(map(WEIGHTS.__getitem__, names)) / 256)
    np.testing.assert_allclose(new.parameters, start + mean, atol=rounding + 1e-6, rtol=0)
    assert (new.round, new.statistics, new.parties) == (3, None, 0)


def test_the_bits_are_the_same_twice_in_any_order_of_contributors_and_by_whatever_segments() -> None:
    generator = np.random.default_rng(5)
    model = Model(2, generator.standard_normal(1000).astype(np.float32))
    total = generator.integers(-30_000, 30_000, 1000)
    digests = {applied(model, names, total).digest(MANIFEST) for names in permutations(WEIGHTS)}
    digests |= {applied(model, set(WEIGHTS), total, segment).digest(MANIFEST) for segment in (1, 300, 999)}
    assert len(digests) == 1


def test_a_prefix_changes_itself_and_leaves_the_rest() -> None:
    model = Model(2, np.linspace(-1, 1, 10, dtype=np.float32))
    whole = applied(model, WEIGHTS, range(100, 110))
    prefix = applied(model, WEIGHTS, range(100, 104))
    assert prefix.parameters[:4].tobytes() == whole.parameters[:4].tobytes()
    assert prefix.parameters[4:].tobytes() == model.parameters[4:].tobytes()


def test_published_statistics_are_the_sums_and_leave_the_model() -> None:
    model = Model(2, np.ones(3, np.float32))
    new = applied(model, {"bo", "ada"}, [0, 1, -1, 2 * 8191], purpose=STATISTICS)
    assert new.statistics is not None
    np.testing.assert_allclose(new.statistics, [0, 10 / 8191, -10 / 8191, 20], rtol=1e-12)
    assert (new.round, new.parties, new.parameters.tobytes()) == (3, 2, model.parameters.tobytes())


def test_the_digest_changes_with_everything_in_the_state() -> None:
    model = Model(1, np.zeros(3, np.float32), np.zeros(2), 4)
    changes: list[dict[str, Any]] = [
        {"round": 2},
        {"round": -1},
        {"parameters": np.array([0, 0, -0.0], np.float32)},
        {"parameters": np.zeros(4, np.float32)},
        {"statistics": None},
        {"statistics": np.array([0, 1e-300])},
        {"statistics": np.zeros(3)},
        {"parties": 5},
        {"moments": np.zeros((1, 3), np.float32)},
        {"curve": np.zeros((1, 2))},
        {"curve": np.zeros((2, 1))},
    ]
    digests = {replace(model, **change).digest(MANIFEST) for change in changes}
    digests |= {model.digest(MANIFEST), model.digest(b"n" * 32)}
    assert len(digests) == len(changes) + 2
    assert all(len(digest) == 32 for digest in digests)


# ---- wipe -----------------------------------------------------------------------------------------------


def test_wiping_overwrites_arrays_and_drops_the_rest() -> None:
    array, buffer, staged = np.ones(10), bytearray(b"secret"), [b"abc", b"de"]
    assert wipe(array, buffer, staged) == 80 + 6 + 5
    assert not array.any()
    assert not any(buffer)
    assert not staged
