"""From a trained model to scores: export, offline proof, scoring in the clear and encrypted. The real program."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from keys.errors import WardtreeError
from keys.manifest import verify_signatures
from node.exported import CARD, WEIGHTS, verify_export
from node.scoring import last_layer
from tests.end_to_end.commands import wardtree
from tests.node.homes import PASSPHRASE, Federation, make_federation

pytestmark = pytest.mark.confined

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "readmission"
PATIENTS = EXAMPLE / "south.csv"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study's folder."""
    out = tmp_path_factory.mktemp("study") / "run"
    options = ("--study", EXAMPLE / "study.toml", "--data", EXAMPLE / "data.toml", "--rounds", 2, "--out", out)
    done = wardtree("local", *options)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    """The model, as a party that is not the key holder exported it."""
    out = run / "exported"
    done = wardtree("model", "export", "--home", run / "homes" / "south", "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("members"))


# ---- export ---------------------------------------------------------------------------------------------


def test_an_exported_model_proves_itself(run: Path, model: Path) -> None:
    exported = verify_export(model)
    assert exported.manifest.names == ("north", "south", "west")
    assert {name: tensor.shape for name, tensor in exported.tensors.items()} == {"weight": (1, 8), "bias": (1,)}
    assert [names for _, names in exported.card["contributors"]] == [["north", "south", "west"]] * 3
    assert exported.card["privacy"] == {"mode": "none", "epsilon": None}
    assert exported.card["study"] == "readmission"
    done = wardtree("model", "verify", model, "--transcript", run / "ceremony" / "transcript.jsonl", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == exported.card["state"]
    again = wardtree("model", "export", "--home", run / "homes" / "north", "--out", run / "by-the-key-holder")
    assert again.returncode == 0, again.stderr
    for name in (WEIGHTS, CARD):
        assert (run / "by-the-key-holder" / name).read_bytes() == (model / name).read_bytes()
    assert "exists already" in wardtree("model", "export", "--home", run / "homes" / "north", "--out", model).stderr


def _weights(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors["weight"] = tensors["weight"] + np.float32(1e-6)
    save_file(tensors, folder / WEIGHTS)


def _card(**change: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        card = json.loads((folder / CARD).read_text())
        (folder / CARD).write_text(json.dumps(card | change))

    return apply


def _close(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    frame = bytearray.fromhex(card["closes"][1])
    frame[80] ^= 1
    card["closes"][1] = frame.hex()
    (folder / CARD).write_text(json.dumps(card))


def _missing_close(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    del card["closes"][1]
    (folder / CARD).write_text(json.dumps(card))


def _manifest(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_bytes(path.read_bytes().replace(b'"min_hidden":2', b'"min_hidden":1', 1))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_weights, "not the state that north closed last"),
        (_close, "a false signature|msgpack|manifest|version|sender"),
        (_missing_close, "does not follow"),
        (_manifest, "manifest"),
        (_card(rounds=3), "not the state"),
        (_card(statistics=None), "not the state"),
        (_card(study="another"), "not what follows .*: study"),
        (_card(task_digest="00" * 32), "not what follows .*: task_digest"),
        (_card(contributors=[]), "not what follows .*: contributors"),
        (_card(study_toml=""), "not what follows .*: study_toml"),
        (_card(closes=[]), "expected a model card"),
        (_card(rounds=10**30), "expected a model card"),
        (_card(tensors=[["weight", [9, 1]]]), "expected the tensors that the card names"),
        (_card(format="another"), "expected a model card"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"\x08" * 40), "expected safetensors"),
        (lambda folder: (folder / CARD).write_bytes(b"[" * 100_000), "expected a model card"),
    ],
)
def test_nothing_of_an_exported_model_can_be_changed(
    model: Path, tmp_path: Path, change: Callable[[Path], None], why: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    change(folder)
    with pytest.raises(WardtreeError, match=why) as caught:
        verify_export(folder)
    assert "\n" not in str(caught.value)


def test_a_home_without_a_model_has_none_to_export(members: Federation, tmp_path: Path) -> None:
    done = wardtree("model", "export", "--home", members.path("bo"), "--out", tmp_path / "model")
    assert done.returncode == 2
    assert "no model was published here yet" in done.stderr


# ---- scores ---------------------------------------------------------------------------------------------


def scores_in(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    with path.open() as file:
        return np.array([float(row["score_1"]) for row in csv.DictReader(file)])


def test_encrypted_scores_are_those_in_the_clear(model: Path, members: Federation, tmp_path: Path) -> None:
    batch, key, answer = tmp_path / "batch.enc", tmp_path / "batch.key", tmp_path / "scores.enc"
    ada, bo = members.path("ada"), members.path("bo")
    done = wardtree("score", "clear", "--model", model, "--data", PATIENTS, "--out", tmp_path / "clear.csv")
    assert done.returncode == 0, done.stderr
    sealed = ("--card", model / CARD, "--data", PATIENTS, "--out", batch, "--key", key, "--home", ada)
    done = wardtree("score", "encrypt", *sealed, passphrase=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    assert "ms a patient" in done.stdout
    assert key.stat().st_mode & 0o777 == 0o600
    done = wardtree(
        "score", "host", "--model", model, "--batch", batch, "--out", answer, "--home", bo, passphrase=PASSPHRASE
    )
    assert done.returncode == 0, done.stderr
    opening = ("score", "open", "--key", key, "--batch", batch, "--scores", answer, "--home", ada)
    done = wardtree(*opening, "--out", tmp_path / "scores.csv", passphrase=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    clear = scores_in(tmp_path / "clear.csv")
    assert len(clear) == 45
    assert clear.std() > 0.01
    assert np.abs(scores_in(tmp_path / "scores.csv") - clear).max() < 1e-3
    assert not key.exists()
    done = wardtree(*opening, "--out", tmp_path / "again.csv", passphrase=PASSPHRASE)
    assert done.returncode == 2
    assert "batch.key" in done.stderr


def test_scores_under_an_encrypted_model_are_those_in_the_clear(
    model: Path, members: Federation, tmp_path: Path
) -> None:
    """The owner has the model and no patient; who has the patients, no member, sees it encrypted, and its card."""
    sealed, key, answer = tmp_path / "model.enc", tmp_path / "model.key", tmp_path / "scores.enc"
    owner = members.path("ada")
    options = ("--model", model, "--out", sealed, "--key", key, "--home", owner)
    done = wardtree("score", "encrypt-model", *options, passphrase=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    assert "Encrypted 1 x 8 weights" in done.stdout
    assert key.stat().st_mode & 0o777 == 0o600
    weights = load_file(model / WEIGHTS)["weight"]
    assert weights.tobytes() not in sealed.read_bytes()
    np.save(tmp_path / "wide.npy", np.zeros((3, 9)))
    apply = ("score", "apply", "--encrypted-model", sealed, "--card", model / CARD, "--out", answer)
    done = wardtree(*apply, "--data", PATIENTS, "--manifest", model / "manifest.json")
    assert done.returncode == 2
    assert "signed by ada, who is no member of this manifest" in done.stderr
    apply = (*apply, "--manifest", owner / "manifest.json")
    done = wardtree(*apply, "--data", tmp_path / "wide.npy")
    assert done.returncode == 2
    assert done.stderr.endswith("expected at most 8192 patients of 8 features, came 3 of 9\n")
    assert len(done.stderr.splitlines()) == 1
    done = wardtree(*apply, "--data", PATIENTS)
    assert done.returncode == 0, done.stderr
    assert "Scored 45 patients" in done.stdout
    opening = ("score", "open", "--key", key, "--scores", answer, "--out", tmp_path / "scores.csv", "--unsigned")
    for sent in ((), ("--batch", sealed, "--encrypted-model", sealed)):
        done = wardtree(*opening, *sent, passphrase=PASSPHRASE)
        assert done.returncode == 2
        assert "--batch or --encrypted-model, came both or neither" in done.stderr
    done = wardtree(*opening, "--encrypted-model", sealed, passphrase=PASSPHRASE)
    assert done.returncode == 0, done.stderr
    done = wardtree("score", "clear", "--model", model, "--data", PATIENTS, "--out", tmp_path / "clear.csv")
    assert done.returncode == 0, done.stderr
    clear, opened = scores_in(tmp_path / "clear.csv"), scores_in(tmp_path / "scores.csv")
    assert len(opened) == 45
    assert np.abs(opened - clear).max() < 1e-3
    assert not key.exists()


def test_scores_that_are_none_open_to_nothing_and_cost_the_key(model: Path, tmp_path: Path) -> None:
    from keys.scoring_files import SCORES, ScoringFile

    features = tmp_path / "features.npy"
    np.save(features, np.random.default_rng(0).normal(size=(20, 8)))
    batch, key, answer = tmp_path / "batch.enc", tmp_path / "batch.key", tmp_path / "scores.enc"
    sealed = ("--card", model / CARD, "--data", features, "--out", batch, "--key", key, "--unsigned")
    assert wardtree("score", "encrypt", *sealed, passphrase="a passphrase").returncode == 0
    refused = wardtree("score", "host", "--model", model, "--batch", batch, "--out", answer)
    assert refused.returncode == 2
    assert "--unsigned" in refused.stderr
    hosted = ("score", "host", "--model", model, "--batch", batch, "--out", answer, "--unsigned")
    assert wardtree(*hosted).returncode == 0
    file = ScoringFile.from_bytes(answer.read_bytes(), SCORES, None)
    lie = np.random.default_rng(1).bytes(len(file.body))
    answer.write_bytes(ScoringFile(SCORES, None, file.facts, lie).to_bytes(None))
    opening = ("score", "open", "--key", key, "--batch", batch, "--scores", answer, "--unsigned")
    wrong = wardtree(*opening, "--out", tmp_path / "scores.csv", passphrase="another")
    assert wrong.returncode == 2
    assert "wrong passphrase" in wrong.stderr
    assert key.exists()
    done = wardtree(*opening, "--out", tmp_path / "scores.csv", passphrase="a passphrase")
    assert done.returncode == 2
    assert "failed: this is no sum that an honest host gives" in done.stderr
    assert not key.exists()
    assert not (tmp_path / "scores.csv").exists()


def test_what_cannot_be_scored_is_one_line(model: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((3, 9)))
    (tmp_path / "other.csv").write_text("age\n50\n")
    np.save(tmp_path / "far.npy", np.full((3, 8), 100.0))
    for data, why in (("wide.npy", "expected 8 features"), ("other.csv", "expected a column")):
        options = ("--model", model, "--data", tmp_path / data, "--out", tmp_path / "scores.csv")
        done = wardtree("score", "clear", *options)
        assert done.returncode == 2
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
    options = ("--card", model / CARD, "--data", tmp_path / "far.npy", "--out", tmp_path / "b", "--key", tmp_path / "k")
    done = wardtree("score", "encrypt", *options, "--unsigned", passphrase="a passphrase")
    assert done.returncode == 2
    assert "expected finite values within 16" in done.stderr
    assert not (tmp_path / "k").exists()


def test_the_last_layer_is_found(model: Path) -> None:
    layer = last_layer(verify_export(model))
    assert layer.weights.shape == (1, 8)
    assert verify_signatures((model / "manifest.json").read_bytes()).names == ("north", "south", "west")
