"""The studies adpfl and dpresnet: their arms, the tasks of their experiments, a run in parts, the pages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from node.privacy.accountant import Accountant
from node.privacy.budget import Budget
from node.reproduce import adpfl, dpresnet
from node.reproduce.output import Results
from node.simulation import STUDIES
from node.study import parse_study
from node.tasks.base import OptionsError, Setup, TrainingRound
from node.tasks.image_experiment import ContinuedImageTask
from node.tasks.segmentation_experiment import SegmentationExperimentTask
from tests.node.test_segmentation import FLAT, _one_thread, discs  # noqa: F401

ROUND = TrainingRound(1, 3, None, 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    images, masks = discs(24)
    np.savez(folder / "discs.npz", X=images, M=masks)
    return folder


def noisy(home: Path, **noise: Any) -> SegmentationExperimentTask:
    options = {**FLAT, "batch_size": 10, **noise}
    SegmentationExperimentTask.check_options(options)
    return SegmentationExperimentTask(Setup("north", options, {"images": "discs.npz"}, 1, home))


def test_one_accountant_over_all_rounds_spends_the_budget_and_no_more(home: Path) -> None:
    one = noisy(home, record={"epsilon": 8.0, "delta": 1e-3})
    model, carried, spent = one.initial(), None, []
    for number in (1, 2, 3):
        update = one.train(model, TrainingRound(number, 3, None, 0, carried=carried))
        assert np.isfinite(update).all()
        model, carried = model + update, one.carry()
        assert carried is not None
        spent.append(Accountant.from_state(Budget(8.0, 1e-3), carried).epsilon())
    assert 0 < spent[0] < spent[1] < spent[2] <= 8
    assert spent[2] > 7.9
    with pytest.raises(Exception, match="would spend epsilon"):
        one.train(model, TrainingRound(4, 3, None, 0, carried=carried))


def test_a_percentile_cuts_and_its_noise_follows_the_data(home: Path) -> None:
    quiet, loud = (noisy(home, percentile={"cut": 90.0, "noise": noise}) for noise in (0.0, 0.5))
    updates = []
    for one in (quiet, loud):
        torch.manual_seed(1)
        updates.append(one.train(one.initial(), ROUND))
    threshold = np.abs(updates[0]).max()
    assert np.isclose(np.abs(updates[0]), threshold).mean() == pytest.approx(0.1, abs=0.02)
    assert (updates[1] - updates[0]).std() == pytest.approx(0.5 * threshold, rel=0.1)


@pytest.mark.parametrize("noise", [{"record": {"epsilon": 1.0}}, {"record": {}, "percentile": {}}, {}])
def test_bad_noise(home: Path, noise: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="record"):
        noisy(home, **noise)


@pytest.mark.parametrize("arm", [adpfl.NONE, adpfl.RECORD, adpfl.PERCENTILE])
def test_arms_are_studies_that_differ_in_what_they_are_named_for(arm: str) -> None:
    one, other = (parse_study(adpfl.study_text(name, 3), name) for name in (arm, adpfl.NONE))
    assert one.seed == 3
    assert one.rounds == other.rounds
    assert one.aggregation == other.aggregation
    assert (one.task.class_name == "segmentation") == (arm == adpfl.NONE)
    if arm != adpfl.NONE:
        SegmentationExperimentTask.check_options(one.task.options)


@pytest.mark.confined
def test_a_cell_of_adpfl_in_the_tree(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = (STUDIES / "adpfl.toml").read_text()
    for old, new in {
        "rounds = 10": "rounds = 2", "[64, 64]": "[16, 16]", "[16, 32, 64, 128]": "[4, 8]", "units = 1": "units = 0",
        "0.003 ": "0.02 ",
    }.items():  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "adpfl.toml").write_text(text)
    monkeypatch.setattr(adpfl, "STUDIES", tmp_path)
    results = Results(tmp_path / "out", "adpfl", ("arm", "seed"))
    adpfl.run(results, home / "discs.npz", (1,), (adpfl.PERCENTILE,), False)
    (row,) = json.loads((tmp_path / "out" / "adpfl.json").read_text())["rows"]
    assert row["exact"]
    assert row["rounds"] == len(row["curve"]) == 2
    assert len(row["patients"]) == 4  # of 6 images a hospital one is held out
    assert row["dice"] == pytest.approx(np.mean(row["patients"]))
    assert "percentile | " in capsys.readouterr().out
    assert (tmp_path / "out" / "adpfl.svg").read_text().startswith("<?xml")


def test_promises_of_adpfl_are_judged_by_the_lowest_seed(tmp_path: Path) -> None:
    results = Results(tmp_path, "adpfl", ("arm", "seed"))
    row = {"arm": adpfl.NONE, "rounds": 1, "parameters": 9, "exact": True, "bytes_up": 1.0}
    row |= {"seconds_a_round": 1.0, "simulated": False, "clips": []}
    for seed, dice in ((1, 0.9), (2, 0.86), (3, 0.88)):
        results.rows.append({**row, "seed": seed, "dice": dice, "patients": [dice, dice], "curve": [dice]})
    assert "the lowest Dice of 3 seeds | 0.860 | at least 0.85 | kept" in adpfl.write_page(results)
    last = results.rows.pop()
    assert "so far: 2 of 3 seeds" in adpfl.write_page(results)
    results.rows.append({**last, "dice": 0.84})
    assert "**not kept**" in adpfl.write_page(results)


# ---- dpresnet -------------------------------------------------------------------------------------------


def test_a_long_schedule_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    np.savez(tmp_path / "digits.npz", images=digits.images[:600].astype(np.uint8), labels=digits.target[:600] % 8)
    text = (STUDIES / "dpresnet.toml").read_text()
    for old, new in {"rounds = 12": "rounds = 3", "[28, 28, 3]": "[8, 8, 1]", "width = 16": "width = 2"}.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "dpresnet.toml").write_text(text)
    monkeypatch.setattr(dpresnet, "STUDIES", tmp_path)
    monkeypatch.setattr(dpresnet, "KEPT", tmp_path / "kept")
    for at_once, rounds in ((2, 2), (1, 3)):
        results = Results(tmp_path, "dpresnet", ("arm", "hospitals"))
        monkeypatch.setattr(dpresnet, "_parts", parts_once if rounds == 2 else PARTS)
        dpresnet.run(results, tmp_path / "digits.npz", (3,), (dpresnet.PLAIN,), at_once)
        (row,) = json.loads((tmp_path / "dpresnet.json").read_text())["rows"]
        assert (row["rounds"], len(row["curve"]), len(row["seconds"])) == (rounds, rounds, rounds)
    assert row["train"] + row["held_out"] == 600
    assert "| 3 | plain | 3 of 3 | " in capsys.readouterr().out


PARTS = dpresnet._parts


def parts_once(results: Results, key: dict[str, Any]) -> Any:
    yield next(iter(PARTS(results, key)))


def test_a_continued_task_begins_where_another_ended(tmp_path: Path) -> None:
    options = {"classes": ["a", "b"], "model": "resnet9", "width": 2, "shape": [8, 8, 1], "rounds_in_all": 4}
    images = np.random.default_rng(1).integers(0, 255, (10, 8, 8), np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(10) % 2)
    begun = ContinuedImageTask(Setup("north", options, {"images": "i.npz"}, 1, tmp_path))
    np.save(tmp_path / "model.npy", begun.initial() + 1)
    data = {"images": "i.npz", "start": "model.npy"}
    np.testing.assert_array_equal(
        ContinuedImageTask(Setup("north", options, data, 1, tmp_path)).initial(), begun.initial() + 1
    )


def test_parts_by_record_spend_a_quarter_of_the_steps_each(tmp_path: Path) -> None:
    record = {"epsilon": 6.0, "delta": 1e-3}
    options = {
        "classes": ["a", "b"], "model": "resnet9", "width": 2, "shape": [28, 28, 1], "rounds_in_all": 4,
        "record": record, "batch_size": 4,
    }  # fmt: skip
    images = np.random.default_rng(1).integers(0, 255, (20, 28, 28), np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(20) % 2)
    one = ContinuedImageTask(Setup("north", options, {"images": "i.npz"}, 1, tmp_path))
    assert np.isfinite(one.train(one.initial(), ROUND)).all()
    account = Accountant.from_state(Budget(**record), one.carry() or b"")
    (spent,) = account.history
    assert spent.steps == 4  # 16 images in batches of 4
    in_all = Accountant(None, history=[spent.times(4)]).epsilon(1e-3)
    assert 5.9 < in_all <= 6


@pytest.mark.parametrize("arm", [dpresnet.ENCRYPTED, dpresnet.RECORD])
def test_arms_of_dpresnet_are_studies(arm: str) -> None:
    study = parse_study(dpresnet.study_text(arm, 5), arm)
    assert study.rounds == 5
    assert study.task.options["rounds_in_all"] == 12
    assert ("record" in study.task.options) == (arm == dpresnet.RECORD)
    ContinuedImageTask.check_options(study.task.options)


def test_a_simulated_arm_is_the_same_arithmetic(home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = adpfl.study_text(adpfl.ADAPTIVE_WEAK, 1)
    for old, new in {"rounds = 10": "rounds = 3", "[64, 64]": "[16, 16]", "[16, 32, 64, 128]": "[4, 8]"}.items():
        assert old in text
        text = text.replace(old, new)
    monkeypatch.setattr(adpfl, "study_text", lambda arm, seed: text)
    row = adpfl.cell(home / "discs.npz", adpfl.ADAPTIVE_WEAK, 1, simulated=True)
    assert (row["rounds"], row["simulated"], len(row["patients"])) == (3, True, 4)
    assert row["clips"][0] == adpfl.CLIP
    assert row["clips"][1] != row["clips"][2]
