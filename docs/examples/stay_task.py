"""A task of one's own: how many days will a patient stay? Linear regression, numpy only."""

import csv

import numpy as np
from numpy.typing import NDArray

from node.tasks.base import Evaluation, EvaluationSpec, Measure, Setup, Task, TaskError, TrainingRound

COLUMNS = ("age", "previous_admissions", "stay_days")
SCALES = (100.0, 10.0, 10.0)  # the same at every hospital: known before anyone looks at data


class StayTask(Task):
    def __init__(self, setup: Setup) -> None:
        try:
            with open(setup.home / setup.data["csv"], newline="", encoding="utf-8") as file:
                rows = [[float(row[column]) for column in COLUMNS] for row in csv.DictReader(file)]
        except (OSError, KeyError, ValueError) as error:  # the text might quote a patient: only the type
            raise TaskError(f"{setup.party}: expected a CSV of numbers, came {type(error).__name__}") from None
        scaled = np.array(rows, np.float32) / np.array(SCALES, np.float32)
        held_out = np.arange(len(rows)) % 4 == 3
        self._train, self._test = scaled[~held_out], scaled[held_out]
        self.examples, self.parameters = len(rows), 3  # two slopes and the intercept

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        x, days = self._train[:, :2], self._train[:, 2]
        trained = model.copy()
        for _ in range(200):
            error = x @ trained[:2] + trained[2] - days
            trained -= np.float32(0.5) * np.append(x.T @ error, error.sum()) / len(days)
        return trained - model

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(measures=(Measure("days_off", 0.0, 100.0),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        error = self._test[:, :2] @ model[:2] + model[2] - self._test[:, 2]
        return Evaluation(len(error), measures={"days_off": min(float(np.abs(error).mean() * SCALES[2]), 100.0)})
