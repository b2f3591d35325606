"""After a real study: the record that an officer files, and a hospital's own figures of the model. The real program."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from node.published import load_model, save_model
from node.update import Model
from tests.end_to_end.commands import wardtree

pytestmark = pytest.mark.confined

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "readmission"
PARTIES = ("north", "south", "west")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study's folder: two rounds of training, and an evaluation by all together."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.toml").write_text((EXAMPLE / "study.toml").read_text() + "\n[evaluation]\nevery = 2\n")
    options = ("--study", folder / "study.toml", "--data", EXAMPLE / "data.toml", "--rounds", 2)
    done = wardtree("local", *options, "--out", folder / "run", timeout=250)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_record_of_a_real_study(run: Path, tmp_path: Path) -> None:
    homes = run / "homes"
    others = [each for name in ("north", "west") for each in ("--with", homes / name / "ledger.jsonl")]
    done = wardtree("ledger", "report", "--home", homes / "south", *others, "--out", tmp_path / "record")
    assert done.returncode == 0, done.stderr
    file = tmp_path / "record" / "record.json"
    assert "Made the record of 4 closed rounds from the ledgers of south, north, west" in done.stdout
    transcript = run / "ceremony" / "transcript.jsonl"
    done = wardtree("ledger", "verify", file, "--transcript", transcript)
    assert done.returncode == 0, done.stderr
    assert "holds" in done.stdout
    assert "Not proven:" in done.stdout
    said = json.loads(file.read_text())["facts"]
    report = json.loads((run / "report.json").read_text())
    assert [each["purpose"] for each in said["rounds"]] == ["statistics", "train", "train", "evaluate"]
    assert [each["integers"] for each in said["rounds"][1:3]] == [report["parameters"]] * 2
    assert said["rounds"][3]["integers"] > 200, "the counts of the evaluation"
    assert all(each["known_to"] == list(PARTIES) for each in said["rounds"])
    for own in said["ledgers"]:
        assert own["not_wiped"] == []
        assert {each["round"] for each in own["wiped"]} == {-1, 0, 1, 2, 3}
        assert [each["posture"].split()[0] for each in own["starts"]] == ["required"]
    page = (tmp_path / "record" / "record.html").read_text()
    for text in (str(run), "north.csv", "PRIVATE"):
        assert text not in page + file.read_text(), "where a hospital keeps its data is nobody's business"


def test_a_changed_record_or_another_transcript_does_not_hold(run: Path, tmp_path: Path) -> None:
    home = run / "homes" / "south"
    assert wardtree("ledger", "report", "--home", home, "--out", tmp_path).returncode == 0
    again = wardtree("ledger", "report", "--home", home, "--out", tmp_path)
    assert again.returncode == 2
    assert "exists already" in again.stderr
    table = json.loads((tmp_path / "record.json").read_text())
    table["facts"]["rounds"][1]["contributors"] = ["south"]
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(table))
    done = wardtree("ledger", "verify", changed, "--transcript", home / "transcript.jsonl")
    assert done.returncode == 2
    assert "says what does not follow from its ledgers and the transcript: rounds" in done.stderr
    missing = wardtree("ledger", "verify", tmp_path / "record.json")
    assert missing.returncode == 2
    assert "expected a member's copy of the transcript" in missing.stderr
    nothing = wardtree("ledger", "report", "--home", tmp_path, "--out", tmp_path / "x")
    assert nothing.returncode == 2
    assert len(nothing.stderr.splitlines()) == 1


def test_a_hospitals_own_figures_are_those_that_the_comparison_found(run: Path) -> None:
    """The report of a local run computes them with all data in one place; the hospital by itself gets the same."""
    home = run / "homes" / "south"
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    done = wardtree("evaluate", "--home", home, "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    expected = json.loads((run / "report.json").read_text())["results"]["hospitals"]["south"]["own_patients"][
        "federated"
    ]
    assert shown["figures"] == pytest.approx(expected)
    assert (shown["party"], shown["study"], shown["model"], shown["trained"]) == ("south", "readmission", "final", 2)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before, "nothing is written"
    best = wardtree("evaluate", "--home", home, "--model", "best")
    assert best.returncode == 0, best.stderr
    assert "nothing was sent" in best.stdout


def test_what_cannot_be_evaluated_is_one_line(run: Path, tmp_path: Path) -> None:
    home = run / "homes" / "west"
    model = load_model(home / "model.npz")
    save_model(tmp_path / "wide.npz", Model(1, np.zeros(10, np.float32), model.statistics, model.parties))
    (home / "node.toml").rename(home / "away.toml")
    try:
        no_data = wardtree("evaluate", "--home", home)
    finally:
        (home / "away.toml").rename(home / "node.toml")
    answers = {
        "expected a model of 9 parameters, came 10": wardtree(
            "evaluate", "--home", home, "--model", tmp_path / "wide.npz"
        ),
        "cannot be read": wardtree("evaluate", "--home", home, "--model", tmp_path / "none.npz"),
        "has joined no manifest yet": wardtree("evaluate", "--home", tmp_path),
        "csv": no_data,
    }
    for why, done in answers.items():
        assert done.returncode == 2, (why, done.stderr)
        assert why in done.stderr
        assert len(done.stderr.splitlines()) == 1
