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

from node.settings import Settings
from node.tasks.base import Setup, TaskError, TrainingRound
from node.tasks.heart_risk import RepetitionOptions, party_number
from node.tasks.image import ImageTask
from node.tasks.options import apart
from node.tasks.record_privacy import RecordOptions, train_by_record


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
    """What ``[task.options]`` has beside those of an image task."""

    record: RecordOptions | None = Field(default=None, description="a table such as { epsilon = 6.0, delta = 1e-4 }")
    rounds_in_all: int = Field(ge=1, description="a whole number above 0")


class ContinuedImageTask(ImageTask):
    """The image task, from a model that an earlier run ended with: a long schedule in several federations.

    ``[data]`` has ``start = "model.npy"`` besides, the same at every party; left away: from the beginning. With
    ``record`` each hospital trains by DP-SGD. Its noise is that of all rounds; an accountant is of one federation, and
    what is spent in several adds up to the budget by ``rounds_in_all``.
    """

    def __init__(self, setup: Setup) -> None:
        self._continued, options = apart(ContinuedOptions, setup.options)
        self._account: bytes | None = None
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
        """As the image task, or by DP-SGD."""
        record, options = self._continued.record, self._options
        if record is None:
            return super().train(model, round)
        import torch
        from torch.nn.functional import cross_entropy

        from node.privacy.dpsgd import Recipe
        from node.tasks.networks import flat

        network = self._network(model)
        x = torch.from_numpy(self._train.x).permute(0, 3, 1, 2).float() / 127.5 - 1
        y = torch.from_numpy(self._train.y)
        rate = options.learning_rate * round.rate
        recipe = Recipe(rate, options.batch_size, options.local_epochs, 1.0, 0.0, options.momentum)
        rounds = self._continued.rounds_in_all
        self._account = train_by_record(network, x, y, cross_entropy, recipe, record, rounds, round.carried)
        return flat(network) - model

    def carry(self) -> bytes | None:
        """The accountant's history."""
        return self._account
