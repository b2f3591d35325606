"""Hospital-level privacy: noise of which the account can be trusted, and an account that stops in time."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import gamma, kstest

from keys.packing import Integers
from keys.plan import Plan
from keys.planner import choose
from node.privacy.account import Charge, HospitalAccount
from node.privacy.budget import Budget, BudgetError
from node.privacy.hospital import (
    LEAST_SHARE_VARIANCE,
    GaussianShares,
    Loss,
    PrivacyError,
    WholeKNorm,
    WholeLaplace,
    check_listed,
    eta,
    guaranteed_shares,
    half_tau,
)  # fmt: skip
from node.privacy.protect import (
    Protection,
    epsilon_for,
    gaussian,
    k_norm,
    laplace,
    multiplier_for,
)
from node.privacy.rounding import Bound, l1_bound, l2_bound

PLAN, DIMENSION, DELTA = Plan(), 20_000, 1e-5
UPDATES = gaussian(1.0, PLAN, DIMENSION, 2.0, 8)
LAPLACE = laplace(1.0, PLAN, 50, 0.5)
K_NORM = k_norm(1.0, PLAN, 50, 0.5)
EVERY = (UPDATES, LAPLACE, K_NORM)


def update(seed: int, protection: Protection = UPDATES) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(size=protection.release.dimension)


# ---- is the account right? ------------------------------------------------------------------------------


def sum_of_shares(variance: int, shares: int) -> NDArray[np.float64]:
    """Exact probabilities of the sum of so many discrete Gaussians, up to 2^-53."""
    reach = math.ceil(14 * math.sqrt(variance))
    one = np.exp(-(np.arange(-reach, reach + 1.0) ** 2) / (2 * variance))
    one /= one.sum()
    total = one
    for _ in range(shares - 1):
        total = np.convolve(total, one)
    return total


@pytest.mark.parametrize("variance", [LEAST_SHARE_VARIANCE, 9])
@pytest.mark.parametrize(("shares", "sensitivity"), [(1, 1), (1, 3), (2, 5), (3, 1), (8, 11), (8, 40)])
def test_epsilon_is_enough_by_the_exact_probabilities_of_one_value(
    variance: int, shares: int, sensitivity: int
) -> None:
    """What is published with this party's value and without: the gap that is left at epsilon is below delta."""
    total, nothing = sum_of_shares(variance, shares), np.zeros(sensitivity)
    there, not_there = np.concatenate([nothing, total]), np.concatenate([total, nothing])
    release = GaussianShares(1, sensitivity**2, variance, shares)
    for delta in (1e-2, 1e-5, 1e-8):
        epsilon = release.loss().epsilon(delta)
        for one, other in ((there, not_there), (not_there, there)):
            assert np.maximum(one - math.exp(epsilon) * other, 0).sum() <= delta
            if shares == 8 and sensitivity == 11:  # and it is no waste: 10% less would be a lie
                assert np.maximum(one - math.exp(0.9 * epsilon) * other, 0).sum() > delta


@pytest.mark.parametrize("variance", [0.5, 1.0])
@pytest.mark.parametrize("shares", [2, 3, 5])
def test_a_sum_of_discrete_gaussians_is_as_close_to_one_as_is_counted_on(variance: float, shares: int) -> None:
    """Seen where it can be: of a variance of 4 no double shows the difference."""
    x = np.arange(-60.0, 61.0)
    one = np.exp(-(x**2) / (2 * variance))
    total = one = one / one.sum()
    for _ in range(shares - 1):
        total = np.convolve(total, one, "same")
    single = np.exp(-(x**2) / (2 * variance * shares))
    likely = total > 1e-12
    apart = np.abs(np.log(total[likely] / (single / single.sum())[likely])).max()
    assert apart <= half_tau(variance, shares)
    if shares == 2:
        assert apart > half_tau(variance, shares) / 100  # the test sees something


@pytest.mark.parametrize("smooth", [0.5, 0.8])
@pytest.mark.parametrize("rest", [0.5, 3.0])
def test_a_rounded_gaussian_is_as_close_to_a_discrete_one_as_is_counted_on(smooth: float, rest: float) -> None:
    y = np.linspace(-20, 20, 40_001)
    density = np.exp(-(y**2) / (2 * rest)) / math.sqrt(2 * math.pi * rest)
    z = np.arange(-25.0, 26.0)
    weights = np.exp(-((z[:, None] - y) ** 2) / (2 * smooth))
    rounded = (weights / weights.sum(axis=0) * density).sum(axis=1) * (y[1] - y[0])
    discrete = np.exp(-(z**2) / (2 * (smooth + rest)))
    likely = rounded > 1e-10
    apart = np.abs(np.log(rounded[likely] / (discrete / discrete.sum())[likely])).max()
    assert apart <= eta(smooth)
    if rest == 0.5:
        assert apart > eta(smooth) / 1000  # the test sees something


def test_epsilon_is_that_of_the_shares_that_are_left() -> None:
    """The known figures, of integer noise: sigma = 2 from 8 shares, delta 1e-5, one release."""
    for left, epsilon in ((8, 1.99), (7, 2.15), (6, 2.34), (4, 2.94)):
        release = replace(UPDATES.release, shares=left)
        assert release.loss().epsilon(DELTA) == pytest.approx(epsilon, abs=0.005)


def test_integer_noise_costs_no_more_than_the_continuous_noise_that_it_replaces() -> None:
    for dimension in (1, 1000, 11_500_000):
        loss = gaussian(1.0, PLAN, dimension, 2.0, 2).release.loss()
        assert loss.mu_squared == pytest.approx(0.25, rel=1e-6)
        assert loss.mu_squared <= 0.25
        assert loss.slack < 1e-10


def test_laplace_noise_is_as_private_as_its_scale_says() -> None:
    """For a discrete Laplace the ratio of probabilities is exp(difference/b), exactly."""
    release = WholeLaplace(3, 7, 14)
    assert release.loss().epsilon(DELTA) == 0.5
    assert WholeLaplace.planned(l1_bound(100, 50), 50, 0.3).loss().pure <= 0.3


def test_laplace_noise_for_a_vector_clipped_in_l2_is_refused_with_the_reason() -> None:
    with pytest.raises(PrivacyError, match=r"sqrt\(10000\) \* clip, so what is spent would be 100 times epsilon"):
        WholeLaplace.planned(l2_bound(8191, 10_000), 10_000, 1.0)
    # It is so: the vector of equal values, clipped in L2, has that L1 norm.
    assert np.abs(np.full(10_000, 0.01)).sum() == pytest.approx(100)


# ---- is the noise what the account says? ----------------------------------------------------------------


def test_the_variance_of_an_opened_total_is_the_target() -> None:
    """20,000 values: the relative standard error of a variance is 1%, so 5% fails once in 10^6 honest runs."""
    for parties in (8, 7):  # one of them is dropped
        total = sum(UPDATES.release.draw() for _ in range(parties))
        sensitivity = UPDATES.bound.sensitivity
        assert np.var(total) == pytest.approx((2.0 * sensitivity) ** 2 * parties / 8, rel=0.05)


def test_k_norm_noise_has_a_gamma_distance_and_every_direction() -> None:
    release = WholeKNorm(40, 10_000**2, 1.0)
    drawn = np.array([release.draw() for _ in range(2000)])
    distances = np.linalg.norm(drawn, axis=1) / 10_000
    assert kstest(distances, gamma(40).cdf).pvalue > 1e-9
    assert np.abs(drawn.sum(axis=0)).max() < 7 * 10_000 * math.sqrt(41 * 2000)
    assert release.loss().epsilon(DELTA) == 1.0


@pytest.mark.parametrize("protection", EVERY)
def test_noise_keeps_the_room_that_the_plan_gives_it_and_does_not_leave_most_of_it_empty(
    protection: Protection,
) -> None:
    release, parties = protection.release, 6
    worst = max(int(abs(sum(release.draw() for _ in range(parties))).max()) for _ in range(20))
    assert release.room(parties) / 8 < worst < release.room(parties)


def test_a_plan_with_the_room_holds_the_total_with_its_noise() -> None:
    plan = choose(64, PLAN.value_bits, max_noise=UPDATES.release.room(64))
    assert plan.max_total >= 64 * plan.max_value + 10 * math.sqrt(64 * UPDATES.release.share_variance)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e100, 1e100), min_size=50, max_size=50), st.sampled_from([LAPLACE, K_NORM]))
def test_before_the_noise_the_integers_keep_range_and_sensitivity(values: list[float], protection: Protection) -> None:
    integers = protection.rounded(np.array(values))
    assert protection.bound.holds(integers)
    assert abs(integers).max() <= PLAN.max_value


def test_a_protected_update_is_the_update_and_noise() -> None:
    protection = gaussian(3.0, PLAN, DIMENSION, 0.01, 1)
    values = update(1)
    integers: Integers = protection.protect(values)
    clipped = values * 3.0 / np.linalg.norm(values)
    spread = math.sqrt(protection.release.share_variance + 0.25)
    assert np.std(integers - clipped / protection.step) == pytest.approx(spread, rel=0.05)
    assert not np.array_equal(integers, protection.protect(values))


# ---- the account ----------------------------------------------------------------------------------------


def test_m_is_what_the_quorum_guarantees() -> None:
    assert guaranteed_shares(2) == 2  # a curious member of the smallest set, of three, subtracts its own
    assert guaranteed_shares(4, coalition=3) == 2
    for coalition in (0, 3):
        with pytest.raises(PrivacyError, match="a coalition of 1 to 2 was expected"):
            guaranteed_shares(2, coalition)


def test_a_set_with_fewer_shares_than_guaranteed_is_not_opened() -> None:
    release = replace(UPDATES.release, shares=3)
    check_listed(release, {"ada", "bo", "cy", "di"})
    with pytest.raises(PrivacyError, match="3 shares of noise were guaranteed, in this set 2"):
        check_listed(release, {"ada", "bo", "cy"})
    with pytest.raises(PrivacyError, match="in this set 2"):
        check_listed(release, {"ada", "bo", "cy", "di"}, coalition=2)
    check_listed(LAPLACE.release, {"ada"})  # it brings all its noise itself


@given(st.integers(1, 20), st.integers(0, 40))
def test_what_is_charged_is_never_better_than_what_arrived_carries(guaranteed: int, more: int) -> None:
    release = replace(UPDATES.release, shares=guaranteed)
    arrived = replace(release, shares=guaranteed + more)
    assert release.loss().epsilon(DELTA) >= arrived.loss().epsilon(DELTA)


def test_rounds_are_charged_to_one_budget_and_what_would_pass_it_is_not_opened() -> None:
    rounds = 5
    z = multiplier_for(2.0, DELTA, rounds)
    release = gaussian(1.0, PLAN, 1000, z, 3).release
    account = HospitalAccount(Budget(2.0, DELTA))
    spent = [account.spend(release) for _ in range(rounds)]
    assert spent == sorted(spent)
    assert spent[-1] == account.epsilon() == pytest.approx(2.0, rel=1e-5)
    before = account.state()
    with pytest.raises(BudgetError, match=r"would spend epsilon 2\.\d+ at delta 1e-05, the budget is 2; it is not op"):
        account.spend(release)
    assert account.state() == before
    again = HospitalAccount.from_state(account.budget, before)
    assert again.history == account.history == (Charge(release, rounds),)
    assert again.epsilon() == account.epsilon()


def test_an_account_holds_every_kind_of_release() -> None:
    account = HospitalAccount(Budget(10.0, DELTA))
    assert account.epsilon() == 0
    for protection in (*EVERY, *EVERY):
        account.spend(protection.release)
    assert [charge.times for charge in account.history] == [2, 2, 2]
    assert HospitalAccount.from_state(account.budget, account.state()).epsilon() == account.epsilon()
    parts = (sum((UPDATES.release.loss() for _ in range(2)), Loss()).epsilon(DELTA), 4 * 0.5)
    assert max(parts) < account.epsilon() <= sum(parts) * (1 + 1e-6)


def test_many_rounds_of_laplace_noise_cost_less_than_their_sum() -> None:
    each = epsilon_for(1.0, DELTA, 1000)
    assert each > 3 * 1.0 / 1000
    assert Loss(pure=each, pure_squared=each**2).times(1000).epsilon(DELTA) <= 1.0
    assert epsilon_for(1.0, DELTA, 1) == pytest.approx(1.0)


def entries(**changes: object) -> bytes:
    entry: dict[str, object] = {
        "kind": "gaussian-shares", "dimension": 3, "sensitivity_squared": 9, "share_variance": 100, "shares": 2,
        "times": 1,
    }  # fmt: skip
    return json.dumps({"version": 1, "history": [entry | changes]}).encode()


def test_an_account_takes_its_own_state_only() -> None:
    budget = Budget(1.0, DELTA)
    assert HospitalAccount.from_state(budget, entries()).history[0].times == 1
    wrong = [
        b"", b"[]", b"{}", b"\xff", b'{"version":2,"history":[]}', b'{"version":1,"history":[3]}',
        entries(times=0), entries(times=-1), entries(times=True), entries(shares=1.5), entries(shares=0),
        entries(kind="none"), entries(more=1), entries(share_variance=1), entries(sensitivity_squared=-1),
        entries(dimension="3"),
    ]  # fmt: skip
    for state in wrong:
        with pytest.raises(PrivacyError, match="privacy: "):
            HospitalAccount.from_state(budget, state)


def test_noise_that_cannot_be_drawn_or_hides_nothing_is_refused() -> None:
    bound = Bound(2, 10**16, 0.1)
    with pytest.raises(PrivacyError, match=r"4 to 2\^48"):
        GaussianShares.planned(bound, 10, 5.0, 2)
    with pytest.raises(PrivacyError, match="at least 1 guaranteed share"):
        GaussianShares(1, 1, 4, 0)
    with pytest.raises(PrivacyError, match="Laplace noise of a scale of 1 to"):
        laplace(1.0, PLAN, 50, 1e-5)
    assert GaussianShares.planned(Bound(2, 1, 0.1), 1, 0.1, 2).share_variance == LEAST_SHARE_VARIANCE
