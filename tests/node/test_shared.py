"""The model in shared memory: the relay writes, an enclave can only read."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

from node.shared import SharedModel, read_only


def test_what_the_relay_writes_the_enclave_reads_without_a_copy() -> None:
    shared = SharedModel(1000)
    theirs = read_only(os.dup(shared.descriptor))
    assert (theirs.size, theirs.dtype, theirs.any()) == (1000, np.float32, False)
    shared.parameters[:] = np.arange(1000)
    assert np.array_equal(theirs, np.arange(1000))


def test_whoever_is_handed_the_descriptor_can_neither_write_nor_resize() -> None:
    shared = SharedModel(1000)
    theirs = os.dup(shared.descriptor)
    with pytest.raises(ValueError, match="read-only"):
        read_only(theirs)[0] = 1.0
    with pytest.raises(PermissionError):
        mmap.mmap(theirs, 4000)
    reopened = os.open(f"/proc/self/fd/{theirs}", os.O_RDWR)
    for attempt in (
        lambda: mmap.mmap(reopened, 4000),
        lambda: os.pwrite(theirs, b"1234", 0),
        lambda: os.ftruncate(theirs, 0),
        lambda: os.ftruncate(theirs, 8000),
    ):
        with pytest.raises(PermissionError):
            attempt()
    os.close(reopened)
    assert not shared.parameters.any()
    shared.parameters[0] = 1.0
    assert read_only(theirs)[0] == 1.0
