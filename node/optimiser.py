"""How the mean update moves the global model: averaging, or an adaptive step as in Reddi et al. 2021.

Elementwise arithmetic in float64 that IEEE 754 fixes to the last bit (+, -, *, /, sqrt) on published integers, so that
the model and the moments stay bit-identical at all parties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Server = Literal["average", "momentum", "adam", "yogi"]


@dataclass(frozen=True)
class Optimiser:
    """One step on the published mean update, which stands for a negative gradient.

    Attributes:
        server: ``average``: McMahan et al. 2017; ``momentum``: FedAvgM (Hsu, Qi and Brown 2019); ``adam`` and ``yogi``:
            FedAdam and FedYogi (Reddi et al. 2021, algorithm 2).
        learning_rate: eta.
        momentum: beta_1.
        second_moment: beta_2.
        adaptivity: tau, which is added to the root of the second moment; that begins at its square.
    """

    server: Server = "average"
    learning_rate: float = 1.0
    momentum: float = 0.9
    second_moment: float = 0.99
    adaptivity: float = 1e-3

    @property
    def moments(self) -> int:
        """How many arrays of the model's length it carries from round to round."""
        return {"average": 0, "momentum": 1, "adam": 2, "yogi": 2}[self.server]

    def begin(self, parameters: int) -> NDArray[np.float32]:
        """The moments before the first step, shape (moments, parameters)."""
        moments = np.zeros((self.moments, parameters), np.float32)
        moments[1:] = self.adaptivity**2
        return moments

    def step(self, model: NDArray[np.float32], moments: NDArray[np.float32], mean: NDArray[np.float64]) -> None:
        """Move ``model``, (n,), by the mean update, (n,), which is overwritten; ``moments``, (moments, n), follow."""
        if self.server == "momentum":
            mean += self.momentum * moments[0].astype(np.float64)
            moments[0] = mean
        elif self.server != "average":
            first, second = moments[0].astype(np.float64), moments[1].astype(np.float64)
            square = mean * mean
            if self.server == "adam":
                second = self.second_moment * second + (1 - self.second_moment) * square
            else:
                second -= (1 - self.second_moment) * square * np.sign(second - square)
            first = self.momentum * first + (1 - self.momentum) * mean
            moments[0], moments[1] = first, second
            np.divide(first, np.sqrt(second) + self.adaptivity, out=mean)
        mean *= self.learning_rate
        mean += model
        model[:] = mean


@dataclass(frozen=True)
class RateSchedule:
    """By what factor the hospitals' own learning rate is multiplied in each round of training."""

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup: int = 0
    every: int = 10
    factor: float = 0.5

    def rate(self, number: int, rounds: int) -> float:
        """In round ``number`` of 1..``rounds``: a linear rise over ``warmup`` rounds, then the schedule's course."""
        if number <= self.warmup:
            return number / (self.warmup + 1)
        past, whole = number - self.warmup - 1, rounds - self.warmup
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * past / whole)) / 2
        return float(self.factor ** (past // self.every)) if self.kind == "step" else 1.0
