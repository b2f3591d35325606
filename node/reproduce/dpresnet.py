"""DPResNet (arXiv 2412.00687) again: blood cells named by a ResNet-9 of 5, 10 or 20 hospitals, dealt unevenly."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.privacy.protect import multiplier_for
from node.reproduce import ours
from node.reproduce.output import Results, Row
from node.simulation import STUDIES, in_process
from node.study import Study, parse_study
from node.tasks.base import Setup

HOSPITALS = (5, 10, 20)
ENCRYPTED, PLAIN, RECORD, HOSPITAL = "wardtree", "plain", "wardtree, record-level DP", "wardtree, hospital-level DP"
ARMS = (ENCRYPTED, PLAIN, RECORD, HOSPITAL)
"""Those that are trained; ``node/reproduce/dpresnet_checks.py`` has others."""

EPSILON, DELTA, CLIP, PAPER_ROUNDS = 6.0, 1.9e-4, 7.0, 50
"""The paper's."""
RECORD_ROUNDS, RECORD_BATCH, RECORD_RATE = 4, 128, 0.02
HOSPITAL_ROUNDS = 2
"""The schedules with noise are short; the noise of the second is that of the paper's 50 rounds."""

KEPT = Path("runs/dpresnet")
"""Models between two parts of a run."""

_CONTINUED = 'class = "node.tasks.image_experiment:ContinuedImageTask"'


def run(results: Results, file: Path, hospitals: Sequence[int], arms: Sequence[str], at_once: int) -> Iterator[None]:
    """Measure the cells asked for, in parts of ``at_once`` rounds, each of which is kept; yields after each part."""
    for arm in arms:
        for count in hospitals:
            key: Row = {"arm": arm, "hospitals": count}
            for before in _parts(results, key):
                results.measure([(key, partial(part, file, key, before, at_once))])
                yield


def rounds_of(arm: str) -> int:
    """In all."""
    return {RECORD: RECORD_ROUNDS, HOSPITAL: HOSPITAL_ROUNDS}.get(arm) or the_study().rounds


def _parts(results: Results, key: Row) -> Iterator[Row | None]:
    """What a cell has so far, until it has all its rounds."""
    while (row := results.find(**key)) is None or row["rounds"] < rounds_of(key["arm"]):
        yield row


def part(file: Path, key: Mapping[str, Any], before: Row | None, at_once: int) -> Row:
    """Some more rounds of a cell; those with noise all at once, under one account.

    Returns:
        ``rounds`` so far; ``curve``, the accuracy on all held-out images after each of them; ``exact`` and ``epsilon``:
        see ``ours.Run``; ``seconds``: of each round; and of each part ``part_rounds``, ``part_seconds`` by the wall,
        ceremony and start included, and ``processor_seconds``, None where they were not counted.
    """
    arm, count, began = str(key["arm"]), int(key["hospitals"]), time.monotonic()
    kept = (KEPT / f"{ARMS.index(arm)}-{count}.npy").resolve()
    before = before if kept.exists() else None  # figures without the model that they led to: begin anew
    done = before["rounds"] if before else 0
    left = rounds_of(arm) - done
    rounds = left if arm in (RECORD, HOSPITAL) else min(at_once, left)
    study = study_text(arm, rounds, done, count)
    data = hospitals_data(file, count, {"start": str(kept)} if done else {})
    if arm != PLAIN:
        ran = ours.run(study, data, "hospital-01", 1)
        models, seconds, epsilon = ran.models, ran.seconds, ran.epsilon
        exact, upload, processor = ran.exact, ran.upload, ran.processor_seconds
    else:
        with tempfile.NamedTemporaryFile(suffix=".npy") as file_of_models:
            there = in_process(_in_the_clear, study, data, file_of_models.name)
            models = np.load(file_of_models.name)
        seconds, epsilon = there["seconds"], None
        exact, upload, processor = False, 0.0, there["processor_seconds"]
    whole = time.monotonic() - began
    figures: Row = in_process(measured, study, data, models)
    KEPT.mkdir(parents=True, exist_ok=True)
    np.save(kept, models[-1])
    earlier: Row = before or {
        "curve": [],
        "seconds": [],
        "processor_seconds": [],
        "part_seconds": [],
        "part_rounds": [],
        "exact": True,
    }
    return figures | {
        "rounds": done + rounds,
        "parameters": len(models[-1]),
        "curve": [*earlier["curve"], *figures["curve"]],
        "seconds": [*earlier["seconds"], *seconds],
        "processor_seconds": [*earlier["processor_seconds"], processor],
        "part_seconds": [*earlier["part_seconds"], whole],
        "part_rounds": [*earlier["part_rounds"], rounds],
        "exact": exact and earlier["exact"],
        "bytes_up": upload,
        "epsilon": epsilon,
    }


def hospitals_data(file: Path, count: int, more: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Each hospital's ``[data]``: its part of the images, dealt by the seed."""
    deal = {"dirichlet": 0.5, "seed": 1}
    return {
        f"hospital-{number:02}": {"images": str(file.resolve()), "shard": f"{number}/{count}", "deal": deal, **more}
        for number in range(1, count + 1)
    }


def the_study() -> Study:
    """The one that comes with wardtree."""
    return parse_study(_text(), "dpresnet")


def study_text(arm: str, rounds: int, before: int = 0, hospitals: int = HOSPITALS[1]) -> str:
    """The study of so many rounds of an arm after others: the one that comes with wardtree, with the arm's tables.

    With hospital-level privacy nobody may drop out: so each hospital's share of the noise is the least.
    """
    text, whole = _text(), the_study()
    schedule = '[optimisation]\nschedule = "cosine"'
    if arm in (RECORD, HOSPITAL):
        text = text.replace(schedule, "[optimisation]")
        text += f"\n[privacy]\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {CLIP}\n"
    if arm == RECORD:
        text += 'mode = "record"\n'
        options = whole.task.options
        text = text.replace(f"batch_size = {options['batch_size']}", f"batch_size = {RECORD_BATCH}")
        text = text.replace(f"learning_rate = {options['learning_rate']}", f"learning_rate = {RECORD_RATE}")
    elif arm == HOSPITAL:
        text += f'mode = "hospital"\nnoise_multiplier = {multiplier_for(EPSILON, DELTA, PAPER_ROUNDS):.6f}\n'
        text = text.replace('weights = "examples"', f'weights = "equal"\nmin_hidden = {hospitals - 1}')
    else:
        warmup = f"warmup_rounds = {whole.optimisation.warmup_rounds}\n"
        text = text.replace(f"{schedule}\n{warmup}", "").replace('class = "image"', _CONTINUED)
        own = f"rounds_before = {before}\nrounds_in_all = {whole.rounds}\n{warmup}"
        text = text.replace("[task.options]\n", f"[task.options]\n{own}")
    return text.replace(f"rounds = {whole.rounds}\n", f"rounds = {rounds}\n", 1)


def _text() -> str:
    return (STUDIES / "dpresnet.toml").read_text()


def tasks_of(study: str, data: Mapping[str, Mapping[str, Any]]) -> list[Any]:
    """Every hospital's, in this process, which is to be one of its own."""
    from node.tasks.loader import load_task_class

    parsed = parse_study(study, "dpresnet")
    cls = load_task_class(parsed.task.class_name)
    return [cls(Setup(name, parsed.task.options, data[name], parsed.seed, Path())) for name in data]


def _in_the_clear(study: str, data: Mapping[str, Mapping[str, Any]], kept: str) -> Row:
    """The same schedule in one process: the mean of float updates, by numbers of examples, nothing encrypted. The
    models of all rounds are saved as ``kept``."""
    from node.tasks.base import TrainingRound

    tasks, rounds = tasks_of(study, data), parse_study(study, "dpresnet").rounds
    model, models, seconds = tasks[0].initial(), [], []
    examples, processor = sum(task.examples for task in tasks), time.process_time()
    for number in range(1, rounds + 1):
        began = time.monotonic()
        round_ = TrainingRound(number, rounds, None, 0)
        mean = sum(task.examples / examples * task.train(model, round_).astype(np.float64) for task in tasks)
        model = (model + mean).astype(np.float32)
        models.append(model)
        seconds.append(time.monotonic() - began)
    np.save(kept, np.stack(models))
    return {"seconds": seconds, "processor_seconds": time.process_time() - processor}


def measured(study: str, data: Mapping[str, Mapping[str, Any]], models: NDArray[np.float32]) -> Row:
    """What each of the models, (N, parameters), is right about, and how the images were dealt; ``commonest``: the part
    of the held-out images that are of the commonest kind."""
    tasks = tasks_of(study, data)
    curve = []
    for model in models:
        right = [int((task.logits(model, task._test.x).argmax(axis=1) == task._test.y).sum()) for task in tasks]
        curve.append(sum(right) / sum(len(task._test) for task in tasks))
    return {
        "curve": curve,
        "held_out": sum(len(task._test) for task in tasks),
        "commonest": float(np.bincount(np.concatenate([task._test.y for task in tasks])).max())
        / sum(len(task._test) for task in tasks),
        "train": sum(len(task._train) for task in tasks),
        "smallest": min(task.examples for task in tasks),
        "largest": max(task.examples for task in tasks),
    }
