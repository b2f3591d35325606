"""What every benchmark program shares: the update, the clock, the line of JSON.

Standard library and numpy only: the peers' programs run in environments that have nothing of ours.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

SEED = 20_221_128
SPREAD = 0.02
PLANNED_PARTIES = 64
DISTINCT = 4
"""So many messages are really made for a server to add; beyond that they are used again, to save memory."""

Seconds = NDArray[np.float64]
"""Shape (2,): wall seconds, processor seconds."""


def make_update(params: int, seed: int = SEED) -> NDArray[np.float32]:
    """The one update that every program protects: shape (params,), normal with sigma ``SPREAD``."""
    return np.random.default_rng(seed).normal(0.0, SPREAD, params).astype(np.float32)


class Clock:
    """Seconds by name, one sample a run; what a run times twice under one name adds up.

    Processor time beside wall time: on one core of an idle machine they agree, on a busy one only the
    processor time can be compared.
    """

    def __init__(self) -> None:
        self.runs: list[dict[str, Seconds]] = []

    def runs_after_warm_up(self, repeats: int) -> Iterator[int]:
        """Numbers of runs from 0, the warm-up, whose times are dropped, to ``repeats``.

        One run alone has no warm-up: it is meant for sizes that take minutes, where the first run tells little.
        """
        for run in range(0 if repeats > 1 else 1, 1 + repeats):
            if run == 1:
                self.runs.clear()
            self.runs.append({})
            yield run

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Add the block's time to ``name`` in this run."""
        processor, wall = time.process_time(), time.perf_counter()
        yield
        spent = np.array([time.perf_counter() - wall, time.process_time() - processor])
        self.runs[-1][name] = self.runs[-1].get(name, 0.0) + spent

    def medians(self) -> dict[str, float]:
        """Seconds, the medians over the runs: ``NAME_s`` wall, ``NAME_cpu_s`` processor."""
        result: dict[str, float] = {}
        for name in self.runs[0]:
            wall, processor = np.median([run[name] for run in self.runs], axis=0)
            result |= {f"{name}_s": float(wall), f"{name}_cpu_s": float(processor)}
        return result

    @property
    def core_share(self) -> float:
        """Processor time over wall time of all that was timed: 1 on one idle core."""
        wall, processor = np.sum([spent for run in self.runs for spent in run.values()], axis=0)
        return float(processor / wall)


def arguments(what: str | None) -> argparse.ArgumentParser:
    """The options that every peer's program takes."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--params", type=int, required=True)
    parser.add_argument("--parties", type=int, required=True)
    parser.add_argument("--repeats", type=int, default=5)
    return parser


def peak_memory_mb() -> float:
    """The most memory that this process has had resident, in MB, imports included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def digest(update: NDArray[np.floating[Any]]) -> str:
    """What shows that two programs protected the same update."""
    return hashlib.sha256(update.tobytes()).hexdigest()


def print_result(
    clock: Clock,
    update: NDArray[np.floating[Any]],
    upload_bytes: int,
    mean: NDArray[np.floating[Any]] | None,
    version: str,
    more: Mapping[str, object] | None = None,
) -> None:
    """One line of JSON: the medians, and how far the mean that came back lies from the update; None: nothing came."""
    result = clock.medians() | {
        "params": update.size,
        "bytes_per_param": upload_bytes / update.size,
        "upload_bytes": upload_bytes,
        "largest_error": None if mean is None else float(np.abs(mean - update).max()),
        "update_sha256": digest(update),
        "repeats": len(clock.runs),
        "core_share": clock.core_share,
        "peak_memory_mb": peak_memory_mb(),
        "version": version,
        **(more or {}),
    }
    print(json.dumps(result), flush=True)
