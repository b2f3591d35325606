"""Random updates of any size, for tests of load and scale. Needs neither data nor torch."""

import os
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from node.settings import Settings, problems
from node.tasks.base import Evaluation, EvaluationSpec, Measure, OptionsError, Setup, Task, TrainingRound

_MOST_RMS = 1000.0


class SyntheticOptions(Settings):
    """``[task.options]`` of a synthetic study."""

    params: int = Field(
        default=10_000,
        ge=1,
        le=1_000_000_000,
        description="a whole number of parameters from 1 to 1000000000",
    )
    scale: float = Field(default=0.5, gt=0, description="a number above 0")
    seconds: float = Field(default=0.0, ge=0, le=600, description="a number of seconds from 0 to 600")


class SyntheticTask(Task):
    """Updates are uniform in [-scale, scale], fresh from the operating system's randomness each round.

    With ``seconds`` a training takes so long, all of it asleep.
    """

    def __init__(self, setup: Setup) -> None:
        options = _options(setup.options)
        self.examples = 1
        self.parameters = options.params
        self._scale = np.float32(options.scale)
        self._seconds = options.seconds

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        generator = np.random.default_rng(int.from_bytes(os.urandom(32), "little"))
        update = generator.random(self.parameters, np.float32)  # in place below: a model may be large
        update -= np.float32(0.5)
        update *= 2 * self._scale
        if self._seconds:
            time.sleep(self._seconds)
        return update

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(measures=(Measure("rms", 0.0, _MOST_RMS),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """One example, whose measure is the root of the model's mean square."""
        rms = float(np.sqrt(np.mean(np.square(model, dtype=np.float64))))
        return Evaluation(1, measures={"rms": min(rms, _MOST_RMS)})


def _options(table: Mapping[str, Any]) -> SyntheticOptions:
    try:
        return SyntheticOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(SyntheticOptions, error)) from None
