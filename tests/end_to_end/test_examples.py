"""The documented examples, run as a user would run them: a study on CSV files, and a task of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.end_to_end.commands import wardtree

pytestmark = pytest.mark.confined

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def test_a_study_on_csv_files(tmp_path: Path) -> None:
    folder = EXAMPLES / "readmission"
    options = ("--study", folder / "study.toml", "--data", folder / "data.toml", "--rounds", 2, "--json")
    result = wardtree("local", *options, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["parties"], report["rounds"], report["models_identical"]) == (3, 2, True)
    assert report["rounds_detail"][0]["purpose"] == "statistics"
    assert set(report["results"]["hospitals"]) == {"north", "south", "west"}


def test_a_task_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    options = ("--study", EXAMPLES / "stay.toml", "--data", EXAMPLES / "readmission" / "data.toml", "--json")
    result = wardtree("local", *options, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["task"], report["models_identical"]) == ("stay_task:StayTask", True)


def test_a_script_of_flares_client_api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(EXAMPLES), prepend=":")
    options = ("--study", EXAMPLES / "flare.toml", "--data", EXAMPLES / "readmission" / "data.toml", "--json")
    result = wardtree("local", *options, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["task"], report["models_identical"]) == ("flare", True)
    assert report["evaluations"][-1]["accuracy"] > 0.5


def test_other_numbers_of_parties_share_the_rows(tmp_path: Path) -> None:
    result = wardtree("local", "--parties", 3, "--rounds", 1, "--out", tmp_path / "run")
    assert result.returncode == 0, result.stderr
    assert "learns the sum of the two others" in " ".join(result.stdout.split())
    assert json.loads((tmp_path / "run" / "report.json").read_text())["parties"] == 3
