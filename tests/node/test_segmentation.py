"""The segmentation task: in two and three dimensions, what it learns, its Dice; a federation of it in the real tree."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from node.data import DataError
from node.evaluation import Layout
from node.privacy.record import RecordLevel
from node.privacy.settings import PrivacySettings
from node.reproduce import ours
from node.tasks import unet
from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.loader import load_task
from node.tasks.segmentation import SegmentationTask

FLAT: dict[str, Any] = {"structures": {"lesion": []}, "size": [16, 16], "channels": [4, 8], "learning_rate": 0.02}
DEEP: dict[str, Any] = {
    **FLAT, "size": [8, 8, 8], "image_channels": 1, "structures": {"organ": [1, 2], "tumour": [2]}, "patches": 4,
}  # fmt: skip
ROUND = TrainingRound(1, 1, None, 0)


def discs(count: int, size: int = 24) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Bright discs on a dark ground, with noise: (count, size, size, 3), and where they are."""
    draw = np.random.default_rng(1)
    middle, radius = draw.uniform(8, size - 8, (count, 2)), draw.uniform(4, 7, count)
    away = np.indices((size, size)).transpose(1, 2, 0)[None] - middle[:, None, None]
    masks = np.linalg.norm(away, axis=-1) < radius[:, None, None]
    images = 40 + 120 * masks[..., None] + draw.integers(0, 60, (count, size, size, 3))
    return images.astype(np.uint8), masks


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On small networks more threads wait for each other, on a busy machine a hundredfold."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    images, masks = discs(40)
    np.savez(folder / "discs.npz", images=images, masks=masks)
    (folder / "volumes").mkdir()
    for number in range(5):  # a bright organ with a brighter tumour in it, at another place in each
        labels = np.zeros((12, 10, 9), np.uint8)
        labels[2 + number : 7 + number, 2:8, 2:8] = 1
        labels[3 + number : 5 + number, 3:6, 3:6] = 2
        values = 100.0 * labels + np.random.default_rng(number).normal(0, 20, labels.shape)
        nibabel.save(
            nibabel.Nifti1Image(values.astype(np.float32), np.eye(4)), folder / "volumes" / f"p{number}.nii.gz"
        )
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), folder / "volumes" / f"p{number}_seg.nii.gz")
    return folder


VOLUMES = {"images": "volumes", "masks": "volumes", "mask_ending": "_seg"}


def task(home: Path, options: dict[str, Any], seed: int = 1, **data: Any) -> SegmentationTask:
    return SegmentationTask(Setup("north", options, data or {"images": "discs.npz"}, seed, home))


def learnt(one: SegmentationTask, rounds: int) -> tuple[float, float]:
    """Dice before and after."""
    torch.manual_seed(1)
    model = one.initial()
    before = one.evaluate(model, ROUND).measures["dice"]
    for number in range(rounds):
        update = one.train(model, TrainingRound(number + 1, rounds, None, 0))
        assert (update.shape, update.dtype) == ((one.parameters,), np.float32)
        model = model + update
    return before, one.evaluate(model, ROUND).measures["dice"]


@pytest.mark.parametrize("optimiser", [{"optimiser": "adam"}, {"optimiser": "sgd", "learning_rate": 0.1}])
def test_discs_are_found(home: Path, optimiser: dict[str, Any]) -> None:
    one = task(home, {**FLAT, **optimiser})
    assert (one.examples, len(one.dice(one.initial()))) == (40, 8)
    before, after = learnt(one, 6)
    assert after > 0.9 > before + 0.2


def test_a_structure_in_another_is_found_in_patches_of_volumes(home: Path) -> None:
    one = task(home, {**DEEP, "local_epochs": 10}, **VOLUMES)
    assert one.dice(one.initial()).shape == (1, 2)
    before, after = learnt(one, 4)
    assert after > 0.75 > before + 0.2
    assert [each.name for each in one.evaluation_spec().measures] == ["dice", "dice_organ", "dice_tumour"]


def test_a_volume_in_slices_is_one_example(home: Path) -> None:
    one = task(home, {**DEEP, "size": [16, 16], "window": [0.0, 200.0]}, **VOLUMES)
    assert (one.examples, one._train[0].x.shape, one._train[0].masks.shape) == (5, (9, 1, 16, 16), (9, 2, 16, 16))
    assert one._train[0].x.min() == -1
    assert one._train[0].x.max() == 1
    assert one.dice(one.initial()).shape == (1, 2)


@pytest.mark.parametrize("options", [DEEP, {**DEEP, "size": [16, 16]}])
def test_a_slice_or_a_patch_is_no_patient_to_hide(home: Path, options: dict[str, Any]) -> None:
    one = task(home, options, **VOLUMES)
    private = RecordLevel(PrivacySettings(mode="record", epsilon=8.0, delta=1e-3, clip=1.0), 1, b"")
    with pytest.raises(TaskError, match="expected images with record-level privacy, came volumes"):
        one.train(one.initial(), TrainingRound(1, 1, None, 0, private=private))


def test_what_is_held_out_follows_from_the_seed_and_stays_out_of_a_pool(home: Path) -> None:
    one, other = (task(home, FLAT, images="discs.npz", shard=f"{part}/2") for part in (1, 2))
    both = SegmentationTask.pool([one, other])
    assert both.examples == one.examples + other.examples == 40
    np.testing.assert_array_equal(one._test[0].x, task(home, FLAT, images="discs.npz", shard="1/2")._test[0].x)
    model = one.initial()
    np.testing.assert_array_equal(model, other.initial())
    np.testing.assert_array_equal(both.dice(model), np.concatenate([one.dice(model), other.dice(model)]))
    assert not np.array_equal(model, task(home, FLAT, seed=2).initial())


def test_dice_is_that_of_the_textbook() -> None:
    marked, masks = np.zeros((2, 3, 2, 2, 2), np.bool_)  # pieces, structures, height, width
    marked = np.zeros((3, 2, 2, 2), np.bool_)
    masks = np.zeros((3, 2, 2, 2), np.bool_)
    marked[:, 0] = True
    masks[0, 0] = True
    np.testing.assert_allclose(unet.dice(marked, masks), [2 * 4 / (12 + 4), 1.0])
    masks[0, 1, 0, 0] = True
    assert unet.dice(marked, masks)[1] == 0


def test_an_evaluation_can_be_counted_and_gives_the_mean_dice_of_all(home: Path) -> None:
    tasks = [task(home, FLAT, images="discs.npz", shard=f"{part}/3") for part in (1, 2, 3)]
    model = tasks[0].initial()
    spec = tasks[0].evaluation_spec()
    layout = Layout(spec, 100, 1000, 8191)
    total = sum(layout.count(each.evaluate(model, ROUND)) for each in tasks)
    figures = dict(zip(layout.names, layout.figures(total), strict=True))
    everyone = np.concatenate([each.dice(model) for each in tasks])
    assert figures["examples"] == len(everyone)
    assert figures["dice"] == pytest.approx(float(everyone.mean()), abs=1e-4)


@pytest.mark.parametrize("residual_units", [0, 2])
def test_opacus_takes_the_network_and_its_gradients_are_of_each_image(residual_units: int) -> None:
    from opacus import GradSampleModule
    from opacus.validators import ModuleValidator

    torch.manual_seed(1)
    network = unet.unet(2, 3, 1, [4, 8], residual_units)
    assert ModuleValidator.validate(network, strict=False) == []
    x, masks = torch.randn(3, 3, 16, 16), (torch.rand(3, 1, 16, 16) > 0.5).float()
    alone = []
    for row in range(3):
        network.zero_grad()
        unet.loss(network(x[row : row + 1]), masks[row : row + 1]).backward()
        alone.append(torch.cat([each.grad.reshape(-1) for each in network.parameters()]))
    network.zero_grad()
    module = GradSampleModule(network, loss_reduction="mean")
    unet.loss(module(x), masks).backward()
    found = torch.cat([each.grad_sample.reshape(3, -1) for each in network.parameters()], dim=1)
    torch.testing.assert_close(found, torch.stack(alone), rtol=1e-3, atol=1e-5)


def test_a_patch_is_of_its_size_and_every_other_has_something_marked() -> None:
    x, masks = torch.zeros(1, 5, 20, 20), torch.zeros(1, 5, 20, 20, dtype=torch.bool)
    masks[0, 2, 17, 3] = True
    torch.manual_seed(1)
    found = [unet._patch(x, masks, (8, 4, 4)) for _ in range(200)]
    assert {(tuple(a.shape), tuple(b.shape)) for a, b in found} == {((1, 8, 4, 4), (1, 8, 4, 4))}
    assert 0.4 < sum(bool(b.any()) for _, b in found) / 200 < 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**FLAT, "size": [20, 18], "channels": [4, 8, 16]}, "size: expected multiples of 4, at least 8, for 3 levels"),
        ({**FLAT, "size": [16]}, "size: expected two or three whole numbers, [height, width]"),
        ({**FLAT, "structures": {"a": [0]}}, "structures: expected labels above 0, came another"),
        ({**FLAT, "structures": {}}, "structures: expected a table of name = [labels]"),
        ({**FLAT, "structures": {"a b": [1]}}, "structures: expected names of letters, digits and _, came another"),
        ({**FLAT, "window": [1.0, 1.0]}, "window: expected low below high, came [1.0, 1.0]"),
        ({**FLAT, "channels": [0, 8]}, "channels: expected whole numbers above 0, came another"),
        ({**FLAT, "optimiser": "lion"}, 'optimiser: expected "adam" or "sgd", came "lion"'),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=re.escape(message)):
        SegmentationTask.check_options(options)


@pytest.mark.parametrize(
    ("options", "data", "message"),
    [
        ({**FLAT, "image_channels": 1}, {"images": "discs.npz"}, "expected images of 1 channels, came one of 3"),
        ({**DEEP, "image_channels": 3}, {"images": "discs.npz"}, "expected volumes for a size of three numbers, came"),
        ({**DEEP, "structures": {"organ": [1]}}, VOLUMES, "expected masks of 0 and the labels of the structures, came"),
        (FLAT, {"images": "discs.npz", "shard": "1/40"}, "expected images to train and images held out, came 1 in all"),
        (FLAT, {"images": "none.npz"}, "none.npz: expected an .npz file or a folder, came neither"),
    ],
)
def test_bad_data(home: Path, options: dict[str, Any], data: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=f"^north: .*{re.escape(message)}"):
        load_task("segmentation", Setup("north", options, data, 1, home))
    assert issubclass(DataError, TaskError)


@pytest.mark.confined
def test_a_federation_learns_it_in_the_tree(home: Path) -> None:
    study = """\
[study]
name = "discs"
rounds = 3
seed = 1
[task]
class = "segmentation"
[task.options]
structures = { lesion = [] }
size = [16, 16]
channels = [4, 8]
learning_rate = 0.02
local_epochs = 3
[aggregation]
clip = 0.5
[evaluation]
every = 3
"""
    data = {
        f"party-{part}": {"images": str(home / "discs.npz"), "shard": f"{part}/3", "deal": {"seed": 1}}
        for part in (1, 2, 3)
    }
    done = ours.run(study, data, "party-1", 3)
    tasks = [SegmentationTask(Setup(name, FLAT, table, 1, home)) for name, table in data.items()]
    found = np.concatenate([each.dice(done.models[-1]) for each in tasks])
    assert found.mean() > 0.85
