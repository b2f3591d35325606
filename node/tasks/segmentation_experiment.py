"""The segmentation task with privacy of its own, for experiments with public data.

``record``: DP-SGD by Opacus, under one accountant over all rounds: neighbours differ by one image.

``percentile``: noise as a published system describes it. The update is cut at a percentile of its own absolute values
and Gaussian noise in proportion to that threshold is added. **This is no differential privacy:** the threshold is
computed from the patients' data and scales the noise, so it tells of them, and what one patient may change is bounded
by nothing. It is here to be compared with, and no built-in task has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.privacy.accountant import Accountant, noise_for
from node.privacy.budget import Budget
from node.settings import Settings, problems
from node.tasks.base import OptionsError, Setup, TrainingRound
from node.tasks.segmentation import SegmentationTask


class NoiseOptions(Settings):
    """What ``[task.options]`` has beside those of a segmentation."""

    mechanism: Literal["record", "percentile"] = Field(description='"record" or "percentile"')
    epsilon: float | None = Field(default=None, gt=0, description="a number above 0")
    delta: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")
    gradient_clip: float = Field(default=1.0, gt=0, description="a number above 0")
    percentile: float = Field(default=90.0, gt=0, le=100, description="a number above 0, at most 100")
    noise: float = Field(default=0.1, ge=0, description="a number of at least 0: of the noise, in thresholds")

    @model_validator(mode="after")
    def _budget(self) -> NoiseOptions:
        if self.mechanism == "record" and (self.epsilon is None or self.delta is None):
            raise ValueError('mechanism = "record": expected epsilon and delta, came none')
        return self


class SegmentationExperimentTask(SegmentationTask):
    """One party of the experiment."""

    def __init__(self, setup: Setup) -> None:
        self._noise, options = _options(setup.options)
        self._account: bytes | None = None
        super().__init__(replace(setup, options=options))

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(_options(options)[1])

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the segmentation task, with noise."""
        if self._noise.mechanism == "record":
            return self._by_record(model, round)
        update = super().train(model, round)
        threshold = float(np.percentile(np.abs(update), self._noise.percentile))
        noise = np.random.default_rng().normal(0.0, self._noise.noise * threshold, update.shape)
        return (np.clip(update, -threshold, threshold) + noise).astype(np.float32)

    def carry(self) -> bytes | None:
        """The accountant's history: it is one over all rounds."""
        return self._account

    def _by_record(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        from node.privacy.dpsgd import Recipe, train
        from node.tasks.unet import Pieces, flat, loaded, loss

        options, noise = self._options, self._noise
        assert noise.epsilon is not None
        assert noise.delta is not None
        pieces = Pieces([(each.x, each.masks) for each in self._train], options.size, options.patches, options.flips)
        x, masks = pieces.take(range(len(pieces)))
        recipe = Recipe(
            options.learning_rate * round.rate, options.batch_size, options.local_epochs, noise.gradient_clip, 1.0,
            options.momentum,
        )  # fmt: skip
        steps = recipe.batches(len(x)) * options.local_epochs * round.rounds
        budget = Budget(noise.epsilon, noise.delta)
        multiplier = noise_for(budget, recipe.sample_rate(len(x)), steps)
        accountant = Accountant.from_state(budget, round.carried) if round.carried else Accountant(budget)
        network = loaded(options.network(), model)
        train(network, x, masks, loss, replace(recipe, noise_multiplier=multiplier), accountant)
        self._account = accountant.state()
        return flat(network) - model


def _options(table: Mapping[str, Any]) -> tuple[NoiseOptions, dict[str, Any]]:
    """Those of the noise, and those of the segmentation task."""
    rest = dict(table)
    mine = {key: rest.pop(key) for key in NoiseOptions.model_fields if key in rest}
    try:
        return NoiseOptions.model_validate(mine), rest
    except ValidationError as error:
        raise OptionsError(problems(NoiseOptions, error)) from None
