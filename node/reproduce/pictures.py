"""The images of the published experiments: a user's file of MedMNIST's, or the small digits of scikit-learn.

Features are computed once, by ``node/features.py``, and kept in ``runs/features`` under the digests of what made them.
Of MedMNIST's own files the test images are held out; of a file without such a split a fifth, by the study's seed.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from node.data import DataError
from node.features import Watch, make_features
from node.images import Deal, Labelled, deal_rows, medmnist_info, read_features, read_images
from node.tasks.backbones import Backbone
from node.tasks.image import split_rows

DIGITS, BLOOD, DERMA = "digits", "BloodMNIST", "DermaMNIST"
NAMES = (DIGITS, BLOOD, DERMA)
CACHE = Path("runs/features")
HELD_OUT, SEED = 0.2, 1
PIXELS = "the bare pixels"
"""What stands for a backbone where images are as small as scikit-learn's digits."""


@dataclass(frozen=True)
class Pictures:
    """A data set of an experiment: features of rows to train, of rows held out, and the images of both.

    Attributes:
        classes: how many.
        images, held_out_images: the same rows as ``train`` and ``test``.
    """

    name: str
    classes: int
    train: Labelled
    test: Labelled
    images: Labelled
    held_out_images: Labelled

    @property
    def backbone(self) -> str:
        return self.train.backbone


def read_pictures(name: str, file: Path | None, backbone: Backbone | None) -> Pictures:
    """A data set, its features computed if they are not in ``CACHE``.

    Raises:
        WardtreeError: there is no file, or it cannot be used; on one line, how to get it.
    """
    if name == DIGITS:
        return _digits()
    medmnist = name.lower()
    if file is None or backbone is None:
        raise DataError(f"{name}: {how_to_run(name)}")
    classes = [str(number) for number in range(len(medmnist_info(medmnist)["label"]))]
    try:
        with np.load(file, allow_pickle=False) as arrays:
            official = medmnist if "train_images" in arrays else None
    except (OSError, ValueError):  # read_images says what is wrong with it, in full
        official = medmnist
    images = read_images(str(file), file, classes, official)
    kept = features_file(file, classes, backbone, official)
    features = read_features(str(kept), kept, len(classes))
    return _split(name, len(classes), features, images)


def how_to_run(name: str) -> str:
    """One line: what to get, and which option takes it."""
    try:
        info = medmnist_info(name.lower())
    except DataError:  # its package, an extra, is not installed
        return (
            f'not at hand: install the extra "images", get {name} of https://medmnist.com, then --{name.lower()} FILE'
        )
    return f"not at hand: get it from {info['url']} ({info['license']}), then --{name.lower()} FILE"


def write_parties(pictures: Pictures, parties: int, folder: Path, images: bool = False) -> list[Path]:
    """A file for each party: its part of the rows to train, and its part of those held out, at random by a seed."""
    both = (pictures.images, pictures.held_out_images) if images else (pictures.train, pictures.test)
    dealt = [deal_rows(rows.y, parties, Deal(seed=SEED)) for rows in both]
    files = []
    for party in range(parties):
        mine = [rows.take(part[party]) for rows, part in zip(both, dealt, strict=True)]
        x, y = (np.concatenate(each) for each in ([rows.x for rows in mine], [rows.y for rows in mine]))
        files.append(folder / f"party-{party + 1:02}.npz")
        if images:
            train, test = mine
            np.savez(files[-1], train_images=train.x, train_labels=train.y, test_images=test.x, test_labels=test.y)
        else:
            held_out = np.repeat([False, True], [len(rows) for rows in mine])
            np.savez(files[-1], features=x, labels=y, held_out=held_out, backbone=np.array(pictures.backbone))
    return files


def features_file(file: Path, classes: list[str], backbone: Backbone, official: str | None = None) -> Path:
    """The features of a file of images, in ``CACHE``: computed if they are not there yet."""
    line = backbone.described()
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256")
    digest.update(line.encode())
    kept = CACHE / f"{file.stem}-{digest.hexdigest()[:16]}.npz"
    if not kept.exists():
        threads = len(os.sched_getaffinity(0))
        make_features(file, classes, backbone, kept, official, threads, _tell_tenths(file.name))
    return kept


def _tell_tenths(name: str) -> Watch:
    """They take minutes: a line on stderr for each tenth."""
    told = -1

    def watch(done: int, total: int) -> None:
        nonlocal told
        if (tenth := 10 * done // total) > told:
            told = tenth
            print(f"features of {name}: {done:,} of {total:,} images", file=sys.stderr, flush=True)

    return watch


def _digits() -> Pictures:
    from sklearn.datasets import load_digits

    found = load_digits()
    images = Labelled(DIGITS, found.images.astype(np.uint8)[..., None], found.target.astype(np.int64))
    features = replace(images, x=found.data.astype(np.float32), backbone=PIXELS)
    return _split(DIGITS, len(found.target_names), features, images)


def _split(name: str, classes: int, features: Labelled, images: Labelled) -> Pictures:
    if features.held_out is None:
        train, test = split_rows(features.y, HELD_OUT, SEED)
    else:
        train, test = np.flatnonzero(~features.held_out), np.flatnonzero(features.held_out)
    return Pictures(name, classes, features.take(train), features.take(test), images.take(train), images.take(test))
