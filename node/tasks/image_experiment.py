"""The image task with batches from public seeds, for experiments with public data that are to be repeated.

As in ``heart_risk``, one federation can run many repetitions back to back: with ``rounds_per_repetition = 5`` round 6
begins anew, from a first model that follows from the seed and is the same for all parties.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from node.settings import problems
from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.heart_risk import RepetitionOptions, party_number
from node.tasks.image import ImageTask


class ImageExperimentTask(ImageTask):
    """One party of the experiment. ``[data]`` has ``party = "3"`` besides, a number from which its batches follow."""

    def __init__(self, setup: Setup) -> None:
        own, options = _options(setup.options)
        data = dict(setup.data)
        self._each, self._party = own.rounds_per_repetition, party_number(data.pop("party", None))
        super().__init__(replace(setup, options=options, data=data))
        if self._options.features is None:
            raise TaskError(f"{setup.party}: expected a study of a head on features, came {self._options.model}")

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(_options(options)[1])

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the image task; the first round of a repetition is from a first model."""
        import torch

        repetition, step = divmod(round.number - 1, self._each)
        start = first_head(self._seed, repetition, self.parameters, self._train.x.shape[1]) if step == 0 else model
        order = np.random.SeedSequence([self._seed, repetition, self._party, step]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(order) >> 1)
            trained = start + super().train(start, round)
        return trained - model


def first_head(seed: int, repetition: int, parameters: int, features: int) -> NDArray[np.float32]:
    """As ``torch.nn.Linear`` draws it, (parameters,): uniform within 1/sqrt(features). From public seeds only."""
    bound = features**-0.5
    return np.random.default_rng([seed, repetition]).uniform(-bound, bound, parameters).astype(np.float32)


def _options(table: Mapping[str, Any]) -> tuple[RepetitionOptions, dict[str, Any]]:
    """Those of the experiment, and those of the image task."""
    rest = dict(table)
    mine = {key: rest.pop(key) for key in RepetitionOptions.model_fields if key in rest}
    try:
        return RepetitionOptions.model_validate(mine), rest
    except ValidationError as error:
        raise OptionsError(problems(RepetitionOptions, error)) from None
