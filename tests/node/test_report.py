"""The report of a local run: what it claims, and what the terminal shows."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from node import report as reports
from node.local import Outcome
from node.record import Record
from node.report_terminal import summary_table
from tests.node.reported import KEY_HOLDER, SEGMENTS, built, federation, run

# ---- what is claimed ------------------------------------------------------------------------------------


def test_a_run_without_faults() -> None:
    report = built(federation())
    claimed = {
        "ok": True,
        "parties": 4,
        "rounds": 3,
        "rounds_asked": 3,
        "models_identical": True,
        "sums_exact": True,
        "key_holder": KEY_HOLDER,
        "parameters": 20,
        "errors": {},
        "study": "a study",
        "task": "synthetic",
    }
    assert {key: report[key] for key in claimed} == claimed
    assert "2^61-1" in report["debug"][0]
    assert reports.verdict(report) == "OK: 3 of 3 rounds, 4 parties, all models identical, every sum exact, 12.5 s"


def test_one_wrong_sum_is_no_success() -> None:
    outcome = run(federation())
    outcome.record.rounds[2].fingerprints["party-03"][1] -= 1
    report = built(federation(), outcome)
    assert (report["ok"], report["sums_exact"], report["models_identical"]) == (False, False, True)
    assert "SUMS NOT EXACT" in reports.verdict(report)


def test_sums_that_nobody_checked_are_neither_right_nor_wrong() -> None:
    report = built(federation(checked=False))
    assert (report["ok"], report["sums_exact"], report["debug"]) == (True, None, [])
    assert "sum" not in reports.verdict(report)


def test_models_that_differ_are_no_success() -> None:
    outcome = run(federation())
    outcome.record.final["party-02"] = "f" * 64
    report = built(federation(), outcome)
    assert (report["ok"], report["models_identical"]) == (False, False)
    assert reports.verdict(report).startswith("FAILED: 3 of 3 rounds, 4 parties, MODELS NOT IDENTICAL")


@pytest.mark.parametrize(
    ("code", "told", "why"),
    [
        (2, {"party-02": "no data"}, "no data"),
        (-9, {}, "it ended with exit code -9"),
        (None, {}, "it did not end"),
    ],
)
def test_a_node_that_failed_is_named(code: int | None, told: dict[str, str], why: str) -> None:
    outcome = run(federation())
    outcome.record.errors.update(told)
    if code is None:
        del outcome.codes["party-02"]
    else:
        outcome.codes["party-02"] = code
    report = built(federation(), outcome)
    assert (report["ok"], report["errors"]) == (False, {"party-02": why})
    assert "1 node failed" in reports.verdict(report)


def test_fewer_rounds_than_asked_for_are_no_success() -> None:
    report = built(federation(rounds=5), run(federation(rounds=3)))
    assert (report["rounds"], report["rounds_asked"], report["ok"]) == (3, 5, False)


def test_rounds_tell_their_purpose_and_who_was_left_out() -> None:
    of = federation(parties=5)
    rounds = built(of, run(of, absent={2: "party-04"}))["rounds_detail"]
    assert [(each["round"], each["purpose"]) for each in rounds] == [
        (0, "statistics"),
        (1, "train"),
        (2, "train"),
        (3, "train"),
    ]
    assert [each["left_out"] for each in rounds] == [[], [], ["party-04"], []]
    assert {each["segments"] for each in rounds} == {SEGMENTS}
    assert rounds[2]["contributors"] == ["party-01", "party-02", "party-03", "party-05"]
    assert rounds[2]["seconds"] == 0.75


def test_without_a_statistics_round_every_round_is_training() -> None:
    report = built(federation(), run(federation(), statistics=False))
    assert (report["rounds"], [each["round"] for each in report["rounds_detail"]]) == (3, [1, 2, 3])


def test_three_contributors_are_warned_wherever_they_are_three() -> None:
    assert "rounds 0, 1, 2, 3" in built(federation(parties=3))["notes"][0]
    of = federation(parties=4)
    (note,) = built(of, run(of, absent={2: "party-04"}))["notes"]
    assert "Three parties contributed to round 2:" in note
    assert built(of)["notes"] == []


def test_refusals_are_counted_by_what_they_are() -> None:
    outcome = run(federation())
    for who in ("stranger", "party-02", "stranger"):
        event = {"who": who, "expected": "a signature", "came": "none"}
        outcome.record.take({"party": "party-01", "kind": "dropped", **event})
    assert [(each["who"], each["count"]) for each in built(federation(), outcome)["dropped"]] == [
        ("party-02", 1),
        ("stranger", 2),
    ]


def test_figures_that_json_does_not_have() -> None:
    report = reports.build(federation(), run(federation()), {"x": [float("nan"), np.float32(0.5), np.int64(3)]})
    assert json.loads(json.dumps(report, allow_nan=False))["results"] == {"x": [None, 0.5, 3]}


# ---- what each role saw ---------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [3, 4, 7, 30, 64])
def test_the_key_holder_saw_one_aggregate_a_segment_and_round(parties: int) -> None:
    saw = built(federation(parties))["saw"]
    assert saw["key holder"][0] == (
        f"party-01 received 8 aggregates, one per segment and round, each over {parties - 1} parties; "
        "no other ciphertext."
    )
    assert "received no ciphertext" in saw["leaf"][0]
    assert "8 totals" in saw["everyone"][0]


def test_what_those_who_add_saw_is_counted() -> None:
    of = federation(parties=7)  # an apex, two who add, three leaves
    outcome = run(of)
    saw, tree = built(of, outcome)["saw"], outcome.tree
    assert f"{tree.apex} received 16 ciphertexts from below: each a sum over 2 to 3 parties." in saw["apex"]
    assert "received 24 ciphertexts from below: each of a single party." in saw["inner node"][0]
    assert "3 nodes" in saw["leaf"][0]


def test_a_ciphertext_that_the_key_holder_should_not_have_is_told() -> None:
    outcome = run(federation())
    leaf = next(name for name in outcome.tree.parent if not outcome.tree.children[name])
    stray = {"peer": leaf, "round": 1, "segment": 0, "contributors": [leaf], "bytes": 9}
    outcome.record.take({"party": KEY_HOLDER, "kind": "ciphertext", **stray})
    alone = {"peer": outcome.tree.apex, "round": 1, "segment": 0, "contributors": [leaf], "bytes": 9}
    outcome.record.take({"party": KEY_HOLDER, "kind": "ciphertext", **alone})
    received, holds = built(federation(), outcome)["saw"]["key holder"]
    assert received.endswith("each over 3 parties; 2 other ciphertexts.")
    assert "and those others" in holds


def test_an_aggregate_that_came_twice_is_told() -> None:
    outcome = run(federation())
    outcome.record.ciphertexts[KEY_HOLDER].append(outcome.record.ciphertexts[KEY_HOLDER][0])
    assert "9 aggregates, for 8 segments, each" in built(federation(), outcome)["saw"]["key holder"][0]


def test_every_party_has_one_role() -> None:
    report = built(federation(parties=30))
    roles = reports.roles(report)
    assert {name: len(names) for name, names in roles.items()} == {
        "key holder": 1,
        "apex": 1,
        "inner node": 13,
        "leaf": 15,
    }
    assert sorted(name for names in roles.values() for name in names) == list(federation(30).names)
    assert (roles["key holder"], roles["apex"]) == ([KEY_HOLDER], [report["tree"]["apex"]])


# ---- the terminal ---------------------------------------------------------------------------------------


def shown(report: dict[str, Any], width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(summary_table(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_summary_has_every_figure_in_80_columns() -> None:
    text = shown(built(federation(), compared=True))
    assert "…" not in text
    row = text[text.index("party-01, 30") :].splitlines()[:3]
    assert [line.split()[-3:] for line in row] == [
        ["0.811", "0.911", "0.711"],
        ["0.822", "0.922", "0.722"],
        ["0.822", "0.933", "0.722"],
    ]
    assert "–" in text[text.index("party-04, 30") :].splitlines()[0], "no AUC where all are of one class"
    assert "pooled (never allowed in life)" in text
    assert "2.00" in text, "seconds of training"
    assert "2.5 MB" in text
    assert "note: One split only." in text
    assert "debug mode was on: check-sums" in text
    assert text.splitlines()[-1].startswith("OK: 3 of 3 rounds")


def test_the_summary_skips_what_is_not_there() -> None:
    text = shown(built(federation(checked=False)))
    assert "accuracy" not in text
    assert "debug" not in text
    assert "Seconds per stage" in text


def test_of_many_nodes_the_summary_shows_the_means_of_their_roles() -> None:
    text = shown(built(federation(parties=64), compared=True))
    assert len(text.splitlines()) < 60
    assert "mean of 32" in text
    assert "mean of 30" in text


def test_the_best_figures_are_found_as_they_are_shown() -> None:
    assert reports.best([0.81234, 0.8114, None]) == [True, False, False]
    assert reports.best([0.81234, 0.81249, 0.1]) == [True, True, False]
    assert reports.best([None, None]) == [False, False]


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (726_143, "726.1 kB"), (2.5e6, "2.5 MB"), (3e12, "3000.0 GB")],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert reports.human_bytes(count) == text


def test_a_run_that_never_began_has_a_report(tmp_path: Path) -> None:
    of = federation()
    tree = run(of).tree
    record = Record(of.names)
    record.take({"party": "party-02", "kind": "stopped", "error": "no data"})
    codes = {**dict.fromkeys(of.names, 1), "party-02": 2}
    report = reports.build(of, Outcome(record, tree, codes, 1.0), {})
    reports.write(tmp_path, report)
    assert (report["ok"], report["sums_exact"], report["rounds"]) == (False, False, 0)
    assert report["errors"]["party-02"] == "no data"
    assert report["saw"]["key holder"][0] == "party-01 received 0 aggregates; no other ciphertext."
    assert "no data" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert shown(report, 100).splitlines()[-1].startswith("FAILED: 0 of 3 rounds")
