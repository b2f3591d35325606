"""DP-SGD in the tasks of experiments: each hospital trains by Opacus under its own accountant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pydantic import Field

from node.privacy.accountant import Accountant, noise_for
from node.privacy.budget import Budget
from node.privacy.dpsgd import Recipe, train
from node.settings import Settings


class RecordOptions(Settings):
    """What one image's contribution to all of a hospital's rounds is hidden by."""

    epsilon: float = Field(gt=0, description="a number above 0")
    delta: float = Field(gt=0, lt=1, description="a number between 0 and 1")
    gradient_clip: float = Field(default=1.0, gt=0, description="a number above 0")


def train_by_record(
    network: Any,
    x: Any,
    y: Any,
    loss: Callable[[Any, Any], Any],
    recipe: Recipe,
    options: RecordOptions,
    rounds: int,
    carried: bytes | None,
) -> bytes:
    """One round of ``rounds`` among which the budget is divided evenly; ``recipe`` gets its clip and noise here.

    Args:
        carried: what the round before gave; None in the first.

    Returns:
        The accountant's history, to be carried to the next round.

    Raises:
        BudgetError: the rounds before have spent the budget.
    """
    budget = Budget(options.epsilon, options.delta)
    steps = recipe.batches(len(y)) * recipe.epochs * rounds
    multiplier = noise_for(budget, recipe.sample_rate(len(y)), steps)
    recipe = replace(recipe, clip=options.gradient_clip, noise_multiplier=multiplier)
    accountant = Accountant.from_state(budget, carried) if carried else Accountant(budget)
    train(network, x, y, loss, recipe, accountant)
    return accountant.state()
