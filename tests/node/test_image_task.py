"""The image task: what goes in, what is learnt, its figures; features computed in their room; a federation of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from keys.errors import WardtreeError
from node.cli import app
from node.data import DataError
from node.evaluation import own_figures
from node.features import make_features
from node.images import read_features
from node.reproduce import ours, pictures, table7, table7_page
from node.reproduce.approximate import OURS, PLAIN
from node.reproduce.output import Results
from node.reproduce.pictures import DIGITS, features_file, read_pictures
from node.tasks import backbones
from node.tasks.backbones import Backbone
from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.image import ImageTask, split_rows
from node.tasks.networks import ResNet9, ResNet18, parameters_of

CLASSES = [str(number) for number in range(10)]
NETWORK: dict[str, Any] = {"classes": CLASSES, "model": "resnet9", "width": 4, "shape": [8, 8, 1]}
HEAD: dict[str, Any] = {"classes": CLASSES, "backbone": "pixels", "features": 64}
ROUND = TrainingRound(1, 1, None, 0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, digits = tmp_path_factory.mktemp("home"), load_digits()
    pixels, labels = digits.images.astype(np.uint8), digits.target
    np.savez(folder / "images.npz", images=pixels, labels=labels)
    features = digits.data.astype(np.float32)
    np.savez(folder / "features.npz", features=features, labels=labels, backbone="pixels")
    return folder


def task(home: Path, options: dict[str, Any], file: str, seed: int = 1, **data: Any) -> ImageTask:
    return ImageTask(Setup("north", options, {file.removesuffix(".npz"): file, **data}, seed, home))


# ---- learning -------------------------------------------------------------------------------------------


def test_a_head_begins_at_zero_and_learns(home: Path) -> None:
    one = task(home, HEAD, "features.npz")
    model = one.initial()
    assert (one.parameters, one.examples) == (650, 1797)
    assert not model.any()
    torch.manual_seed(1)
    update = one.train(model, ROUND)
    assert not model.any()
    assert (update.shape, update.dtype) == ((650,), np.float32)
    before, after = (own_figures(one.evaluate(each, ROUND)) for each in (model, model + update))
    assert before["log_loss"] == pytest.approx(np.log(10))
    assert after["log_loss"] < 1
    assert after["accuracy"] > 0.85
    assert after["auc"] > 0.97
    assert after["n"] == 359


def test_a_head_is_logistic_regression_row_by_row(home: Path) -> None:
    one = task(home, {**HEAD, "batch_size": 10_000, "momentum": 0.0, "learning_rate": 0.01}, "features.npz")
    x, y = one._train.x.astype(np.float64), one._train.y
    residual = (np.eye(10)[y] - 0.1) / len(y)  # at zero every class has the same probability
    expected = 0.01 * np.concatenate([(residual.T @ x).ravel(), residual.sum(axis=0)])
    np.testing.assert_allclose(one.train(one.initial(), ROUND), expected, atol=1e-6)


@pytest.mark.parametrize("options", [NETWORK, {**NETWORK, "model": "resnet18"}])
def test_networks_begin_alike_everywhere_and_lower_their_loss(home: Path, options: dict[str, Any]) -> None:
    options = {**options, "learning_rate": 0.0001, "batch_size": 1000}
    one, other = (task(home, options, "images.npz", shard=f"{part}/20") for part in (1, 2))
    model = one.initial()
    np.testing.assert_array_equal(model, other.initial())
    assert not np.array_equal(model, task(home, options, "images.npz", seed=2, shard="1/20").initial())
    labels = torch.from_numpy(one._train.y)

    def loss(each: Any) -> float:
        return float(torch.nn.functional.cross_entropy(torch.from_numpy(one.logits(each, one._train.x)), labels))

    torch.manual_seed(1)
    trained = model + one.train(model, ROUND)
    assert loss(trained) < loss(model)
    evaluation, spec = one.evaluate(trained, ROUND), one.evaluation_spec()
    assert evaluation.scores is not None
    assert evaluation.scores.shape == (evaluation.examples, spec.classes)
    np.testing.assert_allclose(evaluation.scores.sum(axis=1), 1)


def test_networks_have_the_parameters_that_are_said() -> None:
    assert parameters_of(ResNet18(3, 1000)) == 11_689_512  # torchvision's own count: norms have as many
    assert parameters_of(ResNet18(3, 8)) == 11_180_616
    assert parameters_of(ResNet9(3, 8, 64)) == 6_572_104
    logits = ResNet9(1, 5, 3)(torch.zeros(2, 1, 9, 7))
    assert logits.shape == (2, 5)


def test_opacus_takes_the_small_network() -> None:
    from opacus.validators import ModuleValidator

    assert ModuleValidator.validate(ResNet9(3, 8, 16), strict=False) == []


def test_the_same_numbers_give_the_same_update_and_others_another(home: Path) -> None:
    one = task(home, HEAD, "features.npz", shard="1/4")
    updates = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        updates.append(one.train(one.initial(), ROUND))
    np.testing.assert_array_equal(updates[0], updates[1])
    assert not np.array_equal(updates[0], updates[2])


# ---- the split ------------------------------------------------------------------------------------------


@given(
    labels=st.lists(st.integers(0, 3), min_size=2, max_size=200), fraction=st.floats(0.01, 0.99), seed=st.integers(0)
)
def test_the_split_is_even_over_classes_and_of_the_asked_size(labels: list[int], fraction: float, seed: int) -> None:
    y = np.array(labels)
    train, held_out = split_rows(y, fraction, seed)
    assert sorted([*train, *held_out]) == list(range(len(y)))
    assert len(held_out) == min(max(round(fraction * len(y)), 1), len(y) - 1)
    for label in np.unique(y):
        share = np.sum(y == label) * len(held_out) / len(y)
        assert abs(np.sum(y[held_out] == label) - share) < 2
    np.testing.assert_array_equal(held_out, split_rows(y, fraction, seed)[1])


# ---- wrong input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({**HEAD, "classes": ["a"]}, "classes: expected a list of two or more names"),
        ({**HEAD, "classes": ["a", "a"]}, "expected classes without a repetition, came one twice"),
        ({**HEAD, "backbone": None}, 'model = "head": expected backbone and features, and no shape'),
        ({**HEAD, "shape": [8, 8, 1]}, 'model = "head": expected backbone and features, and no shape'),
        ({**HEAD, "features": 0}, "features: expected a whole number above 0, came 0"),
        ({**NETWORK, "shape": [8, 8]}, "shape: expected three whole numbers, [height, width, colours]"),
        ({**NETWORK, "shape": [8, 8, 2]}, "shape: expected [height, width, colours] with 1 or 3 colours"),
        ({**NETWORK, "backbone": "b"}, 'model = "resnet9": expected shape, and neither backbone nor features'),
        ({**NETWORK, "model": "vgg"}, 'model: expected "head", "resnet18" or "resnet9", came "vgg"'),
        ({**HEAD, "momentum": 1.0}, "momentum: expected a number from 0 to below 1, came 1.0"),
        ({**HEAD, "epochs": 2}, 'epochs: unknown key; did you mean "local_epochs"?'),
    ],
)  # fmt: skip
def test_wrong_options_name_their_key(options: dict[str, Any], problem: str) -> None:
    options = {key: value for key, value in options.items() if value is not None}
    with pytest.raises(OptionsError) as caught:
        ImageTask.check_options(options)
    assert problem in str(caught.value)


def test_data_of_another_kind_than_the_study_asks_for_are_refused(home: Path, tmp_path: Path) -> None:
    for options, file, message in (
        ({**HEAD, "backbone": "another"}, "features.npz", "expected features of another, came those of pixels"),
        ({**HEAD, "features": 63}, "features.npz", "features.npz: expected 63 features a row, came 64"),
        (HEAD, "images.npz", "expected features of pixels, came images: see `wardtree features --help`"),
        (NETWORK, "features.npz", 'expected images for model = "resnet9", came features'),
        ({**NETWORK, "shape": [9, 8, 1]}, "images.npz", "expected images of [9, 8, 1], came [8, 8, 1]"),
        ({**HEAD, "classes": CLASSES[:9]}, "features.npz", "expected labels from 0 to 8, the study's classes"),
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            task(home, options, file)
        assert str(caught.value).startswith("north: ")
        assert message in str(caught.value)
    none = np.zeros(3, np.bool_)
    np.savez(
        tmp_path / "features.npz",
        features=np.ones((3, 64), np.float32),
        labels=[0, 1, 2],
        backbone="pixels",
        held_out=none,
    )
    with pytest.raises(
        TaskError, match=r"^north: features.npz: expected rows to train and rows held out, came 3 and 0"
    ):
        task(tmp_path, HEAD, "features.npz")


# ---- features -------------------------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ResNet-18 in torchvision's form. Its numbers are not the published ones, so their digest is not asked for."""
    torch.manual_seed(1)
    torch.save(ResNet18(3, 1000, torch.nn.BatchNorm2d).state_dict(), tmp_path / "w.pth")
    monkeypatch.setitem(backbones.KINDS, "resnet18", replace(backbones.KINDS["resnet18"], known=""))
    return tmp_path / "w.pth"


@pytest.mark.confined
def test_features_are_computed_in_their_room_and_written_once(home: Path, weights: Path, tmp_path: Path) -> None:
    pixels, labels = (np.load(home / "images.npz")[name][:70] for name in ("images", "labels"))
    np.savez(tmp_path / "few.npz", images=pixels, labels=labels)
    seen: list[tuple[int, int]] = []
    backbone, out = Backbone("resnet18", weights, 32), tmp_path / "home" / "f.npz"
    line, rows = make_features(tmp_path / "few.npz", CLASSES, backbone, out, watch=lambda *done: seen.append(done))
    assert (rows, seen) == (70, [(0, 70), (64, 70), (70, 70)])
    assert line.startswith("resnet18, 32 x 32 pixels, weights ")
    found = read_features("f", out, 10)
    assert (found.x.shape, found.backbone, out.stat().st_mode & 0o777) == ((70, 512), line, 0o600)
    np.testing.assert_array_equal(found.y, labels)
    network = ResNet18(3, 1000, torch.nn.BatchNorm2d).eval()
    network.load_state_dict(torch.load(weights, weights_only=True))
    image = torch.from_numpy(pixels[:1, None]).float().expand(-1, 3, -1, -1)
    image = torch.nn.functional.interpolate(image, size=(32, 32), mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (torch.tensor(each).reshape(3, 1, 1) for each in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    with torch.no_grad():
        expected = network.features((image / 255 - mean) / deviation)
    np.testing.assert_allclose(found.x[:1], expected.numpy(), rtol=1e-3, atol=1e-4)
    with pytest.raises(WardtreeError, match="exists already; nothing was touched"):
        make_features(tmp_path / "few.npz", CLASSES, backbone, out)


def test_weights_that_are_not_the_published_ones_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"others")
    with pytest.raises(TaskError, match="expected weights with a SHA-256 that begins with f37072fd"):
        Backbone("resnet18", tmp_path / "w.pth", 224).described()
    with pytest.raises(TaskError, match="No such file or directory: get the weights from https://"):
        Backbone("resnet18", tmp_path / "none.pth", 224).described()


@pytest.mark.confined
def test_features_of_an_experiment_are_computed_once_and_say_how_far_they_are(
    home: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pictures, "CACHE", tmp_path)
    backbone = Backbone("resnet18", weights, 32)
    kept = features_file(home / "images.npz", CLASSES, backbone)
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "features of images.npz: 0 of 1,797 images"
    assert told[-1] == "features of images.npz: 1,797 of 1,797 images"
    assert len(told) <= 11
    assert features_file(home / "images.npz", CLASSES, backbone) == kept
    assert not capfd.readouterr().err


@pytest.mark.confined
def test_what_is_wrong_inside_the_room_is_one_line_outside(home: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "f.npz"
    with pytest.raises(TaskError, match=r"none.npz: expected an .npz file: No such file"):
        make_features(tmp_path / "none.npz", CLASSES, Backbone("resnet18", weights, 32), out)
    (tmp_path / "bad.pth").write_bytes(b"no tensors")
    with pytest.raises(TaskError, match=r"bad.pth: expected tensors, came "):
        make_features(home / "images.npz", CLASSES, Backbone("resnet18", tmp_path / "bad.pth", 32), out)
    torch.save(ResNet9(3, 10, 4).state_dict(), tmp_path / "bad.pth")
    with pytest.raises(TaskError, match=r"bad.pth: expected the weights of resnet18, came others"):
        make_features(home / "images.npz", CLASSES, Backbone("resnet18", tmp_path / "bad.pth", 32), out)
    assert not out.exists()


@pytest.mark.confined
def test_the_command_prints_what_goes_into_the_study(home: Path, weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", images=np.zeros((3, 8, 8), np.uint8), labels=[0, 1, 1])
    options = ["features", str(tmp_path / "few.npz"), "--classes", "benign, malignant", "--size", "32"]
    options += ["--backbone", "resnet18", "--weights", str(weights)]
    done = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "a.npz")])
    assert done.exit_code == 0, done.output
    assert 'classes = ["benign", "malignant"]\nbackbone = "resnet18, 32 x 32 pixels, weights ' in done.output
    done = CliRunner().invoke(app, [*options, "--out", str(tmp_path / "b.npz"), "--json"])
    figures = json.loads(done.output)
    assert (figures["features"], figures["rows"], figures["classes"]) == (512, 3, ["benign", "malignant"])
    for wrong, message in (
        (["--classes", "one"], "--classes: expected two or more names"),
        (["--classes", "a,b", "--backbone", "vgg"], "--backbone: expected resnet18 or efficientnet-lite0, came 'vgg'"),
        (["--classes", "a,b", "--backbone", "resnet18"], "--weights: expected a file for resnet18: https://"),
    ):
        failed = CliRunner().invoke(app, ["features", "x.npz", "--out", "y.npz", *wrong])
        assert message in str(failed.exception)


# ---- federations ----------------------------------------------------------------------------------------


@pytest.mark.confined
def test_encrypted_accuracies_of_the_published_protocol_are_those_without_encryption() -> None:
    digits, short = read_pictures(DIGITS, None, None), replace(table7.SCHEDULES["published"], rounds=2)
    plain, encrypted = (table7.cell(digits, 3, scheme, short, 2) for scheme in (PLAIN, OURS))
    assert encrypted["accuracies"] == plain["accuracies"]
    assert encrypted["predictions"] == plain["predictions"]
    assert len(set(plain["predictions"])) == 2
    assert plain["mean"] > 30  # ten classes, a few dozen steps
    assert 0 < plain["largest"] < short.clip


@pytest.mark.parametrize(
    ("exact", "says", "promise"),
    [
        (True, "was, to the last bit, the sum", "yes | yes | kept"),
        (False, "was **not** the sum", "no | yes | **not kept**"),
    ],
)
def test_the_page_of_a_whole_network_says_whether_its_totals_were_exact(
    tmp_path: Path, exact: bool, says: str, promise: str
) -> None:
    results = Results(tmp_path, "table7", ("data", "schedule", "parties", "scheme"))
    schedule = "whole ResNet-18"
    figures = {name: [50.0] for name in ("accuracies", "balanced", "aucs")}
    results.rows = [
        {
            "data": "BloodMNIST", "schedule": schedule, "parties": 4, "scheme": OURS, "repetitions": 1, "exact": exact,
            "parameters": 1_000_000, "mean": 50.0, "spread": 0.0, "seconds_a_round": 9.0, "bytes_up": 8e6,
            "train_rows": 512, "test_rows": 256, "classes": 8, "backbone": "", "majority": 20.0, "largest": 0.01,
            "processor_seconds": 1234.5, **figures,
        }
    ]  # fmt: skip
    page = table7_page.write_page(results)
    assert f"Each total of the 3 rounds {says}" in page
    assert f"4 parties: every total is the exact sum | {promise} |" in page
    assert "2.00 times the 4.0 MB" in page
    assert "1,234 s of processor time" in page


@pytest.mark.confined
def test_hospitals_with_unlike_patients_train_a_network_together(home: Path) -> None:
    options = "\n".join(f"{key} = {json.dumps(value)}" for key, value in NETWORK.items())
    study = f'[study]\nname = "digits"\nrounds = 2\nseed = 1\n[task]\nclass = "image"\n[task.options]\n{options}\n'
    study += '[aggregation]\nclip = 0.5\nweights = "examples"\n'
    deal = {"dirichlet": 0.5, "seed": 2}
    data = {
        f"party-{part}": {"images": str(home / "images.npz"), "shard": f"{part}/3", "deal": deal} for part in (1, 2, 3)
    }
    done = ours.run(study, data, "party-1", 1)
    first = task(home, NETWORK, "images.npz").initial()
    assert done.models.shape == (2, len(first))
    assert 0 < np.abs(done.models[0] - first).max() < 0.5
    assert not np.array_equal(done.models[0], done.models[1])
