"""The published experiment's patients and its task: the recipe, and what it is said to give."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.data import DataError
from node.reproduce.framingham import FEATURES, FILES, read_patients, write_parties
from node.reproduce.table5 import EXPECTED, PARTIES, TOLERANCE
from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.heart_risk import HeartRiskTask, Patients, first_model
from node.tasks.heart_risk import read_patients as read_file


def task(csv: Path, party: int, **options: object) -> HeartRiskTask:
    return HeartRiskTask(Setup("a", options, {"csv": str(csv), "party": str(party)}, 1, Path()))


def round_(number: int) -> TrainingRound:
    return TrainingRound(number, 500, None, 0)


def federated(files: list[Path], repetitions: int) -> np.ndarray:
    """The models after each repetition, by the task alone: no network, no encryption."""
    tasks = [task(file, party) for party, file in enumerate(files, start=1)]
    model, models = tasks[0].initial(), []
    for number in range(1, 5 * repetitions + 1):
        model = (model + np.mean([each.train(model, round_(number)).astype(float) for each in tasks], 0)).astype("<f4")
        if number % 5 == 0:
            models.append(model)
    return np.array(models)


@pytest.mark.parametrize("name", FILES)
def test_the_patients_are_a_thousand_in_two_equal_classes_standardised_together(name: str) -> None:
    train, test = read_patients(FILES[name])
    assert train.x.shape == (800, 10)
    assert test.x.shape == (200, 10)
    assert train.y.sum() + test.y.sum() == 500
    everyone = np.vstack([train.x, test.x])
    assert np.allclose(everyone[:, :-1].mean(axis=0), 0, atol=1e-12)
    assert np.allclose(everyone[:, :-1].std(axis=0, ddof=1), 1)
    assert (everyone[:, -1] == 1).all()


def test_a_table_with_too_few_patients_is_refused(tmp_path: Path) -> None:
    names = (*FEATURES, "education", "currentSmoker", "BPMeds", "diabetes", "diaBP", "BMI", "TenYearCHD")
    few = tmp_path / "few.csv"
    few.write_text(",".join(names) + "\n" + ",".join("1" for _ in names) + "\n")
    with pytest.raises(DataError, match="expected 500 complete rows with TenYearCHD = 0 and with 1, came 0 and 1"):
        read_patients(str(few))


@pytest.mark.parametrize("name", FILES)
def test_a_hundred_repetitions_give_what_is_expected_for_every_number_of_parties(name: str, tmp_path: Path) -> None:
    train, test = read_patients(FILES[name])
    for parties, expected in zip(PARTIES, EXPECTED[name], strict=True):
        models = federated(write_parties(train, parties, tmp_path), 100)
        assert 100 * test.accuracy(models).mean() == pytest.approx(expected, abs=TOLERANCE)


def test_files_of_parties_hold_all_rows_once_to_the_bit(tmp_path: Path) -> None:
    train, _ = read_patients(FILES["4,238 rows"])
    parts = [read_file(path, 9) for path in write_parties(train, 3, tmp_path)]
    assert np.array_equal(np.vstack([part.x for part in parts]), train.x)
    assert np.array_equal(np.concatenate([part.y for part in parts]), train.y)


def test_the_mean_of_full_batch_steps_of_equal_parts_is_the_step_of_all(tmp_path: Path) -> None:
    train, _ = read_patients(FILES["4,238 rows"])
    model = np.linspace(-0.3, 0.3, 10, dtype=np.float32)
    (alone,) = write_parties(train, 1, tmp_path)
    together = task(alone, 1).train(model, round_(2))
    parts = [task(path, 1).train(model, round_(2)) for path in write_parties(train, 4, tmp_path)]
    assert np.allclose(np.mean(parts, axis=0), together, atol=1e-7)


def test_a_repetition_begins_anew_from_a_first_model_of_each_partys_own(tmp_path: Path) -> None:
    train, _ = read_patients(FILES["4,238 rows"])
    one, two = write_parties(train, 2, tmp_path)
    models = [np.full(10, value, np.float32) for value in (0.0, 3.0)]
    for number, anew in ((1, True), (2, False), (6, True)):
        ends = [model + task(one, 1).train(model, round_(number)) for model in models]
        assert np.allclose(*ends, atol=1e-6) == anew
    draws = {tuple(first_model(1, repetition, party, 9)) for repetition in range(3) for party in range(1, 4)}
    assert len(draws) == 9
    assert all(max(map(abs, draw)) <= 1 / 3 for draw in draws)
    assert task(two, 2).examples == 400


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "expected rows of 9 finite numbers"),
        ("h\n1,2\n", "expected rows of 9 finite numbers"),
        ("h\n" + "1," * 9 + "nan\n", "expected rows of 9 finite numbers"),
        ("h\n" + "1," * 9 + "2\n", "expected outcomes 0 and 1"),
        ("h\n" + "1," * 9 + "secret\n", "expected a header and rows of numbers"),
        ("h\n1,2\n1\n", "expected a header and rows of numbers"),
    ],
)
def test_a_partys_file_that_is_none_is_refused_without_quoting_it(text: str, what: str, tmp_path: Path) -> None:
    file = tmp_path / "party.csv"
    file.write_text(text)
    with pytest.raises(TaskError, match=what) as refusal:
        task(file, 1)
    assert "secret" not in str(refusal.value)


def test_wrong_data_and_options_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="expected a readable CSV file"):
        task(tmp_path / "none.csv", 1)
    with pytest.raises(TaskError, match=r"data.party: expected a number such as"):
        HeartRiskTask(Setup("a", {}, {"csv": "x", "party": "0"}, 1, Path()))
    with pytest.raises(OptionsError, match="learning_rate: expected a number above 0"):
        HeartRiskTask.check_options({"learning_rate": 0})


def test_accuracy_is_the_share_of_patients_that_a_model_has_right() -> None:
    patients = Patients(np.array([[1.0, 1.0], [-1.0, 1.0], [2.0, 1.0]]), np.array([1.0, 0.0, 0.0]))
    assert patients.accuracy(np.array([[1.0, 0.0], [-1.0, 0.0]])) == pytest.approx([2 / 3, 1 / 3])
