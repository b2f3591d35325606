"""Differential privacy of a whole hospital: noise on the grid of the integers, and an account of what is published.

Two runs are neighbours where one hospital's vector is zero in one of them: the set that is summed and the noise are the
same. Three kinds of noise:

``GaussianShares``: each party adds a *share* of discrete Gaussian noise, and the total is as private as ``shares`` of
them make it, so many as the quorum guarantees to be honest and unknown to whoever looks. Chosen over Skellam noise
(Agarwal, Kairouz and Liu 2021), whose sums are Skellam again: discrete Gaussian shares can be drawn exactly, and their
sum can be accounted for nearly as a continuous Gaussian (below).

``WholeLaplace`` and ``WholeKNorm``: each party adds all the noise itself. Their epsilon needs no other party to be
honest, and delta is 0; with n parties the total has n times the noise.

Why shares count as a continuous Gaussian. Let the shares have variance s^2, m of them:

1. Their sum is, coordinate by coordinate, within a factor exp(+-tau/2) of one discrete Gaussian of variance m s^2, with
   tau = 10 sum_{k=1}^{m-1} exp(-2 pi^2 s^2 k/(k+1)) (Kairouz, Liu and Steinke 2021).
2. A discrete Gaussian of variance m s^2 around an integer is a *continuous* one of variance m s^2 - r^2 around it,
   rounded at random: to z with probability proportional to exp(-(z-y)^2/(2 r^2)) (Peikert, "An Efficient and Parallel
   Gaussian Sampler for Lattices", 2010, theorem 3.1), within a factor exp(+-eta): by Poisson summation these weights
   sum to r sqrt(2 pi) (1 +- theta), theta = 2 sum_k exp(-2 pi^2 r^2 k^2), so eta = ln((1+theta)/(1-theta)).
3. So what is published is a function of a Gaussian release, but for a factor exp(+-a), a = d (tau/2 + eta), on the
   probability of whatever follows from it. If that release is (epsilon, delta), this one is
   (epsilon + 2a, exp(a) delta). For s^2 >= 4 and a million values a is below 10^-10; r^2 is about 2, and m s^2 some
   thousands or millions: nothing is lost but these 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from node.privacy import chacha
from node.privacy.budget import PrivacyError
from node.privacy.discrete import MAX_SCALE, MAX_VARIANCE, discrete_gaussian, discrete_laplace
from node.privacy.gaussian import epsilon_of, epsilon_of_zcdp
from node.privacy.rounding import Bound
from topology.quorum import hidden

Integers = NDArray[np.int64]

LEAST_SHARE_VARIANCE = 4
"""Two grid steps: with less, the sum of shares is not a discrete Gaussian to the accuracy that step 1 needs."""

OVERFLOW = 2.0**-40
"""Noise leaves the room that the plan has for it with at most this probability in a round."""

_SLACK = 1e-12
"""Of the second step, for all values of a release together."""


@dataclass(frozen=True)
class Loss:
    """What releases together cost. They add up, also where each was chosen by what the ones before it gave.

    Attributes:
        mu_squared: of the Gaussian ones, sensitivity squared over variance.
        pure: of the others, the sum of their epsilons, and ``pure_squared`` that of the squares.
        slack: the a of the module's third step.
    """

    mu_squared: float = 0.0
    pure: float = 0.0
    pure_squared: float = 0.0
    slack: float = 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(
            self.mu_squared + other.mu_squared,
            self.pure + other.pure,
            self.pure_squared + other.pure_squared,
            self.slack + other.slack,
        )

    def times(self, count: int) -> Loss:
        return Loss(count * self.mu_squared, count * self.pure, count * self.pure_squared, count * self.slack)

    def epsilon(self, delta: float) -> float:
        """The smaller of two bounds: exact for Gaussians with the rest simply added; or all of it as zero-concentrated
        privacy, where what is epsilon-private counts as epsilon^2/2 (Bun and Steinke 2016, proposition 1.4)."""
        if self.mu_squared == 0 and self.pure == 0:
            return 0.0
        within = delta * math.exp(-self.slack)
        added = self.pure + (epsilon_of(math.sqrt(self.mu_squared), within) if self.mu_squared else 0.0)
        concentrated = epsilon_of_zcdp((self.mu_squared + self.pure_squared) / 2, within)
        return min(added, concentrated) + 2 * self.slack


@dataclass(frozen=True)
class GaussianShares:
    """One release of ``dimension`` integers, to which each party adds a share of discrete Gaussian noise.

    Attributes:
        sensitivity_squared: largest sum of squares of one party's integers (``Bound.limit``).
        share_variance: of one party's noise on each value, in squares of a grid step.
        shares: how many of them are guaranteed: this is what counts, however many more arrive.
    """

    kind: ClassVar[str] = "gaussian-shares"
    dimension: int
    sensitivity_squared: int
    share_variance: int
    shares: int

    def __post_init__(self) -> None:
        if self.shares < 1:
            raise PrivacyError(f"privacy: at least 1 guaranteed share of noise was expected, came {self.shares}")
        if not LEAST_SHARE_VARIANCE <= self.share_variance <= MAX_VARIANCE:
            raise PrivacyError(
                f"privacy: a share of noise of {LEAST_SHARE_VARIANCE} to 2^48 grid steps squared was expected, "
                f"came {self.share_variance}"
            )

    @classmethod
    def planned(cls, bound: Bound, dimension: int, multiplier: float, shares: int) -> GaussianShares:
        """With the standard deviation of ``shares`` shares ``multiplier`` times the sensitivity.

        Raises:
            PrivacyError: this takes more noise than the sampler draws.
        """
        assert bound.norm == 2
        variance = multiplier**2 * bound.limit + _rounded_away(dimension)
        return cls(dimension, bound.limit, max(LEAST_SHARE_VARIANCE, math.ceil(variance / shares)), shares)

    def loss(self) -> Loss:
        smooth = _rounded_away(self.dimension)
        return Loss(
            mu_squared=self.sensitivity_squared / (self.shares * self.share_variance - smooth),
            slack=self.dimension * (half_tau(self.share_variance, self.shares) + eta(smooth)),
        )

    def draw(self) -> Integers:
        """One party's share, shape (dimension,)."""
        return discrete_gaussian(self.dimension, self.share_variance)

    def room(self, parties: int) -> int:
        """What the noise of so many shares does not pass, in grid steps (the plan's ``max_noise``): 10 sigma, which is
        enough for 10^9 values, since a discrete Gaussian is sub-Gaussian with its own parameter (Canonne, Kamath and
        Steinke 2020)."""
        sigmas = max(10.0, math.sqrt(2 * math.log(2 * self.dimension / OVERFLOW)))
        return math.ceil(sigmas * math.sqrt(parties * self.share_variance))


@dataclass(frozen=True)
class WholeLaplace:
    """One release of ``dimension`` integers, to which each party adds discrete Laplace noise for itself alone (Ghosh,
    Roughgarden and Sundararajan 2012).

    Attributes:
        sensitivity: largest sum of absolute values of one party's integers: of an *L1* bound. With a bound on the L2
            norm the sum can be sqrt(dimension) times it, and so can epsilon.
        scale: b, in grid steps; epsilon is sensitivity / b.
    """

    kind: ClassVar[str] = "whole-laplace"
    dimension: int
    sensitivity: int
    scale: int

    def __post_init__(self) -> None:
        if not 1 <= self.scale <= MAX_SCALE:
            raise PrivacyError(
                f"privacy: Laplace noise of a scale of 1 to {MAX_SCALE} grid steps was expected, came {self.scale}"
            )

    @classmethod
    def planned(cls, bound: Bound, dimension: int, epsilon: float) -> WholeLaplace:
        """The least noise that gives ``epsilon`` in one release.

        Raises:
            PrivacyError: the bound is on the L2 norm.
        """
        if bound.norm != 1:
            raise PrivacyError(l2_with_laplace(dimension))
        return cls(dimension, bound.limit, math.ceil(bound.limit / epsilon))

    def loss(self) -> Loss:
        return _pure(self.sensitivity / self.scale)

    def draw(self) -> Integers:
        """One party's noise, shape (dimension,)."""
        return discrete_laplace(self.dimension, self.scale)

    def room(self, parties: int) -> int:
        """What the noise of so many parties does not pass, in grid steps."""
        ratio = math.exp(-1 / self.scale)

        def cumulant(t: float) -> float:
            return parties * (
                2 * math.log1p(-ratio) - math.log1p(-ratio * math.exp(t)) - math.log1p(-ratio * math.exp(-t))
            )

        return _chernoff(cumulant, 1 / self.scale, self.dimension)


@dataclass(frozen=True)
class WholeKNorm:
    """One release of ``dimension`` integers, to which each party adds noise of a density proportional to
    exp(-epsilon |x|_2 / sensitivity), rounded: the K-norm mechanism for the Euclidean ball (Hardt and Talwar 2010).

    It is what Laplace noise must become for a vector that is clipped in L2. Its samples are made in floating point, and
    then rounded to integers: adding them to integers leaves no marks of their making, but that their probabilities are
    right to the last is not shown, as it is for the other two.

    Attributes:
        sensitivity_squared: largest sum of squares of one party's integers.
        epsilon: of this release.
    """

    kind: ClassVar[str] = "whole-k-norm"
    dimension: int
    sensitivity_squared: int
    epsilon: float

    def loss(self) -> Loss:
        return _pure(self.epsilon)

    @property
    def scale(self) -> float:
        return math.sqrt(self.sensitivity_squared) / self.epsilon

    def draw(self) -> Integers:
        """One party's noise, shape (dimension,): a uniform direction, and a Gamma(dimension) distance."""
        direction = chacha.normals(self.dimension)
        distance = -math.fsum(np.log(chacha.uniforms(self.dimension)))
        noise = direction * (self.scale * distance / math.sqrt(float(direction @ direction)))
        return np.rint(noise).astype(np.int64)

    def room(self, parties: int) -> int:
        """What the noise of so many parties does not pass, in grid steps. Each value of it is normal with a variance
        of 2 scale^2 times a Gamma((dimension + 1)/2) variable."""

        def cumulant(t: float) -> float:
            return -parties * (self.dimension + 1) / 2 * math.log1p(-((t * self.scale) ** 2))

        return _chernoff(cumulant, 1 / self.scale, self.dimension) + parties


Release = GaussianShares | WholeLaplace | WholeKNorm
KINDS: dict[str, type[GaussianShares] | type[WholeLaplace] | type[WholeKNorm]] = {
    each.kind: each for each in (GaussianShares, WholeLaplace, WholeKNorm)
}


def to_entry(release: Release) -> dict[str, int | float | str]:
    """As a ledger or a state holds it."""
    return {"kind": release.kind, **asdict(release)}


def guaranteed_shares(min_hidden: int, coalition: int = 1) -> int:
    """How many shares of noise hide a party from ``coalition`` parties that pool what they know, in every total that
    the quorum lets pass: each of them can subtract its own share, and need not have added it. The party's own counts.

    Raises:
        PrivacyError: none is left.
    """
    if coalition < 1 or min_hidden + 1 - coalition < 1:
        raise PrivacyError(
            f"privacy: a coalition of 1 to {min_hidden} was expected with min_hidden = {min_hidden}, came {coalition}"
        )
    return min_hidden + 1 - coalition


def check_listed(release: Release, listed: Collection[str], coalition: int = 1) -> None:
    """To be done before a total over the listed set is opened.

    Raises:
        PrivacyError: fewer shares arrived than are guaranteed; nothing may be opened.
    """
    if isinstance(release, GaussianShares) and (arrived := hidden(listed) + 1 - coalition) < release.shares:
        raise PrivacyError(
            f"privacy: {release.shares} shares of noise were guaranteed, in this set {arrived} "
            "hide each party; it is not opened"
        )


def l2_with_laplace(dimension: int) -> str:
    """Why Laplace noise of C/epsilon does not go with a vector clipped to an L2 norm of C."""
    return (
        "Laplace noise of scale clip/epsilon hides a vector whose L1 norm is at most clip; one clipped in L2 can have "
        f"an L1 norm of sqrt({dimension}) * clip, so what is spent would be {math.sqrt(dimension):.3g} times epsilon: "
        'clip in L1, or take mechanism = "k-norm"'
    )


def _pure(epsilon: float) -> Loss:
    return Loss(pure=epsilon, pure_squared=epsilon**2)


def half_tau(variance: float, shares: int) -> float:
    """How far, as a logarithm, the sum of so many discrete Gaussians is from one: the module's first step."""
    return 5 * math.fsum(math.exp(-2 * math.pi**2 * variance * k / (k + 1)) for k in range(1, shares))


def eta(smooth: float) -> float:
    """How far, as a logarithm, a Gaussian is from a discrete one when rounded with variance ``smooth``, at least 1/2:
    the module's second step. The terms after the first are below a hundredth of it together."""
    theta = 2.02 * math.exp(-2 * math.pi**2 * smooth)
    return math.log1p(theta) - math.log1p(-theta)


def _rounded_away(dimension: int) -> float:
    """r^2 of the second step: eta is then below ``_SLACK`` for all values together."""
    return max(1.0, math.log(8 * dimension / _SLACK) / (2 * math.pi**2))


def _chernoff(cumulant: Callable[[float], float], largest: float, dimension: int) -> int:
    """The least x with 2 dimension exp(cumulant(t) - t x) <= OVERFLOW for one of many t below ``largest``."""
    failure = math.log(2 * dimension / OVERFLOW)
    choices = [largest * (1 - 2 ** (-place / 8)) for place in range(1, 200)]
    choices += [largest * 2 ** (-place / 4) for place in range(1, 120)]
    return math.ceil(min((cumulant(t) + failure) / t for t in choices))
