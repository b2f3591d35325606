"""A round under hospital-level privacy, from the study's table to the published total."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from keys.plan import Plan
from node.privacy.account import HospitalAccount
from node.privacy.arrange import Arranged, arrange, arrange_statistics, budget
from node.privacy.budget import BudgetError, PrivacyError
from node.privacy.hospital import GaussianShares
from node.privacy.settings import PrivacySettings

PLAN, VALUES, ROUNDS, HIDDEN = Plan(), 5000, 4, 3
ADAPTIVE = {"count_noise": 6.0, "lowest": 0.1, "highest": 100.0}
NAMES = ("ada", "bo", "cy", "di", "eva", "flo")


def private(**changes: Any) -> PrivacySettings:
    table = {"mode": "hospital", "epsilon": 8.0, "delta": 1e-5, "clip": 2.0}
    return PrivacySettings.model_validate(table | changes)


def a_round(arranged: Arranged, updates: list[NDArray[np.float64]], clip: float) -> NDArray[np.int64]:
    """The published total."""
    total = np.zeros(arranged.length, np.int64)
    for each in updates:
        total += arranged.protect(each, clip)
    return total


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"coalition": 2},
        {"adaptive": ADAPTIVE},
        {"statistics": {"clip": 3.0, "noise_multiplier": 2.0}},
        {"adaptive": ADAPTIVE, "statistics": {"clip": 3.0, "noise_multiplier": 2.0}, "coalition": 3},
        {"mechanism": "laplace", "clip_norm": "l1"},
        {"mechanism": "k-norm"},
    ],
)
def test_the_budget_lasts_for_all_rounds_and_for_no_more(changes: dict[str, Any]) -> None:
    settings = private(**changes)
    account = HospitalAccount(budget(settings))
    if settings.statistics:
        account.spend(*arrange_statistics(settings, PLAN, 30, HIDDEN).releases)
    for round_ in range(ROUNDS):
        values = VALUES - round_  # a mask may have another size in each round
        account.spend(*arrange(settings, PLAN, values, ROUNDS, HIDDEN).releases)
    assert account.epsilon() == pytest.approx(8.0, rel=2e-3)
    with pytest.raises(BudgetError):
        account.spend(*arrange(settings, PLAN, VALUES, ROUNDS, HIDDEN).releases)
    assert account.epsilon() <= 8.0


def test_a_dropped_party_changes_the_noise_and_not_what_is_charged() -> None:
    arranged = arrange(private(), PLAN, VALUES, ROUNDS, HIDDEN)
    release = arranged.protection.release
    assert isinstance(release, GaussianShares)
    assert release.shares == HIDDEN
    nothing = [np.zeros(VALUES)] * len(NAMES)
    for present in (6, 5, 4):
        arranged.check(NAMES[:present])
        carried = replace(release, shares=present - 1)  # what hides one member from another
        assert carried.loss().epsilon(1e-5) <= release.loss().epsilon(1e-5)
        total = a_round(arranged, nothing[:present], 2.0)
        # 5,000 values: a standard error of 2%, so 12% once in 10^8
        assert np.var(total) == pytest.approx(present * release.share_variance, rel=0.12)
    with pytest.raises(PrivacyError, match="3 shares of noise were guaranteed, in this set 2"):
        arranged.check(NAMES[:3])


def test_the_mean_of_a_round_is_the_mean_of_the_clipped_updates() -> None:
    settings = private(epsilon=5e6)  # hardly any noise: to see what is under it
    arranged = arrange(settings, PLAN, VALUES, ROUNDS, HIDDEN)
    updates = [np.random.default_rng(seed).normal(size=VALUES) for seed in range(6)]
    total = a_round(arranged, updates, 2.0)
    expected = sum(2.0 * each / np.linalg.norm(each) for each in updates) / arranged.step(2.0)
    assert np.abs(total - expected).max() < arranged.room(6) + 6  # noise, and the rounding of six updates
    assert np.linalg.norm(total - expected) < 0.2 * np.linalg.norm(expected)


def test_the_norm_follows_the_clip_bits_round_by_round() -> None:
    settings = private(epsilon=200.0, adaptive=ADAPTIVE | {"count_noise": 1.0})
    arranged = arrange(settings, PLAN, VALUES, ROUNDS, HIDDEN)
    assert arranged.length == VALUES + 1
    updates = [np.full(VALUES, length / VALUES**0.5) for length in (3, 4, 5, 6, 7, 8)]
    clip = 2.0
    for _ in range(60):
        total = a_round(arranged, updates, clip)
        clip = arranged.next_clip(clip, int(total[-1]), len(updates))
    assert 4 < clip < 7.5  # the median is between 5 and 6
    assert arrange(private(), PLAN, VALUES, ROUNDS, HIDDEN).next_clip(2.0, 1, 6) == 2.0


def test_statistics_that_would_spend_all_are_refused() -> None:
    settings = private(epsilon=1.0, statistics={"clip": 1.0, "noise_multiplier": 1.0})
    with pytest.raises(PrivacyError, match="the statistics alone would spend all of epsilon 1"):
        arrange(settings, PLAN, VALUES, ROUNDS, HIDDEN)
