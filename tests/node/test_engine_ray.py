"""A simulation over Ray: two workers on one machine, for real."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest

from node.cli.local import SYNTHETIC
from node.engine_ray import RayEngine, shares
from node.home import load_home
from node.local import Outcome, run_federation
from node.published import load_model
from node.record import Record
from node.simulation import Federation, LocalError, simulated_parties
from node.study import parse_study

PARTIES, WORKERS = 5, 2
needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="the extra `ray` is not installed")


def federation(out: Path) -> Federation:
    text = SYNTHETIC.format(params=3000, max_parties=64)
    parties, key_holder = simulated_parties(PARTIES, {})
    return Federation(text, parse_study(text, "study"), parties, key_holder, out)


def test_shares_are_all_parties_once_and_even() -> None:
    dealt = shares("abcdefg", 3)
    assert sorted(name for share in dealt for name in share) == list("abcdefg")
    assert [len(share) for share in dealt] == [3, 2, 2]


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_without_ray_one_line_names_the_extra() -> None:
    with pytest.raises(LocalError, match='--engine ray: expected the package ray .the extra "ray".'):
        RayEngine(["a", "b"], parse_study(SYNTHETIC.format(params=10, max_parties=4), "test"))


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of this test's own, whatever else runs on this machine, and its workers' folders where we look."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # Ray's own sockets need a short path


@needs_ray
@pytest.mark.timeout(600)
@pytest.mark.confined
@pytest.mark.usefixtures("alone")
def test_two_workers_run_each_its_own_parties_of_one_federation(tmp_path: Path) -> None:
    fed = federation(tmp_path / "run")
    engine = RayEngine(fed.names, fed.study, WORKERS)
    below: dict[str, int] = {}

    def watch(record: Record) -> None:
        if len(record.ready) == PARTIES and not below:  # all run now: which process did the kernel see start each?
            for keeper in {place.keeper for place in engine.places.values()}:
                names = [child.name() for child in psutil.Process(keeper).children()]
                below.update({name.removeprefix("node "): keeper for name in names if name.startswith("node ")})

    try:
        outcome = run_federation(fed, watch, engine=engine)
    finally:
        engine.close()
    assert outcome.codes == dict.fromkeys(fed.names, 0), outcome.record.errors
    assert outcome.record.models_identical
    assert outcome.record.sums_exact()
    assert below == {name: place.keeper for name, place in outcome.places.items()}
    for worker, share in enumerate(shares(fed.names, WORKERS)):
        assert {outcome.places[name].worker for name in share} == {worker}
    assert len(set(below.values())) == WORKERS
    assert not any(psutil.pid_exists(keeper) for keeper in below.values())
    assert not list(tmp_path.glob("wardtree-*")), "no worker's folder stays"
    _homes_came_back(fed, outcome)


def _homes_came_back(fed: Federation, outcome: Outcome) -> None:
    manifest = load_home(fed.home(fed.key_holder), datetime.now(UTC)).digest
    digests = {load_model(fed.home(name) / "model.npz").digest(manifest).hex() for name in fed.names}
    assert digests == set(outcome.record.final.values())
    assert sorted(path.name for path in (fed.out / "models").iterdir())[-1].startswith("round-")


@needs_ray
@pytest.mark.timeout(600)
@pytest.mark.confined
@pytest.mark.usefixtures("alone")
def test_nothing_outlives_a_killed_run(tmp_path: Path) -> None:
    arguments = ["local", "--task", "synthetic", "--parties", "5", "--rounds", "2000", "--engine", "ray"]
    command = [sys.executable, "-m", "node", *arguments, "--workers", "2", "--out", str(tmp_path / "run")]
    run = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    started: list[psutil.Process] = []
    deadline = time.monotonic() + 400
    while not any(each.name().startswith("relay") for each in started) and time.monotonic() < deadline:
        assert run.poll() is None
        time.sleep(0.5)
        started = psutil.Process(run.pid).children(recursive=True)
    names = {each.pid: each.name() for each in started}
    assert sum(name.startswith("keeper") for name in names.values()) == WORKERS
    run.send_signal(signal.SIGKILL)
    run.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, [names[each.pid] for each in alive]
    assert not list(tmp_path.glob("wardtree-*"))
