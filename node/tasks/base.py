"""What a learning task is. numpy only: a node may have neither torch nor pandas."""

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


class PrivateTraining(Protocol):
    """DP-SGD under the account of this hospital: where the study asks for record-level privacy, a task trains with it
    and with nothing else."""

    @abstractmethod
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
        """Train a torch ``module`` where it lies: on ``y``, (rows, ...), from ``x``, (rows, ...), with ``loss``, a mean
        over rows. Raises BudgetError before the step that would pass the budget; let it pass."""


@dataclass(frozen=True)
class TrainingRound:
    """Round ``number`` of 1..``rounds`` of training; where a model is evaluated, the last round behind it, from 0.

    ``statistics`` is the published sum over ``parties`` parties, None for a task without statistics. ``rate`` is the
    factor by which the study's schedule multiplies the task's learning rate in this round. ``carried`` is what the
    task's ``carry`` gave after its last round here, None before the first and after a restart of the node. ``private``
    is what to train with under record-level privacy.
    """

    number: int
    rounds: int
    statistics: NDArray[np.float64] | None
    parties: int
    rate: float = 1.0
    carried: bytes | None = None
    private: PrivateTraining | None = None


@dataclass(frozen=True)
class Measure:
    """A figure of one example, such as a loss or a Dice score, within ``low`` and ``high``."""

    name: str
    low: float
    high: float


@dataclass(frozen=True)
class EvaluationSpec:
    """What ``evaluate`` measures: the scores of ``classes`` classes (0: none; at least 2), and means of ``measures``.

    Both follow from the options only, like a :class:`StatisticsSpec`.
    """

    classes: int = 0
    measures: tuple[Measure, ...] = ()


@dataclass(frozen=True)
class Evaluation:
    """A model on one party's held-out examples.

    ``labels``, shape (examples,), are class numbers from 0; ``scores``, (examples, classes), or (examples,) for the
    second of two classes, are from 0 to 1. ``measures`` has the mean of each measure over the examples.
    """

    examples: int
    labels: NDArray[np.integer[Any]] | None = None
    scores: NDArray[np.floating[Any]] | None = None
    measures: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """One hospital's learning task.

    Inherit from it to get what a task without options and statistics needs, or only look like it.
    ``examples`` counts all rows of this hospital, ``parameters`` the values of the flat model: those that are shared.
    What stays at the hospital, as normalisation buffers or a head of its own, goes into ``carry``.
    """

    examples: int
    parameters: int
    trains_privately: bool = False
    """Whether ``train`` uses ``round.private`` where there is one."""

    @abstractmethod
    def __init__(self, setup: Setup) -> None:
        """Load this hospital's data. Raises TaskError."""

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        """Raise OptionsError unless ``options`` can be used; reads no data."""
        if options:
            raise OptionsError([f"{key}: unknown key; this task has no options" for key in options])

    @classmethod
    def has_statistics(cls, options: Mapping[str, Any]) -> bool:
        """Whether ``statistics_spec`` gives one with these options: asked before anyone signs."""
        return cls.statistics_spec is not Task.statistics_spec

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

    def carry(self) -> bytes | None:
        """After ``train``: what this party's next round is to begin with, as an optimiser's state or layers of its own.

        It is sealed before it leaves the enclave, under a key that only enclaves of this node have.
        """
        return None

    def evaluation_spec(self) -> EvaluationSpec | None:
        """What ``evaluate`` gives, or None for a task that a study cannot have evaluated by all together."""
        return None

    @abstractmethod
    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """``model`` on this party's held-out data. Only sums over all parties leave the hospital, and only where the
        study has an evaluation."""
