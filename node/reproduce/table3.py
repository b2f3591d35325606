"""Table III: accuracy of the heart-disease model, and of an image model, against the privacy budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from node.privacy.accountant import MECHANISMS, Accountant, Mechanism, noise_for
from node.privacy.budget import Budget
from node.privacy.dpsgd import Recipe, train
from node.reproduce.framingham import FILES, read_patients
from node.reproduce.output import Results, Row, spread
from node.reproduce.pictures import NAMES, Pictures
from node.reproduce.table3_tree import by_opacus, tree_cell

EPSILONS = (math.inf, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
QUICK_EPSILONS = (math.inf, 0.1, 1.0)
DELTA = 1e-5
TOLERANCE = 1.5
SEED = 1


@dataclass(frozen=True)
class Case:
    """A recipe, and what it is said to give, percent, at some epsilons.

    Attributes:
        pictures: the data set of images whose top layer is learnt; None: the heart-disease patients.
        repetitions, quick: of each cell, unless another number is asked for.
        hospitals: that learn it together, through the tree; 0: it is learnt in one place.
    """

    recipe: Recipe
    expected: dict[float, float]
    pictures: str | None = None
    repetitions: int = 100
    quick: int = 10
    hospitals: int = 0

    def cells(self, epsilons: Sequence[float], mechanisms: Sequence[Mechanism]) -> Iterator[tuple[Mechanism, float]]:
        """Without noise there is nothing to account for: one cell serves all mechanisms. Nodes account by RDP."""
        for mechanism in mechanisms:
            for epsilon in epsilons:
                if self.hospitals:
                    wanted = mechanism == "rdp" and math.isfinite(epsilon)
                else:
                    wanted = mechanism == mechanisms[0] or math.isfinite(epsilon)
                if wanted:
                    yield mechanism, epsilon


CASES = {
    "full batch": Case(Recipe(1.0, None, 5, 1.0, 0.0), {0.1: 65.2, 0.3: 67.0, 1.0: 67.8, 10.0: 67.6}),
    "batch 64": Case(Recipe(0.1, 64, 5, 1.0, 0.0), {0.1: 65.7, 0.3: 67.7, 1.0: 67.9, 10.0: 67.9}),
}
HEAD = Recipe(1e-3, 256, 10, 10.0, 0.0, momentum=0.9)
CASES |= {f"{name}, top layer": Case(HEAD, {}, name, 5, 1) for name in NAMES}
TREE = "in the tree, 4 hospitals"
CASES[TREE] = Case(Recipe(1.0, None, 5, 1.0, 0.0), {}, None, 2, 1, hospitals=4)


@dataclass(frozen=True)
class Problem:
    """What is learnt in one place: tensors to train, how many outputs, the loss, and the accuracy of a module."""

    x: Any
    y: Any
    outputs: int
    loss: Callable[[Any, Any], Any]
    accuracy: Callable[[Any], float]
    majority: float


def run(
    results: Results,
    repetitions: int | None = None,
    epsilons: Sequence[float] = EPSILONS,
    recipes: Sequence[str] = tuple(CASES),
    mechanisms: Sequence[Mechanism] = MECHANISMS,
    pictures: Mapping[str, Pictures] | None = None,
) -> None:
    """Measure the cells asked for, of image models those whose ``pictures`` are there."""
    there = [name for name in recipes if CASES[name].pictures in (None, *(pictures or {}))]
    counts = {name: repetitions or (CASES[name].quick if results.quick else CASES[name].repetitions) for name in there}
    results.measure(list(_plan(counts, epsilons, mechanisms, pictures or {})))


def _plan(
    repetitions: Mapping[str, int],
    epsilons: Sequence[float],
    mechanisms: Sequence[Mechanism],
    pictures: Mapping[str, Pictures],
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for recipe, count in repetitions.items():
        case = CASES[recipe]
        for mechanism, epsilon in case.cells(epsilons, mechanisms):
            key = {"recipe": recipe, "accountant": mechanism, "epsilon": named(epsilon)}
            if case.hospitals:
                yield key, partial(tree_cell, Budget(epsilon, DELTA), case.hospitals, count)
            else:
                yield key, partial(cell, recipe, mechanism, epsilon, count, pictures.get(case.pictures or ""))


def named(epsilon: float) -> str:
    return f"{epsilon:g}" if math.isfinite(epsilon) else "inf"


def cell(recipe: str, mechanism: Mechanism, epsilon: float, repetitions: int, pictures: Pictures | None = None) -> Row:
    """One cell: the noise that the budget asks for, and all repetitions with it.

    Returns:
        ``spent``: epsilon of each repetition's own accountant, the same for all of them; ``opacus``: what Opacus's
        accountant says of the same history.
    """
    import torch

    problem = _patients() if pictures is None else _images(pictures)
    x, y = problem.x, problem.y
    plan, rows = CASES[recipe].recipe, len(y)
    budget = Budget(epsilon, DELTA) if math.isfinite(epsilon) else None
    steps = plan.epochs * plan.batches(rows)
    if budget:
        plan = replace(plan, noise_multiplier=noise_for(budget, plan.sample_rate(rows), steps, mechanism))
    accuracies, accountant = [], Accountant(budget, mechanism)
    for repetition in range(repetitions):
        generator = torch.Generator().manual_seed(SEED * 1_000_003 + repetition)  # public data: to be repeatable
        module = torch.nn.Linear(x.shape[1], problem.outputs)
        with torch.no_grad():
            for part in module.parameters():
                bound = x.shape[1] ** -0.5
                part.copy_(torch.rand(part.shape, generator=generator) * 2 * bound - bound)
        accountant = Accountant(budget, mechanism)
        # PRV takes a second to be asked: it is asked once, when the noise is chosen, and again at the end.
        stepwise = Accountant(budget) if mechanism == "rdp" else Accountant(None)
        train(module, x, y, problem.loss, plan, stepwise, generator)
        for each in stepwise.history:
            accountant.spend(each.noise_multiplier, each.sample_rate, each.steps)
        with torch.no_grad():
            accuracies.append(100 * problem.accuracy(module))
    mean, deviation = spread(accuracies)
    return {
        "repetitions": repetitions,
        "noise_multiplier": plan.noise_multiplier,
        "steps": steps,
        "spent": accountant.epsilon() if budget else None,
        "opacus": by_opacus(accountant.history, mechanism, DELTA) if budget else None,
        "mean": mean,
        "spread": deviation,
        "standard_error": deviation / math.sqrt(repetitions),
        "accuracies": accuracies,
        "train_rows": rows,
        "majority": 100 * problem.majority,
    }


def _patients() -> Problem:
    import torch
    from torch.nn.functional import binary_cross_entropy_with_logits

    patients, test = read_patients(FILES["4,238 rows"])
    x, y = (torch.from_numpy(each).float() for each in (patients.x[:, :-1], patients.y))

    def loss(logits: Any, ill: Any) -> Any:
        return binary_cross_entropy_with_logits(logits[:, 0], ill)

    def accuracy(module: Any) -> float:
        return float(test.accuracy(np.append(module.weight.numpy()[0], module.bias.numpy())))

    return Problem(x, y, 1, loss, accuracy, float(max(test.y.mean(), 1 - test.y.mean())))


def _images(pictures: Pictures) -> Problem:
    import torch
    from torch.nn.functional import cross_entropy

    x, y = torch.from_numpy(pictures.train.x), torch.from_numpy(pictures.train.y)
    seen, labels = torch.from_numpy(pictures.test.x), pictures.test.y

    def accuracy(module: Any) -> float:
        return float(np.mean(module(seen).argmax(1).numpy() == labels))

    return Problem(x, y, pictures.classes, cross_entropy, accuracy, float(np.bincount(labels).max() / len(labels)))
