"""Logistic regression on a hospital's table.

Each feature becomes one column (a number) or one column per level (a category), scaled to [-1, 1] by what the
study says of it. Missing cells get the mean, and all columns are scaled by the standard deviation, of all
hospitals together: both come from sums that are published, never from one hospital's own. With ``scaling = "range"``
no sums are published, as privacy may ask for: columns stay as the study's ranges make them, missing cells are 0.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.data import DataError, Table, read_table
from node.settings import Settings, problems, shown
from node.tasks.base import (
    Evaluation,
    EvaluationSpec,
    Measure,
    OptionsError,
    PrivateTraining,
    Setup,
    StatisticsSpec,
    Task,
    TaskError,
    TrainingRound,
)

# A column that varies less than this (of its range [-1, 1], squared) is taken as constant: below it the variance
# would be made of the rounding of the published sums.
_LEAST_VARIANCE = 1e-3

_MOST_LOSS = 20.0


class Target(Settings):
    """The outcome: ill where the number is above ``positive_above``, or the text is one of ``positive``."""

    column: str = Field(description="the name of a column")
    positive_above: float | None = Field(default=None, description="a number")
    positive: list[str] | None = Field(default=None, min_length=1, description="a list of texts")

    @model_validator(mode="after")
    def _one_rule(self) -> "Target":
        if (self.positive_above is None) == (self.positive is None):
            raise ValueError("expected one of positive_above and positive, came both or none")
        return self


class Feature(Settings):
    """A number within ``range`` (outside: missing), or a category of ``levels``."""

    range: list[float] | None = Field(default=None, min_length=2, max_length=2, description="two numbers, [low, high]")
    levels: list[str] | None = Field(default=None, min_length=2, description="a list of two or more texts")

    @model_validator(mode="after")
    def _one_kind(self) -> "Feature":
        if (self.range is None) == (self.levels is None):
            raise ValueError("expected one of range and levels, came both or none")
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"expected range = [low, high] with low below high, came {shown(self.range)}")
        if self.levels is not None and len(set(self.levels)) < len(self.levels):
            raise ValueError(f"expected levels without a repetition, came {shown(self.levels)}")
        return self

    @property
    def width(self) -> int:
        return 1 if self.levels is None else len(self.levels)


class TabularOptions(Settings):
    """``[task.options]`` of a tabular study."""

    target: Target = Field(description='a table such as { column = "outcome", positive_above = 0 }')
    features: dict[str, Feature] = Field(
        min_length=1, description="a table of column = { range = [low, high] } or { levels = [...] }"
    )
    test_fraction: float = Field(default=0.3, gt=0, lt=1, description="a number above 0 and below 1")
    learning_rate: float = Field(default=0.05, gt=0, description="a number above 0")
    local_epochs: int = Field(default=5, ge=1, description="a whole number above 0")
    batch_size: int = Field(default=32, ge=1, description="a whole number above 0")
    l2: float = Field(default=0.001, ge=0, description="a number of at least 0")
    proximal: float = Field(default=0.0, ge=0, description="a number of at least 0")
    max_examples: int = Field(default=1000, ge=1, description="a whole number above 0")
    scaling: Literal["statistics", "range"] = Field(default="statistics", description='"statistics" or "range"')

    @model_validator(mode="after")
    def _outcome_is_no_feature(self) -> "TabularOptions":
        if self.target.column in self.features:
            raise ValueError(f"expected features without the target, came {self.target.column} among them")
        return self


@dataclass(frozen=True)
class Rows:
    """``x`` (rows, columns) in [-1, 1], NaN where missing; ``y`` (rows,), 1.0 for ill, else 0.0."""

    x: NDArray[np.float64]
    y: NDArray[np.float64]

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        return Rows(self.x[rows], self.y[rows])


class TabularTask(Task):
    """One hospital's logistic regression; the model is one weight per column, then the intercept."""

    def __init__(self, setup: Setup) -> None:
        options = _options(setup.options)
        try:
            table = read_table(setup.data, [options.target.column, *options.features], setup.home)
            rows = Rows(_encode(table, options.features), _outcome(table, options.target))
        except DataError as error:
            raise DataError(f"{setup.party}: {error}") from None
        if not 2 <= len(table) <= options.max_examples:
            raise TaskError(
                f"{setup.party}: {table.name}: expected 2 to max_examples = {options.max_examples} rows, "
                f"came {len(table)}"
            )
        train, test = _split(rows.y, options.test_fraction, setup.seed)
        self._hold(options, rows.take(train), rows.take(test))

    @classmethod
    def pool(cls, tasks: Sequence[Self]) -> Self:
        """The task of one hospital that had all patients: training rows and held-out rows stay what they were."""
        task = cls.__new__(cls)
        task._hold(tasks[0]._options, _join(t._train for t in tasks), _join(t._test for t in tasks))
        return task

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    @classmethod
    def layout(cls, options: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
        """The model's tensors in their order, for an export: a linear layer of one output."""
        columns = sum(feature.width for feature in _options(options).features.values())
        return {"weight": (1, columns), "bias": (1,)}

    @classmethod
    def features(
        cls, options: Mapping[str, Any], data: Mapping[str, Any], home: Path, statistics: NDArray[np.float64] | None
    ) -> NDArray[np.float64]:
        """What that layer takes, (patients, columns): encoded and scaled as in training; the target is not needed.

        Raises:
            DataError: the rows cannot be used. TaskError: ``statistics`` are not this task's.
        """
        features = _options(options).features
        return standardise(_encode(read_table(data, list(features), home), features), statistics).astype(np.float64)

    def _hold(self, options: TabularOptions, train: Rows, test: Rows) -> None:
        self._options, self._train, self._test = options, train, test
        self._columns = sum(feature.width for feature in options.features.values())
        self.examples = len(train.y) + len(test.y)
        self.parameters = self._columns + 1

    trains_privately = True

    @classmethod
    def has_statistics(cls, options: Mapping[str, Any]) -> bool:
        return _options(options).scaling == "statistics"

    def statistics_spec(self) -> StatisticsSpec | None:
        if self._options.scaling == "range":
            return None
        return StatisticsSpec(3 * self._columns, float(self._options.max_examples))

    def statistics(self) -> NDArray[np.float64]:
        """Of the training rows, per column: how many values there are, their sum, the sum of their squares."""
        x = self._train.x
        return np.concatenate([np.sum(~np.isnan(x), axis=0), np.nansum(x, axis=0), np.nansum(x * x, axis=0)])

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """``local_epochs`` passes of stochastic gradient descent, in the order of torch's global generator.

        With ``proximal`` = mu the loss has mu/2 times the squared distance from ``model`` besides: FedProx (Li et al.
        2020, equation 2).
        """
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        x = torch.from_numpy(self._standardised(self._train.x, round))
        y = torch.from_numpy(self._train.y.astype(np.float32))
        begun = torch.from_numpy(model.astype(np.float32))  # astype: a copy of our own
        if round.private:
            return self._train_privately(begun, x, y, round, round.private) - model
        weights = begun.clone().requires_grad_()
        for _ in range(self._options.local_epochs):
            for batch in torch.randperm(len(y)).split(self._options.batch_size):
                loss = binary_cross_entropy_with_logits(x[batch] @ weights[:-1] + weights[-1], y[batch])
                penalty = self._options.l2 / 2 * weights[:-1].square().sum()
                penalty = penalty + self._options.proximal / 2 * (weights - begun).square().sum()
                (gradient,) = torch.autograd.grad(loss + penalty, weights)
                with torch.no_grad():
                    weights -= self._options.learning_rate * round.rate * gradient
        trained: NDArray[np.float32] = weights.detach().numpy()
        return trained - model

    def _train_privately(
        self, begun: Any, x: Any, y: Any, round: TrainingRound, private: PrivateTraining
    ) -> NDArray[np.float32]:
        """The trained model; each batch holds each row with the same probability, as the accounting asks for."""
        import torch
        from torch.nn.functional import binary_cross_entropy_with_logits

        if self._options.proximal:
            raise TaskError("tabular: expected proximal = 0 with record-level privacy")
        layer = torch.nn.Linear(self._columns, 1)
        with torch.no_grad():
            layer.weight.copy_(begun[None, :-1])
            layer.bias.copy_(begun[-1:])
        private.train(
            layer,
            x,
            y[:, None],
            binary_cross_entropy_with_logits,
            learning_rate=self._options.learning_rate * round.rate,
            batch_size=self._options.batch_size,
            epochs=self._options.local_epochs,
            weight_decay=self._options.l2,
        )
        trained: NDArray[np.float32] = torch.cat([layer.weight[0], layer.bias]).detach().numpy()
        return trained

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(classes=2, measures=(Measure("log_loss", 0.0, _MOST_LOSS),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """On the held-out rows: how likely each is ill by the model, and the mean of minus the logarithm of how likely
        the truth was."""
        y = self._test.y
        logits = (self._standardised(self._test.x, round) @ model[:-1] + model[-1]).astype(np.float64)
        losses = np.logaddexp(0.0, np.where(y > 0, -logits, logits))
        loss = float(np.minimum(losses, _MOST_LOSS).mean())
        return Evaluation(len(y), y.astype(np.int64), np.exp(-np.logaddexp(0.0, -logits)), {"log_loss": loss})

    def _standardised(self, x: NDArray[np.float64], round: TrainingRound) -> NDArray[np.float32]:
        if self._options.scaling == "range":
            return np.nan_to_num(x, nan=0.0).astype(np.float32)
        return standardise(x, round.statistics)


def standardise(x: NDArray[np.float64], statistics: NDArray[np.float64] | None) -> NDArray[np.float32]:
    """``x`` with mean 0 and deviation 1 over all hospitals, by their published sums; a missing cell is at the mean."""
    columns = x.shape[1]
    if statistics is None or statistics.shape != (3 * columns,):
        raise TaskError(f"tabular: expected {3 * columns} published statistics, came others or none")
    count, total, squares = np.asarray(statistics, np.float64).reshape(3, columns)
    known = np.maximum(count, 1.0)
    mean = np.where(count >= 1, total / known, 0.0)
    variance = np.where(count >= 1, squares / known - mean**2, 1.0)
    deviation = np.sqrt(np.where(variance > _LEAST_VARIANCE, variance, 1.0))
    return np.nan_to_num((x - mean) / deviation, nan=0.0).astype(np.float32)


def _options(table: Mapping[str, Any]) -> TabularOptions:
    try:
        return TabularOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(TabularOptions, error)) from None


def _encode(table: Table, features: Mapping[str, Feature]) -> NDArray[np.float64]:
    """(rows, columns) in [-1, 1], NaN where missing."""

    def columns() -> Iterator[NDArray[np.float64]]:
        for name, feature in features.items():
            if feature.range is not None:
                low, high = feature.range
                numbers = table.numbers(name)
                inside = (numbers >= low) & (numbers <= high)
                yield np.where(inside, 2 * (numbers - low) / (high - low) - 1, np.nan)
            else:
                cells = table.texts(name, feature.levels)
                for level in feature.levels or ():
                    yield np.where(cells == "", np.nan, np.where(cells == level, 1.0, -1.0))

    return np.stack(list(columns()), axis=1)


def _outcome(table: Table, target: Target) -> NDArray[np.float64]:
    table.require(target.column)
    if target.positive_above is not None:
        return (table.numbers(target.column) > target.positive_above).astype(np.float64)
    return np.isin(table.texts(target.column), target.positive or []).astype(np.float64)


def _split(y: NDArray[np.float64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows for training and rows held out, the same ones whenever the study's seed is the same."""
    from sklearn.model_selection import train_test_split

    held_out = min(max(round(len(y) * fraction), 1), len(y) - 1)
    ill = int(y.sum())
    # Stratified needs two of each class, and room for both on either side.
    can_stratify = min(ill, len(y) - ill, held_out, len(y) - held_out) >= 2
    train, test = train_test_split(
        np.arange(len(y)), test_size=held_out, random_state=seed, stratify=y if can_stratify else None
    )
    return train, test


def _join(parts: Iterator[Rows]) -> Rows:
    rows = list(parts)
    return Rows(np.concatenate([part.x for part in rows]), np.concatenate([part.y for part in rows]))
