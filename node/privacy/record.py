"""Record-level privacy in a federation: what a task trains with, under the one account of its hospital."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

from node.privacy.accountant import Accountant, StateError, noise_for
from node.privacy.budget import Budget
from node.privacy.dpsgd import Recipe, train
from node.privacy.settings import PrivacySettings


class RecordLevel:
    """:class:`node.tasks.base.PrivateTraining`: DP-SGD with noise with which the budget lasts for all rounds.

    Attributes:
        accountant: over all rounds of the study here; what it says is spent includes this one, once it is trained.

    With ``[privacy.adaptive]`` the clip of gradients moves from step to step, and from round to round.
    """

    def __init__(self, settings: PrivacySettings, rounds: int, spent: bytes) -> None:
        """``spent``: the accountant's state after the last round here; empty before the first.

        Raises:
            StateError: that is something else.
        """
        assert settings.epsilon is not None
        assert settings.delta is not None
        self._budget = Budget(settings.epsilon, settings.delta)
        self._settings, self._rounds = settings, rounds
        self.accountant = Accountant.from_state(self._budget, spent) if spent else Accountant(self._budget)
        self._before = self.accountant.history
        assert settings.clip is not None
        self._clip = _clip_of(spent) or settings.clip

    @property
    def was_used(self) -> bool:
        return self.accountant.history != self._before

    def entry(self, round_: int) -> dict[str, Any]:
        """For the hospital's own ledger: what is spent with this round, and the account to go on with."""
        last = self.accountant.history[-1]
        return {
            "what": "privacy",
            "unit": "record",
            "round": round_,
            "epsilon": self.accountant.epsilon(),
            "delta": self._budget.delta,
            "budget": self._budget.epsilon,
            "noise_multiplier": last.noise_multiplier,
            "steps": sum(each.steps for each in self.accountant.history),
            "account": self._state(),
        }

    def _state(self) -> str:
        """The accountant's, and where an adaptive clip is: it follows from numbers with noise, and is charged."""
        state = self.accountant.state().decode()
        return json.dumps({**json.loads(state), "clip": self._clip}) if self._settings.adaptive else state

    def _noise_so_far(self, sample_rate: float) -> float | None:
        """What the first round found, which planned for all of them."""
        last = self._before[-1] if self._before else None
        return last.noise_multiplier if last and last.sample_rate == sample_rate else None

    def train(
        self,
        module: Any,
        x: Any,
        y: Any,
        loss: Callable[[Any, Any], Any],
        *,
        learning_rate: float,
        batch_size: int,
        epochs: int,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
    ) -> None:
        """Train ``module`` where it lies.

        Raises:
            BudgetError: the next step would pass the budget; the hospital contributes nothing then.
        """
        shape = Recipe(learning_rate, batch_size, epochs, self._clip, 1.0)
        rate, steps = shape.sample_rate(len(y)), self._rounds * epochs * shape.batches(len(y))
        noise = self._settings.noise_multiplier or self._noise_so_far(rate) or noise_for(self._budget, rate, steps)
        adaptive = self._settings.adaptive.clip if self._settings.adaptive else None
        recipe = Recipe(learning_rate, batch_size, epochs, self._clip, noise, momentum, weight_decay, adaptive)
        self._clip = train(module, x, y, loss, recipe, self.accountant).clip


def _clip_of(spent: bytes) -> float | None:
    """Where the clip was after the last round, if it moves."""
    if not spent or "clip" not in (table := json.loads(spent)):
        return None
    clip = table["clip"]
    if not isinstance(clip, float) or not math.isfinite(clip) or clip <= 0:
        raise StateError("privacy: expected the clip of gradients, came something else")
    return clip
