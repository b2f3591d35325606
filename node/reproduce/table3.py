"""Table III: accuracy of the heart-disease model, and of an image model, against the privacy budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from node.pages import picture, table
from node.privacy.accountant import (
    MECHANISMS,
    ORDERS,
    Accountant,
    Mechanism,
    Spent,
    noise_for,
    prv_error,
)  # fmt: skip
from node.privacy.budget import Budget
from node.privacy.dpsgd import Recipe, train
from node.reproduce.framingham import FILES, read_patients
from node.reproduce.output import Results, Row, spread, verdict
from node.reproduce.pictures import NAMES, Pictures

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
        most: repetitions at most.
    """

    recipe: Recipe
    expected: dict[float, float]
    pictures: str | None = None
    most: int = 1000


CASES = {
    "full batch": Case(Recipe(1.0, None, 5, 1.0, 0.0), {0.1: 65.2, 0.3: 67.0, 1.0: 67.8, 10.0: 67.6}),
    "batch 64": Case(Recipe(0.1, 64, 5, 1.0, 0.0), {0.1: 65.7, 0.3: 67.7, 1.0: 67.9, 10.0: 67.9}),
}
HEAD = Recipe(1e-3, 256, 10, 10.0, 0.0, momentum=0.9)
CASES |= {f"{name}, top layer": Case(HEAD, {}, name, 5) for name in NAMES}


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
    repetitions: int,
    epsilons: Sequence[float] = EPSILONS,
    recipes: Sequence[str] = tuple(CASES),
    mechanisms: Sequence[Mechanism] = MECHANISMS,
    pictures: Mapping[str, Pictures] | None = None,
) -> None:
    """Measure the cells asked for, and write everything; of image models those whose ``pictures`` are there."""
    there = [name for name in recipes if CASES[name].pictures in (None, *(pictures or {}))]
    results.measure(list(_plan(repetitions, epsilons, there, mechanisms, pictures or {})))
    publish(results)


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(
    repetitions: int,
    epsilons: Sequence[float],
    recipes: Sequence[str],
    mechanisms: Sequence[Mechanism],
    pictures: Mapping[str, Pictures],
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for recipe in recipes:
        for mechanism in mechanisms:
            for epsilon in epsilons:
                if math.isfinite(epsilon) or mechanism == mechanisms[0]:
                    key = {"recipe": recipe, "accountant": mechanism, "epsilon": _named(epsilon)}
                    count = min(repetitions, CASES[recipe].most)
                    yield (
                        key,
                        partial(cell, recipe, mechanism, epsilon, count, pictures.get(CASES[recipe].pictures or "")),
                    )


def _named(epsilon: float) -> str:
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
        "opacus": _by_opacus(accountant.history, mechanism) if budget else None,
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


def _by_opacus(history: tuple[Spent, ...], mechanism: Mechanism) -> float:
    """Opacus's own accountant, stepped as it is by Opacus."""
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism)
    for each in history:
        for _ in range(each.steps):
            accountant.step(noise_multiplier=each.noise_multiplier, sample_rate=each.sample_rate)
    options: dict[str, Any] = (
        {"alphas": list(ORDERS)} if mechanism == "rdp" else {"eps_error": prv_error(history, DELTA)}
    )
    return float(accountant.get_epsilon(DELTA, **options))


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Table III again: accuracy against the privacy budget

The heart-disease model of [Table V](table5.md) (800 patients to train, 200 to test), trained in one place by DP-SGD
(Opacus) so that it tells little of any one patient: (ε, δ = {delta:g}), neighbours that differ by one patient being
there or not. Two recipes, because the paper's text does not fix one:

- **full batch**: 5 steps on all patients, learning rate 1;
- **batch 64**: 5 epochs of 13 Poisson batches, learning rate 0.1.

Both clip each patient's gradient to length 1, all 10 parameters together. Noise is the least with which the accountant
stays within ε: by Rényi differential privacy with orders up to 2048 (Opacus's default ones end at 63 and give no useful
bound at ε = 0.1), or by privacy loss random variables (PRV), which are tighter. One accountant goes over all steps and
is asked *before* each (`node/privacy/`). Repetitions differ by first models, batches and noise.

The image model is the top layer of [Table VII](table7.md), in one place: {head_epochs} epochs of Poisson batches of
{head_batch}, learning rate {head_rate:g}, momentum {head_momentum:g}, each image's gradient clipped to length
{head_clip:g}.

![Accuracy against epsilon](table3.svg)
"""

NOTES = """\
## What differs, and why

- The five epochs of the second recipe were chosen by their result: with one the accuracies stay near 60 %.
- *Expected* is what each recipe is said to give. The ± is the standard deviation of single repetitions; that of a mean
  over 100 of them is a tenth of it.
- From ε = 1 on noise costs little that can be seen: what is lost against ε = ∞ is lost by clipping, which with z-scores
  shortens most gradients.
- Batches and noise are drawn here from public seeds, so that the table can be repeated; the data are public. A node
  draws them from the operating system.
- The paper's image model is a ResNet-18's top layer on DermaMNIST; which network and which images are here, and why,
  [Table VII](table7.md) says. Its clipping length and the batch of {head_batch} are ours: with noise larger batches are
  better, and a length of 1 would need another learning rate with noise than without.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    head = {
        f"head_{name}": getattr(HEAD, field)
        for name, field in (
            ("epochs", "epochs"), ("batch", "batch_size"), ("rate", "learning_rate"), ("momentum", "momentum"),
            ("clip", "clip"),
        )
    }  # fmt: skip
    parts = [INTRODUCTION.format(delta=DELTA, **head)]
    epsilons = [name for name in map(_named, EPSILONS) if results.find(epsilon=name)]
    for recipe in CASES:
        if results.find(recipe=recipe):
            title = recipe.capitalize() if recipe.islower() else recipe
            parts.append(f"## {title}\n\n{_about(results, recipe)}{_table(results, recipe, epsilons)}")
    parts.append("## What was promised\n\n" + _promises(results))
    parts += [NOTES.format(**head), results.foot()]
    return "\n".join(parts)


def _about(results: Results, recipe: str) -> str:
    row = results.find(recipe=recipe)
    if row is None or CASES[recipe].pictures is None:
        return ""
    return (
        f"{row['train_rows']:,} images to train, {row['repetitions']} repetitions. Always naming the largest class is "
        f"right for {row['majority']:.1f} %.\n\n"
    )


def _cell(results: Results, recipe: str, mechanism: str, epsilon: str) -> Row | None:
    """Without noise there is nothing to account for: one row serves both."""
    wanted = {"recipe": recipe, "epsilon": epsilon}
    return results.find(**wanted) if epsilon == "inf" else results.find(**wanted, accountant=mechanism)


def _table(results: Results, recipe: str, epsilons: Sequence[str]) -> str:
    expected = {_named(epsilon): mean for epsilon, mean in CASES[recipe].expected.items()}
    lines = [["expected, %", *(f"{expected[name]}" if name in expected else "–" for name in epsilons)]] * bool(expected)
    for mechanism in MECHANISMS:
        rows = [_cell(results, recipe, mechanism, name) for name in epsilons]
        called = mechanism.upper()
        accuracies = (f"{row['mean']:.2f} ± {row['spread']:.2f}" if row else "–" for row in rows)
        lines.append([f"{called}: accuracy, %", *accuracies])
        if expected:
            differences = (_less(row, expected.get(name)) for row, name in zip(rows, epsilons, strict=True))
            lines.append([f"{called}: less expected", *differences])
        lines += [
            [f"{called}: noise multiplier", *(f"{row['noise_multiplier']:.2f}" if row else "–" for row in rows)],
            [f"{called}: ε spent", *(f"{row['spent']:.4g}" if row and row["spent"] else "–" for row in rows)],
        ]
    return table(("ε", *("∞" if name == "inf" else name for name in epsilons)), lines)


def _less(row: Row | None, expected: float | None) -> str:
    return "–" if row is None or expected is None else f"{row['mean'] - expected:+.2f}"


def _promises(results: Results) -> str:
    lines = []
    for row in results.rows:
        expected = {_named(epsilon): mean for epsilon, mean in CASES[row["recipe"]].expected.items()}
        where = f"{row['recipe']}, {row['accountant'].upper()}, ε = {row['epsilon']}, {row['repetitions']} repetitions"
        if row["epsilon"] in expected:
            distance = abs(row["mean"] - expected[row["epsilon"]])
            lines.append(
                (
                    f"{where}: distance from expected",
                    f"{distance:.2f}",
                    TOLERANCE,
                    verdict(distance <= TOLERANCE, row["repetitions"]),
                )
            )
    private = [row for row in results.rows if row["spent"] is not None]
    if private:
        most = max(abs(row["spent"] - row["opacus"]) for row in private)
        over = sum(row["spent"] > float(row["epsilon"]) for row in private)
        lines.append(
            (
                "ε of our accountant against Opacus's own, the largest difference",
                f"{most:.1e}",
                1e-9,
                verdict(most <= 1e-9),
            )
        )
        lines.append((f"cells of {len(private)} that spent more than their ε", over, 0, verdict(not over)))
    return table(("", "measured", "at most", ""), lines)


def draw(results: Results, file: Path) -> None:
    """The picture: accuracy against epsilon, with standard errors; the line is without noise."""
    shown = {recipe: case for recipe, case in CASES.items() if results.find(recipe=recipe)}
    with picture(file, (4.5 * len(shown), 3.6)) as figure:
        panels: Any = figure.subplots(1, len(shown), squeeze=False)[0]
        for axes, (recipe, case) in zip(panels, shown.items(), strict=True):
            for mechanism in MECHANISMS:
                rows = [row for row in results.rows if (row["recipe"], row["accountant"]) == (recipe, mechanism)]
                rows = sorted((row for row in rows if row["epsilon"] != "inf"), key=lambda row: float(row["epsilon"]))
                if rows:
                    places = [float(row["epsilon"]) for row in rows]
                    errors = [row["standard_error"] for row in rows]
                    axes.errorbar(
                        places, [row["mean"] for row in rows], errors, marker="o", capsize=3, label=mechanism.upper()
                    )
            if without := results.find(recipe=recipe, epsilon="inf"):
                axes.axhline(without["mean"], color="#8a8a8a", linestyle="--", label="no noise, no clipping")
            if case.expected:
                axes.plot(list(case.expected), list(case.expected.values()), "k_", markersize=14, label="expected")
            axes.set(title=recipe, xlabel="ε", xscale="log")
        panels[0].set_ylabel("accuracy, held out, %")
        panels[0].legend(frameon=False, fontsize=8)
