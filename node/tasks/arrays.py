"""Named arrays of another framework's model: those that are shared, as one flat vector, and those that stay here."""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.tasks.base import TaskError

Arrays: TypeAlias = "dict[str, NDArray[Any]]"


@dataclass(frozen=True)
class Layout:
    """How arrays stand in the flat vector: in their order, each with its shape and type.

    Attributes:
        shared: name, shape and type of each array that is shared.
        local: the arrays that stay at the hospital, as they are before its first training.
        order: the names of all of them.
    """

    shared: tuple[tuple[str, tuple[int, ...], np.dtype[Any]], ...]
    local: Arrays
    order: tuple[str, ...]

    @classmethod
    def of(cls, arrays: Arrays, stays_local: Collection[str]) -> Layout:
        """Raises TaskError for a shared array that is not of floating-point numbers."""
        if unknown := sorted(set(stays_local) - arrays.keys()):
            raise TaskError(f"stays_local: expected names of arrays of the model, came {', '.join(unknown)}")
        for name, array in arrays.items():
            if array.dtype.hasobject:
                raise TaskError(f"array {name} of the model: expected numbers, came objects")
            if name not in stays_local and not np.issubdtype(array.dtype, np.floating):
                raise TaskError(
                    f"array {name} of the model: expected floating-point numbers, came {array.dtype}; what cannot be "
                    f'averaged stays at the hospital with stays_local = ["{name}"]'
                )
        shared = tuple((name, array.shape, array.dtype) for name, array in arrays.items() if name not in stays_local)
        return cls(shared, {name: arrays[name] for name in arrays if name in stays_local}, tuple(arrays))

    @property
    def size(self) -> int:
        """How many values are shared."""
        return sum(int(np.prod(shape)) for _, shape, _ in self.shared)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the shared ones, in their order."""
        return {name: shape for name, shape, _ in self.shared}

    def flatten(self, arrays: Mapping[str, NDArray[Any]], whence: str) -> NDArray[np.float64]:
        """The shared ones, shape (size,). Raises TaskError where ``arrays`` are another model's."""
        expected = self.shapes | {name: array.shape for name, array in self.local.items()}
        came = {name: array.shape for name, array in arrays.items()}
        if came != expected:
            name = next((name for name in expected if came.get(name) != expected[name]), None)
            what = (
                f"array {name} with shape {expected[name]}, came {came.get(name, 'none')}"
                if name is not None
                else f"{len(expected)} arrays, came {len(came)}"
            )
            raise TaskError(f"{whence}: expected {what}")
        parts = [np.asarray(arrays[name], np.float64).reshape(-1) for name, _, _ in self.shared]
        return np.concatenate(parts) if parts else np.zeros(0)

    def restore(self, values: NDArray[np.floating[Any]], local: Mapping[str, NDArray[Any]]) -> Arrays:
        """All arrays, in their order: shared ones from ``values``, shape (size,), the others from ``local``."""
        arrays, start = dict(local), 0
        for name, shape, dtype in self.shared:
            end = start + int(np.prod(shape))
            arrays[name] = values[start:end].reshape(shape).astype(dtype)
            start = end
        return {name: arrays[name] for name in self.order}

    def pack_local(self, arrays: Mapping[str, NDArray[Any]]) -> bytes:
        """The arrays that stay here, to be carried to the next round; :meth:`unpack_local` reads them."""
        file = io.BytesIO()
        np.savez(file, *(arrays[name] for name in self.local))
        return file.getvalue()

    def unpack_local(self, packed: bytes) -> Arrays:
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            return dict(zip(self.local, (file[name] for name in file.files), strict=True))
