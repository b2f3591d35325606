"""Is one way as good as another? A difference that is not found is none that is shown to be small.

Beside the t-test, whose null hypothesis is "no difference", stand two one-sided tests (TOST; Schuirmann 1987): their
null hypothesis is a difference of the margin or more, and a small p rejects it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.05


@dataclass(frozen=True)
class Comparison:
    """Pairs of figures, the new less the old.

    Attributes:
        low, high: the 90 % interval of the mean difference: within the margin just where ``p_apart`` is below 0.05.
        p_same: of the paired t-test, that there is no difference.
        p_apart: of the two one-sided paired tests, that the difference is the margin or more.
    """

    pairs: int
    difference: float
    spread: float
    low: float
    high: float
    p_same: float
    p_apart: float

    @property
    def is_equivalent(self) -> bool:
        return self.p_apart < LEVEL


def paired(new: Sequence[float], old: Sequence[float], margin: float) -> Comparison:
    """Compare figures of the same seeds; at least two."""
    from scipy import stats

    differences = np.subtract(new, old)
    mean, spread = float(differences.mean()), float(differences.std(ddof=1))
    if spread < 1e-12:  # all alike, where a t has nothing to divide by
        same, apart = (float(abs(mean) < 1e-12), float(abs(mean) >= margin))
        return Comparison(len(differences), mean, spread, mean, mean, same, apart)
    below = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    above = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    both = stats.ttest_1samp(differences, 0.0)
    interval = both.confidence_interval(1 - 2 * LEVEL)
    return Comparison(
        len(differences),
        mean,
        spread,
        float(interval.low),
        float(interval.high),
        float(both.pvalue),
        float(max(below, above)),
    )


def from_summary(new: tuple[float, float], old: tuple[float, float], runs: int, margin: float) -> tuple[float, float]:
    """What published means and deviations say, if each is of so many independent runs: ``p_same`` and ``p_apart``, by
    Welch's tests."""
    from scipy import stats

    def p(shift: float, alternative: str) -> float:
        found = stats.ttest_ind_from_stats(
            new[0] + shift, new[1], runs, old[0], old[1], runs, equal_var=False, alternative=alternative
        )
        return float(found.pvalue)

    return p(0.0, "two-sided"), max(p(margin, "greater"), p(-margin, "less"))
