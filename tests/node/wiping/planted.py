"""A task whose data and updates are known to whoever searches for them: ``tests/node/wiping/prove.py``.

In the last round it waits for the file ``go`` beside its data, so that the node can be searched at leisure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.tasks.base import Evaluation, OptionsError, Setup, Task, TrainingRound

LEAST, MOST = 1000, 8191
SECONDS = 120.0


def update_of(data: NDArray[np.float64], number: int) -> NDArray[np.float64]:
    """The update of round ``number``: whole numbers from the data, as different from them as from another round's."""
    mixed = (data.astype(np.int64) * 7919 * (2 * number + 1)) % (2 * (MOST - LEAST))
    return np.where(mixed < MOST - LEAST, mixed + LEAST, -mixed + MOST - 2 * LEAST).astype(np.float64)


class PlantedTask(Task):
    """``[data] file``: float64 values. ``[task.options] length``: how many."""

    def __init__(self, setup: Setup) -> None:
        self.path = setup.home / str(setup.data["file"])
        self.data = np.fromfile(self.path, "<f8")
        self.examples, self.parameters = 1, int(setup.options["length"])

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        if set(options) != {"length"}:
            raise OptionsError(["length: expected a whole number"])

    def initial(self) -> NDArray[np.float32]:
        return np.zeros(self.parameters, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        values = update_of(self.data, round.number)
        self.trained = values.astype(np.float32)  # a task keeps its network, and so would one of torch
        deadline = time.monotonic() + SECONDS
        while round.number == round.rounds and not Path(f"{self.path}.go").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.trained

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        return Evaluation(0)
