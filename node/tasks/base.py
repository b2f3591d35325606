"""What a learning task is. numpy only: a node may have neither torch nor pandas."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError


class TaskError(WardtreeError):
    """A task cannot work with this hospital's data or with what it was given; the text is one line."""


class OptionsError(TaskError):
    """The study's ``[task.options]`` are wrong: one line for each of ``problems``, each naming its key."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True)
class Setup:
    """What a task is made from.

    ``options`` are the study's ``[task.options]`` and ``seed`` the study's, the same at every party;
    ``data`` is this hospital's own ``[data]`` table ({} when it has none), ``home`` the folder of its node.
    """

    party: str
    options: Mapping[str, Any]
    data: Mapping[str, Any]
    seed: int
    home: Path


@dataclass(frozen=True)
class StatisticsSpec:
    """The vector of statistics that is summed over the parties before training.

    ``length`` values, none of one party's above ``bound`` in absolute value. Both follow from the
    options only: a spec that depended on data would tell of it, and parties must agree on it.
    """

    length: int
    bound: float


@dataclass(frozen=True)
class TrainingRound:
    """Round ``number`` of 1..``rounds`` (0 where the first model is evaluated).

    ``statistics`` is the published sum over ``parties`` parties, None for a task without statistics.
    """

    number: int
    rounds: int
    statistics: NDArray[np.float64] | None
    parties: int


class Task(Protocol):
    """One hospital's learning task.

    Inherit from it to get what a task without options and statistics needs, or only look like it.
    ``examples`` counts all rows of this hospital, ``parameters`` the values of the flat model.
    """

    examples: int
    parameters: int

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Load this hospital's data. Raises TaskError."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise OptionsError unless ``options`` can be used; reads no data."""
        if options:
            raise OptionsError([f"{key}: unknown key; this task has no options" for key in options])

    def statistics_spec(self) -> StatisticsSpec | None:
        """What ``statistics`` gives, or None for a task without any."""
        return None

    def statistics(self) -> NDArray[np.float64]:
        """This party's own values, (length,), to be summed in the tree; never published by themselves."""
        return np.zeros(0)

    @abstractmethod
    def initial(self) -> NDArray[np.float32]:
        """The first model, (parameters,): identical at every party, so from the seed only."""

    @abstractmethod
    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """The update, (parameters,): the model trained on this party's data minus ``model``."""

    @abstractmethod
    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> dict[str, float]:
        """Figures of ``model`` on this party's held-out data."""
