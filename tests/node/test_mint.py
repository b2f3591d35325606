"""The mint: zeros made beside the enclave, each used once, and never waited for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from keys.ckks import Opener, Sealer, generate_keys
from keys.plan import Plan
from node.mint import Mint
from tests.end_to_end.commands import wait_until

PLAN = Plan(segment_ciphertexts=2)


@pytest.mark.parametrize("workers", [1, 3])
def test_every_zero_is_given_once_and_sums_stay_exact(workers: int) -> None:
    public, secret = generate_keys(PLAN)
    mint = Mint(PLAN, public, ciphertexts=5, party="x", workers=workers)
    sealer = Sealer(PLAN, public)
    values = np.arange(PLAN.values_per_segment) % 1000

    def stocked() -> bool:
        mint.supply(sealer)
        return sealer.stocked == 5

    wait_until(stocked, 20)
    for _ in range(4):
        mint.supply(sealer)
    assert sealer.stocked == 5, "nothing is made twice"
    ciphertexts = [sealer.seal(values) for _ in range(3)]
    assert sealer.stocked == 0
    assert len(set(ciphertexts)) == 3
    total = sealer.add(ciphertexts)
    assert np.array_equal(Opener(PLAN, secret).open(total, values.size, 3), 3 * values)
    mint.close()


def test_an_enclave_never_waits_for_its_mint() -> None:
    public, _ = generate_keys(PLAN)
    mint = Mint(PLAN, public, ciphertexts=20_000, party="x")
    sealer = Sealer(PLAN, public)
    began = time.monotonic()
    mint.supply(sealer)  # at once: most likely nothing is made yet
    assert time.monotonic() - began < 5
    sealer.seal(np.ones(10, np.int64))
    mint.close()
