"""What Gaussian noise gives: (epsilon, delta) of its compositions, exactly. Numbers in, numbers out.

mu is sensitivity over standard deviation. Releases with mu_1, mu_2, ... together are one with
sqrt(mu_1^2 + mu_2^2 + ...), whatever each was chosen to be by what the ones before it gave (Dong, Roth and Su,
"Gaussian Differential Privacy", 2019).
"""

from __future__ import annotations

import math
from collections.abc import Callable

CAREFUL = 1e-9
"""Results are rounded up by this part of them, many times what their doubles can be wrong."""


def log_ndtr(x: float) -> float:
    """Logarithm of the standard normal distribution function."""
    if x > 0:
        return math.log1p(-math.erfc(x / math.sqrt(2)) / 2)
    if x > -35:
        return math.log(math.erfc(-x / math.sqrt(2)) / 2)
    series, term = 1.0, 1.0
    for odd in (1, 3, 5, 7, 9):  # Abramowitz and Stegun 26.2.12; the next term is below 10^-14 here
        term *= -odd / x**2
        series += term
    return -x * x / 2 - math.log(-x * math.sqrt(2 * math.pi)) + math.log(series)


def delta_of(epsilon: float, mu: float) -> float:
    """The least delta of a Gaussian release at ``epsilon``: Balle and Wang 2018, theorem 8."""
    if mu == 0:
        return max(0.0, -math.expm1(epsilon))
    first = log_ndtr(mu / 2 - epsilon / mu)
    second = epsilon + log_ndtr(-mu / 2 - epsilon / mu)
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def epsilon_of(mu: float, delta: float) -> float:
    """The least epsilon, at least 0, of a Gaussian release at ``delta``."""
    _check_delta(delta)
    if not math.isfinite(mu):
        return math.inf
    if delta_of(0.0, mu) <= delta:
        return 0.0
    return _least(lambda epsilon: delta_of(epsilon, mu) <= delta)


def noise_for(epsilon: float, delta: float, releases: int) -> float:
    """The least standard deviation over sensitivity with which so many releases stay within (epsilon, delta)."""
    _check_delta(delta)
    if not (epsilon > 0 and releases >= 1):
        raise ValueError(f"epsilon above 0 and a release at least were expected, came {epsilon} and {releases}")
    return _least(lambda z: delta_of(epsilon / (1 + 2 * CAREFUL), math.sqrt(releases) / z) <= delta)


def epsilon_of_zcdp(rho: float, delta: float) -> float:
    """Epsilon at ``delta`` of what is rho-zCDP: Canonne, Kamath and Steinke 2020, corollary 13, best order."""
    _check_delta(delta)
    if rho <= 0:
        return 0.0

    def bound(logarithm: float) -> float:
        above = math.exp(logarithm)  # the order, less 1
        return (1 + above) * rho + (math.log(1 / delta) - math.log1p(above)) / above - math.log1p(1 / above)

    low, high = -20.0, 30.0
    for _ in range(200):  # the bound falls, then rises; any order is valid
        third = (high - low) / 3
        if bound(low + third) < bound(high - third):
            high -= third
        else:
            low += third
    return max(0.0, bound((low + high) / 2)) * (1 + CAREFUL)


def _least(enough: Callable[[float], bool]) -> float:
    """The least positive number that is enough, where all above it are."""
    low, high = 0.0, 1.0
    while not enough(high):
        low, high = high, 2 * high
    while high - low > CAREFUL / 4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high * (1 + CAREFUL)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ValueError(f"a delta between 0 and 1 was expected, came {delta}")
