"""Counts that are summed give the figures of the pooled examples: exactly, or within the stated error."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

from node.evaluation import EvaluationError, Layout, Selection, fields_of, own_figures, spec_from
from node.tasks.base import Evaluation, EvaluationSpec, Measure

BINARY = EvaluationSpec(2, (Measure("log_loss", 0.0, 20.0),))
MANY = EvaluationSpec(4)


def hospital(generator: np.random.Generator, spec: EvaluationSpec, examples: int) -> Evaluation:
    labels = generator.integers(0, spec.classes, examples)
    scores = generator.dirichlet(np.ones(spec.classes), examples)
    scores[np.arange(examples), labels] += 0.3
    scores /= scores.sum(axis=1, keepdims=True)
    measures = {each.name: float(generator.uniform(each.low, each.high)) for each in spec.measures}
    return Evaluation(examples, labels, scores[:, 1] if spec.classes == 2 else scores, measures)


def pooled(parts: list[Evaluation]) -> Evaluation:
    labels = np.concatenate([np.asarray(part.labels) for part in parts])
    return Evaluation(len(labels), labels, np.concatenate([np.asarray(part.scores) for part in parts]))


@pytest.mark.parametrize("spec", [BINARY, MANY])
@pytest.mark.parametrize("max_value", [7, 127, 8191])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 300), min_size=1, max_size=6), st.integers(0, 2**32))
def test_summed_counts_are_the_pooled_examples(
    spec: EvaluationSpec, max_value: int, sizes: list[int], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    layout = Layout(spec, 100, 1000, max_value)
    parts = [hospital(generator, spec, size) for size in sizes]
    counts = [layout.count(part) for part in parts]
    assert all(each.shape == (layout.length,) and each.min() >= 0 and each.max() <= max_value for each in counts)
    figures = dict(zip(layout.names, layout.figures(np.sum(counts, axis=0)), strict=True))
    everyone = pooled(parts)
    assert figures["examples"] == everyone.examples
    if not everyone.examples:
        assert math.isnan(figures["accuracy"])
        return
    labels, scores = np.asarray(everyone.labels), np.asarray(everyone.scores)
    predicted = (scores >= 0.5).astype(int) if spec.classes == 2 else scores.argmax(axis=1)
    assert figures["accuracy"] == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    present = np.unique(labels)
    if present.size > 1:
        assert figures["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted), abs=1e-12)
        columns = [scores] if spec.classes == 2 else [scores[:, each] for each in present]
        truth = [1] if spec.classes == 2 else present
        auc = np.mean([roc_auc_score(labels == each, column) for each, column in zip(truth, columns, strict=True)])
        assert abs(figures["auc"] - auc) <= figures["auc_error"] + 1e-12
        assert figures["auc_error"] <= 0.5
    if spec.measures:
        mean = sum(part.measures["log_loss"] * part.examples for part in parts) / everyone.examples
        assert figures["log_loss"] == pytest.approx(mean, abs=20 / 65536)


def test_hospitals_with_one_class_only_and_with_none_are_counted_and_have_no_auc_of_their_own() -> None:
    layout = Layout(EvaluationSpec(2), 10, 100, 8191)
    ill = Evaluation(3, np.ones(3, np.int64), np.array([0.9, 0.8, 0.2]))
    well = Evaluation(2, np.zeros(2, np.int64), np.array([0.1, 0.3]))
    nobody = Evaluation(0, np.zeros(0, np.int64), np.zeros(0))
    alone = dict(zip(layout.names, layout.figures(layout.count(ill)), strict=True))
    assert alone["accuracy"] == pytest.approx(2 / 3)
    assert math.isnan(alone["auc"])
    assert "auc" not in own_figures(ill)
    assert own_figures(nobody) == {"n": 0.0}
    total = np.sum([layout.count(each) for each in (ill, well, nobody)], axis=0)
    figures = dict(zip(layout.names, layout.figures(total), strict=True))
    assert figures["auc"] == pytest.approx(5 / 6)
    assert figures["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)


def test_calibration_is_that_of_the_bins() -> None:
    layout = Layout(EvaluationSpec(2), 10, 1000, 8191)
    scores = np.repeat(np.arange(10) / 10 + 0.05, 20)
    labels = (np.tile(np.arange(20), 10) < np.round(20 * scores)).astype(np.int64)
    figures = dict(zip(layout.names, layout.figures(layout.count(Evaluation(200, labels, scores))), strict=True))
    assert figures["calibration_error"] == pytest.approx(0.0, abs=1e-12)
    worst = Evaluation(200, 1 - labels, scores)
    figures = dict(zip(layout.names, layout.figures(layout.count(worst)), strict=True))
    assert figures["calibration_error"] == pytest.approx(np.abs(1 - 2 * scores).mean())


BAD: list[tuple[dict[str, Any], str]] = [
    ({"examples": 1001}, "expected 0 to 1000 examples, came 1001"),
    ({"labels": np.array([0, 2, 1])}, "expected labels from 0 to 1"),
    ({"labels": np.array([0, 1])}, r"came shapes \(2,\) and \(3,\)"),
    ({"scores": np.array([0.1, np.nan, 0.3])}, "scores from 0 to 1, came others"),
    ({"scores": np.array([0.1, 1.2, 0.3])}, "scores from 0 to 1, came others"),
    ({"scores": None}, "came shapes"),
    ({"measures": {}}, "expected log_loss from 0 to 20, came another value"),
    ({"measures": {"log_loss": 21.0}}, "expected log_loss from 0 to 20"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_cannot_be_counted_is_refused_without_quoting_it(change: dict[str, Any], message: str) -> None:
    fields = {"examples": 3, "labels": np.array([0, 1, 1]), "scores": np.array([0.1, 0.7, 0.3]),
              "measures": {"log_loss": 0.4711}}  # fmt: skip
    with pytest.raises(EvaluationError, match=message) as caught:
        Layout(BINARY, 100, 1000, 8191).count(Evaluation(**(fields | change)))
    assert "4711" not in str(caught.value)


@given(st.integers(0, 9), st.lists(st.tuples(st.text(max_size=5), st.floats(0, 1), st.floats(1, 2)), max_size=3))
def test_a_spec_comes_back_from_its_fields(classes: int, measures: list[tuple[str, float, float]]) -> None:
    spec = EvaluationSpec(classes, tuple(Measure(*each) for each in measures))
    assert spec_from(fields_of(spec)) == spec
    assert spec_from(fields_of(None)) is None


def curve(*values: float) -> np.ndarray:
    return np.array([[number, 100.0, value] for number, value in enumerate(values)])


@pytest.mark.parametrize(
    ("selection", "values", "best", "stops"),
    [
        (Selection("auc"), (), None, False),
        (Selection("auc"), (math.nan,), None, False),
        (Selection("auc"), (0.6, 0.8, 0.8, 0.7), 1, False),
        (Selection("auc", "lower"), (0.6, 0.8, 0.5, 0.7), 2, False),
        (Selection("auc", stop_after=2), (0.6, 0.8, 0.7), 1, False),
        (Selection("auc", stop_after=2), (0.6, 0.8, 0.7, 0.8), 1, True),
        (Selection("auc", stop_after=2), (0.6, 0.8, math.nan, 0.7), 1, True),
        (Selection("auc", stop_after=2), (0.6, 0.8, 0.7, 0.9), 3, False),
        (Selection("auc", stop_after=2, least=0.2), (0.6, 0.8, 0.7, 0.9), 3, True),
        (Selection("auc", stop_after=1), (math.nan, 0.7), 1, False),
    ],
)
def test_the_best_and_the_end_follow_from_the_curve(
    selection: Selection, values: tuple[float, ...], best: int | None, stops: bool
) -> None:
    points = curve(*values) if values else np.zeros((0, 0))
    assert selection.best(points, ("examples", "auc")) == best
    assert selection.stops(points, ("examples", "auc")) == stops
