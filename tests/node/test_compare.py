"""The comparison of local-only, federated and pooled models, on the documented example."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.compare import compare
from node.study import parse_study, read_study
from node.tasks.base import Setup, TrainingRound
from node.tasks.loader import load_task

FOLDER = Path(__file__).parents[2] / "docs" / "examples" / "readmission"


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    torch.manual_seed(0)
    study = read_study(FOLDER / "study.toml")
    data = tomllib.loads((FOLDER / "data.toml").read_text())
    assert data.pop("key_holder") in data
    homes = dict.fromkeys(data, FOLDER)
    tasks = [load_task("tabular", Setup(p, study.task.options, data[p], study.seed, FOLDER)) for p in data]
    statistics = np.sum([task.statistics() for task in tasks], axis=0)
    models = [tasks[0].initial()]
    for number in range(1, study.rounds + 1):
        round = TrainingRound(number, study.rounds, statistics, len(tasks))
        models.append(models[-1] + np.mean([task.train(models[-1], round) for task in tasks], axis=0))
    report = compare(study, data, homes, models, statistics)
    return json.loads(json.dumps(report, allow_nan=False))  # type: ignore[no-any-return]


def test_every_hospital_is_compared_on_its_own_patients_and_on_all(compared: dict[str, Any]) -> None:
    hospitals, together = compared["hospitals"], compared["together"]
    assert list(hospitals) == ["north", "south", "west"]
    everyone = sum(models["own_patients"]["local"]["n"] for models in hospitals.values())
    for models in hospitals.values():
        assert set(models["own_patients"]) == {"local", "federated", "pooled"}
        own = models["own_patients"].values()
        assert len({(figures["n"], figures["prevalence"]) for figures in own}) == 1
        assert models["all_patients"]["local"]["n"] == everyone
    for figures in together.values():
        assert figures["n"] == everyone
        assert {"accuracy", "balanced_accuracy", "auc", "prevalence"} < set(figures)


def test_curves_start_at_chance_and_end_at_the_figures(compared: dict[str, Any]) -> None:
    curves, together = compared["curves"], compared["together"]
    best = curves["best_local_hospital"]
    finals = {party: models["all_patients"]["local"]["auc"] for party, models in compared["hospitals"].items()}
    assert finals[best] == max(finals.values())
    ends = {"federated": together["federated"]["auc"], "pooled": together["pooled"]["auc"]}
    for name, end in {**ends, "best_local": finals[best]}.items():
        assert len(curves[name]) == 9
        assert curves[name][0] == 0.5  # the first model gives everyone the same risk
        assert curves[name][-1] == end
        assert end > 0.6


def test_notes_name_exactly_the_hospitals_whose_own_model_is_better(compared: dict[str, Any]) -> None:
    notes = "\n".join(compared["notes"])
    for party, models in compared["hospitals"].items():
        own, shared = models["own_patients"]["local"], models["own_patients"]["federated"]
        better = any(round(own[k], 3) > round(shared[k], 3) for k in own if k not in ("n", "prevalence"))
        assert (f"{party}: its own model is better than the federated one" in notes) == better
        if better and own["auc"] > shared["auc"]:
            assert f"AUC {own['auc']:.3f} against {shared['auc']:.3f}" in notes
    assert f"{compared['together']['federated']['auc']:.3f} federated" in notes
    assert "The smallest hospital holds out 11 patients" in notes


def test_a_worse_federated_model_is_called_worse() -> None:
    study = read_study(FOLDER / "study.toml")
    data = {party: {"csv": f"{party}.csv"} for party in ("north", "south")}
    task = load_task("tabular", Setup("north", study.task.options, data["north"], study.seed, FOLDER))
    report = compare(study, data, dict.fromkeys(data, FOLDER), [task.initial()] * 4, task.statistics())
    assert "the federated model is not better than that one" in report["notes"][0]
    assert any(note.startswith("north: its own model is better") for note in report["notes"])


def test_a_task_that_cannot_be_pooled_gives_a_note_only() -> None:
    study = parse_study('[study]\nname="s"\nrounds=1\nseed=1\n[task]\nclass="synthetic"', "s")
    report = compare(study, {"a": {}}, {"a": Path()}, [np.zeros(3, np.float32)], None)
    assert list(report) == ["notes"]
    assert "synthetic" in report["notes"][0]
