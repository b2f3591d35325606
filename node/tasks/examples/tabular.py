"""A task on a table: logistic regression by scikit-learn. The CSV has columns of numbers, and ``outcome``, 0 or 1."""

import csv

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDClassifier

from node.tasks.base import Evaluation, EvaluationSpec, Setup, Task, TaskError, TrainingRound

SCALES = {"age": 100.0, "systolic": 200.0, "cholesterol": 400.0}  # the same everywhere: known without looking at data


class TabularTask(Task):
    def __init__(self, setup: Setup) -> None:
        try:
            with open(setup.home / setup.data["csv"], newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            x = np.array([[float(row[name]) / scale for name, scale in SCALES.items()] for row in rows])
            y = np.array([int(row["outcome"]) for row in rows])
        except (OSError, KeyError, ValueError) as error:  # the text might quote a patient: only the type
            raise TaskError(f"{setup.party}: expected a CSV of numbers, came {type(error).__name__}") from None
        held_out = np.arange(len(y)) % 4 == 3
        self._train, self._test = (x[~held_out], y[~held_out]), (x[held_out], y[held_out])
        self.examples, self.parameters = len(y), len(SCALES) + 1  # the weights and the intercept

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        learner = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05 * round.rate)
        start = model.astype(np.float64)
        learner.coef_, learner.intercept_, learner.classes_ = start[None, :-1], start[-1:], np.arange(2)
        for _ in range(5):
            learner.partial_fit(*self._train, classes=[0, 1])
        return np.append(learner.coef_[0], learner.intercept_).astype(np.float32) - model

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(classes=2)

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        x, y = self._test
        return Evaluation(len(y), labels=y, scores=1 / (1 + np.exp(-(x @ model[:-1] + model[-1]))))
