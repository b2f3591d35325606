"""The noise law against fresh keys and sums of 64 real parties; full size: WARDTREE_FULL=1 and pytest -s."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray

from keys import canaries
from keys.ciphertexts import load_segment
from keys.ckks import Opener, Sealer, generate_keys
from keys.noise import SIGMAS, WORST_SLOT
from keys.packing import unpack
from keys.plan import Plan
from tests.end_to_end.commands import FULL

KEYS = 300 if FULL else 6


@dataclass(frozen=True)
class Figures:
    """Over all keys: the worst residual in sigma of its slot and in integers, the noisiest slot over the rms,
    and the measured variance over the law's."""

    sigmas: float
    residual: float
    worst_slot: float
    variance: float


def measure(plan: Plan, keys: int, parties: int) -> Figures:
    rng = np.random.default_rng(1)
    sigmas, residual, worst, ratios = 0.0, 0.0, 0.0, []
    for number in range(keys):
        public, secret = generate_keys(plan)
        sealer, opener = Sealer(plan, public), Opener(plan, secret)
        kind = number % 3
        update = np.full(plan.values_per_ciphertext, plan.max_value * (1, -1, 0)[kind])
        if kind == 2:
            update = rng.integers(-plan.max_value, plan.max_value + 1, plan.values_per_ciphertext)
        sealer.stock(parties)  # as the sealing processes do; other tests seal without stock
        # Canaries make the plaintexts differ: equal ones would round alike, and their errors add up.
        marks = [canaries.digits(bytes([party]) * 32, plan, number, 1) for party in range(parties)]
        total = sealer.add([sealer.seal(update, mark) for mark in marks])
        opened = opener.open(total, update.size, parties, np.sum(marks, axis=0))
        assert np.array_equal(opened, parties * update)
        residuals = residuals_of(opener, total)
        law = opener._noise.sigma * np.sqrt(parties)
        sigmas = max(sigmas, float((np.abs(residuals) / law[:, np.newaxis]).max()))
        residual = max(residual, float(np.abs(residuals).max()))
        worst = max(worst, opener.worst_slot)
        ratios.append(float(np.mean((residuals / law[:, np.newaxis]) ** 2)))
    return Figures(sigmas, residual, worst, float(np.mean(ratios)))


def residuals_of(opener: Opener, total: bytes) -> NDArray[np.float64]:
    """What never leaves a key room: (ciphertexts, slots, 2)."""
    ciphertexts = load_segment(total, opener.plan, opener._context)
    return unpack(opener._decrypt(ciphertexts), opener.plan).residuals


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(digits=3, digit_bits=13, value_bits=7, canary_digits=10),
        Plan(digits=3, digit_bits=13, value_bits=8, canary_digits=9, max_parties=32),
    ],
    ids=["14 bits, 64 parties", "7 bits, 64 parties", "8 bits, 32 parties"],
)
def test_sums_of_all_parties_stay_exact_and_within_ten_sigma(plan: Plan) -> None:
    figures = measure(plan, KEYS if plan == Plan() else max(KEYS // 3, 3), plan.max_parties)
    print(f"\n{plan.value_bits} bits, {plan.max_parties} parties, {KEYS} keys: {figures}")
    assert figures.sigmas < SIGMAS
    assert figures.residual < 0.25
    assert figures.worst_slot <= WORST_SLOT[plan.poly_modulus_degree]
    assert abs(figures.variance - 1) < 0.05


def test_the_law_is_not_blind() -> None:
    """Noise that is twice what it should be does not fit."""
    plan = Plan()
    public, secret = generate_keys(plan)
    sealer, opener = Sealer(plan, public), Opener(plan, secret)
    residuals = residuals_of(opener, sealer.add([sealer.seal(np.arange(8000)) for _ in range(4)]))
    assert opener._noise.fits(residuals, 4)
    assert not opener._noise.fits(residuals * 1.3, 4)
    assert not opener._noise.fits(residuals, 6)
    assert not opener._noise.fits(residuals, 2)
    one = residuals.copy()
    one[0, 17, 1] += 0.2
    assert not opener._noise.fits(one, 4), "one slot is enough"
