"""The published state outside of memory: on the disk, and in the parts that a node hands to who missed it.

All of it is known to every party. No update, and nothing that was not published, is ever here.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgpack
import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from node.course import Course
from node.protocol import events as ev
from node.protocol.messages import Total
from node.update import Model

_HEAD = struct.Struct("<qqqqqqq")
"""Round, parties, number of sums, rows and columns of the curve, arrays of moments, bytes of the course."""
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
    arrays |= {"moments": model.moments, "curve": model.curve}
    if course := model.course.to_bytes():
        arrays["course"] = np.frombuffer(course, np.uint8)
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
        PublishedError: the file cannot be read, or is no published model.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            statistics = arrays["statistics"].astype(np.float64) if arrays["statistics"].size else None
            parameters, moments = (arrays[name].astype(np.float32) for name in ("parameters", "moments"))
            curve = arrays["curve"].astype(np.float64)
            course = Course.from_bytes(arrays["course"].astype(np.uint8).tobytes() if "course" in arrays else b"")
            return Model(int(arrays["round"]), parameters, statistics, int(arrays["parties"]), moments, curve, course)
    except OSError as error:
        raise PublishedError(f"{path}: cannot be read: {error.strerror or 'no published model'}") from error
    except (ValueError, TypeError, KeyError, EOFError, MemoryError, zipfile.BadZipFile) as error:
        raise PublishedError(f"{path}: expected a published model, came something else") from error


# ---- in parts -------------------------------------------------------------------------------------------


def _pieces(model: Model) -> list[memoryview]:
    sums = model.statistics if model.statistics is not None else np.zeros(0)
    course = model.course.to_bytes()
    head = _HEAD.pack(model.round, model.parties, sums.size, *model.curve.shape, len(model.moments), len(course))
    arrays: list[NDArray[Any]] = [each.astype("<f8", copy=False) for each in (sums, model.curve)]
    arrays += [each.astype("<f4", copy=False) for each in (model.parameters, model.moments)]
    return [memoryview(head + course), *(array.reshape(-1).view(np.uint8).data for array in arrays)]


def state_size(model: Model) -> int:
    """Bytes of a state on the wire."""
    return sum(map(len, _pieces(model)))


def largest_state(parameters: int, statistics: int, moments: int, evaluations: int, figures: int, course: int) -> int:
    """Bytes of a state with so many parameters, sums, moments and bytes of its course, when all is evaluated that will
    be."""
    return _HEAD.size + course + 8 * statistics + 8 * evaluations * (1 + figures) + 4 * parameters * (1 + moments)


def state_part(model: Model, part: int, size: int) -> bytes:
    """``size`` bytes from ``part * size`` on: head, course, sums and curve (f8), parameters and moments (f4)."""
    begin, out = part * size, bytearray()
    for view in _pieces(model):
        out += view[max(begin, 0) : max(begin + size, 0)]
        begin -= len(view)  # from where this part begins, seen from the next piece
    return bytes(out)


def state_from(parts: Sequence[bytes]) -> Model | None:
    """The state in these parts, or None when they hold none; the caller compares its digest."""
    data = b"".join(parts)
    if len(data) < _HEAD.size:
        return None
    counts = round_, parties, sums, rows, columns, moments, course = _HEAD.unpack_from(data)
    if any(not 0 <= count < 1 << 62 for count in counts) or (rows == 0) != (columns == 0):
        return None
    begin = _HEAD.size + course
    end = begin + 8 * sums
    middle = end + 8 * rows * columns
    if middle > len(data) or (len(data) - middle) % (4 * (1 + moments)):
        return None
    try:
        followed = Course.from_bytes(data[_HEAD.size : begin])
    except ValueError:
        return None
    statistics = np.frombuffer(data[begin:end], dtype="<f8").astype(np.float64) if sums else None
    curve = np.frombuffer(data[end:middle], dtype="<f8").astype(np.float64).reshape(rows, columns)
    arrays = np.frombuffer(data[middle:], dtype="<f4").astype(np.float32).reshape(1 + moments, -1)
    rest = arrays[1:] if moments else np.zeros((0, 0), np.float32)
    return Model(round_, arrays[0], statistics, parties, rest, curve, followed)


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
