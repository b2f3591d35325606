"""The main job: real hospitals' data, real processes, a real ceremony; and what must be left behind: nothing."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import socket
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from node.published import load_model
from node.record import Record
from tests.end_to_end.commands import FULL, descendants, names_below, start, wait_until, wardtree

pytestmark = pytest.mark.confined


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run of the demo: ten rounds, four hospitals."""
    out = tmp_path_factory.mktemp("demo") / "run"
    result = wardtree("local", "--out", out)
    assert result.returncode == 0, result.stderr
    assert "AUC" in result.stdout
    return out


def read_report(out: Path) -> dict[str, object]:
    report = json.loads((out / "report.json").read_text())
    assert isinstance(report, dict)
    return report


def test_the_demo_trains_four_hospitals_to_one_model(demo: Path) -> None:
    report = read_report(demo)
    expected = {"parties": 4, "rounds": 10, "models_identical": True, "sums_exact": True, "ok": True}
    assert {key: report[key] for key in expected} == expected
    models = [load_model(demo / "homes" / name / "model.npz") for name in ("cleveland", "hungary", "switzerland")]
    assert all(np.array_equal(model.parameters, models[0].parameters) for model in models)
    assert np.abs(models[0].parameters).max() > 0.1, "it learnt something"
    assert any("check-sums" in sentence for sentence in report["debug"]), "the debug mode is named"  # type: ignore[attr-defined]
    html = (demo / "report.html").read_text()
    assert html.count("<svg") >= 3
    assert not re.search(r'(src|href)="https?:', html), "self-contained"


def test_the_federated_model_is_worth_its_while(demo: Path) -> None:
    together = read_report(demo)["results"]["together"]  # type: ignore[index]
    assert together["federated"]["auc"] > 0.82
    assert abs(together["federated"]["auc"] - together["pooled"]["auc"]) < 0.03


def test_the_key_holder_received_one_aggregate_per_segment_and_round_and_no_other_ciphertext(demo: Path) -> None:
    """On real sockets: from the ledgers of the key holder and the apex, which are written before each step."""
    lines = (demo / "homes" / "cleveland" / "ledger.jsonl").read_text().splitlines()
    entries = [json.loads(line)["entry"] for line in lines]
    openings = [(e["round"], e["segment"], e["contributors"]) for e in entries if e["what"] == "opening"]
    everyone = ["cleveland", "hungary", "switzerland", "va-long-beach"]
    assert openings == [(number, 0, everyone) for number in range(11)]
    (key_holder_saw, *_) = read_report(demo)["saw"]["key holder"]  # type: ignore[index]
    assert "11 aggregates" in key_holder_saw
    assert "3 parties" in key_holder_saw


def test_homes_keep_no_update_and_no_secret_in_clear(demo: Path) -> None:
    files = {path.name for path in (demo / "homes").glob("*/*")}
    assert files <= {
        "identity.sealed", "card.json", "manifest.json", "public.key", "node.toml", "ledger.jsonl", "lock",
        "transcript.jsonl", "model.npz", "relay", *(f for f in files if f.startswith(("secret-key-", "openings-"))),
    }  # fmt: skip
    for path in (demo / "homes").glob("*/*.sealed"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.read_bytes().startswith(b"wardtree-sealed/1\n")


def test_a_synthetic_federation_is_exact_and_imports_no_torch(tmp_path: Path) -> None:
    process = start(
        "local", "--parties", 7, "--rounds", 3, "--task", "synthetic", "--params", 200_000, "--json",
        "--out", tmp_path / "run", out=tmp_path,
    )  # fmt: skip
    with_torch: set[str] = set()
    while process.poll() is None:
        for child in descendants(process.pid):
            try:
                maps = Path(f"/proc/{child.pid}/maps").read_text()  # root may, though it is not dumpable
            except OSError:
                continue
            if "libtorch" in maps:
                with_torch.add(child.name())
        time.sleep(0.2)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()
    report = json.loads((tmp_path / "stdout").read_text())
    assert (report["sums_exact"], report["models_identical"], report["parties"]) == (True, True, 7)
    assert not with_torch


def test_processes_stand_where_they_belong_and_none_is_left(tmp_path: Path) -> None:
    process = start("local", "--out", tmp_path / "run", out=tmp_path)
    seen: set[tuple[str, str]] = set()

    parties = ("cleveland", "hungary", "switzerland")
    everywhere = {("nursery", f"template {party}"[:15]) for party in parties}  # the kernel keeps 15 characters

    def complete() -> bool:
        seen.update(names_below(process.pid))
        begun = everywhere <= seen and any(name.startswith("enclave hungary") for _, name in seen)
        return process.poll() is not None or begun

    wait_until(complete)
    children = descendants(process.pid)
    assert everywhere <= seen, "one warm process for all of them"
    for party in parties:
        assert (f"node {party}"[:15], f"relay {party}"[:15]) in seen
    assert ("node cleveland"[:15], "keyroom cleveland"[:15]) in seen
    assert ("template hungary"[:15], "enclave hungary"[:15]) in seen
    assert process.wait(120) == 0, (tmp_path / "stderr").read_text()
    assert not [child for child in children if child.is_running()]


@pytest.mark.parametrize("attempt", range(10 if FULL else 3))
def test_ctrl_c_leaves_nothing_behind(tmp_path: Path, attempt: int) -> None:
    """SIGINT to the whole group, as a terminal sends it, at a random moment."""
    before = set(psutil.pids())
    run = tmp_path / "run"
    process = start("local", "--out", run, out=tmp_path)
    moment = random.Random(time.time_ns()).uniform(0.3, 12 if FULL else 9)
    deadline = time.monotonic() + moment
    children: dict[int, psutil.Process] = {}
    while time.monotonic() < deadline and process.poll() is None:
        children.update({child.pid: child for child in descendants(process.pid)})
        time.sleep(0.05)
    children.update({child.pid: child for child in descendants(process.pid)})
    finished = process.poll() is not None
    if not finished:
        os.killpg(process.pid, signal.SIGINT)
    code = process.wait(20)
    interrupted = (130, -signal.SIGINT)  # the latter before Python itself has started
    assert finished or code in interrupted, f"after {moment:.2f} s: {(tmp_path / 'stderr').read_text()}"
    assert "Traceback" not in (tmp_path / "stderr").read_text(), f"after {moment:.2f} s"
    wait_until(lambda: not [child for child in children.values() if child.is_running()], 5)
    mine = [pid for pid in psutil.pids() if pid not in before and _runs_in(pid, run)]
    assert not mine
    allowed = {".sealed", ".json", ".toml", ".key", ".jsonl", ".npz", ".new", ".bin", ".html", ""}
    for path in run.rglob("*"):
        half_written = path.name.startswith(".")  # what an atomic write leaves when it is interrupted
        assert path.is_dir() or half_written or path.suffix in allowed, f"{path} is no file of ours"
        assert path.suffix or path.is_dir() or path.name == "lock" or path.name.startswith(".")
    for path in run.rglob("*.key"):
        assert path.read_bytes().startswith(b"wardtree public key"), "a secret key in clear"
    for card in run.rglob("*.card.json"):
        host, port = json.loads(card.read_text())["endpoint"].split(":")
        with socket.socket() as probe:
            assert probe.connect_ex((host, int(port))) != 0, "a socket is still listening"


def _runs_in(pid: int, run: Path) -> bool:
    try:
        return str(run) in " ".join(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def test_records_of_a_run_are_plain_data() -> None:
    record = Record(("a", "b"))
    record.take({"kind": "stopped", "party": "a", "error": "it broke", "time": 0})
    assert record.errors == {"a": "it broke"}
    assert not record.models_identical
    assert not record.sums_exact(), "no round, no claim"
