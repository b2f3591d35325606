"""ADP-FL (arXiv 2604.06518) again: skin lesions outlined by a U-Net of four hospitals, with and without noise."""

from __future__ import annotations

import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keys.planner import choose
from node.pages import picture, table
from node.privacy.arrange import arrange
from node.privacy.protect import multiplier_for
from node.privacy.settings import PrivacySettings
from node.reproduce import ours
from node.reproduce.output import Results, Row, spread
from node.simulation import STUDIES, in_process
from node.study import TaskChoice, parse_study
from node.tasks.base import Setup
from node.update import Grid, quantise

PARTIES = 4
SEEDS = (1, 2, 3)
LEAST = 0.85
EPSILON, WEAK, DELTA = 8.0, 1e6, 1e-3
"""The second protects nobody: with it something is learnt, and the two ways of clipping can be compared."""

CLIP = 4.0
"""About the L2 norm of an update in the third round: the noise of each hospital-level arm begins with it."""
GRADIENT_CLIP, COUNT_NOISE = 1.0, 2.0
"""Of one image's gradient; and on how many of a batch, 20 expected, are within it."""

NONE, FIXED, ADAPTIVE, RECORD, PERCENTILE = "non-private", "fixed clip", "adaptive clip", "record", "percentile"
RECORD_ADAPTIVE = f"{RECORD}, adaptive clip"
FIXED_WEAK, ADAPTIVE_WEAK = f"{FIXED}, epsilon 10^6", f"{ADAPTIVE}, epsilon 10^6"
ARMS = (NONE, FIXED, ADAPTIVE, FIXED_WEAK, ADAPTIVE_WEAK, RECORD, RECORD_ADAPTIVE, PERCENTILE)
BUDGETS = {
    FIXED: EPSILON, ADAPTIVE: EPSILON, FIXED_WEAK: WEAK, ADAPTIVE_WEAK: WEAK, RECORD: EPSILON, RECORD_ADAPTIVE: EPSILON
}  # fmt: skip
"""The epsilon of each arm that has one; of a hospital, but of an image in the arm of records."""
PAPER = {NONE: 93.12, FIXED: 85.38, ADAPTIVE: 92.81}
"""Dice, percent, as published for skin lesions."""

_EXPERIMENT = 'class = "node.tasks.segmentation_experiment:SegmentationExperimentTask"'


def run(results: Results, file: Path, seeds: Sequence[int], arms: Sequence[str], simulated: bool) -> None:
    """Measure the cells asked for, in a federation or ``simulated`` in one process, and write everything."""
    results.measure(list(_plan(file, seeds, arms, simulated)))
    publish(results)


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(
    file: Path, seeds: Sequence[int], arms: Sequence[str], simulated: bool
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for seed in seeds:
        for arm in arms:
            yield {"arm": arm, "seed": seed}, partial(cell, file, arm, seed, simulated)


def cell(file: Path, arm: str, seed: int, simulated: bool) -> Row:
    """One run of an arm.

    Returns:
        ``dice``, the mean over all held-out images, and its course ``curve`` after each round; ``patients``: of each
        image; ``epsilon`` that is spent, None without a promise; ``exact``: see ``ours.Run``; ``simulated``; ``clips``:
        the norm that updates were clipped to in each round, of a simulated arm.
    """
    study = study_text(arm, seed)
    data: dict[str, dict[str, Any]] = {
        f"hospital-{part}": {"images": str(file.resolve()), "shard": f"{part}/{PARTIES}", "deal": {"seed": seed}}
        for part in range(1, PARTIES + 1)
    }
    more: Row
    if simulated:
        more = in_process(_simulate, study, data, seed)
        everyone = more.pop("everyone")
    else:
        done = ours.run(study, data, "hospital-1", 1)
        everyone = in_process(_dice, study, data, seed, done.models)
        more = {"parameters": int(done.models.shape[1]), "exact": done.exact, "bytes_up": done.upload, "clips": []}
        more["seconds_a_round"] = float(np.median(done.seconds))
    curve = [float(np.mean(each)) for each in everyone]
    return more | {
        "rounds": len(curve),
        "dice": curve[-1],
        "curve": curve,
        "patients": everyone[-1],
        "epsilon": BUDGETS.get(arm),
        "simulated": simulated,
    }


def study_text(arm: str, seed: int) -> str:
    """The study of an arm: the one that comes with wardtree, its seed, and the arm's own tables."""
    text = (STUDIES / "adpfl.toml").read_text().replace("seed = 1", f"seed = {seed}")
    if arm in (FIXED, ADAPTIVE, FIXED_WEAK, ADAPTIVE_WEAK):
        text += f'\n[privacy]\nmode = "hospital"\nepsilon = {BUDGETS[arm]}\ndelta = {DELTA}\nclip = {CLIP}\n'
        text = text.replace("[aggregation]\n", f"[aggregation]\nmin_hidden = {PARTIES - 1}\n")
    if arm in (ADAPTIVE, ADAPTIVE_WEAK):
        rounds = parse_study(text.split("[privacy]")[0], arm).rounds
        count_noise = max(multiplier_for(BUDGETS[arm], DELTA, rounds), PARTIES / 20)  # a twentieth is the paper's
        text += f"[privacy.adaptive]\ncount_noise = {count_noise:.6f}\nlowest = 0.01\nhighest = 40.0\n"
    if arm in (RECORD, RECORD_ADAPTIVE):  # batches of all images and a higher rate: the best that was tried
        text = text.replace("batch_size = 8", "batch_size = 32").replace("= 0.003 ", "= 0.1 ")
        text += f'\n[privacy]\nmode = "record"\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {GRADIENT_CLIP}\n'
    if arm == RECORD_ADAPTIVE:
        text += f"[privacy.adaptive]\ncount_noise = {COUNT_NOISE}\nlowest = 0.01\nhighest = 40.0\n"
    if arm == PERCENTILE:
        text = text.replace('class = "segmentation"', _EXPERIMENT)
        text = text.replace("[task.options]\n", "[task.options]\npercentile = {}\n")
    return text


def _tasks(study: str, data: Mapping[str, Mapping[str, Any]], seed: int) -> list[Any]:
    from node.tasks.loader import load_task_class

    choice = TaskChoice.model_validate(tomllib.loads(study)["task"])
    cls = load_task_class(choice.class_name)
    return [cls(Setup(name, choice.options, data[name], seed, Path())) for name in data]


def _dice(study: str, data: Mapping[str, Mapping[str, Any]], seed: int, models: Any) -> list[list[float]]:
    """Of every held-out image by each model."""
    tasks = _tasks(study, data, seed)
    return [[float(dice) for task in tasks for dice in task.dice(model)[:, 0]] for model in models]


def _simulate(study: str, data: Mapping[str, Mapping[str, Any]], seed: int) -> Row:
    """The arithmetic of a study in one process: each hospital's training, clip, rounding and noise share, the sum of
    the integers, the step of the mean. No sockets, no encryption."""
    from node.privacy.record import RecordLevel
    from node.tasks.base import TrainingRound

    tables = tomllib.loads(study)
    heading, aggregation = tables["study"], tables["aggregation"]
    plan = choose(64, aggregation["value_bits"])
    tasks, rounds = _tasks(study, data, seed), heading["rounds"]
    model = tasks[0].initial()
    settings: PrivacySettings | None = None
    arranged, clip = None, 0.0
    if "privacy" in tables:
        settings = PrivacySettings.model_validate(tables["privacy"])
        clip = float(tables["privacy"]["clip"])
        if settings.mode == "hospital":
            arranged = arrange(settings, plan, model.size, rounds, PARTIES - 1)
    grid, carried = Grid(aggregation["clip"], plan), dict.fromkeys(range(len(tasks)))
    accounts = dict.fromkeys(range(len(tasks)), b"")
    everyone, clips, seconds = [], [], []
    for number in range(1, rounds + 1):
        began, sent = time.monotonic(), []
        for place, task in enumerate(tasks):
            private = RecordLevel(settings, rounds, accounts[place]) if settings and not arranged else None
            round_ = TrainingRound(number, rounds, None, 0, carried=carried[place], private=private)
            update = task.train(model, round_).astype(np.float64)
            carried[place] = task.carry()
            if private:
                accounts[place] = private.entry(number)["account"].encode()
            sent.append(arranged.protect(update, clip) if arranged else quantise(update, grid, 1.0))
        total = np.sum(sent, axis=0)
        step = arranged.step(clip) if arranged else grid.step
        model = (model + total[: model.size] * (step / len(tasks))).astype(np.float32)
        clips.append(clip)
        clip = arranged.next_clip(clip, int(total[-1]), len(tasks)) if arranged else clip
        seconds.append(time.monotonic() - began)
        everyone.append([float(dice) for task in tasks for dice in task.dice(model)[:, 0]])
    found: Row = {"everyone": everyone, "parameters": model.size, "exact": False, "bytes_up": 0.0, "clips": clips}
    return found | {"seconds_a_round": float(np.median(seconds))}


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# ADP-FL again: outlining skin lesions with a U-Net

The study `node/studies/adpfl.toml` on PH2 (Mendonça et al. 2013), 200 dermoscopic images with the outline of the
lesion, dealt at random to four hospitals; each holds out a fifth of its own. MONAI's U-Net with instance
normalisation ({parameters:,} parameters), images of 64 x 64, {rounds} rounds of two passes with Adam. A cell *in the
tree* is a real federation: a ceremony, four nodes, CURVE sockets, encrypted updates. One *simulated* is the same
arithmetic (training, clip, rounding, noise shares, sum, step) in one process, without sockets or encryption. Seeds
change the first model, who has which image, and which are held out; batches are in the order of the operating system's
randomness.

- **non-private**: no noise.
- **fixed clip**: hospital-level privacy, `[privacy] mode = "hospital"`: each hospital's whole update is clipped to an
  L2 norm of {clip:g}, and integer noise shares are added under encryption; with `min_hidden = {hidden}` those of any
  {hidden} hospitals carry the whole noise. Neighbours differ by one hospital.
- **adaptive clip**: the same budget; the clip follows the median norm (Andrew et al. 2021), and the clip bits are
  charged to the budget.
- **record**: `mode = "record"`: DP-SGD by Opacus, each image's gradient clipped to {gradient_clip:g}, one accountant
  over all rounds. Neighbours differ by one image.
- **record, adaptive clip**: the same budget; the clip follows the median norm of the images' gradients from batch to
  batch, and the noisy numbers that it follows are charged to the budget.
- **percentile**: each hospital cuts its update at the 90th percentile of its own absolute values and adds Gaussian
  noise in proportion to that threshold: percentile clipping taken literally. **No DP guarantee**: the threshold is
  computed from the patients' data and published with the noise that it scales.

Where nothing else is said, epsilon is {epsilon:g} and delta {delta:g} in all; the units differ: never compare a
hospital's epsilon with an image's. **An epsilon of 10^6 protects nobody**: these two arms are here because with so
little noise something is learnt, and the two ways of clipping can be compared at one epsilon.

**Per-patient figures** are shown because all of this is simulated on one machine with public images. In a real
federation each image's Dice stays at its hospital, and only the mean is published (`[evaluation]`).

![Dice of every held-out image by arm](adpfl.svg)
"""

NOTES = """\
## What differs from the paper, and why

- The data: PH2 has 200 images, here at 64 x 64. The published figures are of other and larger data, so that the last
  points of Dice cannot be compared. A folder of HAM10000 is read as it is, and volumes in NIfTI: docs/own-task.md.
- **Hospital-level noise does not average out over four hospitals.** On the sum it is z times the clip in *each* of
  {parameters:,} parameters, so its length is z x sqrt(d) times the most that one hospital may contribute: here
  {multiplier:.2f} x {root:.0f} = {ratio:.0f} times. Adaptive clipping makes noise and update smaller together, and
  the ratio stays. It takes hundreds of hospitals, or far fewer parameters.
- Which of fixed and adaptive clipping is above the other at such a ratio says nothing of either. At epsilon = 10^6 the
  noise is {weak:.1f} times as long as what one hospital may contribute, and with record-level privacy it is added to
  sums over images, of which there are more than hospitals: there both learn. Where two means differ by less than their
  seeds do, neither is above the other.
- The percentile arm keeps what Dice it keeps because its noise promises nothing.
- Seconds a round are from busy machines of two cores, on which all hospitals run at once.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    study = parse_study((STUDIES / "adpfl.toml").read_text(), "adpfl")
    parameters = results.rows[0]["parameters"] if results.rows else 0
    multiplier = multiplier_for(EPSILON, DELTA, study.rounds)
    parts = [
        INTRODUCTION.format(
            parameters=parameters,
            rounds=study.rounds,
            clip=CLIP,
            epsilon=EPSILON,
            delta=DELTA,
            hidden=PARTIES - 1,
            gradient_clip=GRADIENT_CLIP,
        ),
        "## Dice\n\n" + _figures(results),
        "## What was promised\n\n" + _promises(results),
        NOTES.format(
            parameters=parameters,
            multiplier=multiplier,
            root=parameters**0.5,
            ratio=multiplier * parameters**0.5,
            weak=multiplier_for(WEAK, DELTA, study.rounds) * parameters**0.5,
        ),
        results.foot(),
    ]
    return "\n".join(parts)


def _rows(results: Results, arm: str) -> list[Row]:
    return sorted((row for row in results.rows if row["arm"] == arm), key=lambda row: int(row["seed"]))


def _figures(results: Results) -> str:
    head = (
        "arm", "Dice, % (mean ± deviation over seeds)", "of each seed", "over patients: deviation, lowest tenth, least",
"how", "totals exact", "MB up a round", "s a round", "paper, %",
    )  # fmt: skip
    body = []
    for arm in ARMS:
        rows, paper = _rows(results, arm), PAPER.get(arm)
        if not rows:
            body.append((arm, "not run yet", *["–"] * 6, paper or "–"))
            continue
        mean, deviation = spread([100 * row["dice"] for row in rows])
        patients = 100 * np.concatenate([row["patients"] for row in rows])
        body.append(
            (
                arm,
                f"{mean:.2f} ± {deviation:.2f}",
                ", ".join(f"{100 * row['dice']:.2f}" for row in rows),
                f"{patients.std():.1f}, {np.quantile(patients, 0.1):.1f}, {patients.min():.1f}",
                "simulated" if any(row["simulated"] for row in rows) else "in the tree",
                "all" if all(row["exact"] for row in rows) else "–",
                f"{np.mean([row['bytes_up'] for row in rows]) / 1e6:.2f}" if rows[0]["bytes_up"] else "–",
                f"{np.median([row['seconds_a_round'] for row in rows]):.1f}",
                paper or "–",
            )
        )
    return table(head, body)


def _promises(results: Results) -> str:
    lines: list[tuple[object, ...]] = []
    if rows := _rows(results, NONE):
        lowest = min(row["dice"] for row in rows)
        what = f"non-private: the lowest Dice of {len(rows)} seeds"
        lines.append((what, f"{lowest:.3f}", f"at least {LEAST}", _verdict(lowest >= LEAST, len(rows))))
    for one, other in ((FIXED, ADAPTIVE), (RECORD, RECORD_ADAPTIVE), (FIXED_WEAK, ADAPTIVE_WEAK)):
        fixed, adaptive = _rows(results, one), _rows(results, other)
        if fixed and len(fixed) == len(adaptive):
            above = sum(mine["dice"] > its["dice"] for mine, its in zip(adaptive, fixed, strict=True))
            unit = "an image" if one == RECORD else "a hospital"
            what = f"adaptive above fixed clipping at epsilon {BUDGETS[one]:g} of {unit}: seeds"
            lines.append((what, f"{above} of {len(fixed)}", "all", _verdict(above == len(fixed), len(fixed))))
    return table(("", "measured", "promised", ""), lines)


def _verdict(kept: bool, seeds: int) -> str:
    if kept and seeds < len(SEEDS):
        return f"so far: {seeds} of {len(SEEDS)} seeds"
    return "kept" if kept else "**not kept**"


def draw(results: Results, file: Path) -> None:
    """The picture: Dice of every held-out image by arm, all seeds together, and its course over the rounds."""
    arms = [arm for arm in ARMS if _rows(results, arm)]
    with picture(file, (10, 5)) as figure:
        panels: Any = figure.subplots(1, 2)
        if arms:
            patients = [np.concatenate([row["patients"] for row in _rows(results, arm)]) for arm in arms]
            panels[0].boxplot(patients, tick_labels=arms, whis=(10, 90))
        panels[0].axhline(LEAST, color="#8a8a8a", linestyle="--")
        panels[0].set(ylabel="Dice of a held-out image", ylim=(0, 1), title="over patients (whiskers: 10 % and 90 %)")
        panels[0].tick_params(axis="x", rotation=60)
        for number, arm in enumerate(arms):
            for row in _rows(results, arm):
                label = arm if row is _rows(results, arm)[0] else None
                panels[1].plot(range(1, row["rounds"] + 1), row["curve"], color=f"C{number}", label=label)
        panels[1].set(xlabel="round", ylabel="mean Dice", ylim=(0, 1), title="each seed")
        panels[1].legend(frameon=False, fontsize=8)
