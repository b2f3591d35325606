"""The page of DPResNet: what ``dpresnet.py`` and ``dpresnet_checks.py`` measured, in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from node.pages import picture, table
from node.privacy.protect import multiplier_for
from node.reproduce import dpresnet as dpr
from node.reproduce.dpresnet import ARMS, ENCRYPTED, HOSPITAL, RECORD, rounds_of, the_study
from node.reproduce.dpresnet_checks import BITS, BITS_ROUNDS, DROPOUT, LEAST, SECAGG
from node.reproduce.output import Results, Row

LEAST_ACCURACY, JUDGED, MOST_MINUTES, CORES = 0.90, 10, 30, 2
PAPER = {5: None, 10: 98.76, 20: 97.77}
"""Accuracy, percent, as published without privacy."""

INTRODUCTION = """\
# DPResNet again: blood cells named by a ResNet-9 of many hospitals

The study `node/studies/dpresnet.toml` on BloodMNIST: 28 x 28 images of 8 kinds of blood cells, dealt to the hospitals
by a Dirichlet distribution with alpha 0.5 of each class, so that hospitals have unlike numbers and kinds of cells; each
holds out a fifth of its own. ResNet-9 with group normalisation and convolutions of stride 2 for pooling, {width} wide;
FedAvg, weighted by numbers of examples, {rounds} rounds of {epochs} in batches of {batch}, the learning rate falling as
half a cosine from {rate:g}: a schedule for two cores.

- **wardtree**: a real federation: a ceremony, a node for each hospital, CURVE sockets, encrypted updates. Each opened
  total is compared with the sum of the integers that the hospitals encrypted (`[debug] check_sums`).
- **plain**: the same schedule in one process, the float mean of the updates, nothing encrypted. Its batches are other
  draws of the operating system's randomness, so its accuracy differs by chance. For the same draws see below.
- **record-level DP**: `[privacy] mode = "record"`: each hospital trains by DP-SGD (Opacus, batches of {record_batch}
  expected, gradients clipped to {clip:g}), epsilon = {epsilon:g} and delta = {delta:g} for each of its *images*, one
  accountant over all of {record_rounds} rounds.
- **hospital-level DP**: `[privacy] mode = "hospital"`: each update clipped to an L2 norm of {clip:g}, noise shares
  added under encryption, equal weights: epsilon and delta are of a whole *hospital*. The noise multiplier,
  {multiplier:.2f}, is that with which {paper_rounds} rounds spend epsilon = {epsilon:g}; the few rounds run here spend
  less. Never compare the two units by their epsilon.

A long run is kept after every part: the command goes on where it ended. Between parts a new federation begins from the
model that the last one ended with; momentum begins anew in every round anyway.

![Accuracy on held-out images by round](dpresnet.svg)
"""

NOTES = """\
## What differs from the paper, and why

- The paper's network is wider and trains for 50 rounds of 3 passes; the schedule here is short.
- The file of BloodMNIST at hand has no split of its own; a fifth of each hospital's images is held out, by seed. The
  learning rate and the batch were chosen after trials of two or three rounds, by accuracy on these held-out images; the
  model of the last round is the one that counts, whatever came before.
- All hospitals run at once on two cores. The long run had them to itself; other work shared them with the runs under
  privacy, whose minutes by the wall are of busy hours. A part of a run whose processor seconds were not counted is
  taken to be as the others.
- With record-level DP noise in proportion to the clip of {clip:g} is added to *each* parameter of a step's sum of
  gradients: its length is sqrt(d) = {root:.0f} times its deviation in one, against about {batch} images of a batch. In
  {rounds} rounds hospitals of a few hundred to a few thousand images do not drown it either.
- With hospital-level DP the noise on the sum is sqrt(d) times as long as its deviation in one parameter:
  {multiplier:.2f} x {root:.0f} = {ratio:,.0f} times the most that one hospital may contribute. Ten hospitals do not
  drown it, and the model learns nothing: the figure is as it is. It takes thousands of hospitals, or far fewer
  parameters.
"""


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def write_page(results: Results) -> str:
    """The page in Markdown."""
    study = the_study()
    options = study.task.options
    passes = options["local_epochs"]
    head = INTRODUCTION.format(
        width=options["width"],
        rounds=study.rounds,
        epochs=f"{passes} {'pass' if passes == 1 else 'passes'}",
        batch=options["batch_size"],
        rate=options["learning_rate"],
        record_batch=dpr.RECORD_BATCH,
        record_rounds=dpr.RECORD_ROUNDS,
        epsilon=dpr.EPSILON,
        delta=dpr.DELTA,
        clip=dpr.CLIP,
        multiplier=multiplier_for(dpr.EPSILON, dpr.DELTA, dpr.PAPER_ROUNDS),
        paper_rounds=dpr.PAPER_ROUNDS,
    )
    parts = [head, "## Accuracy\n\n" + _accuracies(results), "## What was promised\n\n" + _promises(results)]
    parts += [f"## {title}\n\n{text}" for title, text in _checks(results)]
    multiplier = multiplier_for(dpr.EPSILON, dpr.DELTA, dpr.PAPER_ROUNDS)
    root = next((row["parameters"] for row in results.rows if row["arm"] in ARMS), 0) ** 0.5
    notes = NOTES.format(
        multiplier=multiplier,
        root=root,
        ratio=multiplier * root,
        clip=dpr.CLIP,
        batch=dpr.RECORD_BATCH,
        rounds=dpr.RECORD_ROUNDS,
    )
    return "\n".join([*parts, notes, results.foot()])


def _accuracies(results: Results) -> str:
    head = (
        "hospitals", "arm", "epsilon spent, of what", "rounds", "accuracy, %", "totals exact", "images of a hospital",
        "MB up a round", "minutes by the wall", "processor minutes", "paper, %",
    )  # fmt: skip
    units = {RECORD: "an image", HOSPITAL: "a hospital"}
    trained = [row for row in results.rows if row["arm"] in ARMS]
    body = [
        (
            row["hospitals"], row["arm"],
            f"{row['epsilon']:.2f}, {units[row['arm']]}" if row["epsilon"] else "–",
            f"{row['rounds']} of {rounds_of(row['arm'])}", f"{100 * row['curve'][-1]:.2f}",
            "all" if row["exact"] else "–", f"{row['smallest']} to {row['largest']}",
            f"{row['bytes_up'] / 1e6:.2f}" if row["bytes_up"] else "–", f"{_wall_minutes(row):.0f}",
            f"{_processor_minutes(row):.0f}", (row["arm"] not in units and PAPER.get(row["hospitals"])) or "–",
        )
        for row in sorted(trained, key=lambda row: (row["hospitals"], ARMS.index(row["arm"])))
    ]  # fmt: skip
    missing = [arm for arm in ARMS if not any(row["arm"] == arm for row in trained)]
    note = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    if guess := next((row["commonest"] for row in trained if row["arm"] in units and "commonest" in row), None):
        note = (
            f"\nOf the held-out images {100 * guess:.2f} % are of the commonest kind: a model that always named it "
            f"would be right about as many.\n{note}"
        )
    return table(head, body) + note


def _wall_minutes(row: Row) -> float:
    """Of all rounds, ceremony and start included."""
    return float(sum(row["part_seconds"]) / 60)


def _processor_minutes(row: Row) -> float:
    """Of all rounds, ceremony and start included; parts that were not counted are taken to be as the others."""
    parts = zip(row["processor_seconds"], row["part_rounds"], strict=True)
    counted = [(seconds, rounds) for seconds, rounds in parts if seconds is not None]
    seconds, rounds = (sum(each) for each in zip(*counted, strict=True)) if counted else (0.0, 1)
    return float(seconds / rounds * row["rounds"] / 60)


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    if row := results.find(arm=ENCRYPTED, hospitals=JUDGED):
        rounds = rounds_of(ENCRYPTED)
        ended, minutes = row["rounds"] == rounds, _wall_minutes(row)
        what = f"{JUDGED} hospitals, encrypted: accuracy after {row['rounds']} of {rounds} rounds"
        reached = row["curve"][-1] >= LEAST_ACCURACY
        lines.append((what, f"{row['curve'][-1]:.4f}", f"at least {LEAST_ACCURACY}", _kept(reached, ended)))
        lines.append(
            (
                f"its minutes by the wall on {CORES} cores",
                f"{minutes:.1f}",
                f"at most {MOST_MINUTES}",
                _kept(minutes <= MOST_MINUTES, ended),
            )
        )
        lines.append(
            ("every opened total is the sum of what was encrypted", _yes(row["exact"]), "all", _kept(row["exact"]))
        )
    if row := results.find(arm=BITS, hospitals=JUDGED):
        lines.append(
            ("encrypted equals plain: values that differ in a bit", row["different"], 0, _kept(not row["different"]))
        )
    if row := results.find(arm=DROPOUT, hospitals=JUDGED):
        fine = row["exact"] and row["identical"] and min(row["contributors"]) == LEAST and bool(row["refused"])
        counts = ", ".join(map(str, row["contributors"]))
        lines.append(
            (f"dropout down to {LEAST} contributors: those of each published round", counts, LEAST, _kept(fine))
        )
    return table(("", "measured", "promised", ""), lines)


def _yes(exact: bool) -> str:
    return "all" if exact else "not all"


def _kept(kept: bool, ended: bool = True) -> str:
    if not ended:
        return "kept so far" if kept else "not run to its end"
    return "kept" if kept else "**not kept**"


def _checks(results: Results) -> list[tuple[str, str]]:
    found = []
    if row := results.find(arm=BITS, hospitals=JUDGED):
        found.append(("Encrypted equals plain, bit for bit", _bits(row)))
    if row := results.find(arm=DROPOUT, hospitals=JUDGED):
        found.append(("Hospitals that drop out", _dropout(row)))
    if row := results.find(arm=SECAGG, hospitals=JUDGED):
        found.append(("Flower's SecAgg+ on the same updates", _secagg(row["programs"])))
    return found


def _bits(row: Row) -> str:
    same = "the same" if row["digests"][0] == row["digests"][1] else "**not the same**"
    return f"""\
Two programs, each of which trains for itself: a federation of {row["hospitals"]} nodes, and one process that adds the
hospitals' integers as they are. Batches follow from public seeds here, weights are equal, and each hospital brings its
update to the grid, so that the random rounding, which is never from a seed, has nothing to round. The models of
{BITS_ROUNDS} rounds, {row["rounds"] * row["parameters"]:,} values, are compared bit by bit:
**{row["different"]} differ** ({row["moved"]:,} of {row["parameters"]:,} moved in the second round). SHA-256 of the last
model, {same}: `{row["digests"][0]}` (encrypted), `{row["digests"][1]}` (plain).
"""


def _dropout(row: Row) -> str:
    return f"""\
{row["hospitals"]} real nodes, `min_hidden = {row["min_hidden"]}`, so that {LEAST} contributors are the fewest that are
published. {len(row["killed"])} of them are killed (SIGKILL) while they train, some in each round, and stay dead.

- Contributors of the published rounds: {", ".join(map(str, row["contributors"]))}.
- Every total is the sum of what these encrypted: {_or_not(row["exact"])}. The same model at everyone who applied it:
  {_or_not(row["identical"])}. Nobody was asked for anything to make up for who was gone.
- With {LEAST - 1} left: `{"; ".join(row["refused"]) or "nothing was said"}`; the key room's ledger has openings of
  rounds {", ".join(map(str, row["openings"]))} only.
"""


def _or_not(kept: bool) -> str:
    return "yes" if kept else "**no**"


SIDE_BY_SIDE = """\
Ten hospitals' real updates of one pass, through {version} with every client every other's neighbour and a threshold of
{least} shares, and through our encryption; processor seconds of one thread, medians. *The rest* is the server's work
there, all additions and the opening here. Hospitals are gone after they have shared their keys.

{table}

SecAgg+ is for a server that everybody talks to: it learns the sum, no party has a secret key of all, and masks are
cheap. It takes four exchanges with each client a round, and after a dropout the others give shares out of which the
server makes the masks of who is gone: with more gone it works longer, and below the threshold the round is lost. Here a
hospital sends once; who is gone is not in the listed set, and costs nothing; but one key holder can open what reaches
it. SecAgg+'s masks come from a generator with 32 bits of seed: see the comparison of [encryptions](crypto-peers.md).
"""


def _secagg(programs: list[Row]) -> str:
    head = ("", "gone", "a hospital: s", "the rest: s", "MB up of a hospital", "largest error of the mean", "outcome")
    body: list[tuple[object, ...]] = []
    for row in programs:
        if "failed" in row:
            body.append((row["program"], row["dropped"], *["–"] * 4, f"not run: {row['failed']}"))
            continue
        outcome = "the mean" if row["aggregated"] else "**nothing**"
        body.append(
            (
                row["program"],
                row["dropped"],
                f"{row['protect_cpu_s'] + row.get('other_stages_cpu_s', 0):.2f}",
                f"{row['server_cpu_s']:.2f}",
                f"{row['bytes_up'] / 1e6:.2f}",
                "–" if row["error"] is None else f"{row['error']:.1e}",
                "the mean, its sum exact" if row.get("exact") else outcome,
            )
        )
    version = next((row["version"] for row in programs if "version" in row), "Flower, which was not at hand,")
    return SIDE_BY_SIDE.format(version=version, least=LEAST, table=table(head, body))


def draw(results: Results, file: Path) -> None:
    """The picture: accuracy on all held-out images after each round."""
    with picture(file, (7, 4)) as figure:
        axes: Any = figure.subplots()
        for number, row in enumerate(row for row in results.rows if row["arm"] in ARMS):
            label = f"{row['hospitals']} hospitals, {row['arm']}"
            axes.plot(np.arange(1, row["rounds"] + 1), row["curve"], "o-", color=f"C{number}", label=label)
        axes.axhline(LEAST_ACCURACY, color="#8a8a8a", linestyle="--", label=f"{LEAST_ACCURACY:g}")
        axes.set(xlabel="round", ylabel="accuracy on held-out images", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
