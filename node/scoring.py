"""Scores of patients under a federation's model: in the clear, or encrypted with another party.

What is scored is a linear layer: all of a logistic regression, or the last layer of a network whose other layers, the
features, are computed where the patients are. Under encryption features and weights are whole numbers
(``keys/scoring_layout.py``), and the scores differ from those in the clear by that rounding alone.

Functions whose names begin with ``room_`` see patients or a batch's key, and run in a process of their own that the
kernel confines (:func:`node.keyroom.in_keyroom`): their arguments and results are plain.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.scoring_layout import MAX_BIAS, Integers, Layout, ScoringError, to_integers
from keys.vault import read_bounded
from node.data import Source
from node.exported import Exported
from node.settings import shown
from node.study import parse_study
from node.tasks.loader import load_task_class
from node.telemetry import Stopwatch

FEATURE_RANGE = 16.0
"""What features lie within, unless another range is asked for. The host learns it, so it is never fitted to data."""
SCORING_KEY = "scoring-key"
"""What a sealed file with a batch's key says of itself."""
MAX_FEATURES_FILE = 512 * 2**20


@dataclass(frozen=True)
class Layer:
    """``weights`` (outputs, features) and ``bias`` (outputs,), float64."""

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def to_bytes(self) -> tuple[bytes, bytes]:
        """Weights and bias, in little-endian order: what the rooms take."""
        return self.weights.astype("<f8").tobytes(), self.bias.astype("<f8").tobytes()

    @classmethod
    def from_bytes(cls, weights: bytes, bias: bytes) -> Layer:
        biases = np.frombuffer(bias, "<f8")
        return cls(np.frombuffer(weights, "<f8").reshape(biases.size, -1), biases)

    def scores(self, features: NDArray[np.float64]) -> NDArray[np.float64]:
        """(patients, outputs), in float64."""
        if features.shape[1] != self.weights.shape[1]:
            raise ScoringError(f"expected {self.weights.shape[1]} features of a patient, came {features.shape[1]}")
        return features @ self.weights.T + self.bias

    def whole(self, layout: Layout, feature_step: float) -> tuple[Integers, Integers, float]:
        """Weights and biases as whole numbers, and the weights' step: the smallest that holds them all.

        Raises:
            ScoringError: a weight is not finite, or all are zero.
        """
        largest = float(np.abs(self.weights).max())
        if not np.isfinite(self.weights).all() or not np.isfinite(self.bias).all() or largest == 0:
            raise ScoringError("expected finite weights, not all of them zero, came others")
        step = max(largest / layout.max_weight, float(np.abs(self.bias).max()) / (feature_step * (MAX_BIAS - 1)))
        weights = to_integers(self.weights, step, layout.max_weight)
        return weights, np.rint(self.bias / (feature_step * step)).astype(np.int64), step


def last_layer(exported: Exported) -> Layer:
    """The linear layer at the end of a model: its last two tensors, NAMEweight and NAMEbias.

    Raises:
        ScoringError: the model does not end in one.
    """
    *_, (weight_name, weight), (bias_name, bias) = [("", np.zeros(0)), ("", np.zeros(0)), *exported.tensors.items()]
    prefix = weight_name.removesuffix("weight")
    if weight_name == prefix or bias_name != f"{prefix}bias" or weight.ndim != 2 or bias.shape != weight.shape[:1]:
        names = ", ".join(exported.tensors)
        raise ScoringError(f"expected a model that ends in a linear layer (weight, bias), came the tensors {names}")
    return Layer(weight.astype(np.float64), bias.astype(np.float64))


# ---- features -------------------------------------------------------------------------------------------


def features_of(card: Mapping[str, Any], data: Path) -> NDArray[np.float64]:
    """The features of the patients in a file, (patients, features): from a .npy file as they are,
    from any other by the task's own ``features``, with the published statistics of the card.

    Raises:
        WardtreeError: the file cannot be used, or the task computes no features.
    """
    if data.suffix == ".npy":
        return _matrix(data)
    study = parse_study(card["study_toml"], "the study in the card")
    compute = getattr(load_task_class(study.task.class_name), "features", None)
    if compute is None:
        raise ScoringError(
            f"task {study.task.class_name} computes no features of its own: give them as a .npy file, a row a patient"
        )
    sums = None if card["statistics"] is None else np.array(card["statistics"], np.float64)
    source = Source(csv=str(data.resolve())).model_dump(exclude_none=True)
    features = np.asarray(compute(study.task.options, source, data.parent, sums), np.float64)
    if features.ndim != 2 or not len(features):
        raise ScoringError(f"{data}: expected patients, a row each, came an array of shape {features.shape}")
    return features


def _matrix(path: Path) -> NDArray[np.float64]:
    try:
        matrix = np.load(io.BytesIO(read_bounded(path, MAX_FEATURES_FILE)), allow_pickle=False)
        matrix = np.asarray(matrix, np.float64)
    except (ValueError, TypeError, EOFError, MemoryError, SyntaxError):
        raise ScoringError(f"{path}: expected an array of numbers, a row a patient, came something else") from None
    if matrix.ndim != 2 or not matrix.size:
        raise ScoringError(f"{path}: expected an array of numbers, a row a patient, came shape {shown(matrix.shape)}")
    return matrix


# ---- results --------------------------------------------------------------------------------------------


def write_scores(scores: NDArray[np.floating[Any]], step: float) -> bytes:
    """A CSV table, a row a patient: scores, and what they mean: one output a probability, several the largest one.

    As many digits as the step of a score has: more would be no more than rounding.
    """
    digits = max(0, math.ceil(-math.log10(step)))
    outputs = scores.shape[1]
    head = ["patient", *(f"score_{number}" for number in range(1, outputs + 1))]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*head, "probability" if outputs == 1 else "class"])
    for number, row in enumerate(scores, start=1):
        last = f"{1 / (1 + math.exp(-min(max(row[0], -700), 700))):.6f}" if outputs == 1 else str(int(row.argmax()))
        writer.writerow([number, *(f"{score:.{digits}f}" for score in row), last])
    return file.getvalue().encode()


def room_clear(card: Mapping[str, Any], data: str, weights: bytes, bias: bytes) -> list[Any]:
    """Scores in the clear: how many patients, the CSV table, and the seconds that scoring took."""
    layer = Layer.from_bytes(weights, bias)
    features = features_of(card, Path(data))
    watch = Stopwatch()
    scores = layer.scores(features)
    return [len(scores), write_scores(scores, 1e-6), watch.seconds]


def room_encrypt(card: Mapping[str, Any], data: str, outputs: int, largest: float, passphrase: str) -> list[Any]:
    """Patients' features, within ``largest``, under a fresh key: patients, features, ciphertexts, what a whole number
    stands for, the sealed key, and the seconds that encryption took."""
    from keys.scoring import ScoringKey
    from keys.vault import seal

    features = features_of(card, Path(data))
    patients, width = features.shape
    layout = Layout(patients, width, outputs)
    watch = Stopwatch()
    step = largest / layout.max_feature
    whole = to_integers(features, step, layout.max_feature)
    secret = ScoringKey.generate()
    body = ScoringKey(secret).seal(layout.arrange(whole))
    seconds = watch.seconds
    return [patients, width, body, step, seal(SCORING_KEY, secret, passphrase), seconds]


def room_encrypt_model(weights: bytes, bias: bytes, largest: float, passphrase: str) -> list[Any]:
    """A linear layer, for features within ``largest``, under a fresh key: features, outputs, ciphertexts, what a whole
    number stands for of a feature and of a weight, the sealed key, and the seconds that encryption took."""
    from keys.scoring import SEALED_BYTES, ScoringKey
    from keys.scoring_files import MAX_FILE, MODEL
    from keys.vault import seal

    layer = Layer.from_bytes(weights, bias)
    outputs, features = layer.weights.shape
    layout = Layout.of_model(features, outputs)
    size, most = outputs * (features + 1) * SEALED_BYTES, MAX_FILE[MODEL]
    if size > most:
        raise ScoringError(f"{features} features and {outputs} outputs encrypted are {size:,} bytes, above {most:,}")
    watch = Stopwatch()
    step = largest / layout.max_feature
    whole_weights, biases, weight_step = layer.whole(layout, step)
    secret = ScoringKey.generate()
    body = ScoringKey(secret).seal_model(layout, whole_weights, biases)
    seconds = watch.seconds
    return [features, outputs, body, step, weight_step, seal(SCORING_KEY, secret, passphrase), seconds]


def room_apply(card: Mapping[str, Any], data: str, model: bytes, shape: Sequence[int], step: float) -> list[Any]:
    """Patients in the clear under an encrypted model of ``shape`` (features, outputs): how many patients, their
    encrypted scores, and the seconds that they took."""
    from keys.scoring import Scorer

    layout = Layout.of_model(*shape)
    features = features_of(card, Path(data))
    patients, width = features.shape
    if width != layout.features or patients > layout.patients:
        raise ScoringError(
            f"{data}: expected at most {layout.patients} patients of {layout.features} features, came {patients} of "
            f"{width}"
        )
    watch = Stopwatch()
    whole = to_integers(features, step, layout.max_feature)
    return [patients, Scorer().score_model(model, layout, whole), watch.seconds]


def room_open(
    sealed: bytes, passphrase: str, body: bytes, shape: Sequence[int], patients: int, step: float
) -> list[Any]:
    """The CSV table of the scores of the first ``patients``, and the seconds that opening took. Raises OpeningFailed,
    which says no more than that."""
    from keys.scoring import ScoringKey
    from keys.vault import unseal

    secret = unseal(sealed, SCORING_KEY, passphrase)
    watch = Stopwatch()
    scores = ScoringKey(secret).open(body, Layout(*shape))
    return [write_scores(scores[:patients] * step, step), watch.seconds]
