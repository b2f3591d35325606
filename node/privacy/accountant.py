"""One accountant over all rounds of a study at one hospital: what was spent, and a stop before too much is.

The arithmetic is Opacus's, by Renyi differential privacy (Mironov 2017; Mironov, Talwar and Zhang 2019) or by privacy
loss random variables (Gopi, Lee and Wutschitz 2021). Opacus's default orders end at 63, which finds nothing useful
at an epsilon of 0.1 and a delta of 1e-5; ``ORDERS`` go on to 2048.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from keys.errors import WardtreeError
from node.privacy.budget import Budget, BudgetError

Mechanism = Literal["rdp", "prv"]
MECHANISMS: tuple[Mechanism, ...] = ("rdp", "prv")

ORDERS: tuple[float, ...] = (
    *(1 + tenth / 10 for tenth in range(1, 100)),
    *range(12, 64),
    *(64, 72, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048),
)

PRV_ERROR, PRV_PART = 0.1, 0.02
"""The discretisation of privacy loss random variables: Opacus's 0.01 takes minutes where epsilon is 30, and is a tenth
of one of 0.1. So 2% of epsilon, and at most 0.1."""


class StateError(WardtreeError):
    """What should be an accountant's state is something else."""


@dataclass(frozen=True)
class Spent:
    """``steps`` steps of DP-SGD: Gaussian noise of ``noise_multiplier`` times the clipping norm, on batches in which
    each row is with probability ``sample_rate``."""

    noise_multiplier: float
    sample_rate: float
    steps: int

    def times(self, count: int) -> Spent:
        return Spent(self.noise_multiplier, self.sample_rate, count * self.steps)


class Accountant:
    """What one hospital has spent of its budget in a study.

    Attributes:
        budget: None: nothing is refused.
        history: all that was spent, in order; equal neighbours are one entry. It is all the state there is.
    """

    def __init__(self, budget: Budget | None, mechanism: Mechanism = "rdp", history: Iterable[Spent] = ()) -> None:
        self.budget, self.mechanism = budget, mechanism
        self.history: tuple[Spent, ...] = ()
        for each in history:
            self.history = _and(self.history, each)

    def epsilon(self, delta: float | None = None) -> float:
        """What is spent so far, at the budget's delta or another.

        Raises:
            ValueError: there is neither.
        """
        if delta is None:
            if self.budget is None:
                raise ValueError("without a budget a delta is needed")
            delta = self.budget.delta
        return _epsilon(self.history, delta, self.mechanism)

    def spend(self, noise_multiplier: float, sample_rate: float, steps: int = 1) -> None:
        """Call it *before* the steps.

        Raises:
            BudgetError: they would pass the budget; nothing is spent, and the steps must not be taken.
        """
        more = _and(self.history, Spent(noise_multiplier, sample_rate, steps))
        if self.budget is not None:
            would = _epsilon(more, self.budget.delta, self.mechanism)
            if not would <= self.budget.epsilon:
                raise BudgetError(
                    f"privacy: {steps} more step{'s' if steps > 1 else ''} would spend epsilon {would:.3g} at delta "
                    f"{self.budget.delta:g}, the budget is {self.budget.epsilon:g}; nothing was done"
                )
        self.history = more

    def state(self) -> bytes:
        """The history, in JSON: what a hospital carries from one round to the next. Its budget is the study's."""
        history = [[each.noise_multiplier, each.sample_rate, each.steps] for each in self.history]
        return json.dumps({"version": 1, "history": history}).encode()

    @classmethod
    def from_state(cls, budget: Budget | None, state: bytes, mechanism: Mechanism = "rdp") -> Accountant:
        """The accountant that goes on from :meth:`state`.

        Raises:
            StateError: it is something else.
        """
        try:
            table = json.loads(state)
            history = [Spent(float(noise), float(rate), steps) for noise, rate, steps in table["history"]]
            sound = table["version"] == 1 and all(
                each.noise_multiplier >= 0 and 0 < each.sample_rate <= 1 and type(each.steps) is int and each.steps > 0
                for each in history
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise StateError("privacy: expected the history of an accountant, came something else")
        return cls(budget, mechanism, history)


def noise_for(
    budget: Budget, sample_rate: float, steps: int, mechanism: Mechanism = "rdp", tolerance: float = 0.005
) -> float:
    """The least noise multiplier with which so many steps stay within the budget.

    Args:
        tolerance: how much of epsilon may be left over, as a part of it.

    Raises:
        BudgetError: no noise multiplier up to 10^5 is enough.
    """
    low, high = 0.0, 1.0
    while not _epsilon((Spent(high, sample_rate, steps),), budget.delta, mechanism) <= budget.epsilon:
        low, high = high, 2 * high
        if high > 1e5:
            raise BudgetError(f"privacy: no noise keeps {steps} steps within epsilon {budget.epsilon:g}")
    while high - low > tolerance * high * 0.1:
        middle = (low + high) / 2
        spent = _epsilon((Spent(middle, sample_rate, steps),), budget.delta, mechanism)
        if spent <= budget.epsilon:
            high = middle
            if spent >= (1 - tolerance) * budget.epsilon:
                break
        else:
            low = middle
    return high


def _and(history: tuple[Spent, ...], more: Spent) -> tuple[Spent, ...]:
    last = history[-1] if history else None
    if last and (last.noise_multiplier, last.sample_rate) == (more.noise_multiplier, more.sample_rate):
        return (*history[:-1], Spent(last.noise_multiplier, last.sample_rate, last.steps + more.steps))
    return (*history, more)


def _epsilon(history: tuple[Spent, ...], delta: float, mechanism: Mechanism) -> float:
    if not history:
        return 0.0
    return _by_rdp(history, delta) if mechanism == "rdp" else _by_prv(history, delta)


def _by_rdp(history: tuple[Spent, ...], delta: float) -> float:
    import numpy as np
    from opacus.accountants.analysis.rdp import get_privacy_spent

    spent: Any = sum(each.steps * np.asarray(_a_step(each.noise_multiplier, each.sample_rate)) for each in history)
    with as_opacus_reckons():
        epsilon, _ = get_privacy_spent(orders=ORDERS, rdp=spent, delta=delta)
    return float(epsilon)


@contextmanager
def as_opacus_reckons() -> Iterator[None]:
    """Without its warnings: where the largest order is the best one the bound still holds, and the logarithm of zero
    that PRV takes is of an event that cannot be."""
    import numpy as np

    with warnings.catch_warnings(), np.errstate(divide="ignore"):
        warnings.filterwarnings("ignore", message="Optimal order is the (largest|smallest) alpha")
        yield


@cache
def _a_step(noise_multiplier: float, sample_rate: float) -> tuple[float, ...]:
    """Renyi divergence of one step at each order."""
    from opacus.accountants.analysis.rdp import compute_rdp

    rdp: Any = compute_rdp(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=ORDERS)
    return tuple(map(float, rdp))


@cache
def _by_prv(history: tuple[Spent, ...], delta: float) -> float:
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = [(each.noise_multiplier, each.sample_rate, each.steps) for each in history]
    with as_opacus_reckons():
        return float(accountant.get_epsilon(delta=delta, eps_error=prv_error(history, delta)))


def prv_error(history: tuple[Spent, ...], delta: float) -> float:
    """How finely privacy loss is discretised: the bound lies above epsilon by up to twice that."""
    return min(PRV_ERROR, PRV_PART * _by_rdp(history, delta))
