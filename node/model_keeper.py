"""The global model at the relay: what was published is staged, applied at the close, saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from node import update
from node.home import MODEL, Home, Options
from node.protocol import events as ev
from node.sumcheck import fingerprint
from node.tasks.base import StatisticsSpec
from node.telemetry import Telemetry


class ModelKeeper:
    """Holds the current global model, and the totals of the round in hand until its close."""

    def __init__(self, home: Home, options: Options, telemetry: Telemetry) -> None:
        self._home, self._options, self._telemetry = home, options, telemetry
        self._grid = update.Grid(home.study.aggregation.clip, home.plan)
        self._spec: StatisticsSpec | None = None
        self._staged: list[bytes] = []
        self.model = update.Model(-1, np.zeros(0, np.float32))

    @property
    def digest(self) -> bytes:
        return self.model.digest(self._home.digest)

    def prepared(self, message: dict[str, Any]) -> ev.Ready:
        """Take the first model from the enclave that prepared the data."""
        if message["statistics"]:
            self._spec = StatisticsSpec(*message["statistics"])
        self.model = update.Model(-1, np.frombuffer(message["initial"], dtype="<f4").astype(np.float32))
        self._save_history()
        statistics = self._spec.length if self._spec else 0
        return ev.Ready(self.digest, self.model.parameters.size, statistics, self._home.posture.text)

    def stage(self, integers: bytes) -> None:
        self._staged.append(integers)

    def apply(self, command: ev.Apply) -> bytes:
        """Apply the staged totals that the close lists; gives the new state's digest."""
        staged = self._staged[: command.segments]
        self._check_sums(command, staged)
        self.model = update.apply(
            self.model,
            command.round,
            command.purpose,
            staged,
            command.contributors,
            self._home.manifest.weights,
            self._spec,
            self._grid,
        )
        self._save_history()
        return self.digest

    def wipe(self) -> int:
        """Forget the staged totals; gives the number of bytes."""
        return update.wipe(self._staged)

    def check_seed(self, round_: int) -> bytes | None:
        """The round's seed of the debug check, if the manifest allows it and the launcher asked for it."""
        allowed = "check-sums" in self._home.manifest.debug and round_ < len(self._options.check_seeds)
        return self._options.check_seeds[round_] if allowed else None

    def save(self) -> None:
        """Write the final model where the relay may write; the supervisor then moves it into the home."""
        save_model(self._home.relay_folder / MODEL, self.model)

    def _check_sums(self, command: ev.Apply, staged: list[bytes]) -> None:
        seed = self.check_seed(command.round)
        if seed is not None:
            total = np.frombuffer(b"".join(staged), dtype="<i4")
            value = fingerprint(seed, total, self._home.plan.segments(total.size))
            self._telemetry.tell("total", round=command.round, value=value)

    def _save_history(self) -> None:
        if self._options.history:
            save_model(self._options.history / f"round-{self.model.round + 1:05}.npz", self.model)


def save_model(path: Path, model: update.Model) -> None:
    """The published model and nothing else, as plain arrays."""
    statistics = model.statistics if model.statistics is not None else np.zeros(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, parameters=model.parameters, statistics=statistics, parties=model.parties, round=model.round)


def load_model(path: Path) -> update.Model:
    """The inverse of :func:`save_model`."""
    with np.load(path, allow_pickle=False) as arrays:
        statistics = arrays["statistics"] if arrays["statistics"].size else None
        return update.Model(int(arrays["round"]), arrays["parameters"], statistics, int(arrays["parties"]))
