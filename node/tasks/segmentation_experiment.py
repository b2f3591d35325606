"""The segmentation task with the noise of a published system, for experiments with public data.

``percentile``: the update is cut at a percentile of its own absolute values and Gaussian noise in proportion to that
threshold is added. **This is no differential privacy:** the threshold is computed from the patients' data and scales
the noise, so it tells of them, and what one patient may change is bounded by nothing. It is here to be compared with,
and no built-in task has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from node.settings import Settings
from node.tasks.base import Setup, TrainingRound
from node.tasks.options import apart
from node.tasks.segmentation import SegmentationTask


class PercentileOptions(Settings):
    """Where an update is cut, and the deviation of the noise in thresholds."""

    cut: float = Field(default=90.0, gt=0, le=100, description="a number above 0, at most 100")
    noise: float = Field(default=0.1, ge=0, description="a number of at least 0")


class NoiseOptions(Settings):
    """What ``[task.options]`` has beside those of a segmentation."""

    percentile: PercentileOptions = Field(description="a table such as { cut = 90.0, noise = 0.1 }")


class SegmentationExperimentTask(SegmentationTask):
    """One party of the experiment."""

    trains_privately = False

    def __init__(self, setup: Setup) -> None:
        self._noise, options = apart(NoiseOptions, setup.options)
        super().__init__(replace(setup, options=options))

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(apart(NoiseOptions, options)[1])

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the segmentation task, with noise."""
        update = super().train(model, round)
        threshold = float(np.percentile(np.abs(update), self._noise.percentile.cut))
        noise = np.random.default_rng().normal(0.0, self._noise.percentile.noise * threshold, update.shape)
        return (np.clip(update, -threshold, threshold) + noise).astype(np.float32)
