"""The page and the picture of Table VII, from what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from node.pages import picture, table
from node.reproduce.approximate import OURS, PLAIN, SCHEMES
from node.reproduce.output import Results, Row, verdict
from node.reproduce.pictures import BLOOD, DERMA, DIGITS, NAMES, how_to_run
from node.reproduce.table7 import PARTIES, SCHEDULES

LEAST = 86.0
"""Percent: what the longer schedule is to reach on BloodMNIST with four parties."""

INTRODUCTION = """\
# Table VII again: an image model by encryption and number of parties

The published protocol: the top layer of a network that is frozen below it, trained by every party with SGD (learning
rate {rate:g}, momentum {momentum:g}, batches of {batch}, one pass over its images a round), {rounds} rounds, at 2, 4,
8 and 16 parties. Rows are dealt to the parties at random in equal parts. The features of each image are computed once
(`wardtree features`), because nothing of them depends on the model. Two schedules are ours: **longer**, the same for
{longer} rounds at four parties; and a **whole ResNet-18**, no layer of it frozen, for {whole} rounds.

- **{blood}**, 8 kinds of blood cells: the part of the table that could be run here.
- **{derma}**, which the published table is about: {derma_line}.
- **{digits}**, 1,797 images of 8 x 8 from scikit-learn, their {digits_classes} classes learnt from the bare pixels: no
  file is needed for them, so that anyone can run all of this; no medicine is in them.

Repetitions differ by first models and by the order of the images, both from public seeds: so the same repetition can be
run with and without encryption, and compared. Each cell is one federation that runs all its repetitions back to
back. **wardtree** is a real ceremony, real nodes, CURVE sockets; the others are the paper's own tree
(`node/reproduce/heap.py`), for comparison. *Bytes up* are what one party sends to its parent in a round. Two parties
hide nothing from each other: that takes a debug flag which everyone signs.

![Accuracy of each scheme against the number of parties](table7.svg)
"""

NOTES = """\
## What differs, and why

- **The frozen network.** The paper's is torchvision's ResNet-18 (512 features, with 7 classes 3,591 parameters). It is
  used where its file is given (`--weights resnet18-f37072fd.pth`, checked by its digest). Here it could not be had; the
  features are of EfficientNet-Lite0 (Apache-2.0, trained on ImageNet, from the package index): 1,280 features, so with
  8 classes 10,248 parameters. Images of 28 x 28 are brought to 112 x 112, not to its own 224 x 224, to take a quarter
  of the time.
- **The data.** MedMNIST's own file is split as it says. The file of BloodMNIST that was at hand holds the images and
  labels without that split; a fifth of each class is held out, by seed. No held-out image chose anything: the schedules
  are the published one, and the same one for longer.
- **Momentum** begins at zero in every round: an enclave lives for one.
- **The clip.** Every value of an update is clipped to ± clip, and what is clipped is lost. *Largest* is the largest
  value of the first party's update in the first two rounds, when updates are largest; the clip was set above it, with
  room: for the top layer at {clip:g}, because the first round of a repetition also replaces the last repetition's
  model, which no study does. With {bits}-bit values that room costs nothing that could be seen.
- The mean over parties of one pass each moves the less, the more parties share the same images: that, and not the
  encryption, is why accuracy falls with their number at five rounds.
- Seconds a round are from busy machines of two cores, on which all parties run at once: an order of magnitude.
- The whole ResNet-18 has group normalisation, begins untrained, and takes its batches from the operating system's
  randomness, as a study does: there is no run without encryption to compare it with, value by value. It is here for its
  size, and three rounds are not its end. Its values have 14 bits, not {bits}: half the bytes.
"""


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def write_page(results: Results) -> str:
    """The page in Markdown."""
    one = SCHEDULES["published"]
    derma = "below" if results.find(data=DERMA) else f"**not run**, {how_to_run(DERMA)}"
    parts = [
        INTRODUCTION.format(
            longer=SCHEDULES["longer"].rounds, whole=SCHEDULES["whole ResNet-18"].rounds, rate=one.learning_rate,
            momentum=one.momentum, batch=one.batch, rounds=one.rounds, blood=BLOOD, derma=DERMA, derma_line=derma,
            digits=DIGITS, digits_classes=10,
        )
    ]  # fmt: skip
    for data in NAMES:
        if row := results.find(data=data, schedule="published") or results.find(data=data):
            parts.append(f"## {data}\n\n{_data(row)}")
        for schedule in SCHEDULES:
            if results.find(data=data, schedule=schedule):
                parts.append(f"### {_titled(schedule)}\n\n{_figures(results, data, schedule)}")
    if compared := list(_compared(results)):
        parts.append("## Encrypted against plain, repetition by repetition\n\n" + _equality(compared))
    parts.append("## What was promised\n\n" + _promises(results))
    parts += [NOTES.format(clip=one.clip, bits=one.value_bits), results.foot()]
    return "\n".join(parts)


def _titled(schedule: str) -> str:
    one = SCHEDULES[schedule]
    passes = "one pass" if one.epochs == 1 else f"{one.epochs} passes"
    return f"{schedule[0].upper()}{schedule[1:]}: {one.rounds} rounds of {passes}"


def _data(row: Row) -> str:
    features = f", features: {row['backbone']}" if row["backbone"] else ""
    return (
        f"{row['train_rows']:,} images to train, {row['test_rows']:,} held out, {row['classes']} classes{features}. "
        f"Always naming the largest class is right for {row['majority']:.1f} %.\n"
    )


def _ordered(results: Results) -> list[Row]:
    """All rows in the order of the page, whichever was measured first."""

    def place(row: Row) -> tuple[int, ...]:
        schedules = tuple(SCHEDULES).index(row["schedule"])
        return NAMES.index(row["data"]), schedules, row["parties"], SCHEMES.index(row["scheme"])

    return sorted(results.rows, key=place)


def _figures(results: Results, data: str, schedule: str) -> str:
    rows = [row for row in _ordered(results) if (row["data"], row["schedule"]) == (data, schedule)]
    head = (
        "parties", "scheme", "accuracy, %", "balanced accuracy, %", "AUC, %", "s a round", "bytes up", "largest, clip",
    )  # fmt: skip
    body = []
    for row in rows:
        balanced, auc = (sum(row[name]) / len(row[name]) for name in ("balanced", "aucs"))
        up = f"{row['bytes_up'] / 1e6:,.2f} MB" if row["bytes_up"] >= 1e6 else f"{row['bytes_up'] / 1e3:,.1f} kB"
        deviation = f" ± {row['spread']:.2f}" if row["repetitions"] > 1 else ""
        clip = f"{row['largest']:.3f}, {SCHEDULES[schedule].clip:g}" if row["scheme"] == OURS else "–"
        body.append(
            (
                row["parties"], row["scheme"], f"{row['mean']:.2f}{deviation}", f"{balanced:.2f}",
                f"{auc:.2f}", f"{row['seconds_a_round']:.2f}", up, clip,
            )
        )  # fmt: skip
    count, size = rows[0]["repetitions"], rows[0]["parameters"]
    whole = "".join(f"\n{_of_whole(row)}" for row in rows if "exact" in row)
    return f"{size:,} parameters, {count} repetition{'s' if count > 1 else ''}.\n\n" + table(head, body) + whole


def _of_whole(row: Row) -> str:
    """What a whole network is there for: its size."""
    rounds, plain = SCHEDULES[row["schedule"]].rounds, 4 * row["parameters"]
    exact = "was, to the last bit, the sum" if row["exact"] else "was **not** the sum"
    return (
        f"Each total of the {rounds} rounds {exact} of what the {row['parties']} parties had encrypted (a study with "
        f"`check_sums`). A party sent {row['bytes_up'] / plain:.2f} times the {plain / 1e6:.1f} MB of its update as "
        f"float32 values. All processes of all parties took {row['processor_seconds']:,.0f} s of processor time, "
        "ceremony and training among it.\n"
    )


def _compared(results: Results) -> Iterator[tuple[Row, int, int]]:
    """Each encrypted cell with how many repetitions differ from plain in accuracy, and in any held-out image."""
    for row in _ordered(results):
        plain = results.find(**{name: row[name] for name in ("data", "schedule", "parties")}, scheme=PLAIN)
        if row["scheme"] != PLAIN and plain and plain["repetitions"] == row["repetitions"]:
            accuracy, images = (
                sum(one != other for one, other in zip(row[name], plain[name], strict=True))
                for name in ("accuracies", "predictions")
            )
            yield row, accuracy, images


def _equality(compared: list[tuple[Row, int, int]]) -> str:
    head = ("data", "schedule", "parties", "scheme", "with another accuracy", "that name any held-out image otherwise")
    return table(
        head,
        [
            (
                row["data"], row["schedule"], row["parties"], row["scheme"],
                f"{accuracy} of {row['repetitions']}", f"{images} of {row['repetitions']}",
            )
            for row, accuracy, images in compared
        ],
    )  # fmt: skip


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    if long := results.find(data=BLOOD, schedule="longer", parties=4, scheme=OURS):
        lowest = min(long["accuracies"])
        what = f"{BLOOD}, 4 parties, {_titled('longer').lower()}: the lowest accuracy of {long['repetitions']}, %"
        lines.append((what, f"{lowest:.2f}", f"at least {LEAST:g}", verdict(lowest >= LEAST)))
    for row, accuracy, _ in _compared(results):
        if row["scheme"] == OURS:
            what = f"{row['data']}, {row['schedule']}, {row['parties']} parties: repetitions with another accuracy"
            lines.append((what, accuracy, 0, verdict(not accuracy)))
    for row in _ordered(results):
        if "exact" in row:
            what = f"{row['data']}, {row['schedule']}, {row['parties']} parties: every total is the exact sum"
            lines.append((what, "yes" if row["exact"] else "no", "yes", verdict(row["exact"])))
    for row in _ordered(results):
        if row["scheme"] == OURS:
            clip = SCHEDULES[row["schedule"]].clip
            what = f"{row['data']}, {row['schedule']}, {row['parties']} parties: largest value of an update"
            lines.append((what, f"{row['largest']:.3f}", f"below the clip, {clip:g}", verdict(row["largest"] < clip)))
    return table(("", "measured", "promised", ""), lines)


def draw(results: Results, file: Path) -> None:
    """The picture: accuracy against the number of parties, for each scheme; the line is of naming one class only."""
    names = [name for name in NAMES if results.find(data=name, schedule="published")]
    with picture(file, (4.5 * max(len(names), 1), 4)) as figure:
        panels: Any = figure.subplots(1, max(len(names), 1), squeeze=False)[0]
        shift: Callable[[int], float] = lambda number: 0.12 * (number - 1.5)  # noqa: E731
        for axes, name in zip(panels, names, strict=False):
            for number, scheme in enumerate(SCHEMES):
                rows = [
                    row
                    for parties in PARTIES
                    if (row := results.find(data=name, schedule="published", parties=parties, scheme=scheme))
                ]
                if rows:
                    places = [PARTIES.index(row["parties"]) + shift(number) for row in rows]
                    means, spreads = [row["mean"] for row in rows], [row["spread"] for row in rows]
                    axes.errorbar(places, means, spreads, fmt="o", capsize=3, color=f"C{number}", label=scheme)
            if long := results.find(data=name, schedule="longer", scheme=OURS):
                place = PARTIES.index(long["parties"]) + shift(SCHEMES.index(OURS))
                label = f"wardtree, {SCHEDULES['longer'].rounds} rounds"
                axes.plot([place], [long["mean"]], "*", color="C3", markersize=12, label=label)
            majority = results.find(data=name, schedule="published")
            assert majority
            axes.axhline(majority["majority"], color="#8a8a8a", linestyle="--", label="the largest class always")
            axes.set(title=name, xlabel="parties", xticks=range(len(PARTIES)), ylim=(0, 100))
            axes.set_xticklabels([str(count) for count in PARTIES])
        panels[0].set_ylabel("accuracy on held-out images, %")
        fullest = max((axes.get_legend_handles_labels() for axes in panels), key=lambda found: len(found[1]))
        if fullest[1]:
            figure.legend(*fullest, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
