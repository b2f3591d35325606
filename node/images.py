"""One hospital's images or features, from its ``[data]``. Runs in the enclave; no message carries a pixel or a label.

images = "images.npz"             # absolute, or relative to the node's home; an .npz file, or a folder for each class
features = "features.npz"         # instead: what `wardtree features` made of them
medmnist = "dermamnist"           # optional: the file must be this one of MedMNIST, to the last byte
shard = "3/7"                     # optional, for simulations: the third of seven parts of the rows
deal = { dirichlet = 0.5 }        # how these parts are dealt, with a seed: see `Deal`; left away: at random

An .npz file has the arrays ``images`` (N, H, W) or (N, H, W, C), uint8, and ``labels`` (N,) or (N, 1), whole numbers
from 0 in the order of the study's classes; or MedMNIST's, ``train_images``, ``train_labels``, ``val_...`` and
``test_...``: its test images are held out, the others are to train.
"""

import hashlib
import importlib.util
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.data import DataError
from node.settings import Settings, problems

Rows = NDArray[np.int64]

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")
_SPLITS = ("train", "val", "test")


class Deal(Settings):
    """``[data.deal]``: how the rows of one file are dealt to the parties of a simulation; the same file, ``seed`` and
    number of parts give the same parts everywhere, and no two of them share a row.

    Neither of the first two: at random, in parts of equal size.
    """

    dirichlet: float | None = Field(default=None, gt=0, description="a number above 0")
    """Of each class, shares drawn from a symmetric Dirichlet distribution (Hsu, Qi and Brown 2019): 0.1 is far from
    even, 100 is even."""
    labels: int | None = Field(default=None, ge=1, description="a whole number above 0")
    """Rows are put in order of their class and cut; each party has so many of the pieces (McMahan et al. 2017)."""
    seed: int = Field(default=0, ge=0, lt=2**32, description="a whole number from 0 to 4294967295")

    @model_validator(mode="after")
    def _one_way(self) -> "Deal":
        if self.dirichlet is not None and self.labels is not None:
            raise ValueError("expected one of dirichlet and labels, came both")
        return self


class ImageSource(Settings):
    """``[data]`` of one hospital."""

    images: str | None = Field(default=None, min_length=1, description="the path of an .npz file or of a folder")
    features: str | None = Field(default=None, min_length=1, description="the path of an .npz file")
    medmnist: str | None = Field(default=None, pattern=r"^[a-z0-9]+$", description='a name such as "dermamnist"')
    shard: str | None = Field(
        default=None, pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$", description='a part such as "3/7"'
    )
    deal: Deal = Field(default_factory=Deal, description="a table such as { dirichlet = 0.5, seed = 1 }")

    @model_validator(mode="after")
    def _one_file(self) -> "ImageSource":
        if (self.images is None) == (self.features is None):
            raise ValueError("data: expected one of images and features, came both or none")
        if self.medmnist is not None and self.images is None:
            raise ValueError("data: expected medmnist with images only, came it with features")
        return self


@dataclass(frozen=True)
class Labelled:
    """Rows of a file, with their labels; ``name`` stands for the file in messages.

    Attributes:
        x: (N, H, W, C), uint8, images; or (N, F), float32, features.
        y: (N,), indices into the study's classes.
        held_out: (N,), where the file says which rows are not to train; else None.
        backbone: what made the features, in words that all hospitals can compare; "" of images.
    """

    name: str
    x: NDArray[Any]
    y: NDArray[np.int64]
    held_out: NDArray[np.bool_] | None = None
    backbone: str = ""

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: Rows) -> "Labelled":
        held_out = None if self.held_out is None else self.held_out[rows]
        return replace(self, x=self.x[rows], y=self.y[rows], held_out=held_out)


def read_labelled(data: Mapping[str, Any], classes: Sequence[str], home: Path) -> Labelled:
    """The hospital's images or features. Raises DataError."""
    try:
        source = ImageSource.model_validate(dict(data))
    except ValidationError as error:
        raise DataError("; ".join(problems(ImageSource, error, "data"))) from None
    if source.features is not None:
        rows = read_features(source.features, home / source.features, len(classes))
    else:
        name = source.images or ""
        rows = read_images(name, home / name, classes, source.medmnist)
    return rows if source.shard is None else _shard(rows, source.shard, source.deal)


def read_images(name: str, path: Path, classes: Sequence[str], medmnist: str | None = None) -> Labelled:
    """All images of an .npz file or of a folder. Raises DataError."""
    if medmnist is not None:
        _check_medmnist(name, path, medmnist, len(classes))
    if path.is_dir():
        return _read_folder(name, path, classes)
    arrays = _read_npz(name, path)
    held_out = None
    if "train_images" in arrays:
        splits = [split for split in _SPLITS if f"{split}_images" in arrays]
        for split in splits:
            _require(name, arrays, f"{split}_labels")
        x = _join(name, [arrays[f"{split}_images"] for split in splits], "images")
        y = _join(name, [arrays[f"{split}_labels"] for split in splits], "labels")
        sizes = [len(arrays[f"{split}_labels"]) for split in splits]
        held_out = np.repeat([split == "test" for split in splits], sizes) if "test" in splits else None
    else:
        x, y = _require(name, arrays, "images"), _require(name, arrays, "labels")
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or 0 in x.shape or (x.ndim == 4 and x.shape[3] not in (1, 3)):
        raise DataError(f"{name}: expected images (N, H, W), (N, H, W, 1) or (N, H, W, 3) of uint8, came {_form(x)}")
    return Labelled(name, x if x.ndim == 4 else x[..., None], _labels(name, y, len(x), len(classes)), held_out)


def read_features(name: str, path: Path, classes: int) -> Labelled:
    """A file that ``wardtree features`` wrote. Raises DataError."""
    arrays = _read_npz(name, path)
    x, y = _require(name, arrays, "features"), _require(name, arrays, "labels")
    backbone, held_out = _require(name, arrays, "backbone"), arrays.get("held_out")
    if x.dtype != np.float32 or x.ndim != 2 or 0 in x.shape:
        raise DataError(f"{name}: expected features (N, F) of float32, came {_form(x)}")
    if not np.isfinite(x).all():
        raise DataError(f"{name}: expected finite features, came others")
    if backbone.dtype.kind != "U" or backbone.ndim:
        raise DataError(f"{name}: expected a text that names the backbone, came {_form(backbone)}")
    if held_out is not None and (held_out.dtype != np.bool_ or held_out.shape != y.shape):
        raise DataError(f"{name}: expected held_out ({len(x)},) of bool, came {_form(held_out)}")
    return Labelled(name, x, _labels(name, y, len(x), classes), held_out, str(backbone))


def deal_rows(labels: Rows, parts: int, how: Deal) -> list[Rows]:
    """Deal rows with these labels, (N,), into ``parts``: each row is in one of them, in ascending order."""
    draw = np.random.default_rng(how.seed)
    dealt: list[list[Rows]] = [[] for _ in range(parts)]
    if how.dirichlet is not None:
        for label in np.unique(labels):
            rows = draw.permutation(np.flatnonzero(labels == label))
            ends = (np.cumsum(draw.dirichlet(np.full(parts, how.dirichlet)))[:-1] * len(rows)).round().astype(int)
            for part, piece in zip(dealt, np.split(rows, ends), strict=True):
                part.append(piece)
    elif how.labels is not None:
        shuffled = draw.permutation(len(labels))
        ordered = shuffled[np.argsort(labels[shuffled], kind="stable")]
        pieces = np.array_split(ordered, parts * how.labels)
        for place, piece in enumerate(draw.permutation(len(pieces))):
            dealt[place % parts].append(pieces[piece])
    else:
        shuffled = draw.permutation(len(labels))
        dealt = [[shuffled[part::parts]] for part in range(parts)]
    return [np.sort(np.concatenate(part)) for part in dealt]


# ---- reading --------------------------------------------------------------------------------------------


def _shard(rows: Labelled, shard: str, how: Deal) -> Labelled:
    part, parts = (int(number) for number in shard.split("/"))
    if part > parts:
        raise DataError(f'data.shard: expected a part from 1 to {parts}, came "{shard}"')
    mine = deal_rows(rows.y, parts, how)[part - 1]
    if not len(mine):
        raise DataError(f"{rows.name}: expected at least one row for shard {shard}, came none of {len(rows)}")
    return rows.take(mine)


def _read_npz(name: str, path: Path) -> dict[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise ValueError
            return dict(file)
    except FileNotFoundError as error:
        raise DataError(f"{name}: expected an .npz file: {error.strerror}") from None
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        why = f": {error.strerror}" if isinstance(error, OSError) and error.strerror else ", came something else"
        raise DataError(f"{name}: expected an .npz file of arrays without Python objects{why}") from None


def _require(name: str, arrays: Mapping[str, NDArray[Any]], key: str) -> NDArray[Any]:
    if key not in arrays:
        raise DataError(f"{name}: expected an array {key}, came {', '.join(sorted(arrays)) or 'none'}")
    return arrays[key]


def _join(name: str, arrays: Sequence[NDArray[Any]], what: str) -> NDArray[Any]:
    if len({(array.dtype, array.shape[1:]) for array in arrays}) > 1 or not all(array.ndim for array in arrays):
        forms = ", ".join(_form(array) for array in arrays)
        raise DataError(f"{name}: expected {what} of one size in all its parts, came {forms}")
    return np.concatenate(arrays)


def _labels(name: str, y: NDArray[Any], rows: int, classes: int) -> NDArray[np.int64]:
    if y.dtype.kind not in "iu" or y.shape not in ((rows,), (rows, 1)):
        raise DataError(f"{name}: expected labels ({rows},) or ({rows}, 1) of whole numbers, came {_form(y)}")
    if rows and (y.min() < 0 or y.max() >= classes):  # neither is repeated: they are patients'
        raise DataError(f"{name}: expected labels from 0 to {classes - 1}, the study's classes, came another")
    return y.reshape(rows).astype(np.int64)


def _form(array: NDArray[Any]) -> str:
    return f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''}) of {array.dtype}"


def _read_folder(name: str, path: Path, classes: Sequence[str]) -> Labelled:
    """``path``/CLASS/*.png and the like, all of one size; the names of the files say nothing."""
    from PIL import Image, UnidentifiedImageError

    folders = {folder.name for folder in path.iterdir() if folder.is_dir()}
    if not folders <= set(classes):
        raise DataError(f"{name}: expected folders named as the study's {len(classes)} classes, came another")
    files = [
        (file, label)
        for label, each in enumerate(classes)
        if each in folders
        for file in sorted((path / each).iterdir())
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(f"{name}: expected images ({', '.join(SUFFIXES)}) in a folder for each class, came none")
    pixels: list[NDArray[np.uint8]] = []
    for number, (file, _) in enumerate(files, start=1):
        try:
            with Image.open(file) as image:
                grey = image.mode in ("1", "L", "I", "I;16")
                pixels.append(
                    np.asarray(image.convert("L" if grey else "RGB"), np.uint8).reshape(*image.size[::-1], -1)
                )
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
            # A file's name may be a patient's.
            raise DataError(f"{name}: image {number} of {len(files)}: expected a readable image, came none") from None
        if pixels[-1].shape != pixels[0].shape:
            raise DataError(
                f"{name}: image {number} of {len(files)}: expected the size and colours of the first, "
                f"{_size(pixels[0])}, came {_size(pixels[-1])}"
            )
    return Labelled(name, np.stack(pixels), np.array([label for _, label in files], np.int64))


def _size(pixels: NDArray[np.uint8]) -> str:
    return " x ".join(map(str, pixels.shape))


# ---- MedMNIST -------------------------------------------------------------------------------------------


def medmnist_info(name: str) -> Mapping[str, Any]:
    """What the package medmnist says of its data set ``name``: "label", "n_channels", "url", "MD5", "license" ...

    Its module is run by itself: the package would import torchvision, which not every torch has beside it.

    Raises:
        DataError: it is not installed, or does not know the name.
    """
    spec = importlib.util.find_spec("medmnist")
    if spec is None or not spec.submodule_search_locations:
        raise DataError('data.medmnist: expected the package medmnist (the extra "images"), came none')
    module = importlib.util.spec_from_file_location(
        "_medmnist_info", Path(spec.submodule_search_locations[0], "info.py")
    )
    assert module
    assert module.loader
    found = importlib.util.module_from_spec(module)
    module.loader.exec_module(found)
    if name not in found.INFO:
        raise DataError(f'data.medmnist: expected one of {", ".join(found.INFO)}, came "{name}"')
    info: Mapping[str, Any] = found.INFO[name]
    return info


def _check_medmnist(name: str, path: Path, dataset: str, classes: int) -> None:
    info = medmnist_info(dataset)
    if len(info["label"]) != classes:
        raise DataError(f"{dataset}: expected {len(info['label'])} classes in the study, came {classes}")
    known = {info[key]: key.removeprefix("MD5").removeprefix("_") for key in info if key.startswith("MD5")}
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    except OSError as error:
        raise DataError(f"{name}: {error.strerror}: {how_to_get(dataset)}") from None
    if digest not in known:
        raise DataError(f"{name}: expected MedMNIST's {dataset} with MD5 {info['MD5']}, came {digest}")


def how_to_get(dataset: str) -> str:
    """Where MedMNIST's file can be had, on one line."""
    info = medmnist_info(dataset)
    return f"get {info['python_class']} ({info['license']}) from {info['url']} and name the file"
