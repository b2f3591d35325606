"""The tabular task: encoding, split, aggregated statistics; and what federating it is worth on real patients."""

import math
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import node
from keys.identity import bucket
from node.data import DataError
from node.evaluation import own_figures
from node.study import read_study
from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.tabular import TabularTask

STUDIES = Path(node.__file__).parent / "studies"
OPTIONS: dict[str, Any] = {
    "target": {"column": "ill", "positive": ["yes"]},
    "features": {"age": {"range": [0, 100]}, "sex": {"levels": ["Female", "Male"]}},
    "test_fraction": 0.25,
    "max_examples": 50,
}
ROW = st.tuples(
    st.one_of(st.just(""), st.integers(-50, 150).map(str)),
    st.sampled_from(["", "Female", "Male"]),
    st.sampled_from(["yes", "no"]),
)


def task_of(rows: list[tuple[str, str, str]], home: Path, seed: int = 1, **options: Any) -> TabularTask:
    (home / "a.csv").write_text("age,sex,ill\n" + "".join(",".join(row) + "\n" for row in rows))
    return TabularTask(Setup("north", {**OPTIONS, **options}, {"csv": "a.csv"}, seed, home))


def published(statistics: NDArray[np.float64] | None, parties: int = 1) -> TrainingRound:
    return TrainingRound(1, 1, statistics, parties)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


def test_values_are_scaled_by_the_range_and_what_lies_outside_is_missing(folder: Path) -> None:
    rows = [("0", "Female", "yes"), ("50", "Male", "no"), ("150", "", "no"), ("100", "Male", "yes")]
    task = task_of(rows, folder)
    x = np.concatenate([task._train.x, task._test.x])
    expected = np.array([[-1, 1, -1], [0, -1, 1], [np.nan, np.nan, np.nan], [1, -1, 1]])
    order = np.argsort(x[:, 0])  # NaN last
    np.testing.assert_array_equal(x[order], expected[[0, 1, 3, 2]])
    assert (task.examples, task.parameters, len(task._test.y)) == (4, 4, 1)


@given(rows=st.lists(ROW, min_size=2, max_size=50), seed=st.integers(0, 2**32 - 1))
def test_statistics_are_of_the_training_rows_and_within_the_bound(
    rows: list[tuple[str, str, str]], seed: int, folder: Path
) -> None:
    task, again = task_of(rows, folder, seed), task_of(rows, folder, seed)
    spec, statistics = task.statistics_spec(), task.statistics()
    assert statistics.shape == (spec.length,)
    assert np.abs(statistics).max() <= spec.bound
    np.testing.assert_array_equal(statistics, again.statistics())  # one seed, one split
    x = task._train.x
    for column in range(3):
        known = x[~np.isnan(x[:, column]), column]
        np.testing.assert_allclose(statistics[column::3], [len(known), known.sum(), (known**2).sum()])
    assert len(task._train.y) + len(task._test.y) == len(rows)
    assert len(task._test.y) >= 1
    task._test.x[:] = 1.0  # held-out patients are in no statistic and no update
    np.testing.assert_array_equal(task.statistics(), statistics)


def test_the_split_is_stratified_and_another_seed_gives_another(folder: Path) -> None:
    rows = [(str(age), "Male", "yes" if age % 4 == 0 else "no") for age in range(40)]
    splits = [task_of(rows, folder, seed)._test for seed in range(12)]
    assert {split.y.sum() for split in splits} <= {2.0, 3.0}  # a quarter of ten
    assert len({tuple(sorted(split.x[:, 0])) for split in splits}) == 12


def test_sums_of_hospitals_standardise_as_pooled_data_would(folder: Path) -> None:
    parts = [[(str(age), sex, "no") for age in range(low, low + 12)] for low, sex in ((20, "Male"), (50, ""))]
    tasks = [task_of(rows, folder) for rows in parts]
    pooled = TabularTask.pool(tasks)
    total = np.sum([task.statistics() for task in tasks], axis=0)
    np.testing.assert_allclose(pooled.statistics(), total)
    z = pooled._standardised(pooled._train.x, published(total))
    assert z.dtype == np.float32
    np.testing.assert_allclose(z[:, 0].mean(), 0, atol=1e-6)
    np.testing.assert_allclose(z[:, 0].std(), 1, rtol=1e-5)
    np.testing.assert_array_equal(z[:, 1:], 0)  # constant or missing: at the mean


def test_a_column_that_nobody_has_counts_for_nothing(folder: Path) -> None:
    task = task_of([("", "", "yes"), ("", "", "no")] * 4, folder)
    assert not task.statistics().any()
    update = task.train(task.initial(), published(task.statistics()))
    assert not update[:-1].any()
    assert np.isfinite(update).all()


def test_training_leaves_the_model_alone_and_lowers_the_loss(folder: Path) -> None:
    rows = [(str(age), "Male", "yes" if age > 50 else "no") for age in range(30, 70)]
    task = task_of(rows, folder, learning_rate=0.5)
    model, round = task.initial(), published(task.statistics())
    update = task.train(model, round)
    assert not model.any()
    assert update.dtype == np.float32
    figures = own_figures(task.evaluate(model + update, round))
    assert figures["auc"] == 1.0
    assert figures["accuracy"] >= 0.9
    assert (figures["n"], figures["prevalence"]) == (10.0, 0.5)


def test_the_proximal_term_keeps_near_to_the_global_model_and_a_rate_slows(folder: Path) -> None:
    rows = [(str(age), "Male", "yes" if age > 50 else "no") for age in range(30, 70)]
    norms = {}
    for proximal in (0.0, 1.0, 4.0):
        task = task_of(rows, folder, learning_rate=0.1, proximal=proximal)
        round = published(task.statistics())
        norms[proximal] = np.linalg.norm(task.train(task.initial(), round))
        norms[proximal, "slow"] = np.linalg.norm(task.train(task.initial(), replace(round, rate=0.1)))
    assert norms[0.0] > 1.2 * norms[1.0] > 1.2 * 1.2 * norms[4.0] > 0
    assert norms[0.0, "slow"] < 0.3 * norms[0.0]


def test_held_out_patients_of_one_class_have_no_auc(folder: Path) -> None:
    task = task_of([("40", "Male", "yes")] * 8, folder)
    assert own_figures(task.evaluate(task.initial(), published(task.statistics()))) == {
        "n": 2.0,
        "prevalence": 1.0,
        "majority": 1.0,
        "accuracy": 1.0,
        "log_loss": pytest.approx(math.log(2)),
    }


def test_bad_data_is_one_line_that_names_the_party(folder: Path) -> None:
    with pytest.raises(TaskError) as caught:
        task_of([("40", "Male", "yes")] * 51, folder)
    assert str(caught.value) == "north: a.csv: expected 2 to max_examples = 50 rows, came 51"
    for row, problem in (
        (("secretvalue", "Male", "yes"), "column age, row 3: expected a number, came something else"),
        (("40", "secretvalue", "yes"), "column sex, row 3: expected one of its levels, came another"),
        (("40", "Male", ""), "column ill, row 3: expected a value, came an empty cell"),
    ):
        with pytest.raises(DataError) as refused:
            task_of([("40", "Male", "no"), row], folder)
        assert str(refused.value) == f"north: a.csv: {problem}"
    with pytest.raises(DataError, match=r"^north: a.csv: expected a column gone, came 3 others$"):
        task_of([("40", "Male", "no")] * 2, folder, target={"column": "gone", "positive_above": 0})
    task = task_of([("40", "Male", "no")] * 2, folder)
    with pytest.raises(TaskError, match="published statistics"):
        task.train(task.initial(), published(None))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"learning_rate": 0}, "learning_rate: expected a number above 0, came 0"),
        ({"test_fraction": 1.0}, "test_fraction: expected a number above 0 and below 1, came 1.0"),
        ({"features": {}}, "features: expected a table of column = { range = [low, high] } or { levels = [...] }, "
         "came a table"),
        ({"features": {"a": {"range": [3, 1]}}},
         "features.a: expected range = [low, high] with low below high, came [3.0, 1.0]"),
        ({"features": {"a": {"range": [3]}}}, "features.a.range: expected two numbers, [low, high], came [3]"),
        ({"features": {"a": {"range": [1, "x"]}}},
         'features.a.range.1: expected two numbers, [low, high], came "x"'),
        ({"features": {"a": {"levels": ["x", "x"]}}},
         'features.a: expected levels without a repetition, came ["x", "x"]'),
        ({"features": {"a": {}}}, "features.a: expected one of range and levels, came both or none"),
        ({"features": {"a": {"rnge": [1, 2]}}}, 'features.a.rnge: unknown key; did you mean "range"?'),
        ({"features": {"ill": {"range": [0, 1]}}},
         "expected features without the target, came ill among them"),
        ({"target": {"column": "ill"}}, "target: expected one of positive_above and positive, came both or none"),
        ({"epochs": 3}, 'epochs: unknown key; did you mean "local_epochs"?'),
    ],
)  # fmt: skip
def test_wrong_options_name_their_key(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        TabularTask.check_options({**OPTIONS, **change})
    assert len(caught.value.problems) == 1
    assert problem in str(caught.value)


def _quantised(values: NDArray[Any], bound: float, bits: int, draws: np.random.Generator) -> NDArray[np.int64]:
    """Clipped, and rounded to one of the two nearest steps without bias: as a node does before it encrypts."""
    scaled = np.clip(values, -bound, bound) / bound * (2 ** (bits - 1) - 1)
    below = np.floor(scaled)
    return np.asarray(below + (draws.random(scaled.shape) < scaled - below), np.int64)


def test_on_real_hospitals_the_federated_model_beats_every_local_one_and_is_near_the_pooled_one() -> None:
    study = read_study(STUDIES / "heart.toml")
    data = tomllib.loads((STUDIES / "heart.data.toml").read_text())
    assert data.pop("key_holder") in data
    bits, clip = study.aggregation.value_bits, study.aggregation.clip
    steps = 2 ** (bits - 1) - 1
    outcomes = []
    for seed in range(1, 6):
        torch.manual_seed(seed)
        draws = np.random.default_rng(seed)
        tasks = [TabularTask(Setup(p, study.task.options, table, seed, Path())) for p, table in data.items()]
        everyone = TabularTask.pool(tasks)
        weights = np.array([bucket(task.examples) for task in tasks])
        bound = tasks[0].statistics_spec().bound
        total = sum(_quantised(task.statistics(), bound, bits, draws) for task in tasks) * bound / steps

        def course(task: TabularTask, round: TrainingRound) -> NDArray[np.float32]:
            model = task.initial()
            for _ in range(study.rounds):
                model = model + task.train(model, round)
            return model

        def auc(task: TabularTask, model: NDArray[np.float32], round: TrainingRound) -> float:
            return own_figures(task.evaluate(model, round))["auc"]

        together, model = published(total, 4), tasks[0].initial()
        for _ in range(study.rounds):
            updates = [task.train(model, together) for task in tasks]
            assert max(np.abs(update).max() for update in updates) < clip  # so clipping changes nothing here
            shares = [u * w / weights.max() for u, w in zip(updates, weights, strict=True)]
            integers = sum(_quantised(share, clip, bits, draws) for share in shares)
            model = (model + integers * (clip / steps) * weights.max() / weights.sum()).astype(np.float32)
        pooled_round = published(everyone.statistics(), 4)
        own_rounds = [published(task.statistics()) for task in tasks]
        outcomes.append(
            [
                auc(everyone, model, together),
                auc(everyone, course(everyone, pooled_round), pooled_round),
                *(auc(everyone, course(t, r), r) for t, r in zip(tasks, own_rounds, strict=True)),
            ]
        )
    federated, pooled, *local = np.mean(outcomes, axis=0)
    assert federated > max(local) + 0.005, (federated, local)
    assert abs(federated - pooled) < 0.02, (federated, pooled)
    assert federated > 0.86
