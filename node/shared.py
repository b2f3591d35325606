"""Memory that the relay shares with its enclaves: the global model, once a node, whatever its size."""

from __future__ import annotations

import fcntl
import mmap
import os

import numpy as np
from numpy.typing import NDArray

_F_SEAL_FUTURE_WRITE = 0x0010  # linux/fcntl.h; Python's fcntl does not know it yet
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


class SharedModel:
    """The flat model in a memfd. This process alone can write to it: whoever is handed the descriptor reads.

    Attributes:
        descriptor: for :func:`read_only`, in a process that was sent it.
        parameters: shape (length,), float32, zeros at first.
    """

    def __init__(self, length: int) -> None:
        self.descriptor = os.memfd_create("wardtree model", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.descriptor, 4 * length)
        memory = mmap.mmap(self.descriptor, 4 * length)
        fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        self.parameters: NDArray[np.float32] = np.frombuffer(memory, dtype="<f4")


def read_only(descriptor: int) -> NDArray[np.float32]:
    """The model behind a descriptor, shape (length,); not a copy, and it cannot be written to."""
    memory = mmap.mmap(descriptor, 0, prot=mmap.PROT_READ)
    return np.frombuffer(memory, dtype="<f4")
