"""Epsilon of Gaussian noise: published figures, scipy's, and what is always true."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import log_ndtr as scipys
from scipy.stats import norm

from node.privacy.gaussian import delta_of, epsilon_of, epsilon_of_zcdp, log_ndtr, noise_for


def test_the_figures_that_the_accountant_is_pinned_to() -> None:
    assert epsilon_of(math.sqrt(3) / 0.12, 1e-5) == pytest.approx(165, abs=0.2)
    assert noise_for(1, 1e-5, 3) == pytest.approx(6.46, abs=0.005)
    assert noise_for(1, 1e-5, 10) == pytest.approx(11.80, abs=0.005)
    assert noise_for(6, 1.9e-4, 50) == pytest.approx(4.68, abs=0.005)
    assert noise_for(1, 1e-5, 1) == pytest.approx(3.730632, abs=1e-6)  # as the analytic Gaussian mechanism gives it


@pytest.mark.parametrize(("left", "epsilon"), [(8, 1.99), (7, 2.15), (6, 2.34), (4, 2.94)])
def test_noise_of_eight_shares_of_which_some_are_missing(left: int, epsilon: float) -> None:
    """Eight shares have twice the sensitivity; one release, delta 1e-5."""
    assert epsilon_of(math.sqrt(8 / left) / 2, 1e-5) == pytest.approx(epsilon, abs=0.005)


@given(st.floats(-1e4, 40))
def test_the_logarithm_of_the_normal_distribution_is_scipys(x: float) -> None:
    assert log_ndtr(x) == pytest.approx(float(scipys(x)), rel=1e-12, abs=1e-300)


@pytest.mark.parametrize("mu", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.3, 2.0, 9.0])
def test_delta_is_the_integral_that_it_stands_for(mu: float, epsilon: float) -> None:
    def gap(x: float) -> float:
        return max(0.0, norm.pdf(x, mu) - math.exp(epsilon) * norm.pdf(x))

    from_where = epsilon / mu + mu / 2
    assert delta_of(epsilon, mu) == pytest.approx(quad(gap, from_where, from_where + 15)[0], rel=1e-6, abs=1e-15)


@given(st.floats(1e-3, 50), st.floats(1e-12, 0.5))
def test_epsilon_is_enough_and_hardly_more(mu: float, delta: float) -> None:
    epsilon = epsilon_of(mu, delta)
    assert delta_of(epsilon, mu) <= delta * (1 + 1e-12)
    if epsilon:
        assert delta_of(epsilon * (1 - 1e-7), mu) > delta * (1 - 1e-9)


@given(st.floats(0.01, 10), st.floats(1e-10, 0.01), st.integers(1, 10_000))
def test_noise_for_a_budget_keeps_it_and_a_little_less_does_not(epsilon: float, delta: float, releases: int) -> None:
    z = noise_for(epsilon, delta, releases)
    assert epsilon_of(math.sqrt(releases) / z, delta) <= epsilon
    assert epsilon_of(math.sqrt(releases) / (z * (1 - 1e-5)), delta) > epsilon * (1 - 1e-9)


@given(st.floats(1e-4, 20), st.floats(1e-10, 0.1))
def test_zero_concentrated_privacy_costs_more_than_a_gaussian_and_less_than_its_simple_bound(
    mu: float, delta: float
) -> None:
    rho = mu**2 / 2
    assert epsilon_of(mu, delta) <= epsilon_of_zcdp(rho, delta) * (1 + 1e-8)
    assert epsilon_of_zcdp(rho, delta) <= (rho + 2 * math.sqrt(rho * math.log(1 / delta))) * (1 + 1e-8)


def test_extremes() -> None:
    assert epsilon_of(0.0, 1e-5) == epsilon_of_zcdp(0.0, 1e-5) == 0
    assert epsilon_of(math.inf, 1e-5) == math.inf
    assert epsilon_of(1e4, 1e-9) == pytest.approx(5e7, rel=0.01)
    for call in (lambda: epsilon_of(1, 0), lambda: epsilon_of_zcdp(1, 1), lambda: noise_for(0, 1e-5, 1)):
        with pytest.raises(ValueError, match="expected"):
            call()
