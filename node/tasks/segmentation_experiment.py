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
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from node.settings import Settings
from node.tasks.base import Setup, TrainingRound
from node.tasks.options import apart
from node.tasks.record_privacy import RecordOptions, train_by_record
from node.tasks.segmentation import SegmentationTask


class PercentileOptions(Settings):
    """Where an update is cut, and the deviation of the noise in thresholds."""

    cut: float = Field(default=90.0, gt=0, le=100, description="a number above 0, at most 100")
    noise: float = Field(default=0.1, ge=0, description="a number of at least 0")


class NoiseOptions(Settings):
    """What ``[task.options]`` has beside those of a segmentation: one of the two."""

    record: RecordOptions | None = Field(default=None, description="a table such as { epsilon = 8.0, delta = 1e-3 }")
    percentile: PercentileOptions | None = Field(
        default=None, description="a table such as { cut = 90.0, noise = 0.1 }"
    )

    @model_validator(mode="after")
    def _one(self) -> NoiseOptions:
        if (self.record is None) == (self.percentile is None):
            raise ValueError("expected one of record and percentile, came both or none")
        return self


class SegmentationExperimentTask(SegmentationTask):
    """One party of the experiment."""

    def __init__(self, setup: Setup) -> None:
        self._noise, options = apart(NoiseOptions, setup.options)
        self._account: bytes | None = None
        super().__init__(replace(setup, options=options))

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(apart(NoiseOptions, options)[1])

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the segmentation task, with noise."""
        if self._noise.record is not None:
            return self._by_record(model, round, self._noise.record)
        assert self._noise.percentile is not None
        update = super().train(model, round)
        threshold = float(np.percentile(np.abs(update), self._noise.percentile.cut))
        noise = np.random.default_rng().normal(0.0, self._noise.percentile.noise * threshold, update.shape)
        return (np.clip(update, -threshold, threshold) + noise).astype(np.float32)

    def carry(self) -> bytes | None:
        """The accountant's history: it is one over all rounds."""
        return self._account

    def _by_record(
        self, model: NDArray[np.float32], round: TrainingRound, record: RecordOptions
    ) -> NDArray[np.float32]:
        from node.privacy.dpsgd import Recipe
        from node.tasks.networks import flat, loaded
        from node.tasks.unet import Pieces, loss

        options = self._options
        pieces = Pieces([(each.x, each.masks) for each in self._train], options.size, options.patches, options.flips)
        x, masks = pieces.take(range(len(pieces)))
        rate = options.learning_rate * round.rate
        recipe = Recipe(rate, options.batch_size, options.local_epochs, 1.0, 0.0, options.momentum)
        network = loaded(options.network(), model)
        self._account = train_by_record(network, x, masks, loss, recipe, record, round.rounds, round.carried)
        return flat(network) - model
