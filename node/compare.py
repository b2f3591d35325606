"""What federation was worth, against each hospital's own model and against one trained on pooled data.

Only a simulation can say: it reads every hospital's patients, which nobody may in life.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
from numpy.typing import NDArray

from node.evaluation import own_figures
from node.study import Study
from node.tasks.base import Setup, Task, TrainingRound
from node.tasks.loader import load_task, load_task_class

_FIGURES = {"auc": "AUC", "balanced_accuracy": "balanced accuracy", "accuracy": "accuracy"}

Model = NDArray[np.float32]
Figures = dict[str, float]
_RoundOf = Callable[[int], TrainingRound]


class Comparable(Task, Protocol):
    """A task that can stand for several hospitals."""

    @classmethod
    def pool(cls, tasks: Sequence[Self]) -> Self:
        """The task with all their training and all their held-out examples."""


def compare(
    study: Study,
    data: Mapping[str, Mapping[str, Any]],
    homes: Mapping[str, Path],
    models: Sequence[Model],
    statistics: NDArray[np.float64] | None,
) -> dict[str, Any]:
    """Local-only, federated and pooled models on each hospital's held-out patients, and on all of them together.

    ``data`` and ``homes`` are by party; ``models[r]`` is the federated model after r rounds (0: the first), and
    ``statistics`` the published sum. The local-only and pooled models get the same number of rounds, local epochs
    and learning rate, without clipping or quantisation. JSON-able: "hospitals", "together", "curves" (AUC by round
    on all held-out patients together, or None) and "notes"; only "notes" for a task without ``pool``.
    Raises TaskError.
    """
    if not hasattr(load_task_class(study.task.class_name), "pool"):
        return {"notes": [f"A {study.task.class_name} task has no local-only and pooled models to compare with."]}
    tasks = {
        party: cast(
            Comparable,
            load_task(study.task.class_name, Setup(party, study.task.options, table, study.seed, homes[party])),
        )
        for party, table in data.items()
    }
    everyone = type(first := next(iter(tasks.values()))).pool(list(tasks.values()))
    rounds = len(models) - 1

    def rounds_with(published: NDArray[np.float64] | None, parties: int) -> _RoundOf:
        return lambda number: TrainingRound(number, rounds, published, parties)

    federated = _Course(list(models), rounds_with(statistics, len(tasks)))
    pooled = _train(everyone, first.initial(), rounds, rounds_with(everyone.statistics(), len(tasks)))
    local = {
        party: _train(task, task.initial(), rounds, rounds_with(task.statistics(), 1)) for party, task in tasks.items()
    }
    hospitals = {
        party: {
            "own_patients": {
                "local": local[party].figures(task),
                "federated": federated.figures(task),
                "pooled": pooled.figures(task),
            },
            "all_patients": {"local": local[party].figures(everyone)},
        }
        for party, task in tasks.items()
    }
    together = {"federated": federated.figures(everyone), "pooled": pooled.figures(everyone)}
    best = max(local, key=lambda party: hospitals[party]["all_patients"]["local"].get("auc", 0.0))
    return {
        "hospitals": hospitals,
        "together": together,
        "curves": {
            "federated": federated.curve(everyone),
            "pooled": pooled.curve(everyone),
            "best_local": local[best].curve(everyone),
            "best_local_hospital": best,
        },
        "notes": _notes(hospitals, together, best),
    }


class _Course:
    """The models of a training, round by round, with what ``evaluate`` needs to know of the rounds."""

    def __init__(self, models: list[Model], round_of: _RoundOf) -> None:
        self._models, self._round_of = models, round_of

    def figures(self, task: Comparable, number: int = -1) -> Figures:
        number = number % len(self._models)
        return own_figures(task.evaluate(self._models[number], self._round_of(number)))

    def curve(self, task: Comparable) -> list[float | None]:
        return [self.figures(task, number).get("auc") for number in range(len(self._models))]


def _train(task: Comparable, model: Model, rounds: int, round_of: _RoundOf) -> _Course:
    models = [model]
    for number in range(1, rounds + 1):
        models.append(models[-1] + task.train(models[-1], round_of(number)))
    return _Course(models, round_of)


def _notes(hospitals: Mapping[str, Any], together: Mapping[str, Figures], best: str) -> list[str]:
    federated, pooled = together["federated"], together["pooled"]
    rival = hospitals[best]["all_patients"]["local"]
    notes = []
    if "auc" in federated:
        notes.append(
            f"On all {federated['n']:.0f} held-out patients together the AUC is {federated['auc']:.3f} federated, "
            f"{pooled['auc']:.3f} pooled and {rival['auc']:.3f} for the best local-only model ({best}'s)"
            + ("." if federated["auc"] > rival["auc"] else ": the federated model is not better than that one.")
        )
    for party, models in hospitals.items():
        own, shared = models["own_patients"]["local"], models["own_patients"]["federated"]
        better = [
            f"{name} {own[key]:.3f} against {shared[key]:.3f}"
            for key, name in _FIGURES.items()
            if key in own and round(own[key], 3) > round(shared[key], 3)
        ]
        patients = f"its own {own['n']:.0f} held-out patients ({own['prevalence']:.0%} ill)"
        if better:
            notes.append(f"{party}: its own model is better than the federated one on {patients}: {', '.join(better)}.")
        if "auc" not in own:
            notes.append(f"{party}: {patients} are all of one class, so there is no AUC.")
    fewest = min(models["own_patients"]["local"]["n"] for models in hospitals.values())
    notes.append(
        f"These are the figures of one split. The smallest hospital holds out {fewest:.0f} patients, and one of "
        f"them is {1 / fewest:.3f} of its accuracy: small differences between its models mean little."
    )
    return notes
