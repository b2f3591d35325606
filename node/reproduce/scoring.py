"""Deployment: what encrypted scoring costs, and how near it comes to scores in the clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from time import process_time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.scoring import Scorer, ScoringKey
from keys.scoring_layout import MAX_PATIENTS, Layout, to_integers
from node.pages import picture, table
from node.reproduce.framingham import FILES, heart_model, read_patients
from node.reproduce.output import Results, Row, verdict
from node.scoring import FEATURE_RANGE, Layer

REGRESSION, HEAD = "logistic regression, 10 parameters", "head of 512 features, 3,591 parameters"
MODELS = (REGRESSION, HEAD)
PATIENTS = (1, 10, 100, 1_000, MAX_PATIENTS)
QUICK_PATIENTS = (1, 100)
PROMISED, PROMISED_MS, PROMISED_DISTANCE = 100, 20.0, 1e-3
STEPS = ("encrypt", "score", "open")


class EncryptedPatients:
    """The host has the model, the client its patients and the key."""

    def __init__(self, layer: Layer, features: NDArray[np.float64]) -> None:
        self._layer, self._features = layer, features
        self._layout = Layout(len(features), features.shape[1], len(layer.bias))
        self._step = FEATURE_RANGE / self._layout.max_feature
        self._weight_step = 0.0

    def encrypt(self) -> bytes:
        self._key = ScoringKey(ScoringKey.generate())
        whole = to_integers(self._features, self._step, self._layout.max_feature)
        return self._key.seal(self._layout.arrange(whole))

    def score(self, batch: bytes) -> bytes:
        weights, biases, self._weight_step = self._layer.whole(self._layout, self._step)
        return Scorer().score_patients(batch, self._layout, weights, biases)

    def open(self, scores: bytes) -> NDArray[np.float64]:
        return np.asarray(self._key.open(scores, self._layout) * self._step * self._weight_step, np.float64)


class EncryptedModel:
    """The owner has the model and the key; the patients are elsewhere."""

    def __init__(self, layer: Layer, features: NDArray[np.float64]) -> None:
        self._layer, self._features = layer, features
        self._layout = Layout.of_model(features.shape[1], len(layer.bias))
        self._step = FEATURE_RANGE / self._layout.max_feature
        self._weight_step = 0.0

    def encrypt(self) -> bytes:
        self._key = ScoringKey(ScoringKey.generate())
        weights, biases, self._weight_step = self._layer.whole(self._layout, self._step)
        return self._key.seal_model(self._layout, weights, biases)

    def score(self, model: bytes) -> bytes:
        whole = to_integers(self._features, self._step, self._layout.max_feature)
        return Scorer().score_model(model, self._layout, whole)

    def open(self, scores: bytes) -> NDArray[np.float64]:
        opened = self._key.open(scores, self._layout)[: len(self._features)]
        return np.asarray(opened * self._step * self._weight_step, np.float64)


PATIENTS_WAY, MODEL_WAY = "encrypted patients", "encrypted model"
WAYS: dict[str, type[EncryptedPatients] | type[EncryptedModel]] = {
    PATIENTS_WAY: EncryptedPatients,
    MODEL_WAY: EncryptedModel,
}


def run(results: Results, patients: Sequence[int], repeats: int, ways: Sequence[str] = tuple(WAYS)) -> None:
    """Measure the cells asked for."""
    results.measure(list(_plan(patients, repeats, ways)))


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(patients: Sequence[int], repeats: int, ways: Sequence[str]) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for way in ways:
        for model in MODELS:
            large = (way, model) == (MODEL_WAY, HEAD)  # 3,591 ciphertexts, as many for one patient as for thousands
            for count in (count for count in patients if not large or count == MAX_PATIENTS):
                key: Row = {"way": way, "model": model, "patients": count}
                yield key, partial(cell, way, model, count, 1 if large else repeats)


@cache
def regression() -> tuple[Layer, NDArray[np.float64]]:
    """Table V's model at four parties, and its 1,000 patients."""
    model = heart_model(0)
    rows = np.concatenate([each.x[:, :-1] for each in read_patients(FILES["4,238 rows"])])
    return Layer(model[np.newaxis, :-1], model[-1:]), rows


@cache
def head() -> tuple[Layer, NDArray[np.float64]]:
    """A head of the size of the paper's, 512 features and 7 classes: fitted to scikit-learn's digits 0 to 6, of which
    a fixed layer with random weights gives the features, scaled, none beyond FEATURE_RANGE."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    digits, labels = load_digits(n_class=7, return_X_y=True)
    hidden = np.random.default_rng(0).normal(size=(digits.shape[1], 512)) / np.sqrt(digits.shape[1])
    features = np.tanh(4 * (digits / 16 - 0.5) @ hidden)
    features = ((features - features.mean(axis=0)) / features.std(axis=0)).clip(-FEATURE_RANGE, FEATURE_RANGE)
    fitted = LogisticRegression(max_iter=1000).fit(features, labels)
    return Layer(fitted.coef_, fitted.intercept_), features


def cell(way: str, model: str, patients: int, repeats: int) -> Row:
    """One batch, several times: median milliseconds of processor time for each step, bytes, and the largest distance
    from the clear."""
    layer, rows = regression() if model == REGRESSION else head()
    features = np.resize(rows, (patients, rows.shape[1]))
    seconds: list[tuple[float, float, float]] = []
    warm_up = repeats > 1  # makes tables that all later ones use
    for _ in range(repeats + warm_up):
        scoring, began = WAYS[way](layer, features), process_time()
        sent, encrypted = scoring.encrypt(), process_time()
        answer, scored = scoring.score(sent), process_time()
        opened = scoring.open(answer)
        seconds.append((encrypted - began, scored - encrypted, process_time() - scored))
    each_step = zip(*seconds[warm_up:], strict=True)
    clear = layer.scores(features)
    row: Row = {f"{step}_ms": 1e3 * median(values) / patients for step, values in zip(STEPS, each_step, strict=True)}
    return row | {
        "repeats": repeats,
        "bytes_up": len(sent) / patients,
        "bytes_down": len(answer) / patients,
        "distance": float(np.abs(opened - clear).max()),
        "same_class": float(np.mean(_classes(opened) == _classes(clear))),
    }


def _classes(scores: NDArray[np.floating[Any]]) -> NDArray[Any]:
    return scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] > 0


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Encrypted scoring: what it costs

A client has patients, a host has the model's last layer. The client encrypts features under a key of its own, the host
computes scores without seeing anything, the client opens them ([how, and who learns what](../scoring.md)). Or the other
way round: the model's owner encrypts its weights, and who has the patients computes. Patients of a batch lie over the
slots of a ciphertext, without rotation keys. Times are the processor's, of one process on one core, and like the bytes
they are a patient's share of its batch, so that large batches look as cheap as they are. *Largest difference* is
between any score and the same one in the clear. N=8192, primes of 54, 54 and 20 bits: 192-bit security.

![Encrypted patients: milliseconds and kilobytes a patient against the size of the batch](scoring.svg)
"""

NOTES = """\
## What this says

- A batch has a fixed cost: one ciphertext up and one for each output down at least. One patient alone pays it all.
- What is between encrypted scores and those in the clear is the rounding of features and weights to whole numbers, of
  16 to 21 bits; the encryption itself adds nothing, its sums are exact.
- An encrypted model is a ciphertext for each parameter, for one patient as for 8,192, so that nothing but whole scores
  is opened: it pays for many patients at once.
- Other work on the machine hardly changes processor time; still, its last digits differ from run to run.
- Reading files, the confined process, the passphrase's key derivation and signatures come on top: about a second a
  batch, most of it argon2id and importing pandas; for an encrypted head, a ciphertext for each parameter, several times
  that, and where it is encrypted several times its size in memory.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION]
    for way, model in ((way, model) for way in WAYS for model in MODELS):
        times = (f"{step}, ms" for step in STEPS)
        head = ("patients", *times, "kB up", "kB down", "largest difference", "same class")
        lines = [
            (
                f"{row['patients']:,}",
                *(_significant(row[f"{step}_ms"]) for step in STEPS),
                *(f"{row[f'bytes_{way}'] / 1e3:.2f}" for way in ("up", "down")),
                f"{row['distance']:.1e}",
                f"{row['same_class']:.2%}",
            )
            for row in _rows(results, way, model)
        ]
        if lines:
            whole = f"{_batch(_rows(results, way, model)[-1])}\n\n" if way == MODEL_WAY else ""
            parts.append(f"## {way.capitalize()}: {model}\n\n{whole}{table(head, lines)}")
    parts.append("## What was promised\n\n" + _promises(results))
    return "\n".join([*parts, NOTES, results.foot()])


def _batch(row: Row) -> str:
    """What a batch takes under an encrypted model, which for fewer patients is hardly less."""
    patients = row["patients"]
    encrypt, score, opened = (row[f"{step}_ms"] * patients / 1e3 for step in STEPS)
    up, down = (row[f"bytes_{way}"] * patients / 1e6 for way in ("up", "down"))
    return (
        f"The whole batch of {patients:,} patients: {encrypt:.2g} s to encrypt the model, {score:.2g} s to score, "
        f"{opened:.2g} s to open; {up:,.1f} MB there, {down:.2g} MB back. One of a single patient takes hardly less."
    )


def _significant(milliseconds: float) -> str:
    """Three digits, however small."""
    return f"{milliseconds:.3g}" if milliseconds < 1000 else f"{milliseconds:,.0f}"


def _rows(results: Results, way: str, model: str) -> list[Row]:
    rows = [row for row in results.rows if (row["way"], row["model"]) == (way, model)]
    return sorted(rows, key=lambda row: int(row["patients"]))


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    for model in MODELS:
        if row := results.find(way=PATIENTS_WAY, model=model, patients=PROMISED):
            total = sum(row[f"{step}_ms"] for step in STEPS)
            what = f"{model}, {PROMISED} patients: ms a patient, all steps"
            lines.append((what, f"{total:.2g}", f"{PROMISED_MS:g}", verdict(total <= PROMISED_MS)))
    for way, model in ((way, model) for way in WAYS for model in MODELS):
        if rows := _rows(results, way, model):
            largest = max(row["distance"] for row in rows)
            what = f"{way}, {model}: largest difference from the clear"
            lines.append((what, f"{largest:.2g}", f"{PROMISED_DISTANCE:g}", verdict(largest <= PROMISED_DISTANCE)))
    return table(("", "measured", "at most", ""), lines)


def draw(results: Results, file: Path) -> None:
    """The picture: time and bytes of a patient, against the size of the batch."""
    with picture(file, (9, 3.6)) as figure:
        panels: Any = figure.subplots(1, 2)
        for model in MODELS:
            rows = _rows(results, PATIENTS_WAY, model)
            counts = [row["patients"] for row in rows]
            panels[0].plot(counts, [sum(row[f"{step}_ms"] for step in STEPS) for row in rows], "o-", label=model)
            panels[1].plot(counts, [(row["bytes_up"] + row["bytes_down"]) / 1e3 for row in rows], "o-", label=model)
        for axes, what in zip(panels, ("ms a patient", "kB a patient, both ways"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="patients in a batch", ylabel=what)
        promise = f"at most, at {PROMISED} patients"
        panels[0].axhline(PROMISED_MS, color="k", linewidth=0.8, linestyle="--", label=promise)
        panels[0].legend(frameon=False, fontsize=8)
