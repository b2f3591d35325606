"""Images with their masks: arrays, folders of images, volumes; and what is wrong with others, in one line each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from node.data import DataError
from node.masks import Example, read_masked

PICTURE = np.arange(6 * 4 * 3, dtype=np.uint8).reshape(6, 4, 3)
MASK = (np.arange(24).reshape(6, 4) > 11).astype(np.uint8)


def read(home: Path, **data: Any) -> list[Example]:
    return list(read_masked(data, home))


def volume(values: np.ndarray[Any, Any], affine: Any = None) -> nibabel.Nifti1Image:
    return nibabel.Nifti1Image(values, np.eye(4) if affine is None else affine)


def pictures(home: Path, count: int = 3) -> Path:
    for folder in ("images", "masks"):
        (home / folder).mkdir()
    for number in range(count):
        Image.fromarray(PICTURE + number).save(home / "images" / f"ISIC_{number}.png")
        Image.fromarray(MASK * 255).save(home / "masks" / f"ISIC_{number}_segmentation.png")
    return home


@pytest.mark.parametrize(("images", "masks"), [("images", "masks"), ("X", "M")])
def test_arrays(tmp_path: Path, images: str, masks: str) -> None:
    np.savez(tmp_path / "a.npz", **{images: np.stack([PICTURE, PICTURE + 1]), masks: np.stack([MASK, 1 - MASK]) > 0})
    first, second = read(tmp_path, images="a.npz")
    np.testing.assert_array_equal(second.pixels, PICTURE + 1)
    assert second.pixels.dtype == np.uint8
    np.testing.assert_array_equal(first.mask, MASK)
    assert first.mask.dtype == np.int64


def test_arrays_of_volumes_and_of_one_channel(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(2, 4, 5, 3))
    np.savez(tmp_path / "v.npz", images=values, masks=np.ones((2, 4, 5, 3), np.int16))
    first, _ = read(tmp_path, images="v.npz")
    assert (first.pixels.shape, first.pixels.dtype, first.mask.shape) == ((4, 5, 3, 1), np.float32, (4, 5, 3))


def test_folders_by_matching_names(tmp_path: Path) -> None:
    found = read(pictures(tmp_path), images="images", masks="masks", mask_ending="_segmentation")
    assert [int(each.pixels[0, 0, 0]) for each in found] == [0, 1, 2]
    assert found[0].pixels.shape == (6, 4, 3)
    np.testing.assert_array_equal(found[0].mask, 255 * MASK)


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "all" / f"case_{number}").mkdir(parents=True)
        Image.fromarray(PICTURE[..., 0]).save(tmp_path / "all" / f"case_{number}" / f"P{number}.bmp")
        Image.fromarray(MASK).save(tmp_path / "all" / f"case_{number}" / f"P{number}_lesion.png")
    found = read(tmp_path, images="all", masks="all", mask_ending="_lesion")
    assert [each.pixels.shape for each in found] == [(6, 4, 1)] * 2


def test_a_palette_of_a_mask_is_its_labels(tmp_path: Path) -> None:
    home = pictures(tmp_path, 1)
    labels = Image.fromarray(3 * MASK)
    labels.putpalette([9, 9, 9] * 256)
    labels.save(home / "masks" / "ISIC_0_segmentation.png")
    (one,) = read(home, images="images", masks="masks", mask_ending="_segmentation")
    np.testing.assert_array_equal(one.mask, 3 * MASK)


def test_volumes_of_several_channels_named_by_their_folders(tmp_path: Path) -> None:
    values = np.random.default_rng(1).normal(size=(4, 5, 3)).astype(np.float32)
    for number in range(2):
        folder = tmp_path / "kits" / f"case_{number:05}"
        folder.mkdir(parents=True)
        nibabel.save(volume(values + number), folder / "t1.nii.gz")
        nibabel.save(volume(-values), folder / "t2.nii.gz")
        nibabel.save(volume((values > 0).astype(np.uint8)), folder / "seg.nii.gz")
    first, second = read(tmp_path, images="kits", masks="kits", image_endings=["t1", "t2"], mask_ending="seg")
    assert first.pixels.shape == (4, 5, 3, 2)
    np.testing.assert_array_equal(second.pixels[..., 0], values + 1)
    np.testing.assert_array_equal(first.pixels[..., 1], -values)
    np.testing.assert_array_equal(first.mask, values > 0)


def test_volumes_are_turned_the_same_way(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
    nibabel.save(volume(values[::-1], np.diag([-1, 1, 1, 1])), tmp_path / "images" / "a.nii")
    nibabel.save(volume((values > 3).astype(np.int16)), tmp_path / "masks" / "a.nii")
    (one,) = read(tmp_path, images="images", masks="masks")
    np.testing.assert_array_equal(one.pixels[..., 0], values)
    np.testing.assert_array_equal(one.mask, values > 3)


@given(parts=st.integers(1, 6), seed=st.integers(0, 9))
def test_shards_are_all_images_once(tmp_path_factory: pytest.TempPathFactory, parts: int, seed: int) -> None:
    home = tmp_path_factory.mktemp("shards")
    np.savez(home / "a.npz", images=np.arange(7, dtype=np.uint8)[:, None, None] + PICTURE[..., 0], masks=[MASK] * 7)
    found = [
        int(each.pixels[0, 0, 0])
        for part in range(1, parts + 1)
        for each in read(home, images="a.npz", shard=f"{part}/{parts}", deal={"seed": seed})
    ]
    assert sorted(found) == list(range(7))


# ---- bad input ------------------------------------------------------------------------------------------


def remove(file: str) -> Callable[[Path], None]:
    return lambda home: (home / file).unlink()


def write(file: str, what: bytes) -> Callable[[Path], object]:
    return lambda home: (home / file).write_bytes(what)


def mask(values: np.ndarray[Any, Any]) -> Callable[[Path], None]:
    return lambda home: Image.fromarray(values).save(home / "masks" / "ISIC_1_segmentation.png")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (remove("masks/ISIC_1_segmentation.png"), "images: expected a mask for each image and the other way round, by"),
        (remove("images/ISIC_1.png"), "by their names; came 1 of 3 alone"),
        (write("images/ISIC_1.png", b"secret"), "images: image 2 of 3: expected a readable image, came none"),
        (write("masks/ISIC_1_segmentation.png", b""), "image 2 of 3, its mask: expected a readable image, came none"),
        (mask(MASK[:5]), "image 2 of 3: expected a mask of the image's size 6 x 4, came 5 x 4"),
        (mask(PICTURE), "image 2 of 3, its mask: expected one channel, came 3 that differ"),
        (write("images/ISIC_1.jpg", b""), "images: expected one file for each image and channel, came two of one name"),
        (write("images/ISIC_3.nii.gz", b"x"), "came 1 of 4 alone"),
    ],
)
def test_bad_folders(tmp_path: Path, change: Callable[[Path], object], message: str) -> None:
    change(pictures(tmp_path))
    with pytest.raises(DataError, match=re.escape(message)) as found:
        read(tmp_path, images="images", masks="masks", mask_ending="_segmentation")
    assert "\n" not in str(found.value)
    assert "ISIC" not in str(found.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"images": "images"}, "data.masks: expected a folder beside a folder of images, came none"),
        ({"images": "images", "masks": "none"}, "data.masks: expected a folder beside a folder of images, came none"),
        ({"images": "none.npz"}, "none.npz: expected an .npz file or a folder, came neither"),
        ({}, "data.images: expected the path of an .npz file or of a folder, came nothing"),
        ({"images": "images", "mask": "x"}, 'data.mask: unknown key; did you mean "masks"?'),
        ({"images": "images", "masks": "images", "mask_ending": "_x"}, "came 3 of 3 alone"),
        ({"images": "masks", "masks": "masks", "image_endings": ["_q"], "mask_ending": "_q"}, "(.png, .jpg, .jpeg"),
    ],
)
def test_bad_settings(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    pictures(tmp_path)
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path, **data)


@pytest.mark.parametrize("more", [{"shard": "4/3"}, {"shard": "7/8"}, {"shard": "1/3", "deal": {"labels": 2}}])
def test_bad_shards(tmp_path: Path, more: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected a part from 1 to 3|expected at least one image|expected a seed only"):
        read(pictures(tmp_path), images="images", masks="masks", mask_ending="_segmentation", **more)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PICTURE[None]}, "expected arrays images and masks, came images"),
        ({"images": PICTURE[None], "masks": MASK[None] * 0.5}, "expected masks (N, H, W) or (N, H, W, D) of whole"),
        (
            {"images": PICTURE[None], "masks": MASK[None, :5]},
            "of one size, came (1, 6, 4, 3) of uint8 and (1, 5, 4) of",
        ),
        ({"images": PICTURE[None] * np.nan, "masks": MASK[None]}, "image 1 of 1: expected finite values, came others"),
        ({"images": PICTURE[None], "masks": -MASK[None].astype(int)}, "its mask: expected whole numbers from 0, came"),
        ({"images": np.array([{}]), "masks": MASK[None]}, "expected an .npz file of arrays without Python objects"),
    ],
)
def test_bad_arrays(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(message)):
        read(tmp_path, images="a.npz")


@pytest.mark.parametrize("content", [b"", b"not a volume" * 100, None])
def test_bad_volumes(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "all").mkdir()
    for ending in ("", "_seg"):
        nibabel.save(volume(np.ones((2, 2, 2), np.float32)), tmp_path / "all" / f"a{ending}.nii")
    whole = (tmp_path / "all" / "a.nii").read_bytes()
    (tmp_path / "all" / "a.nii").write_bytes(whole[:-9] if content is None else content)
    with pytest.raises(DataError, match="^all: image 1 of 1: expected a readable NIfTI volume, came something else$"):
        read(tmp_path, images="all", masks="all", mask_ending="_seg")
