"""How many values a round sends: a fixed density, reached in a warm-up, or one that a moving threshold decides.

All of it follows from what is published, in integers or decimals that are the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

_FRACTION_BITS = 16


@dataclass(frozen=True)
class Density:
    """A part of all values, after a warm-up.

    Attributes:
        target: the part in (0, 1].
        warm_up: rounds in which it falls to the target from 1, by the same factor in each (Lin et al., "Deep Gradient
            Compression", 2018, section 3.3): the first updates are the largest, and much of them should not wait.
    """

    target: float
    warm_up: int = 0

    def count(self, length: int, round_: int) -> int:
        """Values sent in training round ``round_``, counted from 0."""
        if round_ >= self.warm_up:
            return max(1, math.ceil(length * self.target))
        with localcontext() as context:
            context.prec = 30
            part = (Decimal(self.target).ln() * round_ / self.warm_up).exp()
            return max(1, min(length, round(length * part)))


@dataclass(frozen=True)
class MovingThreshold:
    """MedHE's moving threshold (arXiv 2511.09043) as a schedule of density.

    In the paper each party sends what is above t_r = alpha t_{r-1} + (1 - alpha) q_r, q_r the magnitude of its own k-th
    largest value: how many those are, and where, tells of its data. Here the magnitudes are those of the *published*
    mean, so that the threshold is everyone's, and it decides only how many values the next mask has: as many as the
    last total has above it. So the density falls where updates shrink and rises where they grow, as in the paper.

    Attributes:
        level: t, in 2^-16 grid steps of the mean; None before the first total.
        alpha: the paper's is 0.9.
    """

    alpha: float = 0.9
    level: int | None = None

    def after(self, total: NDArray[np.int64], parties: int, target: int) -> MovingThreshold:
        """The threshold when ``total``, the published integers of ``parties`` parties, is known.

        Args:
            target: k.
        """
        magnitudes = _mean(total, parties)
        place = min(target, magnitudes.size)
        current = int(np.partition(magnitudes, magnitudes.size - place)[magnitudes.size - place])
        if self.level is None:
            return MovingThreshold(self.alpha, current)
        parts = round(self.alpha * 1000)
        return MovingThreshold(self.alpha, (parts * self.level + (1000 - parts) * current) // 1000)

    def count(self, total: NDArray[np.int64], parties: int, least: int, most: int) -> int:
        """How many values the next round sends: those of ``total`` at the threshold or above it, within the bounds."""
        assert self.level is not None
        above = int(np.count_nonzero(_mean(total, parties) >= max(1, self.level)))
        return min(max(above, least), most)


def _mean(total: NDArray[np.int64], parties: int) -> NDArray[np.int64]:
    return (np.abs(total).astype(np.int64) << _FRACTION_BITS) // parties
