"""The processes that seal for an enclave: the same sums, in order, each zero used once, none left behind."""

from __future__ import annotations

import os

import numpy as np
import psutil
import pytest

from keys import canaries
from keys.ckks import Opener, Sealer, generate_keys
from keys.plan import Plan
from node import update
from node.sandbox.machine import detect
from node.sealers import Sealers

PLAN = Plan(segment_ciphertexts=2)
KEY = bytes(32)
POSTURE = detect()


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("segments", [1, 2, 5])
def test_they_seal_what_the_enclave_itself_would(workers: int, segments: int) -> None:
    public, secret = generate_keys(PLAN)
    opener, alone = Opener(PLAN, secret), Sealer(PLAN, public)
    values = np.random.default_rng(segments).integers(-8000, 8001, segments * PLAN.values_per_segment - 77)
    before = set(psutil.Process().children())
    sealers = Sealers(PLAN, public, values.size, "x", workers, POSTURE)
    sealed = list(sealers.seal_segments(values, KEY))
    mine = list(update.seal_segments(values, alone, KEY))
    assert len(sealed) == len(mine) == segments
    for number, part in enumerate(PLAN.segments(values.size)):
        total = alone.add([sealed[number], mine[number]])
        size = part.stop - part.start
        marks = 2 * canaries.digits(KEY, PLAN, number, PLAN.ciphertexts(size))
        assert np.array_equal(opener.open(total, size, 2, marks), 2 * values[part])
    sealers.close()
    assert set(psutil.Process().children()) == before


def test_an_update_does_not_wait_for_the_stock() -> None:
    """Asked at once for the first segment of a huge update, a process stops stocking and seals."""
    public, _ = generate_keys(PLAN)
    sealers = Sealers(PLAN, public, 3000 * PLAN.values_per_segment, "x", 1, POSTURE)
    stream = sealers.seal_segments(np.zeros(3000 * PLAN.values_per_segment, np.int64), KEY)
    first, second = next(stream), next(stream)
    assert first != second
    sealers.close()


def test_an_enclave_that_dies_takes_them_along() -> None:
    public, _ = generate_keys(PLAN)
    read, write = os.pipe()
    enclave = os.fork()
    if enclave == 0:
        sealers = Sealers(PLAN, public, 3000 * PLAN.values_per_segment, "x", 2, POSTURE)
        os.write(write, " ".join(map(str, sealers._processes)).encode())
        os._exit(0)
    os.waitpid(enclave, 0)
    pids = [int(pid) for pid in os.read(read, 100).split()]
    assert len(pids) == 2
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=5)
    assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
