"""Logistic regression by full-batch steps, as in the published experiment on coronary heart disease.

A party's file holds numbers only: a header, columns that are scaled already, and last the outcome, 0 or 1. A round is
one step of gradient descent on all of its rows. One federation can run many repetitions of an experiment back to
back: with ``rounds_per_repetition = 5`` round 6 begins anew, from a first model of each party's own, and the mean of
those after their first step is the next model.
"""

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from node.settings import Settings, problems, shown
from node.tasks.base import Evaluation, OptionsError, PrivateTraining, Setup, Task, TaskError, TrainingRound

_PARTY = r"^[1-9][0-9]{0,3}$"


class RepetitionOptions(Settings):
    """How many rounds a repetition of an experiment takes."""

    rounds_per_repetition: int = Field(default=5, ge=1, description="a whole number above 0")


class HeartRiskOptions(RepetitionOptions):
    """``[task.options]`` of the experiment."""

    features: int = Field(default=9, ge=1, description="a whole number above 0")
    learning_rate: float = Field(default=1.0, gt=0, description="a number above 0")


class HeartRiskData(Settings):
    """``[data]``: this party's rows, and its number among the parties, from which its first models follow."""

    csv: str = Field(min_length=1, description="the path of a CSV file")
    party: str = Field(pattern=_PARTY, description='a number such as "3"')


@dataclass(frozen=True)
class Patients:
    """``x`` (rows, features + 1), z-scores and a last column of ones for the bias; ``y`` (rows,), 1.0 for ill."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def accuracy(self, models: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Of models (..., features + 1): the share of patients that each has right."""
        right = (self.y == 1) == (self.x @ np.asarray(models, np.float64).T > 0).T
        return np.asarray(right.mean(axis=-1))

    def take(self, rows: NDArray[np.int64]) -> "Patients":
        return Patients(self.x[rows], self.y[rows])

    def write(self, path: Path, features: tuple[str, ...]) -> None:
        """The file that :func:`read_patients` reads, bit for bit."""
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*features, "outcome"])
            writer.writerows([*map(repr, row[:-1].tolist()), int(ill)] for row, ill in zip(self.x, self.y, strict=True))


def read_patients(path: Path, features: int) -> Patients:
    """The rows of a party's file. Raises TaskError, which quotes no value."""
    try:
        with path.open(newline="") as file:
            rows = list(csv.reader(file))[1:]
        table = np.array(rows, np.float64)
    except OSError as error:
        raise TaskError(f"{path}: expected a readable CSV file: {error.strerror}") from None
    except ValueError:
        raise TaskError(f"{path}: expected a header and rows of numbers, came something else") from None
    if table.ndim != 2 or table.shape[1] != features + 1 or not np.isfinite(table).all():
        raise TaskError(f"{path}: expected rows of {features} finite numbers and an outcome, came others or none")
    if not np.isin(table[:, -1], (0, 1)).all():
        raise TaskError(f"{path}: expected outcomes 0 and 1 in the last column, came another")
    return Patients(np.column_stack([table[:, :-1], np.ones(len(table))]), table[:, -1])


def party_number(value: object) -> int:
    """The ``party`` of an experiment's ``[data]``. Raises TaskError."""
    if not isinstance(value, str) or not re.fullmatch(_PARTY, value):
        raise TaskError(f'data.party: expected a number such as "3", came {shown(value)}')
    return int(value)


def first_model(seed: int, repetition: int, party: int, features: int) -> NDArray[np.float64]:
    """As ``torch.nn.Linear(features, 1)`` draws it, shape (features + 1,): uniform within 1/sqrt(features).

    From public seeds only: nothing here is a secret, and the experiment is to be repeatable.
    """
    bound = features**-0.5
    return np.random.default_rng([seed, repetition, party]).uniform(-bound, bound, features + 1)


class HeartRiskTask(Task):
    """One party of the experiment."""

    trains_privately = True

    def __init__(self, setup: Setup) -> None:
        self._options = _options(setup.options)
        try:
            data = HeartRiskData.model_validate(dict(setup.data))
        except ValidationError as error:
            raise TaskError("; ".join(problems(HeartRiskData, error, "data"))) from None
        self._rows = read_patients(setup.home / data.csv, self._options.features)
        self._seed, self._party = setup.seed, int(data.party)
        self.examples = len(self._rows.y)
        self.parameters = self._options.features + 1

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    @classmethod
    def layout(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """The model's tensors in their order, for an export."""
        return {"weight": (1, _options(options).features), "bias": (1,)}

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """One step on all rows; the first of a repetition is from a model of one's own."""
        repetition, step = divmod(round.number - 1, self._options.rounds_per_repetition)
        start = model.astype(np.float64)
        if step == 0:
            start = first_model(self._seed, repetition, self._party, self._options.features)
        if round.private:
            return self._step_privately(start, round.private) - model
        predicted = 1 / (1 + np.exp(-self._rows.x @ start))
        gradient = self._rows.x.T @ (predicted - self._rows.y) / len(self._rows.y)
        update: NDArray[np.float32] = (start - self._options.learning_rate * gradient - model).astype(np.float32)
        return update

    def _step_privately(self, start: NDArray[np.float64], private: PrivateTraining) -> NDArray[np.float32]:
        """The model after one step of DP-SGD on all rows."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        x, y, begun = (torch.from_numpy(each).float() for each in (self._rows.x[:, :-1], self._rows.y[:, None], start))
        layer = torch.nn.Linear(self._options.features, 1)
        with torch.no_grad():
            layer.weight.copy_(begun[None, :-1])
            layer.bias.copy_(begun[-1:])
        rate, everyone = self._options.learning_rate, len(y)
        private.train(layer, x, y, binary_cross_entropy_with_logits, learning_rate=rate, batch_size=everyone, epochs=1)
        trained: NDArray[np.float32] = torch.cat([layer.weight[0], layer.bias]).detach().numpy()
        return trained

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """On the party's own rows: the held-out ones are not among them."""
        scores = 1 / (1 + np.exp(-self._rows.x @ model.astype(np.float64)))
        return Evaluation(len(self._rows.y), self._rows.y.astype(np.int64), scores)


def _options(table: Mapping[str, Any]) -> HeartRiskOptions:
    try:
        return HeartRiskOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(HeartRiskOptions, error)) from None
