"""The studies adpfl and dpresnet: their arms, the tasks of their experiments, a run in parts, the pages."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from node.privacy.budget import BudgetError
from node.privacy.record import RecordLevel
from node.privacy.settings import PrivacySettings
from node.reproduce import adpfl, dpresnet, dpresnet_page
from node.reproduce import dpresnet_checks as checks
from node.reproduce.output import Results
from node.simulation import STUDIES
from node.study import check_options, parse_study
from node.tasks.base import OptionsError, Setup, TrainingRound
from node.tasks.image import ImageTask
from node.tasks.image_experiment import ContinuedImageTask, RepeatableImageTask
from node.tasks.segmentation import SegmentationTask
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


def test_one_account_over_all_rounds_spends_the_budget_and_no_more(home: Path) -> None:
    """Masks under the study's own record-level privacy, with a clip that moves and is carried on."""
    budget = {"mode": "record", "epsilon": 8.0, "delta": 1e-3, "clip": 0.02}
    moving = {"count_noise": 4.0, "rate": 0.2, "quantile": 0.9, "lowest": 0.01, "highest": 9.0}
    settings = PrivacySettings.model_validate({**budget, "adaptive": moving})
    one = SegmentationTask(Setup("north", {**FLAT, "batch_size": 10}, {"images": "discs.npz"}, 1, home))
    model, account, spent, clips = one.initial(), b"", [], [0.02]
    for number in (1, 2, 3):
        private = RecordLevel(settings, 3, account)
        update = one.train(model, TrainingRound(number, 3, None, 0, private=private))
        assert np.isfinite(update).all()
        entry = private.entry(number)
        model, account = model + update, entry["account"].encode()
        spent.append(entry["epsilon"])
        clips.append(json.loads(account)["clip"])
    assert 0 < spent[0] < spent[1] < spent[2] <= 8
    assert spent[2] > 7.9
    assert clips == sorted(set(clips)), "nearly all gradients are longer, so it grows in each round"
    with pytest.raises(BudgetError, match="would spend epsilon"):
        one.train(model, TrainingRound(4, 3, None, 0, private=RecordLevel(settings, 3, account)))


def test_a_percentile_cuts_and_its_noise_follows_the_data(home: Path) -> None:
    quiet, loud = (noisy(home, percentile={"cut": 90.0, "noise": noise}) for noise in (0.0, 0.5))
    updates = []
    for one in (quiet, loud):
        torch.manual_seed(1)
        updates.append(one.train(one.initial(), ROUND))
    threshold = np.abs(updates[0]).max()
    assert np.isclose(np.abs(updates[0]), threshold).mean() == pytest.approx(0.1, abs=0.02)
    assert (updates[1] - updates[0]).std() == pytest.approx(0.5 * threshold, rel=0.1)


@pytest.mark.parametrize("noise", [{"percentile": {"cut": 101.0}}, {}])
def test_bad_noise(home: Path, noise: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="percentile"):
        noisy(home, **noise)


@pytest.mark.parametrize("arm", adpfl.ARMS)
def test_arms_are_studies_that_differ_in_what_they_are_named_for(arm: str) -> None:
    one, other = (parse_study(adpfl.study_text(name, 3), name) for name in (arm, adpfl.NONE))
    assert one.seed == 3
    assert one.rounds == other.rounds
    check_options(one, arm)
    assert (one.task.class_name == "segmentation") == (arm != adpfl.PERCENTILE)
    assert (one.aggregation == other.aggregation) == (one.privacy.mode != "hospital")
    assert (one.privacy.adaptive is not None) == ("adaptive" in arm)
    assert one.privacy.epsilon == adpfl.BUDGETS.get(arm)


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


def small_study(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study with a small network on digits."""
    digits = load_digits()
    np.savez(folder / "digits.npz", images=(15 * digits.images[:600]).astype(np.uint8), labels=digits.target[:600] % 8)
    text = (STUDIES / "dpresnet.toml").read_text()
    for old, new in {"rounds = 30": "rounds = 3", "[28, 28, 3]": "[8, 8, 1]", "width = 16": "width = 2"}.items():
        assert old in text
        text = text.replace(old, new)
    (folder / "dpresnet.toml").write_text(text)
    monkeypatch.setattr(dpresnet, "STUDIES", folder)
    monkeypatch.setattr(checks, "STUDIES", folder)


def test_a_long_schedule_goes_on_where_it_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small_study(tmp_path, monkeypatch)
    monkeypatch.setattr(dpresnet, "KEPT", tmp_path / "kept")
    for at_once, rounds in ((2, 2), (1, 3)):
        results = Results(tmp_path, "dpresnet", ("arm", "hospitals"))
        monkeypatch.setattr(dpresnet, "_parts", parts_once if rounds == 2 else PARTS)
        for _ in dpresnet.run(results, tmp_path / "digits.npz", (3,), (dpresnet.PLAIN,), at_once):
            dpresnet_page.publish(results)
        (row,) = json.loads((tmp_path / "dpresnet.json").read_text())["rows"]
        assert (row["rounds"], len(row["curve"]), len(row["seconds"])) == (rounds, rounds, rounds)
    assert row["train"] + row["held_out"] == 600
    assert "| 3 | plain | – | 3 of 3 | " in capsys.readouterr().out


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


def test_a_part_of_a_schedule_has_its_part_of_the_course(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = np.random.default_rng(1).integers(0, 255, (10, 8, 8), np.uint8)
    np.savez(tmp_path / "i.npz", images=images, labels=np.arange(10) % 2)
    options = {"classes": ["a", "b"], "model": "resnet9", "width": 2, "shape": [8, 8, 1]}
    own = {"rounds_before": 2, "rounds_in_all": 4, "warmup_rounds": 1}
    rates: list[float] = []
    monkeypatch.setattr(ImageTask, "train", lambda self, model, round: rates.append(round.rate))
    whole, part = (
        ContinuedImageTask(Setup("north", {**options, **own, **more}, {"images": "i.npz"}, 1, tmp_path))
        for more in ({"rounds_before": 0}, {})
    )
    for number in (1, 2, 3, 4):
        whole.train(whole.initial(), TrainingRound(number, 4, None, 0))
    assert rates == pytest.approx([0.5, 1.0, 0.75, 0.25])
    for number in (1, 2):
        part.train(part.initial(), TrainingRound(number, 2, None, 0))
    assert rates[4:] == rates[2:4]


@pytest.mark.parametrize("arm", dpresnet.ARMS)
def test_arms_of_dpresnet_are_studies(arm: str) -> None:
    study = parse_study(dpresnet.study_text(arm, 5, 7), arm)
    check_options(study, arm)
    options, is_private = study.task.options, arm in (dpresnet.RECORD, dpresnet.HOSPITAL)
    assert study.rounds == 5
    assert study.optimisation.schedule == "constant"
    assert study.privacy.mode == {dpresnet.RECORD: "record", dpresnet.HOSPITAL: "hospital"}.get(arm, "none")
    assert (options.get("rounds_before"), options.get("warmup_rounds")) == ((None, None) if is_private else (7, 1))
    if arm == dpresnet.HOSPITAL:
        assert (study.aggregation.weights, study.aggregation.min_hidden) == ("equal", 9)
        assert study.privacy.noise_multiplier == pytest.approx(4.68, abs=0.005)


@pytest.mark.confined
def test_encrypted_is_plain_bit_for_bit_though_each_program_trains_for_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_study(tmp_path, monkeypatch)
    row = checks.bit_for_bit(tmp_path / "digits.npz", 3)
    assert row["exact"]
    assert row["different"] == 0
    assert row["digests"][0] == row["digests"][1]
    assert "**0 differ**" in dpresnet_page._bits({"hospitals": 3, **row})
    assert row["moved"] > 100, "the rounds did something: in images of 8 x 8 the deep layers see one pixel, and rest"


def test_one_integer_more_makes_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compared can differ."""
    small_study(tmp_path, monkeypatch)
    study, data = checks.bits_text(), dpresnet.hospitals_data(tmp_path / "digits.npz", 3, {})
    data = {name: {**table, "party": str(number)} for number, (name, table) in enumerate(data.items(), 1)}
    train = RepeatableImageTask.train
    first: list[np.ndarray] = []
    for more in (0, 0, 1):

        def one_more(self: Any, model: Any, round: TrainingRound, more: int = more) -> Any:
            update = train(self, model, round)
            update[0] += more * checks.STEP
            return update

        monkeypatch.setattr(RepeatableImageTask, "train", one_more)
        checks._sum_in_the_clear(study, data, str(tmp_path / "models.npy"))
        first.append(np.load(tmp_path / "models.npy")[0])
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).sum() == 1


@pytest.mark.confined
def test_hospitals_drop_out_down_to_the_least_and_then_nothing_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_study(tmp_path, monkeypatch)
    monkeypatch.setattr(checks, "DROPS", {2: 1, 3: 1})
    row = checks.dropout(tmp_path / "digits.npz", 5)
    assert row["contributors"] == [5, 4]
    assert row["openings"] == [1, 2]
    assert row["exact"]
    assert row["identical"]
    assert "round 3: failed: below the quorum: nothing was opened" in row["refused"]
    assert len(row["killed"]) == 2
    assert "Contributors of the published rounds: 5, 4." in dpresnet_page._dropout({"hospitals": 5, **row})


def test_without_flwr_the_row_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_study(tmp_path, monkeypatch)
    row = checks.side_by_side(tmp_path / "digits.npz", 3, sys.executable, 1)
    ours, *flower = row["programs"]
    assert ours["exact"]
    assert ours["bytes_up"] > 0
    assert len(flower) == len(checks.SECAGG_DROPS)
    page = dpresnet_page._secagg(row["programs"])
    assert "the mean, its sum exact" in page
    if importlib.util.find_spec("flwr") is None:
        assert "not run: " in page
        assert all("No module named 'flwr'" in each["failed"] for each in flower)
    np.save(tmp_path / "updates.npy", np.zeros((3, 5), np.float32))
    assert "No such file" in checks._flower("/nowhere/python", tmp_path / "updates.npy", 0, 1)["failed"]


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
