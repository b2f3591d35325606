"""Two laws for the time of a round, fitted to measured ones, and what they say of larger trees.

The pipeline's: tau_first + levels * tau_segment + (segments - 1) * tau_slowest. The paper's, of an update that each
level receives whole before it sends: (tau_enc + tau_dec) + (tau_add + tau_com) * levels, all of them proportional
to the update, here to its number of segments. In a complete binary tree of n parties levels is about log2 n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Sample = tuple[int, int, float]
"""Levels (links from the deepest leaf to the key holder), segments, seconds."""

Terms = Callable[[int, int], list[float]]


@dataclass(frozen=True)
class Law:
    """A sum of constants, each times what follows from levels and segments."""

    name: str
    constants: tuple[str, ...]
    terms: Terms


PIPELINE = Law(
    "pipeline",
    ("tau_first", "tau_segment", "tau_slowest"),
    lambda levels, segments: [1.0, float(levels), float(segments - 1)],
)
PAPER = Law(
    "paper",
    ("tau_enc + tau_dec, per segment", "tau_add + tau_com, per segment"),
    lambda levels, segments: [float(segments), float(segments * levels)],
)


@dataclass(frozen=True)
class Fit:
    """A law with the constants that suit some samples best.

    Attributes:
        seconds: the constants, none negative.
        error: root mean square of the relative errors.
        samples: how many rounds it was fitted to.
    """

    law: Law
    seconds: tuple[float, ...]
    error: float
    samples: int

    def predict(self, levels: int, segments: int) -> float:
        """Seconds of a round."""
        return float(np.dot(self.law.terms(levels, segments), self.seconds))


def fit(law: Law, samples: Sequence[Sample]) -> Fit:
    """Least squares of relative errors, no constant below 0."""
    rows: NDArray[np.float64] = np.array([law.terms(levels, segments) for levels, segments, _ in samples])
    measured = np.array([seconds for _, _, seconds in samples])
    scaled = rows / measured[:, None]
    constants, _ = nnls(scaled, np.ones(len(samples)))
    error = float(np.sqrt(np.mean((scaled @ constants - 1) ** 2)))
    return Fit(law, tuple(map(float, constants)), error, len(samples))


def levels_of(parties: int) -> int:
    """Links from the deepest leaf to the key holder, in the complete tree."""
    return (parties - 1).bit_length()
