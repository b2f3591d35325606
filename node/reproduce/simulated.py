"""The rounds of a study in one process: what a federation computes, by the functions with which its nodes compute it,
without processes, sockets and encryption.

The total of a round is the exact sum of the parties' integers, as it is when it was encrypted (``[debug] check_sums``
compares the two in a real federation). Compression with what waits, hospital-level privacy, statistics and energies
are all in it. For experiments with public data: batches follow from a seed, so that two ways can be compared in pairs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keys.packing import Integers
from node import update
from node.course import Regime, Terms
from node.federation import plan_for
from node.protocol.messages import ENERGIES, STATISTICS, TRAIN
from node.study import Study
from node.tasks.base import Setup, Task, TrainingRound

_NOBODY = bytes(32)
"""In place of the digest of a manifest, from which masks follow."""


def load_tasks(study: Study, data: Mapping[str, Mapping[str, Any]]) -> list[Task]:
    """Every party's task."""
    from node.tasks.loader import load_task

    choice = study.task
    return [
        load_task(choice.class_name, Setup(name, choice.options, table, study.seed, Path()))
        for name, table in data.items()
    ]


def train(study: Study, tasks: Sequence[Task]) -> Iterator[tuple[update.Model, int]]:
    """The model after each round of training, and how many integers a party has sent in it: of its energies as well.

    All parties weigh the same. It stops where the privacy budget is spent.
    """
    plan, schedule = plan_for(study), study.schedule
    regime = Regime.of(study, plan, study.aggregation.min_hidden, _NOBODY)
    optimiser, spec = study.optimisation.optimiser, tasks[0].statistics_spec()
    names = [str(place) for place in range(len(tasks))]
    recipe = update.Recipe(plan, study.aggregation.clip, dict.fromkeys(names, 1), optimiser, spec, regime=regime)
    first = tasks[0].initial().astype(np.float32)
    model = update.Model(-1, first, moments=optimiser.begin(first.size), course=regime.begin())
    waiting, sent = [_nothing_waits(study, first.size) for _ in tasks], 0
    for number in range(schedule.last + 1):
        purpose = schedule.purpose(number)
        if purpose not in (TRAIN, ENERGIES) and not (purpose == STATISTICS and spec):
            continue
        values = spec.length if purpose == STATISTICS and spec else first.size
        terms = regime.terms(purpose, model, values, model.digest(_NOBODY))
        if regime.is_spent(model.course, terms):
            return
        trained = schedule.trained(number) + (purpose == ENERGIES)
        rate = study.optimisation.rates.rate(trained, study.rounds)
        round_ = TrainingRound(trained, study.rounds, model.statistics, model.parties, rate)
        total = np.zeros(terms.length, np.int64)
        for place, task in enumerate(tasks):
            _seed_batches(study.seed, number, place)
            total += _contribution(task, purpose, model, round_, recipe, terms, waiting[place])
        model = update.apply(model, number, purpose, [total.astype("<i4").tobytes()], names, recipe, terms)
        sent = 0 if purpose == STATISTICS else sent + terms.length
        if purpose == TRAIN:
            yield model, sent
            sent = 0


def _contribution(
    task: Task,
    purpose: str,
    model: update.Model,
    round_: TrainingRound,
    recipe: update.Recipe,
    terms: Terms,
    waiting: update.Waiting,
) -> Integers:
    integers = update.contribution(task, purpose, model, round_, recipe, 1.0, terms, waiting)
    if purpose == TRAIN:
        waiting.applied = terms.length
    return integers


def _nothing_waits(study: Study, length: int) -> update.Waiting:
    from node.compression.feedback import Feedback

    keeps = study.compression.is_sparse and study.compression.feedback
    return update.Waiting(Feedback.start(length) if keeps else None)


def _seed_batches(seed: int, number: int, place: int) -> None:
    import torch

    torch.manual_seed(int(np.random.SeedSequence([seed, number, place]).generate_state(1, np.uint64)[0]) >> 1)
