"""The global model at the relay: what was published is staged, applied at the close, saved."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node import update
from node.home import MODEL, Home, Options
from node.protocol import events as ev
from node.shared import SharedModel
from node.sumcheck import fingerprint
from node.tasks.base import StatisticsSpec
from node.telemetry import Telemetry

_PIECE = 1 << 20
"""Bytes of a file that are written at a time."""


class ModelKeeper:
    """Holds the current global model, and the totals of the round in hand until its close."""

    def __init__(self, home: Home, options: Options, telemetry: Telemetry) -> None:
        self._home, self._options, self._telemetry = home, options, telemetry
        self._grid = update.Grid(home.study.aggregation.clip, home.plan)
        self._spec: StatisticsSpec | None = None
        self._staged = np.zeros(0, np.int32)
        self._count = 0
        self.shared = SharedModel(1)
        self.model = update.Model(-1, self.shared.parameters[:0])

    @property
    def digest(self) -> bytes:
        return self.model.digest(self._home.digest)

    def begin(self, length: int, start: int, values: bytes) -> None:
        """Take a piece of the first model from the enclave that prepares the data; all come before the last word."""
        if not start:
            self.shared = SharedModel(length)
            self.model = update.Model(-1, self.shared.parameters)
        piece = np.frombuffer(values, dtype="<f4")
        self.model.parameters[start : start + piece.size] = piece

    def prepared(self, message: dict[str, Any]) -> ev.Ready:
        """The enclave that prepared the data is done: what a round of each kind sums."""
        if message["statistics"]:
            self._spec = StatisticsSpec(*message["statistics"])
        self._save_history()
        return ev.Ready(self.digest, self.model.parameters.size, self._spec.length if self._spec else 0)

    def stage(self, segment: int, integers: bytes) -> None:
        """Keep a published segment until the close."""
        if not self._staged.size:  # the kernel gives a page only when it is written to, and takes all back at once
            self._staged = np.empty(max(self.model.parameters.size, self._spec.length if self._spec else 0), np.int32)
        part = np.frombuffer(integers, dtype="<i4")
        start = segment * self._home.plan.values_per_segment
        self._count = start + part.size
        self._staged[start : self._count] = part

    def apply(self, command: ev.Apply) -> bytes:
        """Apply the staged totals that the close lists; gives the new state's digest."""
        total = self._staged[: min(self._count, command.segments * self._home.plan.values_per_segment)]
        self._check_sums(command, total)
        self.model = update.apply(
            self.model,
            command.round,
            command.purpose,
            total,
            command.contributors,
            self._home.manifest.weights,
            self._spec,
            self._grid,
        )
        self._save_history()
        return self.digest

    def wipe(self) -> int:
        """Forget the staged totals; gives the number of bytes."""
        wiped = update.wipe(self._staged[: self._count])
        self._staged, self._count = np.zeros(0, np.int32), 0
        return wiped

    def check_seed(self, round_: int) -> bytes | None:
        """The round's seed of the debug check, if the manifest allows it and the launcher asked for it."""
        allowed = "check-sums" in self._home.manifest.debug and round_ < len(self._options.check_seeds)
        return self._options.check_seeds[round_] if allowed else None

    def save(self) -> None:
        """Write the final model into the home."""
        save_model(self._home.path / MODEL, self.model)

    def _check_sums(self, command: ev.Apply, total: NDArray[np.int32]) -> None:
        seed = self.check_seed(command.round)
        if seed is not None:
            value = fingerprint(seed, total, self._home.plan.segments(total.size))
            self._telemetry.tell("total", round=command.round, value=value)

    def _save_history(self) -> None:
        if self._options.history:
            save_model(self._options.history / f"round-{self.model.round + 1:05}.npz", self.model)


def save_model(path: Path, model: update.Model) -> None:
    """The published model and nothing else, as plain arrays: what ``numpy.savez`` writes, without its 16 MB pieces."""
    statistics = model.statistics if model.statistics is not None else np.zeros(0)
    arrays = {"parameters": model.parameters, "statistics": statistics, "parties": model.parties, "round": model.round}
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in arrays.items():
            array = np.asarray(value)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
                data = array.reshape(-1).view(np.uint8).data
                for start in range(0, len(data), _PIECE):
                    file.write(data[start : start + _PIECE])


def load_model(path: Path) -> update.Model:
    """The inverse of :func:`save_model`."""
    with np.load(path, allow_pickle=False) as arrays:
        statistics = arrays["statistics"] if arrays["statistics"].size else None
        return update.Model(int(arrays["round"]), arrays["parameters"], statistics, int(arrays["parties"]))
