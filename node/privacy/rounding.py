"""Clip to a norm, and round to the grid so that the integers keep a norm as well.

Unbiased rounding makes a vector longer: each of d values moves by up to a step, which at eight bits and a million
parameters is four times the clipping norm. What is published is integers, so it is *their* norm that noise must hide.
Kairouz, Liu and Steinke ("The Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation",
2021) therefore round again until the norm is within a bound that holds with probability 1 - beta.

The check is made on integers, so that no rounding error of a double weakens it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from node.privacy.chacha import half_words

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]
Norm = Literal[1, 2]
_Number = TypeVar("_Number", bound=np.generic)

BETA = 1e-6
"""A try fails with at most this probability. Less costs noise, more costs bias."""

TRIES = 30
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Bound:
    """A bound on the norm of a rounded vector.

    Attributes:
        norm: 1 or 2.
        limit: what the sum of absolute values (norm 1) or of squares (norm 2) of the integers may be.
        beta: the probability with which a try of rounding passes it, at most.
    """

    norm: Norm
    limit: int
    beta: float

    @property
    def sensitivity(self) -> float:
        """The norm itself, in grid steps: how far the total moves when this party's vector becomes zero."""
        return math.sqrt(self.limit) if self.norm == 2 else float(self.limit)

    def holds(self, integers: Integers) -> bool:
        return sum(_measure(block, self.norm) for block in _blocks(integers)) <= self.limit


def l2_bound(steps: float, dimension: int, beta: float = BETA) -> Bound:
    """The bound for a vector clipped to an L2 norm of ``steps`` grid steps.

    min{(c + sqrt d)^2, c^2 + d/4 + sqrt(2 ln 1/beta) (c + sqrt(d)/2)} with c = ``steps``: Kairouz, Liu and Steinke
    2021, theorem 1, where the second holds for a try of rounding with probability 1 - beta.
    """
    _check(steps, dimension, beta)
    always = (steps + math.sqrt(dimension)) ** 2
    mostly = steps**2 + dimension / 4 + math.sqrt(2 * math.log(1 / beta)) * (steps + math.sqrt(dimension) / 2)
    return Bound(2, math.floor(min(always, mostly)), beta)


def l1_bound(steps: float, dimension: int, beta: float = BETA) -> Bound:
    """The bound for a vector clipped to an L1 norm of ``steps`` grid steps.

    Rounding leaves the expected absolute value of each coordinate as it is and moves it within one step, so the sum
    passes c + sqrt(d/2 ln 1/beta) with probability beta at most (Hoeffding 1963, theorem 2); it never passes c + d.
    """
    _check(steps, dimension, beta)
    mostly = steps + math.sqrt(dimension / 2 * math.log(1 / beta))
    return Bound(1, math.floor(min(steps + dimension, mostly)), beta)


def clip(values: Floats, limit: float, norm: Norm = 2) -> Floats:
    """``values`` scaled down to a norm of at most ``limit``, if they are longer; a new array."""
    length = (
        math.sqrt(sum(float(block @ block) for block in _blocks(values))) if norm == 2 else float(abs(values).sum())
    )
    return values * min(1.0, limit / length) if length > 0 else values.copy()


def round_within(values: Floats, step: float, bound: Bound, largest: int) -> Integers:
    """Round to multiples of ``step``, without bias, again and again until the integers are within ``bound``.

    Args:
        largest: what an integer may be in absolute value, at most 2^23 (``plan.max_value``); values beyond count as it.

    After ``TRIES`` tries, which a clipped vector needs with probability beta^TRIES, all is rounded towards zero: this
    makes no vector longer. One that is beyond the bound even so (it was not clipped) is scaled to it first. So whatever
    comes, the result is within the bound.

    The condition is a bias: of less than beta / (1 - beta) of a step in each coordinate, since a try moves none by more
    than a step.

    Returns:
        Shape as ``values``.
    """
    assert 0 < largest <= 1 << 23  # else the squares of a block do not fit 64 bits
    for _ in range(TRIES):
        integers = np.empty(values.size, np.int64)
        for start in range(0, values.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            scaled = values[block] / step
            np.clip(scaled, -largest, largest, out=scaled)
            scaled *= 2.0**32
            fixed = scaled.astype(np.int64)  # 32 bits behind the point, as in an update without noise
            fixed += half_words(fixed.size)
            np.right_shift(fixed, 32, out=integers[block])
        if bound.holds(integers):
            return integers
    scaled = np.clip(values / step, -largest, largest)
    while not bound.holds(integers := np.trunc(scaled).astype(np.int64)):
        scaled = clip(scaled, bound.sensitivity, bound.norm) * (1 - 2.0**-40)
    return integers


def _check(steps: float, dimension: int, beta: float) -> None:
    if not (steps > 0 and dimension >= 1 and 0 < beta < 1):
        raise ValueError(f"steps {steps}, dimension {dimension} and beta {beta} were expected to be positive, beta < 1")


def _measure(block: Integers, norm: Norm) -> int:
    return int(abs(block).sum()) if norm == 1 else int(block @ block)


def _blocks(values: NDArray[_Number]) -> Iterator[NDArray[_Number]]:
    for start in range(0, values.size, _BLOCK):
        yield values[start : start + _BLOCK]
