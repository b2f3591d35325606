"""Adaptive clipping: the clipping norm follows a quantile of the parties' norms, which noise hides as well.

Andrew, Thakkar, McMahan and Ramaswamy, "Differentially Private Learning with Adaptive Clipping", 2021. Each party adds
one more value to the sum: whether its vector was within the norm C. All of it is computed from what was published, in
decimal arithmetic that is the same on every machine, so every party has the same C to the bit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

from node.privacy.budget import PrivacyError
from node.privacy.hospital import GaussianShares
from node.privacy.rounding import Bound

BIT = 512
"""What a party adds: +512 if its vector was within C, -512 if not: the paper's b - 1/2, scaled by 1,024. Unscaled, a
share of noise of half a step and less would be lost in rounding."""


@dataclass(frozen=True)
class AdaptiveClip:
    """How the clipping norm moves.

    Attributes:
        quantile: of the parties' norms, that C is to follow; 0.5: the median.
        rate: how fast; the paper's is 0.2.
        count_noise: standard deviation of the noise on the number of parties within C; the paper's is parties / 20.
        lowest, highest: C stays between them whatever the noise says.
    """

    quantile: float
    rate: float
    count_noise: float
    lowest: float
    highest: float

    def release(self, shares: int) -> GaussianShares:
        """What the sum of the bits costs, to be charged beside the update's."""
        return GaussianShares.planned(Bound(2, BIT**2, 0.0), 1, 2 * self.count_noise, shares)

    def bit(self, length: float, clip: float) -> int:
        """What a party adds, before its share of noise; ``length`` is its vector's norm before clipping."""
        return BIT if length <= clip else -BIT

    def update_multiplier(self, multiplier: float) -> float:
        """The noise multiplier of the updates with which they *and* the bits cost as much as updates of ``multiplier``
        alone: (z^-2 - (2 count_noise)^-2)^(-1/2), the paper's theorem 1.

        Raises:
            PrivacyError: the bits alone would cost as much.
        """
        left = multiplier**-2 - (2 * self.count_noise) ** -2
        if left <= 0:
            raise PrivacyError(
                f"privacy: count_noise above {multiplier / 2:g} was expected, came {self.count_noise:g}: the clip bits "
                "alone would spend the budget"
            )
        return 1 / math.sqrt(left)

    def next_clip(self, clip: float, total: int, parties: int) -> float:
        """C * exp(-rate * (b - quantile)), b the noisy part of the parties that were within C.

        Args:
            total: published sum of the bits, noise included, over ``parties`` parties.
        """
        with localcontext() as context:
            context.prec = 30
            within = Decimal(total) / (2 * BIT * parties) + Decimal("0.5")
        return self.moved(clip, within)

    def moved(self, clip: float, within: Decimal | float) -> float:
        """The norm after one of which the part ``within`` of the vectors was not longer, as noise has it."""
        with localcontext() as context:
            context.prec = 30
            within = min(max(Decimal(within), Decimal(0)), Decimal(1))
            moved = Decimal(clip) * (-Decimal(self.rate) * (within - Decimal(self.quantile))).exp()
            return min(max(float(moved), self.lowest), self.highest)
