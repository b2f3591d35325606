"""Adaptive clipping: the norm follows a quantile, from published integers alone."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys.plan import Plan
from node.privacy.account import HospitalAccount
from node.privacy.budget import Budget, PrivacyError
from node.privacy.clipping import BIT, AdaptiveClip
from node.privacy.hospital import LEAST_SHARE_VARIANCE
from node.privacy.protect import gaussian

ADAPTIVE = AdaptiveClip(quantile=0.5, rate=0.2, count_noise=2.0, lowest=1e-3, highest=1e3)


def test_the_norm_goes_to_the_quantile_through_the_noise() -> None:
    rng = np.random.default_rng(5)
    norms = rng.lognormal(1.0, 0.8, 40)
    for quantile in (0.3, 0.5, 0.8):
        adaptive = replace(ADAPTIVE, quantile=quantile)
        clip, seen = 0.01, []
        for _ in range(300):
            noise = int(replace(adaptive.release(40), dimension=40).draw().sum())
            clip = adaptive.next_clip(clip, noise + sum(adaptive.bit(norm, clip) for norm in norms), 40)
            seen.append(clip)
        within = np.mean([np.mean(norms <= value) for value in seen[150:]])
        assert within == pytest.approx(quantile, abs=0.08)


def test_the_formula_of_the_paper() -> None:
    assert ADAPTIVE.next_clip(2.0, 10 * BIT, 10) == pytest.approx(2 * math.exp(-0.2 * 0.5), rel=1e-12)
    assert ADAPTIVE.next_clip(2.0, -10 * BIT, 10) == pytest.approx(2 * math.exp(0.2 * 0.5), rel=1e-12)
    assert ADAPTIVE.next_clip(2.0, 0, 10) == 2.0


@given(st.floats(1e-3, 1e3), st.integers(-(10**9), 10**9), st.integers(1, 1000))
def test_noise_moves_the_norm_by_a_bounded_factor(clip: float, total: int, parties: int) -> None:
    moved = ADAPTIVE.next_clip(clip, total, parties)
    assert math.exp(-0.11) * clip <= moved * 1.0001 or moved == ADAPTIVE.highest
    assert moved <= math.exp(0.11) * clip or moved == ADAPTIVE.lowest
    assert ADAPTIVE.lowest <= moved <= ADAPTIVE.highest


def test_bits_and_updates_together_cost_what_the_budget_was_planned_for() -> None:
    budget = Budget(100.0, 1e-5)
    plan, shares, z = Plan(), 3, 2.0
    alone = gaussian(1.0, plan, 1000, z, shares).release
    update = gaussian(1.0, plan, 1000, ADAPTIVE.update_multiplier(z), shares).release
    split = HospitalAccount(budget).after(update, ADAPTIVE.release(shares))
    assert split == pytest.approx(HospitalAccount(budget).after(alone), rel=1e-5)
    assert ADAPTIVE.update_multiplier(z) > z
    with pytest.raises(PrivacyError, match="count_noise above 2"):
        ADAPTIVE.update_multiplier(4.0)


def test_a_share_of_noise_on_a_bit_is_many_steps() -> None:
    """Unscaled, a 64th of noise of 1/20 of the parties would be far below a step."""
    release = replace(ADAPTIVE, count_noise=0.5).release(64)
    assert release.share_variance >= (1024 * 0.5) ** 2 / 64 > 1000 * LEAST_SHARE_VARIANCE
    assert release.sensitivity_squared == BIT**2


def test_a_vector_that_is_not_within_the_norm_is_not_counted_as_it() -> None:
    assert [ADAPTIVE.bit(length, 1.0) for length in (0.9, 1.0, 1.1, math.nan)] == [BIT, BIT, -BIT, -BIT]
