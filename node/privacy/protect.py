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
from node.privacy.clipping import AdaptiveClip
from node.privacy.gaussian import epsilon_of, noise_for
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


def with_bit(integers: Integers, adaptive: AdaptiveClip, shares: int, length: float, clip: float) -> Integers:
    """The integers and, last, the clip bit with its share of noise.

    Args:
        length: norm of the values before clipping.
    """
    bit = adaptive.release(shares).draw() + adaptive.bit(length, clip)
    return np.concatenate([integers, bit])


def room(releases: tuple[Release, ...], parties: int) -> int:
    """The plan's ``max_noise`` for so many parties."""
    return max((release.room(parties) for release in releases), default=0)


def multiplier_for(epsilon: float, delta: float, rounds: int) -> float:
    """The least noise multiplier with which so many rounds stay within the budget; a millionth more, for what integer
    noise costs above a continuous Gaussian's epsilon."""
    return noise_for(epsilon, delta, rounds) * (1 + 1e-6)


def epsilon_for(epsilon: float, delta: float, rounds: int) -> float:
    """The largest epsilon that each of so many rounds of Laplace or K-norm noise may spend."""
    low, high = epsilon / rounds, epsilon
    for _ in range(60):
        middle = (low + high) / 2
        spent = Loss(pure=middle, pure_squared=middle**2).times(rounds).epsilon(delta)
        low, high = (middle, high) if spent <= epsilon else (low, middle)
    return low


def rounds_within(epsilon: float, delta: float, multiplier: float) -> int:
    """How many rounds with this noise multiplier stay within the budget."""
    count = 0
    step = 1 << 30
    while step:
        if epsilon_of(math.sqrt(count + step) / multiplier, delta) <= epsilon:
            count += step
        step >>= 1
    return count
