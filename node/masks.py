"""One hospital's images and the masks that belong to them, from its ``[data]``. Runs in the enclave; no message carries
a pixel, nor a file's name, which may be a patient's.

images = "images"                 # a folder of images or of NIfTI volumes, with its subfolders; or an .npz file
masks = "masks"                   # a folder, which may be the same one; an .npz file has its masks in it
image_endings = ["_flair", "_t1"] # optional: how the names of images end, a file for each channel
mask_ending = "_segmentation"     # optional: how the names of masks end
shard = "3/7"                     # optional, for simulations: the third of seven parts of the images
deal = { seed = 1 }               # how these parts are dealt: see `Deal`; left away: at random

Image and mask belong together whose names are the same without these endings: ISIC_0024306.jpg and
ISIC_0024306_segmentation.png. Where nothing is left of a name it is that of its folder: case_00000/imaging.nii.gz.

An .npz file has the arrays ``images`` (or ``X``) and ``masks`` (or ``M``): (N, H, W[, C]) and (N, H, W), of volumes
(N, H, W, D[, C]) and (N, H, W, D). Masks are whole numbers or booleans.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from node.data import DataError
from node.images import SUFFIXES, Deal, deal_rows
from node.settings import Settings, problems

VOLUMES = (".nii.gz", ".nii")


class MaskSource(Settings):
    """``[data]`` of one hospital."""

    images: str = Field(min_length=1, description="the path of an .npz file or of a folder")
    masks: str | None = Field(default=None, min_length=1, description="the path of a folder")
    image_endings: list[str] = Field(default=[""], min_length=1, description='a list of texts such as ["_t1", "_t2"]')
    mask_ending: str = Field(default="", description='a text such as "_segmentation"')
    shard: str | None = Field(
        default=None, pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$", description='a part such as "3/7"'
    )
    deal: Deal = Field(default_factory=Deal, description="a table such as { seed = 1 }")


@dataclass(frozen=True)
class Example:
    """An image or a volume with its mask.

    Attributes:
        pixels: (H, W, C) or (H, W, D, C), uint8 of an image, else float32.
        mask: (H, W) or (H, W, D): whole numbers, 0 where nothing is marked.
    """

    pixels: NDArray[Any]
    mask: NDArray[np.integer[Any]]


def read_masked(data: Mapping[str, Any], home: Path) -> Iterator[Example]:
    """The hospital's images one after the other, in an order that is always the same. Raises DataError."""
    try:
        source = MaskSource.model_validate(dict(data))
    except ValidationError as error:
        raise DataError("; ".join(problems(MaskSource, error, "data"))) from None
    path = home / source.images
    return _from_folder(source, path, home) if path.is_dir() else _from_arrays(source, path)


def _chosen(source: MaskSource, count: int) -> list[int]:
    """Which of so many images are in this party's shard."""
    if source.shard is None:
        return list(range(count))
    part, parts = (int(number) for number in source.shard.split("/"))
    if part > parts:
        raise DataError(f'data.shard: expected a part from 1 to {parts}, came "{source.shard}"')
    if source.deal.dirichlet is not None or source.deal.labels is not None:
        raise DataError("data.deal: expected a seed only: images with masks have no label to be dealt by")
    rows: list[int] = deal_rows(np.zeros(count, np.int64), parts, source.deal)[part - 1].tolist()
    if not rows:
        raise DataError(f"{source.images}: expected at least one image for shard {source.shard}, came none of {count}")
    return rows


# ---- arrays ---------------------------------------------------------------------------------------------


def _from_arrays(source: MaskSource, path: Path) -> Iterator[Example]:
    name = source.images
    try:
        with np.load(path, allow_pickle=False) as file:
            if isinstance(file, np.ndarray):
                raise ValueError
            arrays = dict(file)
    except FileNotFoundError:
        raise DataError(f"{name}: expected an .npz file or a folder, came neither") from None
    except (OSError, ValueError, EOFError, KeyError, NotImplementedError, zipfile.BadZipFile, zlib.error):
        raise DataError(
            f"{name}: expected an .npz file of arrays without Python objects, came something else"
        ) from None
    found = [next((arrays[key] for key in keys if key in arrays), None) for keys in (("images", "X"), ("masks", "M"))]
    images, masks = found
    if images is None or masks is None:
        raise DataError(f"{name}: expected arrays images and masks, came {', '.join(sorted(arrays)) or 'none'}")
    if masks.dtype.kind not in "bui" or masks.ndim not in (3, 4) or 0 in masks.shape:
        raise DataError(f"{name}: expected masks (N, H, W) or (N, H, W, D) of whole numbers, came {_form(masks)}")
    if images.dtype.kind not in "uif" or images.shape[: masks.ndim] != masks.shape or images.ndim > masks.ndim + 1:
        raise DataError(f"{name}: expected images and masks of one size, came {_form(images)} and {_form(masks)}")
    images = images if images.ndim > masks.ndim else images[..., None]
    if not images.shape[-1]:
        raise DataError(f"{name}: expected images with a channel, came {_form(images)}")
    for row in _chosen(source, len(masks)):
        yield _example(f"{name}: image {row + 1} of {len(masks)}", images[row], masks[row])


def _form(array: NDArray[Any]) -> str:
    return f"({', '.join(map(str, array.shape))}{',' if array.ndim == 1 else ''}) of {array.dtype}"


# ---- folders --------------------------------------------------------------------------------------------


def _from_folder(source: MaskSource, path: Path, home: Path) -> Iterator[Example]:
    if source.masks is None or not (home / source.masks).is_dir():
        raise DataError("data.masks: expected a folder beside a folder of images, came none")
    masks = _named(source.masks, home / source.masks, source.mask_ending)
    channels = [_named(source.images, path, ending) for ending in source.image_endings]
    if source.mask_ending:  # where both lie in one folder, what ends like a mask is one
        channels = [{key: file for key, file in each.items() if file not in masks.values()} for each in channels]
    keys = sorted({*masks, *(key for each in channels for key in each)})
    if not keys:
        kinds = ", ".join((*SUFFIXES, *VOLUMES))
        raise DataError(f"{source.images}: expected images with masks ({kinds}), came none")
    complete = [key for key in keys if key in masks and all(key in each for each in channels)]
    if len(complete) < len(keys):
        lonely = len(keys) - len(complete)
        raise DataError(
            f"{source.images}: expected a mask for each image and the other way round, by their names; came {lonely} "
            f"of {len(keys)} alone"
        )
    for row in _chosen(source, len(keys)):
        where = f"{source.images}: image {row + 1} of {len(keys)}"
        parts = [_read(where, each[keys[row]]) for each in channels]
        if len({part.shape[:-1] for part in parts}) > 1:
            raise DataError(f"{where}: expected channels of one size, came {' and '.join(_sizes(*parts))}")
        mask = _read(f"{where}, its mask", masks[keys[row]], is_mask=True)
        if (mask != mask[..., :1]).any():
            raise DataError(f"{where}, its mask: expected one channel, came {mask.shape[-1]} that differ")
        yield _example(where, np.concatenate(parts, axis=-1), mask[..., 0])


def _named(name: str, folder: Path, ending: str) -> dict[str, Path]:
    """The files below a folder whose names end so, by what is left of their names."""
    found: dict[str, Path] = {}
    for file in sorted(folder.rglob("*")):
        suffix = next((each for each in (*VOLUMES, *SUFFIXES) if file.name.lower().endswith(each)), None)
        stem = file.name[: -len(suffix)] if suffix else ""
        if suffix is None or file.name.startswith(".") or not stem.endswith(ending) or not file.is_file():
            continue
        key = stem.removesuffix(ending) or file.parent.name
        if key in found:
            raise DataError(f"{name}: expected one file for each image and channel, came two of one name")
        found[key] = file
    return found


def _read(where: str, file: Path, is_mask: bool = False) -> NDArray[Any]:
    if file.name.lower().endswith(VOLUMES):
        return _read_volume(where, file)
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in ("I", "I;16", "F"):
                pixels = np.asarray(image, np.float32)
            elif mode == "P" and is_mask:  # the numbers of the colours are the labels
                pixels = np.asarray(image, np.uint8)
            else:
                pixels = np.asarray(image.convert("L" if mode in ("1", "L", "LA") else "RGB"), np.uint8)
            return pixels.reshape(*image.size[::-1], -1)
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        raise DataError(f"{where}: expected a readable image, came none") from None


def _read_volume(where: str, file: Path) -> NDArray[Any]:
    """(H, W, D, C), float32, in the orientation nearest to right, anterior, superior."""
    try:
        import nibabel
    except ImportError:
        raise DataError(f'{where}: expected the package nibabel (the extra "segmentation"), came none') from None
    try:
        volume = nibabel.as_closest_canonical(nibabel.Nifti1Image.load(file))
        values = np.asarray(volume.dataobj, np.float32)
    except Exception:  # nibabel has a dozen of its own, without a common one
        raise DataError(f"{where}: expected a readable NIfTI volume, came something else") from None
    if values.ndim not in (3, 4) or 0 in values.shape:
        raise DataError(f"{where}: expected a volume of three dimensions, or four with channels, came {values.shape}")
    return values if values.ndim == 4 else values[..., None]


def _example(where: str, pixels: NDArray[Any], mask: NDArray[Any]) -> Example:
    if pixels.shape[:-1] != mask.shape:
        image, marked = _sizes(pixels, mask[..., None])
        raise DataError(f"{where}: expected a mask of the image's size {image}, came {marked}")
    if pixels.dtype != np.uint8:
        pixels = pixels.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise DataError(f"{where}: expected finite values, came others")
    if not np.isfinite(mask).all() or (mask < 0).any() or (mask % 1).any():
        raise DataError(f"{where}, its mask: expected whole numbers from 0, came others")
    return Example(pixels, mask.astype(np.int64))


def _sizes(*arrays: NDArray[Any]) -> list[str]:
    return [" x ".join(map(str, array.shape[:-1])) for array in arrays]
