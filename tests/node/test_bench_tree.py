"""``scripts/bench_tree`` at sizes that only show that it measures; and the laws on rounds that obey one of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from node.bench import tree as bench
from node.bench.institutions import InstitutionsError, federation_of, run_nodes
from node.bench.links import LinkError, Shape, endpoints, shaped, why_not
from node.bench.tree import Case, chain_parties, link_cases, links, main, memory
from node.bench.tree_law import PAPER, PIPELINE, fit, levels_of
from node.bench.tree_page import draw, write_page
from node.simulation import hold_ceremony
from tests.end_to_end.commands import FULL

pytestmark = pytest.mark.confined

needs_links = pytest.mark.skipif(why_not() is not None, reason=f"no shaped links here: {why_not()}")


def namespaces_of_ours() -> list[str]:
    listed = subprocess.run(("ip", "netns", "list"), capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if line.startswith(f"wardtree-{os.getpid()}-")]


# ---- what it measures -------------------------------------------------------------------------------------


def test_a_federation_on_loopback_and_its_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--parts", "loopback", "--nodes", "3", "--params", "500", "--rounds", "2", "--out", str(tmp_path)]
    main(options)
    (row,) = json.loads((tmp_path / "tree.json").read_text())["loopback"]
    assert (row["parties"], row["levels"], len(row["rounds_s"])) == (3, 2, 2)
    assert 0 < row["median_s"] < 10
    assert 30e3 < row["bytes_per_round"] < 1e6
    assert row["peak_memory"] > 30e6
    page = (tmp_path / "tree.md").read_text()
    assert "| 500 | 3 | 2 |" in page
    assert "<svg" in (tmp_path / "tree.svg").read_text()
    main([*options, "--redraw"])
    assert (tmp_path / "tree.md").read_text() == page, "made from the figures alone"
    assert len(json.loads((tmp_path / "tree.json").read_text())["loopback"]) == 1
    assert capsys.readouterr().out.count(page) == 2


@needs_links
def test_real_nodes_on_shaped_links_take_at_least_what_the_links_need(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two segments of one ciphertext, up two links and down two: at 2 Mbit/s more than half a second, and no more."""
    monkeypatch.setattr(bench, "SLEEP_SECONDS", 0.5)
    case = Case("chain", 4, 30_000, 2.0, rounds=1)
    row = links(case, 120)
    up = 61_440 * 4  # four ciphertexts are one segment: the second link begins when the first is done
    assert row["segments"] == 1
    least = (2 * up + 2 * 4 * 30_000) * 8 / 2e6
    assert 0.95 * least < row["seconds"] < 3 * least + 10  # a bucket is full at first; the machine may be busy
    assert row["from_open_s"] > row["seconds"]
    assert not namespaces_of_ours()


@pytest.mark.skipif(not FULL, reason="full size")
def test_an_inner_relays_memory_does_not_grow_with_the_model() -> None:
    """At full size, as it is promised: without the model and the staged total."""
    room = "relay of the inner node"
    small, large = (memory(params, 8, 280)["peaks"][room] - 8 * params for params in (1_000_000, 10_000_000))
    assert large < 1.2 * small
    assert large < 100e6


def test_a_relay_takes_no_more_than_when_it_began_but_for_the_model_the_total_and_a_few_segments(
    tmp_path: Path,
) -> None:
    """One copy more of the model or the total would be 10 MB. (Its passphrase took 20 MB, before it began.)"""
    params = 2_500_000
    federation = federation_of(tmp_path / "run", 4, params, rounds=1)
    said = run_nodes(federation, hold_ceremony(federation), 250)
    usage = {when: {e["party"]: e for e in said.events if e.get("when") == when} for when in ("began", "ended")}
    for name in federation.names:
        began, ended = usage["began"][name], usage["ended"][name]
        assert ended["peak_memory"] - 8 * params < began["memory"] + 14e6
        assert ended["sockets"] <= 10
        assert ended["descriptors"] < 40


# ---- what it cannot do is one line ------------------------------------------------------------------------


def test_without_root_or_the_programs_links_are_skipped_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    reason = why_not()
    assert reason is not None
    assert "need root" in reason or "ip and tc not found (Debian: apt-get install iproute2)" in reason
    main(["--parts", "links", "--out", str(tmp_path / "out")])
    assert f"links: not measured: {reason}" in capsys.readouterr().out
    assert f"Not measured: {reason}" in (tmp_path / "out" / "tree.md").read_text()


@needs_links
def test_links_that_the_kernel_refuses_are_taken_away_again() -> None:
    where = {"a": "10.77.0.1:1", "b": "10.77.0.256:1"}
    with pytest.raises(LinkError, match="^ip -n"), shaped({"a": "b"}, Shape(1.0), where):
        pass
    assert not namespaces_of_ours()


def test_a_node_that_fails_is_named_and_the_others_are_ended(tmp_path: Path) -> None:
    federation = federation_of(tmp_path / "run", 3, 100, rounds=1)
    passphrases = hold_ceremony(federation)
    with pytest.raises(InstitutionsError, match="^party-0[12] failed"):
        run_nodes(federation, passphrases | {"party-02": "wrong"}, 60)


# ---- cases and laws ---------------------------------------------------------------------------------------


def test_the_chain_of_the_promise_has_eleven_nodes_and_the_key_holder() -> None:
    assert chain_parties(5) == 12
    cases = list(link_cases((10.0,), 1_000_000, 0.0))
    assert Case("chain", 4, 1_000_000, 10.0) in cases, "the reference: key holder, apex, two leaves"
    assert Case("chain", 12, 1_000_000, 10.0) in cases
    assert Case("chain", 12, 1_000_000, 10.0, whole=True, rounds=1) in cases
    assert any(case.delay_ms for case in link_cases((10.0,), 1_000_000, 10.0))
    assert len(set(endpoints([f"p{i}" for i in range(600)]).values())) == 600


def test_each_law_finds_its_own_constants_and_not_the_others() -> None:
    sizes = [(levels, segments) for levels in (2, 4, 6) for segments in (8, 31)]
    pipelined = [(levels, segments, 0.5 + 0.3 * levels + 0.2 * (segments - 1)) for levels, segments in sizes]
    whole = [(levels, segments, segments * (0.05 + 0.2 * levels)) for levels, segments in sizes]
    found = fit(PIPELINE, pipelined)
    assert found.seconds == pytest.approx((0.5, 0.3, 0.2))
    assert found.error < 1e-9 < 0.1 < fit(PAPER, pipelined).error
    assert fit(PAPER, whole).seconds == pytest.approx((0.05, 0.2))
    assert fit(PIPELINE, whole).error > 0.1
    assert found.predict(10, 49) == pytest.approx(0.5 + 3 + 9.6)
    assert [levels_of(parties) for parties in (4, 64, 1000, 10_000)] == [2, 6, 10, 14]


def a_report(chain: float) -> dict[str, Any]:
    def link(parties: int, levels: int, seconds: float, params: int, whole: bool = False) -> dict[str, Any]:
        case = {"tree": "chain", "parties": parties, "params": params, "megabits": 10.0, "whole": whole}
        return case | {"delay_ms": 0.0, "levels": levels, "segments": 31, "seconds": seconds, "busy_before": 0.0}

    rows = [link(4, 2, 7.0, 10**6), link(8, 4, 8.0, 10**6), link(12, 6, chain, 10**6), link(4, 2, 2.0, 250_000)]
    rows += [link(4, 2, 20.0, 10**6, True), link(8, 4, 40.0, 10**6, True), link(12, 6, 60.0, 10**6, True)]
    peaks = {"relay of the inner node": 90_000_000, "enclave": 80_000_000}
    memory_rows = [
        {"params": 10**6, "parties": 8, "peaks": peaks, "busy_before": 0.0},
        {"params": 10**7, "parties": 8, "peaks": {"relay of the inner node": 165_000_000}, "busy_before": 0.0},
    ]
    return {"machine": "a machine", "sleep_s": 4.0, "links": rows, "memory": memory_rows}


@pytest.mark.parametrize(
    ("chain", "verdict"), [(9.0, "| 1.29 | 1.5 | kept |"), (12.0, "| 1.71 | 1.5 | **not kept** |")]
)
def test_the_page_says_what_was_kept_and_marks_what_is_predicted(tmp_path: Path, chain: float, verdict: str) -> None:
    report = a_report(chain)
    page = write_page(report)
    assert verdict in page
    assert f"| {chain / 60:.3g} | 0.4 | kept |" in page
    assert "| 1.04 | 1.2 | kept |" in page
    assert "Predicted, not measured" in page
    assert "no netem" in page
    for law in ("| pipeline |", "| paper |"):
        assert law in page
    draw(report, tmp_path / "tree.svg")
    assert (tmp_path / "tree.svg").stat().st_size > 10_000
