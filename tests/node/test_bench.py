"""``wardtree bench crypto``: it is exact, says what it should, and refuses what it cannot do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from keys.plan import PlanError
from node.bench.common import Clock, make_update
from node.bench.ours import BenchError, measure
from node.bench.page import FLARE, FLOWER, MILLION, OURS, write_page
from node.cli import app

SECONDS = ("protect_offline", "protect_online", "add", "add_two", "open")


def bench(*options: str) -> dict[str, object]:
    result = CliRunner().invoke(app, ["bench", "crypto", *options, "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert isinstance(figures, dict)
    return figures


@pytest.mark.parametrize(("value_bits", "most_bytes"), [(14, 14.0), (7, 7.0)])
def test_a_small_benchmark_is_exact_and_has_every_figure(value_bits: int, most_bytes: float) -> None:
    figures = bench("--params", "10000", "--parties", "3", "--value-bits", str(value_bits), "--repeats", "1")
    assert figures["exact"] is True
    assert (figures["params"], figures["parties"], figures["value_bits"]) == (10_000, 3, value_bits)
    assert figures["bytes_per_param"] == pytest.approx(figures["upload_bytes"] / 10_000)  # type: ignore[operator]
    assert 4 < figures["bytes_per_param"] < most_bytes  # type: ignore[operator]
    assert figures["peak_memory_mb"] > 20  # type: ignore[operator]
    for name in SECONDS:
        assert figures[f"{name}_s"] > 0  # type: ignore[operator]
        assert figures[f"{name}_cpu_s"] > 0  # type: ignore[operator]


def test_more_parties_than_distinct_updates_still_sum_exactly() -> None:
    figures = measure(5_000, 6, repeats=1)
    assert figures["exact"] is True
    # A mean of six stochastic roundings lies within one step of the update.
    plan = figures["plan"]
    assert isinstance(plan, dict)
    assert 0 < figures["largest_error"] < 0.12 / (2 ** (plan["value_bits"] - 1) - 1)  # type: ignore[operator]


def test_the_text_names_the_figures() -> None:
    result = CliRunner().invoke(app, ["bench", "crypto", "--params", "3000", "--parties", "2", "--repeats", "1"])
    assert result.exit_code == 0, result.output
    for words in ("while the model trains", "on the round's path", "bytes per parameter", "the sum is"):
        assert words in result.stdout


def test_what_cannot_be_measured_is_refused() -> None:
    with pytest.raises(BenchError, match="parties should be at least 1, came 0"):
        measure(100, 0)
    with pytest.raises(PlanError):
        measure(100, 3, value_bits=25)


def test_the_update_is_the_same_for_every_program() -> None:
    update = make_update(1_000)
    assert update.dtype == np.float32
    assert np.array_equal(update, make_update(1_000))
    assert not np.array_equal(update, make_update(1_000, seed=1))


def test_a_clock_drops_the_warm_up_and_adds_up_what_a_run_times_twice() -> None:
    clock = Clock()
    for run in clock.runs_after_warm_up(3):
        clock.runs[-1]["x"] = np.array([1000.0, 1000.0]) if run == 0 else np.array([float(run), 1.0])
        with clock.time("y"):
            pass
        before = clock.runs[-1]["y"].copy()
        with clock.time("y"):
            sum(range(1000))
        assert clock.runs[-1]["y"][0] > before[0]
    assert len(clock.runs) == 3
    assert (clock.medians()["x_s"], clock.medians()["x_cpu_s"]) == (2.0, 1.0)
    assert 0 < clock.core_share < 1


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [(0.05, "| kept |"), (0.095, "kept in this one"), (0.11, "not kept in this one"), (0.2, "**not kept**")],
)
def test_the_page_does_not_call_what_one_run_cannot_tell(ours: float, verdict: str) -> None:
    def result(program: str, seconds: float) -> dict[str, object]:
        figures = {f"{step}_cpu_s": seconds for step in ("protect", "server", "read_back")}
        case = {"program": program, "params": MILLION, "parties": 4, "repeats": 5, "core_share": 1.0, "run": 1}
        return case | figures | {"bytes_per_param": 8.0, "largest_error": 1e-5, "upload_bytes": 8_000_000}

    results = [result(OURS, ours) | {"exact": True}, result(FLOWER, 0.06) | {"other_stages_cpu_s": 0.04}]
    page = write_page({"machine": "a machine", "results": results})
    (line,) = [line for line in page.splitlines() if "SecAgg+ client's four stages" in line]
    assert verdict in line
    failed = {"program": FLARE, "params": MILLION, "parties": 4, "failed": "out of memory?", "run": 2}
    page = write_page({"machine": "a machine", "results": [*results, failed]})
    assert "not measured: out of memory?" in page
    assert "from 2 runs on one machine" in page


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((0.5, 0.7, 0.9), "0.70 (0.50 to 0.90) | 0.70 | 1 | kept |"), ((0.5, 0.7, 1.1), "kept by the median"),
     ((0.5, 1.1, 1.2), "**not kept**")],
)  # fmt: skip
def test_times_measured_alternately_are_compared_pair_by_pair(ours: tuple[float, ...], verdict: str) -> None:
    figures = {f"{step}_cpu_s": 0.1 for step in ("protect", "server", "read_back", "other_stages")}
    case = {"params": MILLION, "parties": 4, "repeats": 5, "core_share": 1.0, "run": 1, "exact": True}
    sizes = {"bytes_per_param": 8.0, "largest_error": 1e-5, "upload_bytes": 8_000_000}
    results = [{"program": program} | case | figures | sizes for program in (OURS, FLOWER)]
    pairs = [{"ours": seconds, "stage": 0.8, "client": 1.0} for seconds in ours]
    page = write_page({"machine": "a machine", "results": results, "pairs": pairs})
    (line,) = [line for line in page.splitlines() if "SecAgg+ client's four stages" in line]
    assert verdict in line
