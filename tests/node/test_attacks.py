"""The attacks of Table I find what is there, and nothing where nothing is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.reproduce import attacks, attacks_page, inference
from node.reproduce import gradient_inversion as gradients
from node.reproduce.attacks import GRADIENTS, MEMBERS, SCENARIOS, VALUES, Scenario
from node.reproduce.gradient_inversion import COSINE, DLG, EXACT, Effort
from node.reproduce.output import Results
from node.tasks.base import TaskError

SHORT = Effort(8, 60)


def test_one_image_comes_out_of_a_linear_models_update_and_not_out_of_noise() -> None:
    one = attacks.inversion(Scenario("one", 1, 1), EXACT, 2, None, SHORT)
    assert one["recognised"] == 1
    assert one["psnr"] > 60
    rounded = attacks.inversion(Scenario("rounded", 1, 1, bits=14), EXACT, 2, None, SHORT)
    assert rounded["psnr"] > 40
    noisy = attacks.inversion(Scenario("noise", 1, 1, noise=1.0), EXACT, 2, None, SHORT)
    assert noisy["psnr"] < 15
    many = attacks.inversion(Scenario("many", 4, 8), EXACT, 1, None, SHORT)
    assert many["psnr"] < one["psnr"] - 30


def test_deep_leakage_finds_an_image() -> None:
    found = attacks.inversion(Scenario("one", 1, 1), DLG, 1, None, SHORT)
    assert found["recognised"] == 1
    assert found["psnr"] > 25
    true, guess = (attacks_page._image(each, found["shape"]) for each in found["pictures"][0])
    assert true.shape == guess.shape == (28, 28, 3)


def test_taking_ones_own_update_away_leaves_the_others() -> None:
    import torch

    images, labels, _ = attacks.read_images(None)
    x, y = torch.from_numpy(images[:4]), torch.from_numpy(labels[:4])
    model = gradients.network(EXACT, images.shape[1:], 10, 0)
    seen = attacks._seen(Scenario("less", 4, 1, less_own=True), model, x, y)
    others = gradients.gradient(model, x[1:], y[1:])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(seen, others, strict=True))


def test_what_is_measured_of_an_attack() -> None:
    images = np.random.default_rng(0).random((6, 1, 4, 4)).astype(np.float32)
    true, others = images[:3], images[3:]
    assert np.array_equal(gradients.matched(true, true[::-1]), true)
    assert (gradients.psnr(true, true) == 100).all()
    assert gradients.recognised(true, true, others) == 1
    assert gradients.recognised(true, others, others) == 0
    members, strangers = np.zeros(200), np.ones(200)
    assert inference.membership(members, strangers) == (1.0, 1.0)
    area, sure = inference.membership(np.arange(1000.0), np.arange(1000.0))
    assert area == pytest.approx(0.5)
    assert sure <= 0.011


def test_a_model_that_knows_its_images_tells_who_they_are() -> None:
    alone = attacks._members(inference.Training(1, 1, 60), 0)
    private = attacks._members(inference.Training(1, 3, 1, 10.0), 0)
    assert alone[0] > 0.55
    assert alone[2] > alone[3]
    assert abs(private[0] - 0.5) < 0.12
    assert private[4] < 2


def test_a_page_can_be_made_of_few_cells(tmp_path: Path) -> None:
    results = Results(tmp_path, "attacks", ("kind", "target", "method"), True)
    plan = attacks._plan(1, (VALUES, GRADIENTS), None, Effort(1, 3, images=2), (DLG, COSINE))
    few = [each for each in plan if each[0]["target"] in ("male", SCENARIOS[0].name)]
    results.measure(few)
    assert results.find(method=COSINE)["repetitions"] == 2  # type: ignore[index]
    attacks_page.publish(results)
    page = (tmp_path / "attacks.md").read_text()
    assert "| male |" in page
    assert "; 2 or more of them in each cell" in page
    assert SCENARIOS[0].name in page
    assert (tmp_path / "attacks.svg").stat().st_size > 1000
    assert MEMBERS in attacks.KINDS


def test_a_file_that_holds_no_images_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "none.npz").write_bytes(b"no archive")
    with pytest.raises(TaskError, match=r"none\.npz: expected an \.npz with images and labels"):
        attacks.read_images(tmp_path / "none.npz")
    rgb = np.zeros((5, 28, 28, 3), np.uint8)
    np.savez(tmp_path / "medmnist.npz", train_images=rgb, train_labels=np.zeros((5, 1), np.uint8))
    images, labels, source = attacks.read_images(tmp_path / "medmnist.npz")
    assert (images.shape, labels.shape, source) == ((5, 3, 28, 28), (5,), "medmnist")
