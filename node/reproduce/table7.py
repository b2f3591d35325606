"""Table VII: accuracy of an image model by number of parties, encrypted and not; and a whole ResNet-18."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.evaluation import own_figures
from node.reproduce import heap, ours
from node.reproduce.approximate import OURS, PLAIN, SCHEMES, SETTINGS
from node.reproduce.output import Results, Row, spread
from node.reproduce.pictures import Pictures, write_parties
from node.simulation import in_process
from node.tasks.base import Evaluation, Setup, TrainingRound
from node.tasks.image import ImageTask, log_probabilities

PARTIES = (2, 4, 8, 16)
SEED = 1


@dataclass(frozen=True)
class Schedule:
    """How a cell trains: rounds of ``epochs`` passes of SGD, at every party, and how updates are quantised.

    Attributes:
        parties: with which numbers of them it is run.
        most: repetitions at most.
        whole: the whole network and not its top layer; ours only.
    """

    rounds: int
    epochs: int = 1
    learning_rate: float = 1e-3
    momentum: float = 0.9
    batch: int = 64
    clip: float = 2.0
    value_bits: int = 24
    parties: tuple[int, ...] = PARTIES
    schemes: tuple[str, ...] = SCHEMES
    most: int = 100
    whole: bool = False


SCHEDULES = {
    "published": Schedule(5),
    "longer": Schedule(30, parties=(4,), schemes=(PLAIN, OURS), most=5),
    "whole ResNet-18": Schedule(3, clip=0.25, value_bits=14, parties=(4,), schemes=(OURS,), most=1, whole=True),
}

STUDY = """\
[study]
name = "table7"
rounds = {rounds}
seed = {seed}
[task]
class = {task}
[task.options]
{options}
[aggregation]
clip = {clip}
value_bits = {bits}
max_parties = 16
[deadlines]
round_seconds = 900.0
join_seconds = 300.0
[debug]
two_parties = {two}
check_sums = {check}
"""
HEAD, WHOLE = "node.tasks.image_experiment:ImageExperimentTask", "image"


def run(
    results: Results,
    pictures: Sequence[Pictures],
    repetitions: int,
    parties: Sequence[int] = PARTIES,
    schemes: Sequence[str] = SCHEMES,
    schedules: Sequence[str] = tuple(SCHEDULES),
) -> None:
    """Measure the cells asked for; ``table7_page`` writes the page."""
    results.measure(list(_plan(pictures, repetitions, parties, schemes, schedules)))


def _plan(
    pictures: Sequence[Pictures],
    repetitions: int,
    parties: Sequence[int],
    schemes: Sequence[str],
    schedules: Sequence[str],
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for data in pictures:
        for name in schedules:
            schedule = SCHEDULES[name]
            if schedule.whole and min(data.images.x.shape[1:3]) < 28:
                continue  # a ResNet-18 has nothing to see in digits of 8 x 8
            for count in (count for count in parties if count in schedule.parties):
                for scheme in (scheme for scheme in schemes if scheme in schedule.schemes):
                    key: Row = {"data": data.name, "schedule": name, "parties": count, "scheme": scheme}
                    yield key, partial(cell, data, count, scheme, schedule, min(repetitions, schedule.most))


def cell(pictures: Pictures, parties: int, scheme: str, schedule: Schedule, repetitions: int) -> Row:
    """One cell: all its repetitions, back to back in one federation.

    Returns:
        Percent, on the rows held out, of each repetition in order: ``accuracies``, ``balanced``, ``aucs``, with
        ``mean`` and ``spread`` of the first; ``predictions``: a digest of what each model named; ``majority``: percent,
        of always naming the largest class; ``seconds_a_round``, the median; ``bytes_up`` of one party's update;
        ``largest``: of a value of the first party's update in the first two rounds. Of a whole network also ``exact``:
        each total was the sum of what the parties encrypted; and ``processor_seconds`` of all processes of all parties.
    """
    of_whole: Row = {}
    with tempfile.TemporaryDirectory(prefix="wardtree-table7-") as folder:
        files = write_parties(pictures, parties, Path(folder), schedule.whole)
        if scheme == OURS:
            study = _study(pictures, parties, schedule, repetitions)
            data = {path.stem: _data(path, party, schedule) for party, path in enumerate(files)}
            done = ours.run(study, data, files[0].stem, schedule.rounds)
            models, seconds, upload = done.models, done.seconds, done.upload
            if schedule.whole:
                of_whole = {"exact": done.exact, "processor_seconds": done.processor_seconds}
        else:
            there = in_process(_elsewhere, files, scheme, pictures, schedule, repetitions)
            models = np.frombuffer(there["models"], "<f4").reshape(repetitions, -1)
            seconds, upload = there["seconds"], there["upload"]
        figures: Row = in_process(_figures, pictures, models, files[0], schedule) | of_whole
    mean, deviation = spread(figures["accuracies"])
    return {
        "repetitions": repetitions,
        "parameters": int(models.shape[1]),
        "mean": mean,
        "spread": deviation,
        "seconds_a_round": float(np.median(seconds)),
        "bytes_up": upload,
        "train_rows": len(pictures.train),
        "test_rows": len(pictures.test),
        "classes": pictures.classes,
        "backbone": "" if schedule.whole else pictures.backbone,
        "majority": float(100 * np.bincount(pictures.test.y).max() / len(pictures.test)),
    } | figures


def _options(pictures: Pictures, schedule: Schedule) -> dict[str, Any]:
    options: dict[str, Any] = {
        "classes": [str(number) for number in range(pictures.classes)],
        "learning_rate": schedule.learning_rate,
        "momentum": schedule.momentum,
        "batch_size": schedule.batch,
        "local_epochs": schedule.epochs,
    }
    if schedule.whole:
        return options | {"model": "resnet18", "shape": list(pictures.images.x.shape[1:])}
    head = {"model": "head", "backbone": pictures.backbone, "features": pictures.train.x.shape[1]}
    return options | head | {"rounds_per_repetition": schedule.rounds}


def _study(pictures: Pictures, parties: int, schedule: Schedule, repetitions: int) -> str:
    options = _options(pictures, schedule)
    return STUDY.format(
        rounds=schedule.rounds * repetitions,
        seed=SEED,
        task=json.dumps(WHOLE if schedule.whole else HEAD),
        options="\n".join(f"{key} = {json.dumps(value)}" for key, value in options.items()),
        clip=schedule.clip,
        bits=schedule.value_bits,
        two=str(parties == 2).lower(),
        check=str(schedule.whole).lower(),
    )


def _data(path: Path, party: int, schedule: Schedule) -> dict[str, Any]:
    return {"images": str(path)} if schedule.whole else {"features": str(path), "party": str(party + 1)}


def _task(files: Sequence[Path], pictures: Pictures, schedule: Schedule, party: int) -> ImageTask:
    from node.tasks.image_experiment import ImageExperimentTask

    kind = ImageTask if schedule.whole else ImageExperimentTask
    data = _data(files[party], party, schedule)
    return kind(Setup(str(party), _options(pictures, schedule), data, SEED, Path()))


def _elsewhere(
    files: Sequence[Path], scheme: str, pictures: Pictures, schedule: Schedule, repetitions: int
) -> dict[str, Any]:
    """The paper's network, forked from a process of its own, which has imported torch once for all of them."""
    import torch._dynamo
    import torch.optim  # noqa: F401

    make_task = partial(_task, files, pictures, schedule)
    done = heap.run(len(files), make_task, SETTINGS[scheme], schedule.rounds * repetitions, schedule.rounds)
    return {"models": done.models.astype("<f4").tobytes(), "seconds": done.seconds, "upload": float(done.upload)}


def _figures(pictures: Pictures, models: NDArray[np.float32], file: Path, schedule: Schedule) -> Row:
    task = _task([file], pictures, schedule, 0)
    test = pictures.held_out_images if schedule.whole else pictures.test
    found, digests = [], []
    for model in models:
        logits = task.logits(model, test.x)
        found.append(own_figures(Evaluation(len(test), test.y, np.exp(log_probabilities(logits)))))
        digests.append(hashlib.sha256(logits.argmax(axis=1).astype("<i8").tobytes()).hexdigest()[:16])
    model, largest = task.initial(), 0.0
    for number in (1, 2):
        update = task.train(model, TrainingRound(number, schedule.rounds, None, 0))
        model, largest = model + update, max(largest, float(np.abs(update).max()))
    return {
        "accuracies": [100 * each["accuracy"] for each in found],
        "balanced": [100 * each["balanced_accuracy"] for each in found],
        "aucs": [100 * each["auc"] for each in found],
        "predictions": digests,
        "largest": largest,
    }
