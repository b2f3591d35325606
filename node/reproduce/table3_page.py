"""The page and the picture of Table III, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from node.pages import picture, table
from node.privacy.accountant import MECHANISMS
from node.reproduce.output import Results, Row, verdict
from node.reproduce.table3 import CASES, DELTA, EPSILONS, HEAD, TOLERANCE, TREE, named

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

**In the tree** the heart-disease model is learnt by {hospitals} hospitals with 200 patients each, through real nodes
(`[privacy] mode = "record"`): five rounds, in each a full-batch step at every hospital, learning rate 1, clip 1. Each
has an account of its own, by RDP, and writes what is spent into its own signed ledger, with the history that it follows
from. That is the ε which is compared with Opacus's below.

In the tables *noise multiplier* is the noise's standard deviation over the clipping length; *ε spent* is what the
accountant says after the last step; without noise (ε = ∞) there is nothing to account for, so that both accountants
show the same run.

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
- In the tree a hospital's noise hides one of 200 patients, not one of 800, so in the mean over {hospitals} hospitals it
  is twice as large; and the first models differ, as in Table V. So few repetitions show neither. The noise is from the
  operating system: a second run gives other accuracies, and the same ε.
- The paper's image model is a ResNet-18's top layer on DermaMNIST; which network and which images are here, and why,
  [Table VII](table7.md) says. Its clipping length and the batch of {head_batch} are ours: with noise larger batches are
  better, and a length of 1 would need another learning rate with noise than without.
"""


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def write_page(results: Results) -> str:
    """The page in Markdown."""
    head = {
        f"head_{name}": getattr(HEAD, field)
        for name, field in (
            ("epochs", "epochs"), ("batch", "batch_size"), ("rate", "learning_rate"), ("momentum", "momentum"),
            ("clip", "clip"),
        )
    }  # fmt: skip
    parts = [INTRODUCTION.format(delta=DELTA, hospitals=CASES[TREE].hospitals, **head)]
    epsilons = [name for name in map(named, EPSILONS) if results.find(epsilon=name)]
    for recipe in CASES:
        if results.find(recipe=recipe):
            title = recipe.capitalize() if recipe.islower() else recipe
            parts.append(f"## {title}\n\n{_about(results, recipe)}{_table(results, recipe, epsilons)}")
    parts.append("## What was promised\n\n" + _promises(results))
    parts += [NOTES.format(hospitals=CASES[TREE].hospitals, **head), results.foot()]
    return "\n".join(parts)


def _about(results: Results, recipe: str) -> str:
    row, case = results.find(recipe=recipe), CASES[recipe]
    if row is None or not (case.pictures or case.hospitals):
        return ""
    what = "images" if case.pictures else "patients"
    return (
        f"{row['train_rows']:,} {what} to train, {row['repetitions']} repetitions. Always naming the largest class is "
        f"right for {row['majority']:.1f} %.\n\n"
    )


def _cell(results: Results, recipe: str, mechanism: str, epsilon: str) -> Row | None:
    """Without noise there is nothing to account for: one row serves both."""
    wanted = {"recipe": recipe, "epsilon": epsilon}
    return results.find(**wanted) if epsilon == "inf" else results.find(**wanted, accountant=mechanism)


def _table(results: Results, recipe: str, epsilons: Sequence[str]) -> str:
    expected = {named(epsilon): mean for epsilon, mean in CASES[recipe].expected.items()}
    lines = [["expected, %", *(f"{expected[name]}" if name in expected else "–" for name in epsilons)]] * bool(expected)
    for mechanism in MECHANISMS:
        rows = [_cell(results, recipe, mechanism, name) for name in epsilons]
        if not results.find(recipe=recipe, accountant=mechanism):
            continue
        called = mechanism.upper()
        accuracies = (f"{row['mean']:.2f} ± {row['spread']:.2f}" if row else "–" for row in rows)
        lines.append([f"{called}: accuracy, %", *accuracies])
        if expected:
            differences = (_less(row, expected.get(name)) for row, name in zip(rows, epsilons, strict=True))
            lines.append([f"{called}: ours less expected", *differences])
        lines += [
            [f"{called}: noise multiplier", *(f"{row['noise_multiplier']:.2f}" if row else "–" for row in rows)],
            [f"{called}: ε spent", *(f"{row['spent']:.4g}" if row and row["spent"] else "–" for row in rows)],
        ]
    return table(("ε", *("∞" if name == "inf" else name for name in epsilons)), lines)


def _less(row: Row | None, expected: float | None) -> str:
    return "–" if row is None or expected is None else f"{row['mean'] - expected:+.2f}"


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    for row in results.rows:
        expected = {named(epsilon): mean for epsilon, mean in CASES[row["recipe"]].expected.items()}
        where = f"{row['recipe']}, {row['accountant'].upper()}, ε = {row['epsilon']}, {row['repetitions']} repetitions"
        if row["epsilon"] in expected:
            distance = abs(row["mean"] - expected[row["epsilon"]])
            kept = verdict(distance <= TOLERANCE, row["repetitions"])
            lines.append((f"{where}: distance from expected", f"{distance:.2f}", TOLERANCE, kept))
    private = [row for row in results.rows if row["spent"] is not None]
    accounts = [(row["spent"], row["opacus"]) for row in private if not CASES[row["recipe"]].hospitals]
    ledgers = [(spent, opacus) for row in private for _, spent, opacus in row.get("ledgers", ())]
    for what, pairs in (("our accountant", accounts), (f"{len(ledgers)} hospitals' ledgers", ledgers)):
        if pairs:
            most = max(abs(ours - opacus) for ours, opacus in pairs)
            difference = f"ε of {what} against Opacus's own, the largest difference"
            lines.append((difference, f"{most:.1e}", 1e-9, verdict(most <= 1e-9)))
    if private:
        over = sum(row["spent"] > float(row["epsilon"]) for row in private)
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
