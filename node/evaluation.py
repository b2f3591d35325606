"""Federated evaluation: what a model does on everyone's held-out examples, from counts that are summed in the tree.

A party counts: its confusion matrix, a histogram of its scores for each class, sums of other measures. The counts are
integers, go up the tree encrypted like an update, and only their sum is opened; no hospital publishes its own. From
the sums everyone computes the same figures, to the last bit: integer arithmetic, and one division in the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from keys.packing import Integers
from node.tasks.base import Evaluation, EvaluationSpec, Measure

UNIT = 1 << 16
"""A measure's sum is counted in such parts of its range."""

ROUND, EXAMPLES = "round", "examples"


class EvaluationError(WardtreeError):
    """A task's evaluation cannot be counted."""


def fields_of(spec: EvaluationSpec | None) -> list[Any] | None:
    """A spec as plain values, for another process; :func:`spec_from` is the inverse."""
    return None if spec is None else [spec.classes, [[each.name, each.low, each.high] for each in spec.measures]]


def spec_from(fields: Sequence[Any] | None) -> EvaluationSpec | None:
    return None if fields is None else EvaluationSpec(fields[0], tuple(Measure(*each) for each in fields[1]))


@dataclass(frozen=True)
class Layout:
    """Where each count stands among the integers of an evaluation round; public, the same at every party.

    A count may be larger than what a party may send in one integer: it travels in ``digits`` to the base
    ``max_value + 1``, which are summed each by itself.

    Attributes:
        spec: what the task measures.
        bins: of each histogram of scores, over [0, 1]; even, so that 1/2 is an edge.
        max_examples: no party may have more.
        max_value: the largest integer of one party (``Plan.max_value``).
    """

    spec: EvaluationSpec
    bins: int
    max_examples: int
    max_value: int

    @property
    def histograms(self) -> int:
        """One for each class, against all others; of two classes the second's says all."""
        return 1 if self.spec.classes == 2 else self.spec.classes

    @property
    def _counts(self) -> int:
        """Confusion matrix and histograms, or the number of examples alone."""
        return self.spec.classes**2 + 2 * self.histograms * self.bins if self.spec.classes else 1

    @property
    def _digits(self) -> tuple[int, int]:
        """Of a count, and of a measure's sum."""
        return self._places(self.max_examples), self._places(self.max_examples * UNIT)

    def _places(self, largest: int) -> int:
        places = 1
        while (self.max_value + 1) ** places <= largest:
            places += 1
        return places

    @property
    def length(self) -> int:
        """Integers of an evaluation round."""
        count, total = self._digits
        return count * self._counts + total * len(self.spec.measures)

    @property
    def names(self) -> tuple[str, ...]:
        """What :meth:`figures` gives, in its order."""
        classes = ("accuracy", "balanced_accuracy", "auc", "auc_error", "calibration_error")
        return (EXAMPLES, *(classes if self.spec.classes else ()), *(measure.name for measure in self.spec.measures))

    # ---- one party ------------------------------------------------------------------------------------------

    def count(self, evaluation: Evaluation) -> Integers:
        """One party's counts, shape (length,), each from 0 to ``max_value``.

        Raises:
            EvaluationError: it is not what the spec says, or has more examples than allowed.
        """
        self._check(evaluation)
        few, many = self._digits
        counts = np.array([evaluation.examples]) if not self.spec.classes else self._count_classes(evaluation)
        sums = [
            round((evaluation.measures[measure.name] - measure.low) / (measure.high - measure.low) * UNIT)
            * evaluation.examples
            for measure in self.spec.measures
        ]
        base = self.max_value + 1
        parts = [counts // base**place % base for place in range(few)]
        parts += [np.array([total // base**place % base for total in sums]) for place in range(many)]
        return np.concatenate(parts).astype(np.int64)

    def _count_classes(self, evaluation: Evaluation) -> NDArray[np.int64]:
        classes, bins = self.spec.classes, self.bins
        labels = np.asarray(evaluation.labels, np.int64)
        scores = _by_class(np.asarray(evaluation.scores, np.float64))
        predicted = (scores[:, 1] >= 0.5).astype(np.int64) if classes == 2 else scores.argmax(axis=1)
        confusion = np.bincount(labels * classes + predicted, minlength=classes**2)
        columns = range(1, 2) if classes == 2 else range(classes)
        places = np.minimum((scores * bins).astype(np.int64), bins - 1)
        histograms = [
            np.bincount(places[is_own, column], minlength=bins)
            for column in columns
            for is_own in (labels == column, labels != column)
        ]
        return np.concatenate([confusion, *histograms])

    def _check(self, evaluation: Evaluation) -> None:
        examples, classes = evaluation.examples, self.spec.classes
        if not 0 <= examples <= self.max_examples:
            raise EvaluationError(f"evaluation: expected 0 to {self.max_examples} examples, came {examples}")
        for measure in self.spec.measures:
            value = evaluation.measures.get(measure.name, math.nan)
            if not measure.low <= value <= measure.high:
                raise EvaluationError(
                    f"evaluation: expected {measure.name} from {measure.low:g} to {measure.high:g}, came another value"
                )
        if not classes:
            return
        labels, scores = np.asarray(evaluation.labels), np.asarray(evaluation.scores)
        shapes = ((examples,), (examples, 2)) if classes == 2 else ((examples, classes),)
        if labels.shape != (examples,) or scores.shape not in shapes:
            raise EvaluationError(
                f"evaluation: expected {examples} labels and scores of {classes} classes, came shapes {labels.shape} "
                f"and {scores.shape}"
            )
        if examples and not (np.isin(labels, range(classes)).all() and ((scores >= 0) & (scores <= 1)).all()):
            raise EvaluationError(
                f"evaluation: expected labels from 0 to {classes - 1} and scores from 0 to 1, came others"
            )

    # ---- the sum over all ---------------------------------------------------------------------------------

    def figures(self, total: Integers) -> tuple[float, ...]:
        """The figures of the opened sums, shape (length,); NaN where there is none, as the AUC of a single class."""
        few, many = self._digits
        counts = self._joined(total[: few * self._counts], few)
        sums = self._joined(total[few * self._counts :], many)
        examples = sum(counts[: self.spec.classes**2]) if self.spec.classes else counts[0]
        measures = [
            measure.low + (measure.high - measure.low) * _ratio(each, examples * UNIT)
            for measure, each in zip(self.spec.measures, sums, strict=True)
        ]
        return (float(examples), *(self._class_figures(counts, examples) if self.spec.classes else ()), *measures)

    def _joined(self, digits: Integers, places: int) -> list[int]:
        if not digits.size:
            return []
        base = self.max_value + 1
        rows = digits.reshape(places, -1).tolist()
        columns = zip(*rows, strict=True)
        return [sum(digit * base**place for place, digit in enumerate(column)) for column in columns]

    def _class_figures(self, counts: Sequence[int], examples: int) -> Iterator[float]:
        classes, bins = self.spec.classes, self.bins
        confusion = [counts[row * classes : (row + 1) * classes] for row in range(classes)]
        yield _ratio(sum(confusion[label][label] for label in range(classes)), examples)
        recalls = [_ratio(row[label], sum(row)) for label, row in enumerate(confusion) if sum(row)]
        yield _mean(recalls)
        begin = classes**2
        areas: list[tuple[float, float]] = []
        off = 0
        for _ in range(self.histograms):
            own, others = counts[begin : begin + bins], counts[begin + bins : begin + 2 * bins]
            begin += 2 * bins
            areas.append(_area(own, others))
            # |positives - midpoint * all| of each bin, in units of 1/(2 * bins) of an example
            off += sum(
                abs(2 * bins * yes - (2 * place + 1) * (yes + no))
                for place, (yes, no) in enumerate(zip(own, others, strict=True))
            )
        yield _mean([area for area, _ in areas if not math.isnan(area)])
        yield _mean([error for area, error in areas if not math.isnan(area)])
        yield _ratio(off, 2 * bins * examples * self.histograms)


def _by_class(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.column_stack([1 - scores, scores]) if scores.ndim == 1 else scores


def _area(own: Sequence[int], others: Sequence[int]) -> tuple[float, float]:
    """The area under the ROC curve of two histograms, a pair in one bin counted as half; and how far the area of the
    scores themselves may be from it: half of all such pairs."""
    doubled = ties = below = 0
    for yes, no in zip(own, others, strict=True):
        doubled += yes * (2 * below + no)
        ties += yes * no
        below += no
    pairs = sum(own) * sum(others)
    return _ratio(doubled, 2 * pairs), _ratio(ties, 2 * pairs)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole > 0 else math.nan


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


# ---- over the rounds ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Selection:
    """Which evaluated model is the best, and when to stop: from the curve of published figures alone.

    Attributes:
        measure: the figure that counts.
        better: whether more of it or less is better.
        stop_after: evaluations without an improvement by ``least`` after which the study ends; 0: it does not.
        least: how much better counts as better, for stopping.
    """

    measure: str
    better: Literal["higher", "lower"] = "higher"
    stop_after: int = 0
    least: float = 0.0

    def best(self, curve: NDArray[np.float64], names: Sequence[str]) -> int | None:
        """The row of the best evaluation, the first of equals; None before there is one."""
        values = self._values(curve, names)
        return None if not values.size or np.isnan(values).all() else int(np.nanargmax(values))

    def stops(self, curve: NDArray[np.float64], names: Sequence[str]) -> bool:
        """Whether the last ``stop_after`` evaluations were no better than what came before them."""
        values = self._values(curve, names)
        if not self.stop_after or len(values) <= self.stop_after:
            return False
        before, late = values[: -self.stop_after], values[-self.stop_after :]
        if np.isnan(before).all():
            return False
        return not bool((late > np.nanmax(before) + self.least).any())

    def _values(self, curve: NDArray[np.float64], names: Sequence[str]) -> NDArray[np.float64]:
        if not len(curve):
            return np.zeros(0)
        values = curve[:, 1 + list(names).index(self.measure)]  # a row begins with its round
        return values if self.better == "higher" else -values


# ---- at one hospital --------------------------------------------------------------------------------------


def own_figures(evaluation: Evaluation) -> dict[str, float]:
    """One hospital's own figures, for itself, from the scores themselves.

    "n", the measures, and with classes "prevalence" (of two), "majority" (the share of the largest), "accuracy", and
    where more than one class is there "balanced_accuracy" and "auc" (of each class against the others, their mean).
    """
    figures = {"n": float(evaluation.examples), **evaluation.measures}
    if evaluation.labels is None or evaluation.scores is None or not evaluation.examples:
        return figures
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, roc_auc_score

    labels = np.asarray(evaluation.labels, np.int64)
    scores = _by_class(np.asarray(evaluation.scores, np.float64))
    is_binary = scores.shape[1] == 2
    predicted = (scores[:, 1] >= 0.5).astype(np.int64) if is_binary else scores.argmax(axis=1)
    if is_binary:
        figures["prevalence"] = float(labels.mean())
    figures["majority"] = float(np.bincount(labels).max() / labels.size)
    figures["accuracy"] = float(accuracy_score(labels, predicted))
    present = np.unique(labels)
    if present.size > 1:
        figures["balanced_accuracy"] = float(balanced_accuracy_score(labels, predicted))
        classes = [1] if is_binary else present
        figures["auc"] = float(np.mean([roc_auc_score(labels == each, scores[:, each]) for each in classes]))
    return figures
