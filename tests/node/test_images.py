"""A hospital's images and features are read, checked, dealt out; messages name the file, never a pixel or a label."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from node import images
from node.data import DataError
from node.images import Deal, deal_rows, how_to_get, medmnist_info, read_labelled

CLASSES = ("benign", "malignant", "unsure")
PICTURES = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
LABELS = np.array([0, 1, 2, 0, 1, 2], np.uint8)


def write(home: Path, **arrays: Any) -> Path:
    np.savez(home / "a.npz", **arrays)
    return home


def test_images_and_labels_of_an_npz_file(tmp_path: Path) -> None:
    for labels in (LABELS, LABELS[:, None], LABELS.astype(np.int64)):
        rows = read_labelled({"images": "a.npz"}, CLASSES, write(tmp_path, images=PICTURES, labels=labels))
        np.testing.assert_array_equal(rows.x, PICTURES)
        assert (rows.y.tolist(), rows.held_out, rows.backbone) == (LABELS.tolist(), None, "")
    grey = read_labelled({"images": "a.npz"}, CLASSES, write(tmp_path, images=PICTURES[..., 0], labels=LABELS))
    assert grey.x.shape == (6, 4, 5, 1)


def test_the_test_images_of_medmnists_form_are_held_out(tmp_path: Path) -> None:
    parts = {"train": slice(0, 3), "val": slice(3, 4), "test": slice(4, 6)}
    arrays = {f"{name}_images": PICTURES[part] for name, part in parts.items()}
    arrays |= {f"{name}_labels": LABELS[part, None] for name, part in parts.items()}
    rows = read_labelled({"images": "a.npz"}, CLASSES, write(tmp_path, **arrays))
    np.testing.assert_array_equal(rows.x, PICTURES)
    assert rows.held_out is not None
    assert rows.held_out.tolist() == [False] * 4 + [True] * 2
    del arrays["val_labels"]
    with pytest.raises(DataError, match=r"^a.npz: expected an array val_labels, came test_images"):
        read_labelled({"images": "a.npz"}, CLASSES, write(tmp_path, **arrays))


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for number, (pixels, label) in enumerate(zip(PICTURES, LABELS, strict=True)):
        (tmp_path / CLASSES[label]).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / CLASSES[label] / f"{number}.png")
    (tmp_path / "benign" / "notes.txt").write_text("not an image")
    rows = read_labelled({"images": str(tmp_path)}, CLASSES, Path())
    np.testing.assert_array_equal(rows.x, PICTURES[[0, 3, 1, 4, 2, 5]])
    assert rows.y.tolist() == [0, 0, 1, 1, 2, 2]
    (tmp_path / "malignant" / "Mrs-Secret.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="image 5 of 7: expected a readable image, came none") as caught:
        read_labelled({"images": str(tmp_path)}, CLASSES, Path())
    assert "Secret" not in str(caught.value)
    Image.fromarray(PICTURES[0, :3]).save(tmp_path / "malignant" / "Mrs-Secret.png")
    with pytest.raises(DataError, match="expected the size and colours of the first, 4 x 5 x 3, came 3 x 5 x 3"):
        read_labelled({"images": str(tmp_path)}, CLASSES, Path())
    with pytest.raises(DataError, match="expected folders named as the study's 2 classes, came another"):
        read_labelled({"images": str(tmp_path)}, CLASSES[:2], Path())


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected images \(.png"):
        read_labelled({"images": str(tmp_path)}, CLASSES, Path())


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": PICTURES}, "expected an array labels, came images"),
        ({"labels": LABELS}, "expected an array images, came labels"),
        ({"images": PICTURES / 2, "labels": LABELS}, "of uint8, came (6, 4, 5, 3) of float64"),
        ({"images": PICTURES[0, 0], "labels": LABELS}, "of uint8, came (5, 3) of uint8"),
        ({"images": PICTURES[:0], "labels": LABELS[:0]}, "of uint8, came (0, 4, 5, 3) of uint8"),
        ({"images": PICTURES[..., :2], "labels": LABELS}, "came (6, 4, 5, 2) of uint8"),
        ({"images": PICTURES, "labels": LABELS[:4]}, "expected labels (6,) or (6, 1) of whole numbers, came (4,) of"),
        ({"images": PICTURES, "labels": LABELS / 1}, "of whole numbers, came (6,) of float64"),
        ({"images": PICTURES, "labels": LABELS + 1}, "expected labels from 0 to 2, the study's classes, came another"),
        ({"images": PICTURES, "labels": LABELS.astype(int) - 1}, "expected labels from 0 to 2"),
        ({"train_images": PICTURES, "train_labels": LABELS, "test_images": PICTURES[:, :3], "test_labels": LABELS},
         "expected images of one size in all its parts"),
        ({"images": np.array([{}], object), "labels": LABELS}, "expected an .npz file of arrays without Python"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_images_are_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labelled({"images": "a.npz"}, CLASSES, write(tmp_path, **arrays))
    assert str(caught.value).startswith("a.npz: ")
    assert message in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "expected an array features, came none"),
        ({"features": PICTURES}, "expected an array labels, came features"),
        ({"features": np.ones((6, 2), np.float32), "labels": LABELS}, "expected an array backbone"),
        ({"features": np.ones((6, 2)), "labels": LABELS, "backbone": "b"}, "expected features (N, F) of float32, came"),
        ({"features": np.full((6, 2), np.nan, np.float32), "labels": LABELS, "backbone": "b"}, "finite features"),
        ({"features": np.ones((6, 2), np.float32), "labels": LABELS, "backbone": 3}, "a text that names the backbone"),
        ({"features": np.ones((6, 2), np.float32), "labels": LABELS, "backbone": "b", "held_out": LABELS},
         "expected held_out (6,) of bool, came (6,) of uint8"),
    ],
)  # fmt: skip
def test_arrays_that_are_no_features_are_one_line(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_labelled({"features": "a.npz"}, CLASSES, write(tmp_path, **arrays))
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut", b"\x93NUMPY\x01\x00"])
def test_bytes_that_are_no_file_of_arrays_are_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    for kind in ("images", "features"):
        with pytest.raises(DataError, match=r"^a.npz: expected an .npz file of arrays without Python objects"):
            read_labelled({kind: "a.npz"}, CLASSES, tmp_path)


@given(cut=st.integers(0, 400), changed=st.binary(min_size=1, max_size=8))
def test_a_broken_file_is_read_or_refused_and_never_more(
    cut: int, changed: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("broken")
    whole = bytearray((write(home, images=PICTURES, labels=LABELS) / "a.npz").read_bytes())
    whole[cut : cut + len(changed)] = changed
    (home / "a.npz").write_bytes(whole)
    with suppress(DataError):
        assert len(read_labelled({"images": "a.npz"}, CLASSES, home)) == 6


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "data: expected one of images and features, came both or none"),
        ({"images": "a.npz", "features": "a.npz"}, "data: expected one of images and features, came both or none"),
        ({"features": "a.npz", "medmnist": "dermamnist"}, "expected medmnist with images only"),
        ({"image": "a.npz"}, 'data.image: unknown key; did you mean "images"?'),
        ({"images": "b.npz"}, "b.npz: expected an .npz file: No such file or directory"),
        ({"images": "a.npz", "shard": "7"}, 'data.shard: expected a part such as "3/7", came "7"'),
        ({"images": "a.npz", "shard": "4/3"}, 'data.shard: expected a part from 1 to 3, came "4/3"'),
        ({"images": "a.npz", "shard": "7/7"}, "expected at least one row for shard 7/7, came none of 6"),
        ({"images": "a.npz", "deal": {"dirichlet": 0}}, "data.deal.dirichlet: expected a number above 0, came 0"),
        ({"images": "a.npz", "deal": {"dirichlet": 1.0, "labels": 2}}, "expected one of dirichlet and labels"),
        ({"images": "a.npz", "deal": {"labels": 2, "sed": 1}}, 'data.deal.sed: unknown key; did you mean "seed"?'),
    ],
)  # fmt: skip
def test_a_wrong_data_table_names_its_key(tmp_path: Path, data: dict[str, Any], message: str) -> None:
    write(tmp_path, images=PICTURES, labels=LABELS)
    with pytest.raises(DataError) as caught:
        read_labelled(data, CLASSES, tmp_path)
    assert message in str(caught.value)


WAYS: tuple[Callable[[int], Deal], ...] = (
    lambda seed: Deal(seed=seed),
    lambda seed: Deal(dirichlet=0.3, seed=seed),
    lambda seed: Deal(labels=2, seed=seed),
)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=80), parts=st.integers(1, 9), way=st.sampled_from(WAYS),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_every_row_is_dealt_to_one_party_and_everywhere_to_the_same(
    labels: list[int], parts: int, way: Callable[[int], Deal], seed: int
) -> None:
    y = np.array(labels)
    dealt, again = (deal_rows(y, parts, way(seed)) for _ in range(2))
    assert len(dealt) == parts
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(y)))
    for one, other in zip(dealt, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_ways_to_deal_differ_in_how_even_they_are() -> None:
    y = np.repeat(np.arange(10), 100)

    def kinds(how: Deal) -> float:
        """Classes at a party with more than 2 of its rows, in the mean."""
        return float(np.mean([np.sum(np.bincount(y[rows], minlength=10) > 2) for rows in deal_rows(y, 10, how)]))

    assert kinds(Deal()) > 9
    assert kinds(Deal(dirichlet=100.0)) > 9
    assert kinds(Deal(dirichlet=0.1)) < 6
    assert kinds(Deal(labels=2)) <= 2
    sizes = [len(rows) for rows in deal_rows(y, 7, Deal())]
    assert max(sizes) - min(sizes) <= 1
    assert not np.array_equal(deal_rows(y, 2, Deal(seed=1))[0], deal_rows(y, 2, Deal(seed=2))[0])


def test_a_shard_has_its_rows_labels_and_what_is_held_out(tmp_path: Path) -> None:
    arrays = {"features": np.arange(12, dtype=np.float32).reshape(6, 2), "labels": LABELS, "backbone": "b"}
    write(tmp_path, **arrays, held_out=LABELS == 2)
    data = {"features": "a.npz", "deal": {"labels": 1, "seed": 3}}
    parts = [read_labelled({**data, "shard": f"{part}/3"}, CLASSES, tmp_path) for part in (1, 2, 3)]
    for part in parts:
        assert len(set(part.y.tolist())) == 1
        assert part.held_out is not None
        assert (part.held_out == (part.y == 2)).all()
        np.testing.assert_array_equal(LABELS[(part.x[:, 0] / 2).astype(int)], part.y)
    assert sorted(value for part in parts for value in part.x[:, 0]) == [0, 2, 4, 6, 8, 10]


# ---- MedMNIST -------------------------------------------------------------------------------------------


def test_a_file_of_medmnist_is_compared_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("medmnist.info")
    write(tmp_path, train_images=PICTURES, train_labels=LABELS)
    real = medmnist_info("dermamnist")
    assert (len(real["label"]), real["n_channels"], len(real["MD5"])) == (7, 3, 32)
    data, names = {"images": "a.npz", "medmnist": "dermamnist"}, [str(number) for number in range(7)]
    with pytest.raises(DataError, match=rf"^a.npz: expected MedMNIST's dermamnist with MD5 {real['MD5']}, came "):
        read_labelled(data, names, tmp_path)
    with pytest.raises(DataError, match=r"^dermamnist: expected 7 classes in the study, came 3$"):
        read_labelled(data, CLASSES, tmp_path)
    with pytest.raises(DataError, match='data.medmnist: expected one of .*, came "skinmnist"'):
        read_labelled({**data, "medmnist": "skinmnist"}, CLASSES, tmp_path)
    there = hashlib.md5((tmp_path / "a.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(images, "medmnist_info", lambda name: {**real, "MD5": there})
    assert len(read_labelled(data, names, tmp_path)) == 6


def test_a_missing_file_of_medmnist_says_on_one_line_where_to_get_it(tmp_path: Path) -> None:
    pytest.importorskip("medmnist.info")
    with pytest.raises(DataError) as caught:
        read_labelled({"images": "d.npz", "medmnist": "dermamnist"}, [str(number) for number in range(7)], tmp_path)
    assert str(caught.value) == f"d.npz: No such file or directory: {how_to_get('dermamnist')}"
    assert "get DermaMNIST (CC BY-NC 4.0) from https://zenodo.org/" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
