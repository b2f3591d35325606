"""``scripts/reproduce``: the paper's own network, ours beside it, and what they write. The real thing, small."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from keys.manifest import TWO_PARTIES
from node.federation import FederationError, check_size
from node.privacy.budget import Budget
from node.reproduce import heap, overhead, scoring, table3, table3_page, table5, timings
from node.reproduce.approximate import LARGE, OURS, PLAIN, SCHEMES, SMALL, make_contexts
from node.reproduce.framingham import FILES
from node.reproduce.output import Results
from node.reproduce.table3_tree import tree_cell
from node.simulation import in_process
from node.study import parse_study
from tests.keys.test_succession import NEW, OLD, manifest

HEART = FILES["4,238 rows"]


def reproduce(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "node.reproduce", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL)


# ---- two parties ----------------------------------------------------------------------------------------


def study(two: bool) -> str:
    return table5.STUDY.format(rounds=1, seed=1, each=1, clip=1.0, bits=14, two=str(two).lower())


def test_two_parties_take_a_flag_that_both_sign() -> None:
    check_size(parse_study(study(True), "it"), 2)
    with pytest.raises(FederationError, match="2 parties: at least 3 are needed"):
        check_size(parse_study(study(False), "it"), 2)
    with pytest.raises(FederationError, match="1 parties: at least 3"):
        check_size(parse_study(study(True), "it"), 1)


def test_the_quorum_of_two_is_one_only_for_two() -> None:
    pair = list(OLD.values())[:2]
    for flags in ((TWO_PARTIES,), ()):
        assert manifest(pair, debug=flags, allow_two_parties=True).quorum == 1
    assert manifest([*OLD.values(), *NEW.values()][:3], debug=(TWO_PARTIES,), allow_two_parties=True).quorum == 2


# ---- the cells ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [2, 4])
def test_our_accuracies_are_those_without_encryption_repetition_by_repetition(parties: int) -> None:
    plain, ours = (table5.cell(HEART, parties, scheme, 3) for scheme in (PLAIN, OURS))
    assert ours["accuracies"] == plain["accuracies"]
    assert len(set(map(tuple, plain["models"]))) == 3
    grid = table5.CLIP / (2 ** (table5.VALUE_BITS - 1) - 1)
    assert 0 < np.abs(np.subtract(ours["models"], plain["models"])).max() < 5 * 3 * grid


def test_the_papers_network_means_what_one_process_means() -> None:
    for parties in (3, 5):
        plain = table5.cell(HEART, parties, PLAIN, 2)
        large = table5.cell(HEART, parties, LARGE.name, 2)
        assert large["accuracies"] == plain["accuracies"]
        assert np.allclose(large["models"], plain["models"], atol=1e-6)
    assert [heap.levels_of(parties) for parties in (2, 3, 4, 8, 16)] == [1, 1, 2, 3, 4]


def test_a_party_of_the_papers_network_that_ends_is_an_error_not_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heap, "PATIENCE_MS", 300)

    def make_task(party: int) -> object:
        if party == 1:
            raise SystemExit(3)
        return overhead._task(10, party)

    with pytest.raises(heap.HeapError):
        heap.run(3, make_task, None, 2, 1)  # type: ignore[arg-type]


@pytest.mark.parametrize(("setting", "size"), [(SMALL, 80.9e3), (LARGE, 331e3)])
def test_a_ciphertext_of_the_papers_settings_has_the_expected_size(setting: object, size: float) -> None:
    cell = timings.cell(100, setting.name, 1)  # type: ignore[attr-defined]
    assert cell["bytes"] == pytest.approx(size, rel=0.01)
    ours = timings.cell(100, OURS, 1)
    assert ours["bytes"] < size / 1.9
    assert 0 < ours["error"] < 1e-3


def test_no_context_has_more_keys_than_sums_need() -> None:
    public, secret = in_process(make_contexts, SMALL)
    assert len(public) < len(secret) < 400_000


def test_noise_and_accuracy_of_a_cell_with_privacy() -> None:
    cell = table3.cell("full batch", "rdp", 1.0, 3)
    assert cell["spent"] == pytest.approx(cell["opacus"], abs=1e-9)
    assert 0.98 < cell["spent"] <= 1.0
    assert cell["accuracies"] == table3.cell("full batch", "rdp", 1.0, 3)["accuracies"]
    assert all(50 < accuracy < 80 for accuracy in cell["accuracies"])


def test_the_epsilon_in_the_ledgers_of_hospitals_is_opacus_own() -> None:
    cell = tree_cell(Budget(1.0, 1e-5), 3, 1)
    assert [name for name, _, _ in cell["ledgers"]] == ["party-01", "party-02", "party-03"]
    assert all(spent == pytest.approx(opacus, abs=1e-9) for _, spent, opacus in cell["ledgers"])
    assert 0.95 < cell["spent"] <= 1.0
    assert cell["steps"] == 5


def test_the_formula_and_its_share_of_few_cores() -> None:
    row = {"encrypt_s": 8.0, "add_s": 1.0, "decrypt_s": 2.0, "send_s": 3.0}
    assert overhead.formula(row, 4) == 8 + 2 + 4 * 4
    assert overhead.on_cores(row, 4, 16, 2) == (16 * 8 + 15 * 4) / 2 + 2
    assert overhead.on_cores(row, 4, 16, 1000) == overhead.formula(row, 4)


def test_a_measured_round_is_no_shorter_than_its_constants() -> None:
    constants = overhead.constants(500, SMALL.name, 2)
    row = overhead.whole_round(500, SMALL.name, 4, 3)
    assert row["levels"] == 2
    assert row["round_s"] > (constants["encrypt_s"] + constants["decrypt_s"]) / 3  # busy machines differ by far
    assert constants["send_s"] > 0


# ---- files ----------------------------------------------------------------------------------------------


def test_rows_are_kept_between_runs_and_replaced_by_their_keys(tmp_path: Path) -> None:
    for values in ((1, 2), (3,)):
        results = Results(tmp_path, "it", ("a",))
        results.measure([({"a": key}, lambda value=value: {"b": value}) for key, value in enumerate(values)])  # type: ignore[misc]
    assert {row["a"]: row["b"] for row in Results(tmp_path, "it", ("a",)).rows} == {0: 3, 1: 2}
    assert Results(tmp_path, "it", ("a",), quick=True).rows == []
    rest = Results(tmp_path, "it", ("a",), missing=True)
    rest.measure([({"a": key}, lambda: {"b": 4}) for key in range(3)])
    assert {row["a"]: row["b"] for row in rest.rows} == {0: 3, 1: 2, 2: 4}


def test_the_program_writes_page_picture_and_figures(tmp_path: Path) -> None:
    options = ("--out", tmp_path, "--quick")
    done = reproduce("timings", *options, "--params", 100, "--repeats", 1)
    assert done.returncode == 0, done.stderr
    assert "timings: 100, wardtree" in done.stderr
    page = (tmp_path / "timings.md").read_text()
    assert page in done.stdout
    assert "| kept |" in page
    assert "not kept" not in page
    with (tmp_path / "timings.csv").open() as file:
        assert [row["scheme"] for row in csv.DictReader(file)] == list(SCHEMES)
    assert len(json.loads((tmp_path / "timings.json").read_text())["rows"]) == len(SCHEMES)
    picture = (tmp_path / "timings.svg").read_bytes()
    assert reproduce("timings", *options, "--redraw").returncode == 0
    assert (tmp_path / "timings.md").read_text() == page
    assert (tmp_path / "timings.svg").read_bytes() == picture


def test_every_page_can_be_made_of_few_cells(tmp_path: Path) -> None:
    five = Results(tmp_path, "table5", ("file", "parties", "scheme"), True)
    table5.run(five, 1, (2,), (PLAIN, SMALL.name), ("4,238 rows",))
    table5.publish(five)
    assert "| not judged by" not in (tmp_path / "table5.md").read_text()  # there is nothing of ours to judge
    three = Results(tmp_path, "table3", ("recipe", "accountant", "epsilon"), True)
    table3.run(three, 2, (float("inf"), 1.0), ("full batch",), ("rdp",))
    table3_page.publish(three)
    assert "not judged by 2 repetitions" in (tmp_path / "table3.md").read_text()
    scores = Results(tmp_path, "scoring", ("way", "model", "patients"), True)
    scoring.run(scores, (2, 3), 1)
    scoring.publish(scores)
    page = (tmp_path / "scoring.md").read_text()
    assert "The whole batch of 3 patients: " in page
    assert page.count("| 0.001 | kept |") == 3
    assert not scores.find(way=scoring.MODEL_WAY, model=scoring.HEAD)  # as large for two patients as for 8,192
    for name in ("table5", "table3", "scoring"):
        assert {file.suffix for file in tmp_path.glob(f"{name}.*")} == {".md", ".svg", ".csv", ".json"}


def test_wrong_options_are_one_line(tmp_path: Path) -> None:
    done = reproduce("table5", "--out", tmp_path, "--scheme", "rot13")
    assert done.returncode == 2
    assert done.stderr.startswith("wardtree: --scheme: expected one of plain, CKKS 4096")
    assert len(done.stderr.splitlines()) == 1
    assert "Traceback" not in reproduce("table5", "--parties", "1").stderr


def test_approximate_settings_cannot_be_named_by_a_study() -> None:
    from node.study import StudyError

    with pytest.raises(StudyError, match="unknown key"):
        parse_study(study(False) + '\n[encryption]\nscheme = "CKKS 4096"\n', "it")
