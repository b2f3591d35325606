"""Table I again: the attacks that the paper names, run against what each place of the tree sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.reproduce import gradient_inversion as gradients
from node.reproduce import inference
from node.reproduce.framingham import FILES, heart_model, read_patients
from node.reproduce.gradient_inversion import ATTACKS, Effort, Images
from node.reproduce.inference import Training
from node.reproduce.output import Results, Row, spread
from node.tasks.base import TaskError

GRADIENTS, MEMBERS, VALUES = "gradient inversion", "membership", "missing value"
KINDS = (MEMBERS, VALUES, GRADIENTS)
SHOWN = 4
"""Images of a scenario that are kept for the picture."""
CANDIDATES = 200
FULL, QUICK = Effort(25, 500, 16), Effort(4, 40)


@dataclass(frozen=True)
class Scenario:
    """What the attacker sees: the mean of ``hospitals`` updates of one step on ``images`` each.

    Attributes:
        less_own: the attacker is one of them, and takes its own update away.
        bits: the update is rounded to so many bits a value, as ours are; 0: it is not.
        noise: for privacy: sigma over the update's length, for each value of the mean.
    """

    name: str
    hospitals: int
    images: int
    less_own: bool = False
    bits: int = 0
    noise: float = 0.0

    @property
    def hidden(self) -> int:
        """Images in what the attacker is left with."""
        return (self.hospitals - self.less_own) * self.images


SCENARIOS = (
    Scenario("one hospital's update, 1 image", 1, 1),
    Scenario("the same, rounded to 14 bits", 1, 1, bits=14),
    Scenario("one hospital's update, 8 images", 1, 8),
    Scenario("total of 4 hospitals, 1 image each", 4, 1),
    Scenario("that total less the attacker's own", 4, 1, less_own=True),
    Scenario("total of 4 hospitals, 8 images each", 4, 8),
    Scenario("that total less the attacker's own, 8 images each", 4, 8, less_own=True),
    Scenario("one update, 1 image, noise of 0.1 %", 1, 1, noise=0.001),
    Scenario("one update, 1 image, noise of 1 %", 1, 1, noise=0.01),
    Scenario("one update, 1 image, noise of 100 % (DP-SGD, sigma 1)", 1, 1, noise=1.0),
)
TARGETS: dict[str, Training] = {
    "one hospital alone, trained until it knows its images": Training(1, 1, 200),
    "4 hospitals together, as many passes": Training(4, 20, 10),
    "4 hospitals together, DP-SGD, sigma 2": Training(4, 40, 1, 2.0),
    "4 hospitals together, DP-SGD, sigma 10": Training(4, 40, 1, 10.0),
}
HEART = "4 hospitals together, 9 values of a patient (Table V)"
ROWS = 100
"""Images of each hospital, and as many that no hospital has."""
MODELS = 20
"""Of the heart, each from another seed, with which a missing value is guessed."""


def run(
    results: Results,
    repetitions: int,
    kinds: Sequence[str],
    images: Path | None,
    effort: Effort,
    methods: Sequence[str] = ATTACKS,
) -> None:
    """Attack; ``attacks_page`` writes the page."""
    results.measure(list(_plan(repetitions, kinds, images, effort, methods)))


def _plan(
    repetitions: int, kinds: Sequence[str], images: Path | None, effort: Effort, methods: Sequence[str]
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    if MEMBERS in kinds:
        for target in (*TARGETS, HEART):
            key = {"kind": MEMBERS, "target": target, "method": "loss threshold"}
            yield key, partial(membership, target, 3 * repetitions)
    if VALUES in kinds:
        for target in inference.binary_features(read_patients(FILES["4,238 rows"])[0]):
            yield {"kind": VALUES, "target": target, "method": "likelihood"}, partial(missing, target)
    if GRADIENTS in kinds:
        for scenario in SCENARIOS:
            for attack in methods:
                key = {"kind": GRADIENTS, "target": scenario.name, "method": attack}
                enough = max(repetitions, -(-effort.images // scenario.hidden))
                yield key, partial(inversion, scenario, attack, enough, images, effort)


# ---- images ---------------------------------------------------------------------------------------------


def read_images(file: Path | None) -> tuple[Images, NDArray[np.int64], str]:
    """Images in [0, 1], labels, and where they are from: an .npz of medmnist's, or scikit-learn's digits as 28 x 28.

    Raises:
        TaskError: the file is no such one.
    """
    if file is None:
        from scipy.ndimage import zoom
        from sklearn.datasets import load_digits

        digits = load_digits()
        large = np.stack([zoom(image / 16, 3.5, order=1) for image in digits.images])
        return large[:, np.newaxis].astype(np.float32), digits.target.astype(np.int64), "scikit-learn's digits"
    try:
        with np.load(file, allow_pickle=False) as arrays:
            prefix = "" if "images" in arrays else "train_"
            pixels, labels = arrays[f"{prefix}images"], arrays[f"{prefix}labels"]
    except (OSError, ValueError, KeyError) as error:
        raise TaskError(f"{file}: expected an .npz with images and labels, as medmnist's, came another file") from error
    if pixels.ndim == 3:
        pixels = pixels[..., np.newaxis]
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or len(labels) != len(pixels):
        raise TaskError(f"{file}: expected images of bytes and a label for each, came others")
    return (pixels.transpose(0, 3, 1, 2) / np.float32(255)), labels.reshape(-1).astype(np.int64), file.stem


# ---- cells ----------------------------------------------------------------------------------------------


def inversion(scenario: Scenario, attack: str, repetitions: int, file: Path | None, effort: Effort) -> Row:
    """Images out of what a scenario shows; other images and another first model in every repetition.

    Returns:
        ``psnr``, mean and best over images; ``recognised``, the share that is told from CANDIDATES others;
        ``pictures``: of the first repetition, a few true images and what was found for them.
    """
    import torch

    images, labels, source = read_images(file)
    decibels: list[float] = []
    known: list[float] = []
    pictures: list[Any] = []
    for repetition in range(repetitions):
        pick = np.random.default_rng(repetition).permutation(len(images))
        chosen, rest = pick[: scenario.hospitals * scenario.images], pick[-CANDIDATES:]
        model = gradients.network(attack, images.shape[1:], int(labels.max()) + 1, repetition)
        x, y = torch.from_numpy(images[chosen]), torch.from_numpy(labels[chosen])
        seen = _seen(scenario, model, x, y)
        hidden = slice(scenario.less_own * scenario.images, None)  # the attacker's own come first
        found = gradients.invert(attack, model, seen, images.shape[1:], y[hidden], effort)
        true = images[chosen][hidden]
        found = gradients.matched(true, found)
        decibels += gradients.psnr(true, found).tolist()
        known.append(gradients.recognised(true, found, images[rest]))
        if not repetition:
            shown = zip(true[:SHOWN], found[:SHOWN], strict=True)
            pictures = [[_pixels(one), _pixels(other)] for one, other in shown]
    return {
        "images": scenario.hidden,
        "source": source,
        "repetitions": repetitions,
        "psnr": float(np.mean(decibels)),
        "psnr_best": max(decibels),
        "recognised": float(np.mean(known)),
        "shape": list(images.shape[1:]),
        "pictures": pictures,
    }


def _pixels(image: Images) -> str:
    """Its bytes, in hexadecimal."""
    return np.rint(image * 255).astype(np.uint8).tobytes().hex()


def _seen(scenario: Scenario, model: Any, x: Any, y: Any) -> list[Any]:
    """The mean of the hospitals' updates, as the attacker has it."""
    import torch

    parts = [
        [value.detach() for value in gradients.gradient(model, images, labels)]
        for images, labels in zip(x.split(scenario.images), y.split(scenario.images), strict=True)
    ]
    total = [torch.stack(each).sum(dim=0) for each in zip(*parts, strict=True)]
    if scenario.less_own:
        total = [whole - own for whole, own in zip(total, parts[0], strict=True)]
    mean = [each / (len(parts) - scenario.less_own) for each in total]
    if scenario.bits:
        step = max(float(each.abs().max()) for each in mean) / (2 ** (scenario.bits - 1) - 1)
        mean = [torch.floor(each / step + torch.rand_like(each)) * step for each in mean]
    if scenario.noise:
        length = float(torch.sqrt(torch.stack([(each**2).sum() for each in mean]).sum()))
        mean = [each + scenario.noise * length * torch.randn_like(each) for each in mean]
    return mean


def membership(target: str, repetitions: int) -> Row:
    """Who was in the training: other images and other draws in every repetition."""
    attempts = [
        _heart_members(seed) if target == HEART else _members(TARGETS[target], seed) for seed in range(repetitions)
    ]
    areas, sure, trained, tested, epsilons = zip(*attempts, strict=True)
    row: Row = {"repetitions": repetitions}
    for name, values in (("auc", areas), ("tpr", sure), ("train", trained), ("test", tested)):
        row[name], row[f"{name}_spread"] = spread(values)
    return row | {"epsilon": None if np.isinf(epsilons[0]) else epsilons[0]}


def _members(training: Training, seed: int) -> tuple[float, float, float, float, float]:
    import torch
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy((digits.data / 16).astype(np.float32))
    y = torch.from_numpy(digits.target.astype(np.int64))
    order = np.random.default_rng(seed).permutation(len(y))
    parts = [(x[rows], y[rows]) for rows in np.split(order[: training.hospitals * ROWS], training.hospitals)]
    model, epsilon = inference.train_together(parts, 10, training, seed)
    members = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    unknown = order[training.hospitals * ROWS :][: training.hospitals * ROWS]
    others = x[unknown], y[unknown]
    area, sure = inference.membership(inference.losses(model, members), inference.losses(model, others))
    return area, sure, inference.accuracy(model, members), inference.accuracy(model, others), epsilon


def _heart_members(seed: int) -> tuple[float, float, float, float, float]:
    model = heart_model(seed)
    train, test = read_patients(FILES["4,238 rows"])
    scores = [np.logaddexp(0, np.where(each.y == 1, -1, 1) * (each.x @ model)) for each in (train, test)]
    area, sure = inference.membership(*scores)
    return area, sure, float(train.accuracy(model)), float(test.accuracy(model)), float("inf")


def missing(target: str) -> Row:
    """A binary value of a patient that the attacker knows otherwise; over ``MODELS``."""
    train, test = read_patients(FILES["4,238 rows"])
    column, values = inference.binary_features(train)[target]
    share = float(np.isclose(train.x[:, column], values[1]).mean())
    guessed = [
        [inference.missing_value(heart_model(seed), each, column, values, share) for each in (train, test)]
        for seed in range(MODELS)
    ]
    members, others = np.mean(guessed, axis=0).tolist()
    return {"members": members, "others": others, "always_the_likelier": max(share, 1 - share), "repetitions": MODELS}
