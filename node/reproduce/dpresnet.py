"""DPResNet (arXiv 2412.00687) again: blood cells named by a ResNet-9 of 5, 10 or 20 hospitals, dealt unevenly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.pages import picture, table
from node.privacy.protect import multiplier_for
from node.reproduce import ours
from node.reproduce.output import Results, Row
from node.simulation import STUDIES, in_process
from node.study import parse_study
from node.tasks.base import Setup

HOSPITALS = (5, 10, 20)
ENCRYPTED, PLAIN, RECORD, HOSPITAL = "wardtree", "plain", "wardtree, record-level DP", "wardtree, hospital-level DP"
ARMS = (ENCRYPTED, PLAIN, RECORD, HOSPITAL)
EPSILON, DELTA, CLIP = 6.0, 1.9e-4, 7.0
"""The paper's."""

LEAST, JUDGED = 0.90, 10
PAPER = {5: None, 10: 98.76, 20: 97.77}
"""Accuracy, percent, as published without privacy."""

KEPT = Path("runs/dpresnet")
"""Models between two parts of a run."""

_CONTINUED = 'class = "node.tasks.image_experiment:ContinuedImageTask"'


def run(results: Results, file: Path, hospitals: Sequence[int], arms: Sequence[str], at_once: int) -> None:
    """Measure the cells asked for, in parts of ``at_once`` rounds, each of which is kept; and write everything."""
    for arm in arms:
        for count in hospitals:
            key: Row = {"arm": arm, "hospitals": count}
            for before in _parts(results, key):
                results.measure([(key, partial(part, file, key, before, at_once))])
                publish(results)
    publish(results)


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _parts(results: Results, key: Row) -> Iterator[Row | None]:
    """What a cell has so far, until it has all its rounds."""
    rounds = parse_study(_text(), "dpresnet").rounds
    while (row := results.find(**key)) is None or row["rounds"] < rounds:
        yield row


def part(file: Path, key: Mapping[str, Any], before: Row | None, at_once: int) -> Row:
    """Some more rounds of a cell.

    Returns:
        ``rounds`` so far; ``curve``, the accuracy on all held-out images after each of them; ``exact``: see
        ``ours.Run``; ``seconds``: of each round.
    """
    count = int(key["hospitals"])
    kept = (KEPT / f"{ARMS.index(key['arm'])}-{count}.npy").resolve()
    before = before if kept.exists() else None  # figures without the model that they led to: begin anew
    done = before["rounds"] if before else 0
    rounds = min(at_once, parse_study(_text(), "dpresnet").rounds - done)
    study = study_text(key["arm"], rounds)
    deal = {"dirichlet": 0.5, "seed": 1}
    start = {"start": str(kept)} if done else {}
    data: dict[str, dict[str, Any]] = {
        f"hospital-{number:02}": {"images": str(file.resolve()), "shard": f"{number}/{count}", "deal": deal} | start
        for number in range(1, count + 1)
    }
    if key["arm"] != PLAIN:
        ran = ours.run(study, data, "hospital-01", 1)
        models, seconds, exact, upload = ran.models, ran.seconds, ran.exact, ran.upload
    else:
        there = in_process(_in_the_clear, study, data)
        models, seconds, exact, upload = there["models"], there["seconds"], False, 0.0
    figures: Row = in_process(_figures, study, data, np.asarray(models, np.float32))
    KEPT.mkdir(parents=True, exist_ok=True)
    np.save(kept, np.asarray(models[-1], np.float32))
    return figures | {
        "rounds": done + rounds,
        "parameters": len(models[-1]),
        "curve": [*(before["curve"] if before else []), *figures["curve"]],
        "seconds": [*(before["seconds"] if before else []), *seconds],
        "exact": exact and (before is None or before["exact"]),
        "bytes_up": upload,
    }


def study_text(arm: str, rounds: int) -> str:
    """The study of so many rounds of an arm: the one that comes with wardtree, with the arm's own tables."""
    text = _text()
    in_all = parse_study(text, "dpresnet").rounds
    own = f"rounds_in_all = {in_all}\n"
    if arm == RECORD:
        own += f"record = {{ epsilon = {EPSILON}, delta = {DELTA}, gradient_clip = 1.0 }}\n"
    if arm == HOSPITAL:  # the noise of all rounds, whatever part of them this is
        noise = multiplier_for(EPSILON, DELTA, in_all)
        text = text.replace('weights = "examples"', 'weights = "equal"')
        text += f'\n[privacy]\nmode = "hospital"\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {CLIP}\n'
        text += f"noise_multiplier = {noise:.6f}\n"
    text = text.replace(f"rounds = {in_all}\n", f"rounds = {rounds}\n").replace('class = "image"', _CONTINUED)
    return text.replace("[task.options]\n", f"[task.options]\n{own}")


def _text() -> str:
    return (STUDIES / "dpresnet.toml").read_text()


def _tasks(study: str, data: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    from node.tasks.image_experiment import ContinuedImageTask

    parsed = parse_study(study, "dpresnet")
    return [ContinuedImageTask(Setup(name, parsed.task.options, data[name], parsed.seed, Path())) for name in data]


def _in_the_clear(study: str, data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The same schedule in one process: the mean of float updates, by numbers of examples, nothing encrypted."""
    import time

    from node.tasks.base import TrainingRound

    tasks, rounds = _tasks(study, data), parse_study(study, "dpresnet").rounds
    model, models, seconds = tasks[0].initial(), [], []
    examples = sum(task.examples for task in tasks)
    for number in range(1, rounds + 1):
        began = time.monotonic()
        round_ = TrainingRound(number, rounds, None, 0)
        mean = sum(task.examples / examples * task.train(model, round_).astype(np.float64) for task in tasks)
        model = (model + mean).astype(np.float32)
        models.append(model.tolist())
        seconds.append(time.monotonic() - began)
    return {"models": models, "seconds": seconds}


def _figures(study: str, data: Mapping[str, Mapping[str, Any]], models: NDArray[np.float32]) -> Row:
    tasks = _tasks(study, data)
    curve = []
    for model in models:
        right = [int((task.logits(model, task._test.x).argmax(axis=1) == task._test.y).sum()) for task in tasks]
        curve.append(sum(right) / sum(len(task._test) for task in tasks))
    return {
        "curve": curve,
        "held_out": sum(len(task._test) for task in tasks),
        "train": sum(len(task._train) for task in tasks),
        "smallest": min(task.examples for task in tasks),
        "largest": max(task.examples for task in tasks),
    }


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# DPResNet again: blood cells named by a ResNet-9 of many hospitals

The study `node/studies/dpresnet.toml` on BloodMNIST: 28 x 28 images of 8 kinds of blood cells, dealt to the hospitals
by a Dirichlet distribution with alpha 0.5 of each class, so that hospitals have unlike numbers and kinds of cells; each
holds out a fifth of its own. ResNet-9 with group normalisation and convolutions of stride 2 for pooling, {width} wide;
FedAvg, weighted by numbers of examples, {rounds} rounds of {epochs} passes: a schedule for two cores.

- **wardtree**: a real federation: a ceremony, a node for each hospital, CURVE sockets, encrypted updates. Each opened
  total is compared with the sum of the integers that the hospitals encrypted (`[debug] check_sums`): encrypted equals
  plain, bit for bit.
- **plain**: the same schedule in one process, the float mean of the updates, nothing encrypted. Its batches are other
  draws of the operating system's randomness, so its accuracy differs by chance.
- **record-level DP**: each hospital trains by DP-SGD (Opacus): epsilon = {epsilon:g}, delta = {delta:g} for each of its
  images, over all rounds.
- **hospital-level DP**: each update clipped to an L2 norm of {clip:g}, noise shares added under encryption, equal
  weights: the same epsilon and delta, but for a whole hospital. Never compare the two by their epsilon.

A long run is kept after every part: the command goes on where it ended. Between parts a new federation begins from the
model that the last one ended with; momentum begins anew in every round anyway.

![Accuracy on held-out images by round](dpresnet.svg)
"""

NOTES = """\
## What differs from the paper, and why

- The paper's network is wider and trains for 50 rounds of 3 passes; the schedule here is short.
- The file of BloodMNIST at hand has no split of its own; a fifth of each hospital's images is held out, by seed. No
  held-out image chose anything.
- Seconds a round are from busy machines of two cores, on which all hospitals run at once: an order of magnitude.
- With hospital-level DP the noise on the sum is sqrt(d) times as long as its deviation in one parameter: ten hospitals
  do not drown it. Dropout of members is measured in the tests of faults, not here.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    study = parse_study(_text(), "dpresnet")
    options = study.task.options
    return "\n".join(
        [
            INTRODUCTION.format(
                width=options["width"],
                rounds=study.rounds,
                epochs=options["local_epochs"],
                epsilon=EPSILON,
                delta=DELTA,
                clip=CLIP,
            ),
            "## Accuracy\n\n" + _accuracies(results, study.rounds),
            "## What was promised\n\n" + _promises(results, study.rounds),
            NOTES,
            results.foot(),
        ]
    )


def _accuracies(results: Results, rounds: int) -> str:
    head = (
        "hospitals", "arm", "rounds", "accuracy, %", "totals exact", "images of a hospital", "MB up a round",
        "s a round", "paper, %",
    )  # fmt: skip
    body = [
        (
            row["hospitals"], row["arm"], f"{row['rounds']} of {rounds}", f"{100 * row['curve'][-1]:.2f}",
            "all" if row["exact"] else "–", f"{row['smallest']} to {row['largest']}", f"{row['bytes_up'] / 1e6:.2f}",
            f"{np.median(row['seconds']):.0f}", PAPER.get(row["hospitals"]) or "–",
        )
        for row in sorted(results.rows, key=lambda row: (row["hospitals"], ARMS.index(row["arm"])))
    ]  # fmt: skip
    missing = [arm for arm in ARMS if not any(row["arm"] == arm for row in results.rows)]
    note = f"\nNot run yet: {', '.join(missing)}.\n" if missing else ""
    return table(head, body) + note


def _promises(results: Results, rounds: int) -> str:
    lines: list[tuple[object, ...]] = []
    if row := results.find(arm=ENCRYPTED, hospitals=JUDGED):
        kept = "kept" if row["curve"][-1] >= LEAST else "**not kept**"
        lines.append(
            (
                f"{JUDGED} hospitals, encrypted: accuracy after {row['rounds']} of {rounds} rounds",
                f"{row['curve'][-1]:.4f}",
                f"at least {LEAST}",
                kept if row["rounds"] == rounds or kept == "kept" else "not run to its end",
            )
        )
        exact = "every total" if row["exact"] else "not every total"
        lines.append(
            ("encrypted equals plain, bit for bit", exact, "every total", "kept" if row["exact"] else "**not kept**")
        )
    return table(("", "measured", "promised", ""), lines)


def draw(results: Results, file: Path) -> None:
    """The picture: accuracy on all held-out images after each round."""
    with picture(file, (7, 4)) as figure:
        axes: Any = figure.subplots()
        for number, row in enumerate(results.rows):
            label = f"{row['hospitals']} hospitals, {row['arm']}"
            axes.plot(range(1, row["rounds"] + 1), row["curve"], "o-", color=f"C{number}", label=label)
        axes.axhline(LEAST, color="#8a8a8a", linestyle="--", label=f"{LEAST:g}")
        axes.set(xlabel="round", ylabel="accuracy on held-out images", ylim=(0, 1))
        axes.legend(frameon=False, fontsize=8)
