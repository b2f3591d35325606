"""The global model at the relay: what was published is staged, applied at the close, saved."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from keys.manifest import Manifest
from node import update
from node.home import BASE, LEDGER, MODEL, Home, HomeError, Options
from node.ledger import read_entries
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
        self.model = _base(home) or update.Model(-1, np.zeros(0, np.float32))

    @property
    def digest(self) -> bytes:
        return self.model.digest(self._home.digest)

    def prepared(self, message: dict[str, Any]) -> ev.Ready:
        """Take the first model from the enclave that prepared the data, unless this version goes on from one.

        Raises:
            HomeError: the model that the manifest goes on from is not one of this task.
        """
        if message["statistics"]:
            self._spec = StatisticsSpec(*message["statistics"])
        initial = np.frombuffer(message["initial"], dtype="<f4").astype(np.float32)
        statistics = self._spec.length if self._spec else 0
        if self._home.manifest.base is None:
            self.model = update.Model(-1, initial)
        elif (self.model.parameters.size, _length(self.model)) != (initial.size, statistics):
            raise HomeError(
                f"{self._home.path / BASE}: the model that this version goes on from has "
                f"{self.model.parameters.size} parameters and {_length(self.model)} statistics; the task here "
                f"has {initial.size} and {statistics}"
            )
        self._save_history()
        return ev.Ready(self.digest, self.model.parameters.size, statistics)

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
        """Write the model into the home, as it was published last."""
        save_model(self._home.path / MODEL, self.model)

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
    """The published model and nothing else, as plain arrays; the file is whole or not there."""
    statistics = model.statistics if model.statistics is not None else np.zeros(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}")  # np.savez adds .npz to a name without it
    np.savez(temporary, parameters=model.parameters, statistics=statistics, parties=model.parties, round=model.round)
    temporary.rename(path)


def load_model(path: Path) -> update.Model:
    """The inverse of :func:`save_model`.

    Raises:
        HomeError: the file cannot be read, or is no published model.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            statistics = arrays["statistics"].astype(np.float64) if arrays["statistics"].size else None
            parameters = arrays["parameters"].astype(np.float32)
            return update.Model(int(arrays["round"]), parameters, statistics, int(arrays["parties"]))
    except OSError as error:
        raise HomeError(f"{path}: cannot be read: {error.strerror or 'no published model'}") from error
    except (ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise HomeError(f"{path}: expected a published model, came something else") from error


def find_base(manifest: Manifest, candidates: Iterable[Path]) -> Path | None:
    """The first of these files with the model that ``manifest`` goes on from, None if none has it."""
    assert manifest.base is not None
    assert manifest.previous is not None
    for path in candidates:
        if path.exists() and load_model(path).digest(bytes.fromhex(manifest.previous)).hex() == manifest.base:
            return path
    return None


def published(home: Path, manifest: Manifest) -> update.Model | None:
    """The model as this home has it published under ``manifest``: its last closed round, or what it began from.

    Raises:
        HomeError: the file in the home is not the model that the ledger says was published last.
    """
    state: str | None = None
    following = ""
    for line in read_entries(home / LEDGER):
        entry = line["entry"]
        if entry["what"] == "started":
            state = state if entry["manifest"] == following else None
            following = entry["manifest"]
        elif entry["what"] == "closed" and following == manifest.digest:
            state = entry["state"]
    if state is not None:
        model = load_model(home / MODEL)
        if model.digest(bytes.fromhex(manifest.digest)).hex() != state:
            raise HomeError(f"{home / MODEL}: not the model that the ledger beside it says was published last")
        return model
    if manifest.base is None:
        return None
    path = find_base(manifest, [home / BASE])
    if path is None:
        raise HomeError(f"{home / BASE}: the model that version {manifest.version} goes on from is not here")
    return load_model(path)


def _base(home: Home) -> update.Model | None:
    if home.manifest.base is None:
        return None
    path = find_base(home.manifest, [home.path / BASE])
    if path is None:
        raise HomeError(
            f"{home.path / BASE}: not the published model that version {home.manifest.version} goes on from; "
            "join again, with --model"
        )
    model = load_model(path)
    if model.round >= home.study.rounds:
        raise HomeError(
            f"{path}: has {model.round} rounds already, and the study of version {home.manifest.version} ends after "
            f"{home.study.rounds}"
        )
    return model


def _length(model: update.Model) -> int:
    return 0 if model.statistics is None else model.statistics.size
