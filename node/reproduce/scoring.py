"""Deployment: what encrypted scoring costs, and how near it comes to scores in the clear."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.scoring import Scorer, ScoringKey
from keys.scoring_layout import MAX_PATIENTS, Layout, to_integers
from node.pages import picture, table
from node.reproduce.framingham import FILES, heart_model, read_patients
from node.reproduce.output import Results, Row
from node.scoring import FEATURE_RANGE, Layer
from node.telemetry import Stopwatch

REGRESSION, HEAD = "logistic regression, 10 parameters", "head of 512 features, 3,591 parameters"
MODELS = (REGRESSION, HEAD)
PATIENTS = (1, 10, 100, 1_000, MAX_PATIENTS)
QUICK_PATIENTS = (1, 100)
PROMISED, PROMISED_MS, PROMISED_DISTANCE = 100, 20.0, 1e-3
STEPS = ("encrypt", "score", "open")


def run(results: Results, patients: Sequence[int], repeats: int) -> None:
    """Measure the cells asked for."""
    results.measure(list(_plan(patients, repeats)))


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(patients: Sequence[int], repeats: int) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for model in MODELS:
        for count in patients:
            yield {"model": model, "patients": count}, partial(cell, model, count, repeats)


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


def cell(model: str, patients: int, repeats: int) -> Row:
    """One batch, several times: median milliseconds of each step, bytes, and the largest distance from the clear."""
    layer, rows = regression() if model == REGRESSION else head()
    features = np.resize(rows, (patients, rows.shape[1]))
    timed: dict[str, list[float]] = {step: [] for step in STEPS}
    for _ in range(repeats + 1):  # the first makes tables that all later ones use
        layout = Layout(patients, features.shape[1], len(layer.bias))
        step = FEATURE_RANGE / layout.max_feature
        watch = Stopwatch()
        key = ScoringKey(ScoringKey.generate())
        batch = key.seal(layout.arrange(to_integers(features, step, layout.max_feature)))
        timed["encrypt"].append(watch.seconds)
        watch = Stopwatch()
        weights, biases, weight_step = layer.whole(layout, step)
        scores = Scorer().score_patients(batch, layout, weights, biases)
        timed["score"].append(watch.seconds)
        watch = Stopwatch()
        opened = key.open(scores, layout) * step * weight_step
        timed["open"].append(watch.seconds)
    clear = layer.scores(features)
    row: Row = {f"{step}_ms": 1e3 * median(values[1:]) / patients for step, values in timed.items()}
    return row | {
        "repeats": repeats,
        "bytes_up": len(batch) / patients,
        "bytes_down": len(scores) / patients,
        "distance": float(np.abs(opened - clear).max()),
        "same_class": float(np.mean(_classes(opened) == _classes(clear))),
    }


def _classes(scores: NDArray[np.floating[Any]]) -> NDArray[Any]:
    return scores.argmax(axis=1) if scores.shape[1] > 1 else scores[:, 0] > 0


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Encrypted scoring: what it costs

A client has patients, a host has the model's last layer. The client encrypts features under a key of its own, the host
computes scores without seeing anything, the client opens them ([how, and who learns what](../scoring.md)). One process,
one core; patients of a batch lie over the slots of a ciphertext, without rotation keys. All times are for each patient,
so that large batches look as cheap as they are. N=8192, primes of 54, 54 and 20 bits: 192-bit security.

![Milliseconds and kilobytes a patient against the size of the batch](scoring.svg)
"""

NOTES = """\
## What this says

- A batch has a fixed cost: one ciphertext up and one for each output down at least. One patient alone pays it all.
- What is between encrypted scores and those in the clear is the rounding of features and weights to whole numbers, of
  16 to 21 bits; the encryption itself adds nothing, its sums are exact.
- Reading files, the confined process, the passphrase's key derivation and signatures come on top: about a second a
  batch, most of it argon2id and importing pandas.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION]
    for model in MODELS:
        times = (f"{step}, ms" for step in STEPS)
        head = ("patients", *times, "kB up", "kB down", "largest difference", "same class")
        rows = sorted((row for row in results.rows if row["model"] == model), key=lambda row: int(row["patients"]))
        lines = [
            (
                f"{row['patients']:,}",
                *(f"{row[f'{step}_ms']:.3f}" for step in STEPS),
                *(f"{row[f'bytes_{way}'] / 1e3:.2f}" for way in ("up", "down")),
                f"{row['distance']:.1e}",
                f"{row['same_class']:.2%}",
            )
            for row in rows
        ]
        parts.append(f"## {model[0].upper()}{model[1:]}\n\n{table(head, lines)}")
    parts.append("## What was promised\n\n" + _promises(results))
    return "\n".join([*parts, NOTES, results.foot()])


def _promises(results: Results) -> str:
    lines = []
    for model in MODELS:
        row = results.find(model=model, patients=PROMISED)
        if row:
            total = sum(row[f"{step}_ms"] for step in STEPS)
            for what, value, most in (
                ("ms a patient, all steps", total, PROMISED_MS),
                ("largest difference from the clear", row["distance"], PROMISED_DISTANCE),
            ):
                kept = "kept" if value <= most else "**not kept**"
                lines.append((f"{model}, {PROMISED} patients: {what}", f"{value:.2g}", f"{most:g}", kept))
    return table(("", "measured", "at most", ""), lines)


def draw(results: Results, file: Path) -> None:
    """The picture: time and bytes of a patient, against the size of the batch."""
    with picture(file, (9, 3.6)) as figure:
        panels: Any = figure.subplots(1, 2)
        for model in MODELS:
            rows = sorted((row for row in results.rows if row["model"] == model), key=lambda row: int(row["patients"]))
            counts = [row["patients"] for row in rows]
            panels[0].plot(counts, [sum(row[f"{step}_ms"] for step in STEPS) for row in rows], "o-", label=model)
            panels[1].plot(counts, [(row["bytes_up"] + row["bytes_down"]) / 1e3 for row in rows], "o-", label=model)
        for axes, what in zip(panels, ("ms a patient", "kB a patient, both ways"), strict=True):
            axes.set(xscale="log", yscale="log", xlabel="patients in a batch", ylabel=what)
        panels[0].axhline(PROMISED_MS, color="k", linewidth=0.8, linestyle="--")
        panels[0].legend(frameon=False, fontsize=8)
