"""The image task with batches from public seeds, for experiments with public data that are to be repeated.

As in ``heart_risk``, one federation can run many repetitions back to back: with ``rounds_per_repetition = 5`` round 6
begins anew, from a first model that follows from the seed and is the same for all parties.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from node.optimiser import RateSchedule
from node.settings import Settings
from node.tasks.base import Setup, TaskError, TrainingRound
from node.tasks.heart_risk import RepetitionOptions, party_number
from node.tasks.image import ImageTask
from node.tasks.options import apart


class ImageExperimentTask(ImageTask):
    """One party of the experiment. ``[data]`` has ``party = "3"`` besides, a number from which its batches follow."""

    def __init__(self, setup: Setup) -> None:
        own, options = apart(RepetitionOptions, setup.options)
        data = dict(setup.data)
        self._each, self._party = own.rounds_per_repetition, party_number(data.pop("party", None))
        super().__init__(replace(setup, options=options, data=data))
        if self._options.features is None:
            raise TaskError(f"{setup.party}: expected a study of a head on features, came {self._options.model}")

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(apart(RepetitionOptions, options)[1])

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


class ContinuedOptions(Settings):
    """What ``[task.options]`` has beside those of an image task: where in a long schedule its first round is."""

    rounds_before: int = Field(default=0, ge=0, description="a whole number")
    rounds_in_all: int = Field(ge=1, description="a whole number above 0")
    warmup_rounds: int = Field(default=0, ge=0, description="a whole number")


class ContinuedImageTask(ImageTask):
    """The image task, from a model that an earlier run ended with: a long schedule in several federations.

    ``[data]`` has ``start = "model.npy"`` besides, the same at every party; left away: from the beginning. The learning
    rate falls as half a cosine over all rounds, after a warm-up; the study's own schedule is to be constant.
    """

    def __init__(self, setup: Setup) -> None:
        self._continued, options = apart(ContinuedOptions, setup.options)
        data = dict(setup.data)
        start = data.pop("start", None)
        super().__init__(replace(setup, options=options, data=data))
        self._start = super().initial() if start is None else np.load(setup.home / start, allow_pickle=False)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(apart(ContinuedOptions, options)[1])

    def initial(self) -> NDArray[np.float32]:
        """Where the earlier run ended."""
        return self._start.astype(np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the image task."""
        own = self._continued
        number = own.rounds_before + round.number
        rate = RateSchedule("cosine", own.warmup_rounds).rate(number, own.rounds_in_all)
        return super().train(model, replace(round, number=number, rounds=own.rounds_in_all, rate=rate))


class RepeatableOptions(Settings):
    """What ``[task.options]`` has beside those of an image task."""

    grid: float = Field(gt=0, description="a number above 0: the step of the study's grid")


class RepeatableImageTask(ImageTask):
    """The image task so that another program can make the very same update: batches follow from public seeds, and each
    value is a multiple of the grid's step, which random rounding leaves as it is.

    ``[data]`` has ``party = "3"`` besides, a number from which the batches follow.
    """

    def __init__(self, setup: Setup) -> None:
        own, options = apart(RepeatableOptions, setup.options)
        data = dict(setup.data)
        self._grid, self._party = own.grid, party_number(data.pop("party", None))
        super().__init__(replace(setup, options=options, data=data))

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        super().check_options(apart(RepeatableOptions, options)[1])

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """As the image task, brought to the grid."""
        import torch

        order = np.random.SeedSequence([self._seed, self._party, round.number]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(order) >> 1)
            update = super().train(model, round).astype(np.float64)
        return (np.rint(update / self._grid) * self._grid).astype(np.float32)
