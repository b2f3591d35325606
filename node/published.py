"""The published state outside of memory: on the disk, and in the parts that a node hands to who missed it.

All of it is known to every party. No update, and nothing that was not published, is ever here.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from keys.manifest import Manifest
from node.home import BASE, LEDGER, MODEL, STATE
from node.ledger import read_entries
from node.protocol import events as ev
from node.protocol.messages import Total
from node.update import Model

_HEAD = struct.Struct("<qqq")
_PIECE = 1 << 20
"""Bytes of a file that are written at a time."""


class PublishedError(WardtreeError):
    """A file of the published state cannot be read or written."""


# ---- the model ------------------------------------------------------------------------------------------


def save_model(path: Path, model: Model, durable: bool = False) -> None:
    """The published model and nothing else, as plain arrays: the old file or the new one, never half of it.

    Raises:
        PublishedError: the disk is full, say.
    """
    statistics = model.statistics if model.statistics is not None else np.zeros(0)
    arrays = {"parameters": model.parameters, "statistics": statistics, "parties": model.parties, "round": model.round}
    beside = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            _write_npz(file, {name: np.asarray(value) for name, value in arrays.items()})
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise PublishedError(f"{path}: cannot be written: {error.strerror}") from error


def _write_npz(file: BinaryIO, arrays: Mapping[str, NDArray[Any]]) -> None:
    """What ``numpy.savez`` writes, without its 16 MB pieces."""
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                np.lib.format.write_array_header_1_0(entry, np.lib.format.header_data_from_array_1_0(array))
                data = array.reshape(-1).view(np.uint8).data
                for start in range(0, len(data), _PIECE):
                    entry.write(data[start : start + _PIECE])


def load_model(path: Path) -> Model:
    """The inverse of :func:`save_model`.

    Raises:
        PublishedError: it is no such file.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            statistics = arrays["statistics"].astype(np.float64) if arrays["statistics"].size else None
            parameters = arrays["parameters"].astype(np.float32, copy=False)
            return Model(int(arrays["round"]), parameters, statistics, int(arrays["parties"]))
    except (OSError, ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise PublishedError(f"{path}: expected a saved model: {' '.join(str(error).split())}") from error


# ---- from one version of the manifest to the next ---------------------------------------------------------


def published(home: Path, manifest: Manifest) -> Model | None:
    """The model as this home has it published under ``manifest``: of the last round that its ledger closes, or what
    it began from; None if that is the task's own first model.

    Raises:
        PublishedError: no file in the home is that model.
    """
    state, ours = manifest.base and _under_its_own(home, manifest), False
    for line in read_entries(home / LEDGER):
        entry = line["entry"]
        if entry["what"] == "started":
            ours = entry["manifest"] == manifest.digest
        elif entry["what"] == "closed" and ours:
            state = entry["state"]
    if state is None:
        return None
    files = [home / STATE, home / MODEL, home / BASE]
    path = _find(state, bytes.fromhex(manifest.digest), files)
    if path is None:
        raise PublishedError(f"{home}: no file here is the model that its ledger says was published last")
    return load_model(path)


def find_base(manifest: Manifest, candidates: Iterable[Path]) -> Path | None:
    """The first of these files with the model that ``manifest`` goes on from, None if none has it."""
    assert manifest.base is not None
    assert manifest.previous is not None
    return _find(manifest.base, bytes.fromhex(manifest.previous), candidates)


def load_base(home: Path, manifest: Manifest) -> Model | None:
    """The model that ``manifest`` goes on from, None where it begins anew.

    Raises:
        PublishedError: it is not in the home.
    """
    if manifest.base is None:
        return None
    path = find_base(manifest, [home / BASE])
    if path is None:
        raise PublishedError(
            f"{home / BASE}: not the published model that version {manifest.version} of the manifest goes on from; "
            "join again, with --model"
        )
    return load_model(path)


def _under_its_own(home: Path, manifest: Manifest) -> str | None:
    """The digest of what ``manifest`` goes on from, under its own name."""
    model = load_base(home, manifest)
    return model.digest(bytes.fromhex(manifest.digest)).hex() if model else None


def _find(state: str, manifest: bytes, candidates: Iterable[Path]) -> Path | None:
    for path in candidates:
        if path.exists() and load_model(path).digest(manifest).hex() == state:
            return path
    return None


# ---- in parts -------------------------------------------------------------------------------------------


def state_size(model: Model) -> int:
    """Bytes of a state on the wire."""
    return _HEAD.size + (0 if model.statistics is None else model.statistics.nbytes) + model.parameters.nbytes


def state_part(model: Model, part: int, size: int) -> bytes:
    """Bytes ``part * size`` and on, ``size`` of them: round, parties, number of sums, sums (f8), parameters (f4)."""
    sums = model.statistics if model.statistics is not None else np.zeros(0)
    pieces = (
        memoryview(_HEAD.pack(model.round, model.parties, sums.size)),
        sums.astype("<f8", copy=False).data.cast("B"),
        model.parameters.astype("<f4", copy=False).data.cast("B"),
    )
    begin, out = part * size, bytearray()
    for view in pieces:
        out += view[max(begin, 0) : max(begin + size, 0)]
        begin -= len(view)  # from where this part begins, seen from the next piece
    return bytes(out)


def state_from(parts: Sequence[bytes]) -> Model | None:
    """The state in these parts, or None when they hold none; the caller compares its digest."""
    data = b"".join(parts)
    if len(data) < _HEAD.size:
        return None
    round_, parties, sums = _HEAD.unpack_from(data)
    end = _HEAD.size + 8 * sums
    if round_ < 0 or parties < 0 or not 0 <= sums <= len(data) or end > len(data) or (len(data) - end) % 4:
        return None
    statistics = np.frombuffer(data[_HEAD.size : end], dtype="<f8").astype(np.float64) if sums else None
    return Model(round_, np.frombuffer(data[end:], dtype="<f4").astype(np.float32), statistics, parties)


# ---- what the key holder opened and has not closed --------------------------------------------------------


@dataclass(frozen=True)
class OpenedTotals:
    """At the key holder: totals on the disk before anyone hears of them, so that an interrupted round can be
    closed with them. Nothing is ever opened twice to have them again."""

    path: Path

    def add(self, command: ev.Stage) -> None:
        """Write one total, durably.

        Raises:
            PublishedError: the disk is full, say.
        """
        total = command.total
        fields = [total.round, total.base, command.purpose, sorted(total.contributors), total.segment, total.integers]
        record = msgpack.packb(fields, use_bin_type=True)
        try:
            with open(self.path, "ab") as file:
                file.write(struct.pack("<Q", len(record)) + record)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise PublishedError(f"{self.path}: cannot be written: {error.strerror}") from error

    def clear(self) -> None:
        """The round is closed."""
        self.path.unlink(missing_ok=True)

    def read(self) -> list[ev.Stage]:
        """The totals of the round that was not closed, in order; a last one that was cut short was never sent."""
        return [
            ev.Stage(Total(round_, base, segment, frozenset(names), integers), purpose)
            for round_, base, purpose, names, segment, integers in self._records()
        ]

    def _records(self) -> Iterator[list[Any]]:
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return
        begin = 0
        while begin + 8 <= len(data):
            end = begin + 8 + struct.unpack_from("<Q", data, begin)[0]
            if end > len(data):
                return
            yield msgpack.unpackb(data[begin + 8 : end], raw=False)
            begin = end
