"""The attack on raw CKKS decryptions works, or this file proves nothing; on what is published it guesses."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from keys.plan import Plan
from tests.keys.attack import (
    CKKS_VECTORS,
    PARTIES,
    PLANS,
    Prober,
    attack_ckks_vector,
    attack_wardtree,
    inverse_ntt,
)

CHANCE = 0.36
"""Guessing gives 1/3; one aggregate's guesses stray from it by 0.0074 (one sigma) at N=4096, eight's by 0.003."""


def test_the_transform_is_the_negacyclic_one_in_the_order_that_was_claimed() -> None:
    """Against evaluation at every root, one by one: N=8, q=17, least primitive 16th root 3."""
    coefficients = np.array([1, -1, 0, 1, 0, 0, -1, 1], dtype=object)
    order = [0, 4, 2, 6, 1, 5, 3, 7]
    roots = [pow(3, 2 * index + 1, 17) for index in order]
    values = [sum(c * pow(root, power, 17) for power, c in enumerate(coefficients)) % 17 for root in roots]
    assert inverse_ntt(np.array(values, dtype=object), 17).tolist() == coefficients.tolist()


@pytest.mark.parametrize("dp_noise", [False, True], ids=["no noise", "DP noise"])
@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"N={plan.poly_modulus_degree}")
def test_raw_decryptions_give_the_key_and_published_integers_do_not(plan: Plan, dp_noise: bool) -> None:
    outcome = attack_wardtree(plan, dp_noise)
    assert outcome.raw == 1.0
    assert outcome.published is not None
    assert outcome.published <= CHANCE


@pytest.mark.parametrize("dp_noise", [False, True], ids=["no noise", "DP noise"])
@pytest.mark.parametrize("setting", CKKS_VECTORS, ids=lambda setting: f"N={setting[0]}")
def test_two_totals_of_ckks_vector_give_the_key(setting: tuple[int, tuple[int, ...], float], dp_noise: bool) -> None:
    assert attack_ckks_vector(*setting, dp_noise).raw == 1.0


# ---- probes ---------------------------------------------------------------------------------------------


@cache
def prober(parties: int) -> Prober:
    return Prober(PLANS[0], parties)


@pytest.mark.parametrize("parties", [PARTIES, PLANS[0].max_parties])
def test_a_probe_over_all_slots_passes_only_while_it_drowns_in_the_noise(parties: int) -> None:
    with_probe = prober(parties).over_all_slots(2.0**-16)
    assert with_probe is not None
    assert np.array_equal(with_probe, prober(parties).expected), "and then nothing of it is published"
    for t in (2.0**-11, 2.0**-4, 1.0, 3.0, 2.0**8, 2.0**19):
        assert prober(parties).over_all_slots(t) is None


def test_a_probe_over_one_slot_seldom_passes() -> None:
    """Within 10 sigma of an integer in both parts: (20 sigma)^2 of all probes, 0.0017 with 4 parties."""
    passed = sum(prober(PARTIES).over_one_slot(t) is not None for t in np.geomspace(1, 2**12, 300))
    assert passed <= 10, "more than 10 of 300 have a chance of 10^-8"


def test_a_probe_over_one_slot_that_passes_moves_that_slot_alone_and_by_what_the_key_says() -> None:
    """What a pass tells: the nearest integers to t*s(zeta_j). With 64 parties one in 33 passes."""
    t, most, moved = 16.0, prober(64).plan, []
    for _ in range(1000):
        if (total := prober(64).over_one_slot(t)) is not None:
            moved.append((total - prober(64).expected)[np.flatnonzero(total != prober(64).expected)])
        if len(moved) == 3:
            break
    assert moved, "none of 1,000 has a chance of 10^-13"
    largest = t * 10 * math.sqrt(most.poly_modulus_degree / 3)
    for digits in moved:
        assert digits.size <= 2 * most.digits
        assert np.abs(digits).max(initial=0) <= largest
