"""Image classification: a linear head on features of a frozen backbone, a whole ResNet-18, or a small ResNet-9.

The head is trained on what `wardtree features` computed once, in the hospital, of each image. An enclave lives for one
round and writes nothing, so it would have to compute all features again in each: minutes a round, and nothing of it
depends on the model. The line that names the backbone is in the study, and a file made by another one is refused.
"""

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.data import DataError
from node.images import Labelled, read_labelled
from node.settings import Settings, problems
from node.tasks.base import Evaluation, EvaluationSpec, Measure, OptionsError, Setup, Task, TaskError, TrainingRound

EVALUATED_AT_ONCE = 256
_MOST_LOSS = 20.0
"""Of one image; what is worse counts so."""


class ImageOptions(Settings):
    """``[task.options]`` of an image study."""

    classes: list[str] = Field(min_length=2, description="a list of two or more names")
    model: Literal["head", "resnet18", "resnet9"] = Field(default="head", description='"head", "resnet18" or "resnet9"')
    backbone: str | None = Field(
        default=None, min_length=1, description="the line with which `wardtree features` named what it used"
    )
    features: int | None = Field(default=None, ge=1, description="a whole number above 0")
    shape: list[int] | None = Field(
        default=None, min_length=3, max_length=3, description="three whole numbers, [height, width, colours]"
    )
    width: int = Field(default=64, ge=1, le=512, description="a whole number from 1 to 512")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="a number above 0 and below 1")
    learning_rate: float = Field(default=0.001, gt=0, description="a number above 0")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="a number from 0 to below 1")
    batch_size: int = Field(default=64, ge=1, description="a whole number above 0")
    local_epochs: int = Field(default=1, ge=1, description="a whole number above 0")

    @model_validator(mode="after")
    def _classes_differ(self) -> "ImageOptions":
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("expected classes without a repetition, came one twice")
        return self

    @model_validator(mode="after")
    def _what_goes_in(self) -> "ImageOptions":
        if self.model == "head" and (self.backbone is None or self.features is None or self.shape is not None):
            raise ValueError('model = "head": expected backbone and features, and no shape')
        if self.model != "head" and (self.shape is None or self.backbone is not None or self.features is not None):
            raise ValueError(f'model = "{self.model}": expected shape, and neither backbone nor features')
        if self.shape is not None and (min(self.shape) < 1 or self.shape[2] not in (1, 3)):
            raise ValueError("shape: expected [height, width, colours] with 1 or 3 colours, came another")
        return self

    @property
    def parameters(self) -> int:
        """Values of the flat model."""
        from node.tasks.networks import parameters_of

        if self.features is not None:
            return (self.features + 1) * len(self.classes)
        return parameters_of(self.network())

    def network(self) -> Any:
        """The torch module, on images (N, C, H, W) or features (N, F), with weights of torch's global generator."""
        from node.tasks.networks import Head, ResNet9, ResNet18

        if self.features is not None:
            return Head(self.features, len(self.classes))
        assert self.shape is not None
        if self.model == "resnet18":
            return ResNet18(self.shape[2], len(self.classes))
        return ResNet9(self.shape[2], len(self.classes), self.width)


class ImageTask(Task):
    """One hospital's images, or the features of them."""

    def __init__(self, setup: Setup) -> None:
        self._options, self._seed = _options(setup.options), setup.seed
        try:
            rows = read_labelled(setup.data, self._options.classes, setup.home)
            self._check(rows)
        except DataError as error:
            raise DataError(f"{setup.party}: {error}") from None
        if rows.held_out is None:
            train, test = split_rows(rows.y, self._options.test_fraction, setup.seed)
        else:
            train, test = np.flatnonzero(~rows.held_out), np.flatnonzero(rows.held_out)
        if not len(train) or not len(test):
            raise TaskError(
                f"{setup.party}: {rows.name}: expected rows to train and rows held out, "
                f"came {len(train)} and {len(test)}"
            )
        self._train, self._test = rows.take(train), rows.take(test)
        self.examples, self.parameters = len(rows), self._options.parameters

    trains_privately = True

    def _check(self, rows: Labelled) -> None:
        options = self._options
        if options.model == "head":
            if rows.backbone != options.backbone:
                raise DataError(
                    f"{rows.name}: expected features of {options.backbone}, came "
                    + (f"those of {rows.backbone}" if rows.backbone else "images: see `wardtree features --help`")
                )
            if rows.x.shape[1] != options.features:
                raise DataError(f"{rows.name}: expected {options.features} features a row, came {rows.x.shape[1]}")
        elif rows.backbone:
            raise DataError(f'{rows.name}: expected images for model = "{options.model}", came features')
        elif list(rows.x.shape[1:]) != options.shape:
            raise DataError(f"{rows.name}: expected images of {options.shape}, came {list(rows.x.shape[1:])}")

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    def initial(self) -> NDArray[np.float32]:
        """A head begins at zero; a network with weights drawn from the study's seed, by torch's own rules."""
        from node.tasks.networks import drawn, flat

        return flat(drawn(self._options.network, self._seed))

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """``local_epochs`` passes of stochastic gradient descent with momentum, which begins anew in each round.

        Batches are in the order of torch's global generator. With ``round.private`` they are Poisson samples instead.
        """
        import torch
        from torch.nn.functional import cross_entropy

        from node.tasks.networks import flat

        options = self._options
        network = self._network(model)
        rate = options.learning_rate * round.rate
        y = torch.from_numpy(self._train.y)
        if round.private:
            round.private.train(
                network,
                _inputs(self._train.x),
                y,
                cross_entropy,
                learning_rate=rate,
                batch_size=options.batch_size,
                epochs=options.local_epochs,
                momentum=options.momentum,
            )
            return flat(network) - model
        optimizer = torch.optim.SGD(network.parameters(), lr=rate, momentum=options.momentum)
        for _ in range(options.local_epochs):
            for batch in torch.randperm(len(y)).split(options.batch_size):
                optimizer.zero_grad()
                loss = cross_entropy(network(_inputs(self._train.x[batch.numpy()])), y[batch])
                loss.backward()
                optimizer.step()
        return flat(network) - model

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(classes=len(self._options.classes), measures=(Measure("log_loss", 0.0, _MOST_LOSS),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """On the held-out rows: how likely each class is by the model, and the mean of minus the logarithm of how
        likely the true one was."""
        y, logs = self._test.y, log_probabilities(self.logits(model, self._test.x))
        loss = float(np.minimum(-logs[np.arange(len(y)), y], _MOST_LOSS).mean())
        return Evaluation(len(y), y, np.exp(logs), {"log_loss": loss})

    def logits(self, model: NDArray[np.float32], x: NDArray[Any]) -> NDArray[np.float32]:
        """What the model says of rows (N, ...): (N, classes)."""
        import torch

        network = self._network(model).eval()
        with torch.inference_mode():
            parts = [
                network(_inputs(x[start : start + EVALUATED_AT_ONCE])).numpy()
                for start in range(0, len(x), EVALUATED_AT_ONCE)
            ]
        return np.concatenate(parts)

    def _network(self, model: NDArray[np.float32]) -> Any:
        from node.tasks.networks import loaded

        return loaded(self._options.network(), model)


def log_probabilities(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Of each class, (N, classes), from logits of that shape."""
    shifted = (logits - logits.max(axis=1, keepdims=True)).astype(np.float64)
    logs: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def split_rows(y: NDArray[np.int64], fraction: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows to train and rows held out: of each class the same part as nearly as can be, the same for one seed."""
    draw = np.random.default_rng(seed)
    shuffled = draw.permutation(len(y))
    ordered = shuffled[np.argsort(y[shuffled], kind="stable")]  # by class, in each at random
    count = min(max(round(fraction * len(y)), 1), len(y) - 1)
    places = np.floor((np.arange(count) + draw.random()) * len(y) / count).astype(np.int64)  # evenly spread
    held_out = np.zeros(len(y), np.bool_)
    held_out[ordered[places]] = True
    return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def _inputs(x: NDArray[Any]) -> Any:
    import torch

    if x.dtype == np.float32:
        return torch.from_numpy(x)
    return torch.from_numpy(x).permute(0, 3, 1, 2).float() / 127.5 - 1


def _options(table: Mapping[str, Any]) -> ImageOptions:
    try:
        return ImageOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(ImageOptions, error)) from None
