"""From a party's values to the integers that it encrypts, under hospital-level privacy: clip, round, noise.

protection = gaussian(clip=1.0, plan=plan, dimension=10_000, multiplier=4.7, shares=2)
protection.release                    # to be charged before the opening
integers = protection.protect(values) # in the enclave, once a round

The order is fixed: what was left over is added and the mask taken before, so that the clip bounds all that is sent.
Weights are 1 for everyone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keys.plan import Plan
from node.privacy.budget import PrivacyError
from node.privacy.gaussian import noise_for
from node.privacy.hospital import GaussianShares, Loss, Release, WholeKNorm, WholeLaplace
from node.privacy.rounding import BETA, Bound, clip, l1_bound, l2_bound, round_within

Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Protection:
    """One kind of vector of one study, from real values to integers with noise.

    Attributes:
        clip: the norm that a party's vector has at most; the grid's bound as well, so that no value is cut.
        largest: ``plan.max_value``: what a value of ``clip`` becomes.
        bound: of the rounded integers.
        release: the noise, and what it costs.
    """

    clip: float
    largest: int
    bound: Bound
    release: Release

    @property
    def step(self) -> float:
        """The grid's, as in an update without noise. In grid steps nothing changes when the clip does."""
        return self.clip / self.largest

    def protect(self, values: NDArray[np.float64]) -> Integers:
        """One party's integers, its noise included; at most ``largest`` before the noise. Fresh noise in each call."""
        return self.rounded(values) + self.release.draw()

    def rounded(self, values: NDArray[np.float64]) -> Integers:
        """The same without the noise, which nobody else may see."""
        return round_within(clip(values, self.clip, self.bound.norm), self.step, self.bound, self.largest)


def gaussian(clip: float, plan: Plan, dimension: int, multiplier: float, shares: int, beta: float = BETA) -> Protection:
    """Clipped in L2; the noise of ``shares`` shares is ``multiplier`` times what one party can change."""
    bound = l2_bound(plan.max_value, dimension, beta)
    return Protection(clip, plan.max_value, bound, GaussianShares.planned(bound, dimension, multiplier, shares))


def laplace(clip: float, plan: Plan, dimension: int, epsilon: float, beta: float = BETA) -> Protection:
    """Clipped in L1; each party adds noise for ``epsilon`` in one round."""
    bound = l1_bound(plan.max_value, dimension, beta)
    return Protection(clip, plan.max_value, bound, WholeLaplace.planned(bound, dimension, epsilon))


def k_norm(clip: float, plan: Plan, dimension: int, epsilon: float, beta: float = BETA) -> Protection:
    """Clipped in L2; each party adds noise for ``epsilon`` in one round."""
    bound = l2_bound(plan.max_value, dimension, beta)
    return Protection(clip, plan.max_value, bound, WholeKNorm(dimension, bound.limit, epsilon))


def multiplier_for(epsilon: float, delta: float, rounds: int, mu_squared: float = 0.0) -> float:
    """The least noise multiplier with which so many rounds stay within the budget, when releases of ``mu_squared``
    are charged to it as well; a millionth more, for what integer noise costs above a continuous Gaussian.

    Raises:
        PrivacyError: the others alone spend the budget.
    """
    left = noise_for(epsilon, delta, 1) ** -2 - mu_squared
    if left <= 0:
        raise PrivacyError(f"privacy: the statistics alone would spend all of epsilon {epsilon:g}")
    return math.sqrt(rounds / left) * (1 + 1e-6)


def epsilon_for(epsilon: float, delta: float, rounds: int) -> float:
    """The largest epsilon that each of so many rounds of Laplace or K-norm noise may spend."""
    low, high = epsilon / rounds, epsilon
    for _ in range(60):
        middle = (low + high) / 2
        spent = Loss(pure=middle, pure_squared=middle**2).times(rounds).epsilon(delta)
        low, high = (middle, high) if spent <= epsilon else (low, middle)
    return low
