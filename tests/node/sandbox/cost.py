"""What the sandbox costs: the same study with it and without it, in turn: ``scripts/prove_sandbox --cost PAIRS``."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

STUDIES = {
    "four hospitals, logistic regression with torch": ("--rounds", "30"),
    "three nodes, 1,000,000 parameters": (
        *("--task", "synthetic", "--parties", "3", "--params", "1000000", "--rounds", "4"),
    ),
}
CONFINED, BARE = (), ("--insecure-development",)


@dataclass(frozen=True)
class Cost:
    """Seconds, one figure a pair of runs."""

    study: str
    confined: tuple[float, ...]
    bare: tuple[float, ...]

    @property
    def ratio(self) -> float:
        return statistics.median(a / b for a, b in zip(self.confined, self.bare, strict=True))


def round_seconds(options: Sequence[str]) -> float:
    """The median of a run's training rounds."""
    with tempfile.TemporaryDirectory(prefix="wardtree-cost-") as folder:
        command = [sys.executable, "-m", "node", "local", *options, "--out", str(Path(folder) / "run"), "--json"]
        ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ended.returncode:
        raise SystemExit(f"prove_sandbox: the run {' '.join(options)} failed:\n{ended.stderr}")
    rounds = json.loads(ended.stdout)["rounds_detail"]
    return statistics.median(each["seconds"] for each in rounds if each["purpose"] == "train")


def measure(pairs: int) -> list[Cost]:
    costs = []
    for study, options in STUDIES.items():
        round_seconds((*options, *CONFINED))  # the machine's caches
        times: dict[tuple[str, ...], list[float]] = {CONFINED: [], BARE: []}
        for pair in range(pairs):
            for kind in (CONFINED, BARE) if pair % 2 else (BARE, CONFINED):
                times[kind].append(round_seconds((*options, *kind)))
        costs.append(Cost(study, tuple(times[CONFINED]), tuple(times[BARE])))
    return costs


def table(costs: Sequence[Cost]) -> str:
    lines = ["| a training round of | confined | not confined | median of the pairs' ratios |", "|---|---:|---:|---:|"]
    for cost in costs:
        cells = [f"{statistics.median(t):.3f} s ({min(t):.3f} to {max(t):.3f})" for t in (cost.confined, cost.bare)]
        lines.append(f"| {cost.study} | {' | '.join(cells)} | {100 * (cost.ratio - 1):+.1f} % |")
    return "\n".join(lines)
