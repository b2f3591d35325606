"""Segmentation of images and volumes by MONAI's U-Net: where in it a lesion, an organ or a tumour is.

An image is brought to one size; a volume is cut into slices of that size, or trained in patches (three dimensions).
Each structure is a map of its own, from the labels that make it up, so that one may lie inside another: a tumour in its
kidney. The figure is Dice, the mean over held-out images or whole volumes, of which each is one patient's as a rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.data import DataError
from node.masks import Example, read_masked
from node.settings import Settings, problems
from node.tasks.base import Evaluation, EvaluationSpec, Measure, OptionsError, Setup, Task, TaskError, TrainingRound

_SIZE = "two or three whole numbers, [height, width] or [height, width, depth]"


class SegmentationOptions(Settings):
    """``[task.options]`` of a segmentation study."""

    structures: dict[str, list[int]] = Field(
        min_length=1, description="a table of name = [labels], such as { kidney = [1, 2], tumour = [2] }"
    )
    """An empty list: whatever is above 0."""
    size: list[int] = Field(min_length=2, max_length=3, description=_SIZE)
    """Of an image or slice when it is trained on; with three numbers: of the patches of a volume, in voxels."""
    image_channels: int = Field(default=3, ge=1, le=64, description="a whole number from 1 to 64")
    channels: list[int] = Field(
        default=[16, 32, 64, 128], min_length=2, max_length=8, description="two to eight whole numbers above 0"
    )
    residual_units: int = Field(default=0, ge=0, le=4, description="a whole number from 0 to 4")
    window: list[float] | None = Field(
        default=None, min_length=2, max_length=2, description="two numbers, [low, high], such as Hounsfield units"
    )
    """What becomes -1 and 1 of float images; without it each is brought to mean 0 and deviation 1 by itself."""
    patches: int = Field(default=8, ge=1, description="a whole number above 0")
    """Of each volume in a pass, where it is trained in patches."""
    flips: bool = Field(default=True, description="true or false")
    test_fraction: float = Field(default=0.2, gt=0, lt=1, description="a number above 0 and below 1")
    optimiser: Literal["adam", "sgd"] = Field(default="adam", description='"adam" or "sgd"')
    learning_rate: float = Field(default=0.003, gt=0, description="a number above 0")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="a number from 0 to below 1")
    batch_size: int = Field(default=8, ge=1, description="a whole number above 0")
    local_epochs: int = Field(default=1, ge=1, description="a whole number above 0")

    @model_validator(mode="after")
    def _fits(self) -> SegmentationOptions:
        if any(label < 1 for labels in self.structures.values() for label in labels):
            raise ValueError("structures: expected labels above 0, came another")
        if not all(name.isidentifier() for name in self.structures):
            raise ValueError("structures: expected names of letters, digits and _, came another")
        if min(self.channels) < 1:
            raise ValueError("channels: expected whole numbers above 0, came another")
        part = 2 ** (len(self.channels) - 1)
        if any(length % part or length < 2 * part for length in self.size):
            raise ValueError(
                f"size: expected multiples of {part}, at least {2 * part}, for {len(self.channels)} levels of "
                f"channels, came {self.size}"
            )
        if self.window is not None and self.window[0] >= self.window[1]:
            raise ValueError(f"window: expected low below high, came {self.window}")
        return self

    @property
    def in_patches(self) -> bool:
        return len(self.size) == 3

    @property
    def measures(self) -> tuple[str, ...]:
        """Dice over all structures, and of each where there are several."""
        return ("dice", *(f"dice_{name}" for name in self.structures if len(self.structures) > 1))

    def network(self) -> Any:
        """The torch module, on (N, image_channels, *size), with weights of torch's global generator."""
        from node.tasks.unet import unet

        return unet(len(self.size), self.image_channels, len(self.structures), self.channels, self.residual_units)


@dataclass(frozen=True)
class Prepared:
    """An image or a volume as the network takes it.

    Attributes:
        x: (pieces, C, *spatial), uint8 or float32: an image is one piece, a volume one or a piece for each slice.
        masks: (pieces, structures, *spatial), bool.
    """

    x: NDArray[Any]
    masks: NDArray[np.bool_]


class SegmentationTask(Task):
    """One hospital's images, or volumes, and their masks."""

    def __init__(self, setup: Setup) -> None:
        options = _options(setup.options)
        try:
            images = [_prepare(options, each) for each in read_masked(setup.data, setup.home)]
        except DataError as error:
            raise DataError(f"{setup.party}: {error}") from None
        if len(images) < 2:
            raise TaskError(f"{setup.party}: expected images to train and images held out, came {len(images)} in all")
        held_out = min(max(round(options.test_fraction * len(images)), 1), len(images) - 1)
        order = np.random.default_rng(setup.seed).permutation(len(images))
        self._hold(options, setup.seed, [images[i] for i in order[held_out:]], [images[i] for i in order[:held_out]])

    def _hold(
        self, options: SegmentationOptions, seed: int, train: Sequence[Prepared], test: Sequence[Prepared]
    ) -> None:
        from node.tasks.networks import parameters_of

        self._options, self._seed, self._train, self._test = options, seed, list(train), list(test)
        self.examples, self.parameters = len(train) + len(test), parameters_of(options.network())

    trains_privately = True

    @classmethod
    def pool(cls, tasks: Sequence[SegmentationTask]) -> SegmentationTask:
        """The task of one hospital that had all images: what was held out stays held out."""
        task, first = cls.__new__(cls), tasks[0]
        train = [image for each in tasks for image in each._train]
        task._hold(first._options, first._seed, train, [image for each in tasks for image in each._test])
        return task

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    def initial(self) -> NDArray[np.float32]:
        """Weights drawn from the study's seed, by torch's own rules."""
        from node.tasks.networks import drawn, flat

        return flat(drawn(self._options.network, self._seed))

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        """``local_epochs`` passes over the images or slices, or so many random patches; the optimiser begins anew in
        each round. Order, patches and flips are of torch's global generator.

        With ``round.private`` images are flipped once a round, batches are Poisson samples of them, and steps are of
        gradient descent with momentum, whatever the optimiser. Raises TaskError for volumes: it would hide a slice of
        one and not a patient.
        """
        from node.tasks.networks import flat, loaded
        from node.tasks.unet import Pieces, loss, train

        options = self._options
        network = loaded(options.network(), model)
        pieces = Pieces([(each.x, each.masks) for each in self._train], options.size, options.patches, options.flips)
        rate = options.learning_rate * round.rate
        if round.private:
            if options.in_patches or len(pieces) > len(self._train):
                raise TaskError("segmentation: expected images with record-level privacy, came volumes")
            x, masks = pieces.take(range(len(pieces)))
            round.private.train(
                network,
                x,
                masks,
                loss,
                learning_rate=rate,
                batch_size=options.batch_size,
                epochs=options.local_epochs,
                momentum=options.momentum,
            )
            return flat(network) - model
        train(network, pieces, options.optimiser, rate, options.momentum, options.batch_size, options.local_epochs)
        return flat(network) - model

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(measures=tuple(Measure(name, 0.0, 1.0) for name in self._options.measures))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """The mean Dice of the held-out images or volumes."""
        means = self.dice(model).mean(axis=0)
        values = [means.mean(), *means]
        return Evaluation(len(self._test), measures=dict(zip(self._options.measures, map(float, values), strict=False)))

    def dice(self, model: NDArray[np.float32]) -> NDArray[np.float64]:
        """Of each held-out image or volume and each structure: (images, structures); 1 where neither the mask nor the
        model has it."""
        from node.tasks.networks import loaded
        from node.tasks.unet import dice, segment

        network = loaded(self._options.network(), model).eval()
        return np.stack([dice(segment(network, each.x, self._options.size), each.masks) for each in self._test])


def _prepare(options: SegmentationOptions, example: Example) -> Prepared:
    from node.tasks.unet import resized

    pixels, mask = example.pixels, example.mask
    if pixels.shape[-1] != options.image_channels:
        raise DataError(f"expected images of {options.image_channels} channels, came one of {pixels.shape[-1]}")
    if options.in_patches and mask.ndim == 2:
        raise DataError("expected volumes for a size of three numbers, came an image")
    if any(labels for labels in options.structures.values()):
        known = {label for labels in options.structures.values() for label in labels}
        if not set(np.unique(mask).tolist()) <= known | {0}:
            raise DataError("expected masks of 0 and the labels of the structures, came another label")
    masks = np.stack([np.isin(mask, labels) if labels else mask > 0 for labels in options.structures.values()])
    x = np.moveaxis(pixels, -1, 0)
    if options.window is not None and x.dtype != np.uint8:
        low, high = options.window
        x = np.clip(2 * (x - low) / (high - low) - 1, -1, 1)
    elif x.dtype != np.uint8:
        around = tuple(range(1, x.ndim))
        x = (x - x.mean(around, keepdims=True)) / np.maximum(x.std(around, keepdims=True), 1e-6)
    if options.in_patches:
        return Prepared(x[None], masks[None])
    if mask.ndim == 3:  # slices along the last axis: from foot to head
        x, masks = np.moveaxis(x, -1, 0), np.moveaxis(masks, -1, 0)
    else:
        x, masks = x[None], masks[None]
    return Prepared(resized(x, options.size), resized(masks, options.size))


def _options(table: Mapping[str, Any]) -> SegmentationOptions:
    try:
        return SegmentationOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(SegmentationOptions, error)) from None
