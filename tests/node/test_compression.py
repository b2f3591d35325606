"""Masks that everyone knows, error feedback, density; and that a party's own largest value teaches nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.compression import masks
from node.compression.density import Density, MovingThreshold
from node.compression.feedback import Feedback, FeedbackError
from node.compression.masks import Mask, MaskError, block_norms, largest, public_seed, top_blocks, top_of_total
from node.compression.rounds import Published, after, mask_for
from node.compression.settings import CompressionSettings
from node.privacy.rounding import clip
from node.reproduce.framingham import FILES, read_patients
from node.tasks.heart_risk import Patients

SEED = bytes(range(32))
MANIFEST, BASE = b"m" * 32, b"b" * 32


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int]:
    """Length, count, block."""
    length = draw(st.integers(1, 400))
    return length, draw(st.integers(1, length)), draw(st.integers(1, 60))


def is_sound(mask: Mask, length: int, count: int) -> bool:
    rising = bool((np.diff(mask.indices) > 0).all())
    return mask.size == count and rising and 0 <= mask.indices[0] <= mask.indices[-1] < length


@settings(max_examples=150, deadline=None)
@given(shapes(), st.integers(0, 50), st.binary(min_size=32, max_size=32))
def test_every_mask_has_as_many_values_as_were_asked_for(shape: tuple[int, int, int], round_: int, seed: bytes) -> None:
    length, count, block = shape
    numbers = np.random.default_rng(seed[0])
    first = masks.random_blocks(length, count, block, seed)
    assert is_sound(first, length, count)
    assert is_sound(masks.cyclic(length, count, round_), length, count)
    norms = numbers.integers(0, 5, -(-length // block))
    assert is_sound(top_blocks(length, count, block, norms), length, count)
    total = numbers.integers(-9, 9, count)
    for explore in {0, 1, count // 2, count}:
        for wanted in {1, count, length}:
            chosen = top_of_total(first, total, wanted, min(explore, wanted), block, seed[::-1])
            assert is_sound(chosen, length, wanted)
            assert np.array_equal(first.indices, masks.random_blocks(length, count, block, seed).indices)
            same = top_of_total(first, total, wanted, min(explore, wanted), block, seed[::-1])
            assert np.array_equal(chosen.indices, same.indices)  # it is a function of what is public


def scattered(mask: Mask, kept: NDArray[np.floating]) -> NDArray[np.floating]:
    """What the first places of a mask have, and zero elsewhere."""
    values = np.zeros(mask.length, kept.dtype)
    values[mask.indices[: kept.size]] = kept
    return values


@given(shapes(), st.binary(min_size=32, max_size=32))
def test_what_a_mask_gathers_has_a_place_and_is_written_down(shape: tuple[int, int, int], seed: bytes) -> None:
    length, count, block = shape
    mask = masks.random_blocks(length, count, block, seed)
    values = np.arange(1.0, length + 1)
    kept = mask.gather(values)
    assert np.array_equal(mask.gather(scattered(mask, kept)), kept)
    assert scattered(mask, kept).sum() == kept.sum()
    assert np.array_equal(Mask.from_bytes(length, mask.to_bytes()).indices, mask.indices)


def test_the_largest_are_the_largest_and_of_equal_ones_the_first() -> None:
    assert largest(np.array([3, 9, 3, 9, 3]), 3).tolist() == [0, 1, 3]
    assert largest(np.array([3, 9, 3, 9, 3]), 1).tolist() == [1]
    assert largest(np.array([3, 9]), 0).tolist() == []
    last, total = Mask(10, np.array([1, 4, 6])), np.array([-7, 2, 5])
    chosen = top_of_total(last, total, 3, 1, 1, SEED)
    assert {1, 6} < set(chosen.indices.tolist())


def test_the_top_blocks_are_those_of_the_largest_sum() -> None:
    values = np.zeros(25)
    values[12], values[24], values[3] = 5, 4, 1
    norms = block_norms(values, 10)
    assert norms.tolist() == [1, 5, 4]
    assert np.linalg.norm(norms) == pytest.approx(np.linalg.norm(values))
    assert top_blocks(25, 12, 10, np.array([1, 5, 4])).indices.tolist() == [*range(10, 22)]
    assert top_blocks(25, 15, 10, np.array([1, 4, 5])).indices.tolist() == [*range(10, 25)]


@given(st.integers(1, 5000), st.integers(1, 700))
def test_block_norms_are_the_norms_of_the_blocks(length: int, block: int) -> None:
    values = np.random.default_rng(length).normal(size=length)
    expected = [np.linalg.norm(values[start : start + block]) for start in range(0, length, block)]
    assert block_norms(values, block) == pytest.approx(expected)


def test_a_random_mask_follows_from_what_is_public_and_from_nothing_else() -> None:
    """Pinned, so that machines of any kind have the same."""
    seed = public_seed(MANIFEST, 3, BASE)
    assert seed.hex()[:16] == "7a4c9d72c173b635"
    assert masks.random_blocks(1000, 6, 2, seed).indices.tolist() == [26, 27, 244, 245, 912, 913]
    others = [public_seed(MANIFEST, 4, BASE), public_seed(BASE, 3, BASE), public_seed(MANIFEST, 3, MANIFEST)]
    assert len({seed, *others}) == 4
    assert all(
        masks.random_blocks(1000, 6, 2, seed).to_bytes() != masks.random_blocks(1000, 6, 2, each).to_bytes()
        for each in others
    )


def test_every_value_is_drawn_as_often_as_any_other() -> None:
    """4,000 masks of 1 in 4: each of 100 values within 6 standard errors; an honest seed fails once in 10^7."""
    counts = np.zeros(100)
    for round_ in range(4000):
        counts[masks.random_blocks(100, 25, 5, public_seed(MANIFEST, round_, BASE)).indices] += 1
    assert abs(counts - 1000).max() < 6 * math.sqrt(4000 * 0.25 * 0.75)


@pytest.mark.parametrize(
    "call",
    [
        lambda: masks.cyclic(10, 11, 0),
        lambda: masks.random_blocks(10, 0, 2, SEED),
        lambda: top_blocks(10, 5, 2, np.zeros(4, np.int64)),
        lambda: top_of_total(masks.full(10), np.zeros(9, np.int64), 5, 1, 2, SEED),
        lambda: masks.full(3).gather(np.zeros(4)),
        lambda: Mask.from_bytes(9, b"\xff"),
        lambda: Mask.from_bytes(9, b"\xff\xff"),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(MaskError, match="mask: .* expected"):
        call()


# ---- error feedback -------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(shapes(), st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.floats(0, 1)), min_size=1, max_size=8))
def test_nothing_is_lost_and_nothing_is_sent_twice(
    shape: tuple[int, int, int], rounds: list[tuple[bytes, float]]
) -> None:
    """Whatever the masks, and however much of each round is applied: applied and waiting are all that was trained."""
    length, count, block = shape
    numbers = np.random.default_rng(length)
    trained, applied = np.zeros(length), np.zeros(length)
    feedback, done = Feedback.start(length), 0
    for seed, part in rounds:
        update = numbers.integers(-50, 50, length).astype(np.float64)  # exact in float32
        trained += update
        feedback.add_to(update, done)
        mask = masks.random_blocks(length, count, block, seed)
        feedback = Feedback.from_bytes(Feedback.after(update, mask).to_bytes(), length)
        done = round(part * mask.size)
        applied += scattered(mask, mask.gather(update)[:done])
    waiting = np.zeros(length)
    feedback.add_to(waiting, done)
    assert np.array_equal(applied + waiting, trained)


def test_a_residual_of_another_model_and_other_bytes_are_refused() -> None:
    fresh = Feedback.start(9)
    used = Feedback.after(np.ones(9), masks.cyclic(9, 2, 0))
    for each in (fresh, used):
        data = each.to_bytes()
        assert np.array_equal(Feedback.from_bytes(data, 9).values, each.values)
        for wrong in (b"", data[:-1], data + b"\0", b"x" + data[1:], data[: len(data) // 2]):
            with pytest.raises(FeedbackError, match="the residual of 9 values was expected"):
                Feedback.from_bytes(wrong, 9)
        with pytest.raises(FeedbackError, match="the residual of 10 values"):
            Feedback.from_bytes(data, 10)
    for call in (lambda: fresh.add_to(np.zeros(8), 0), lambda: Feedback.after(np.zeros(8), masks.full(9))):
        with pytest.raises(FeedbackError, match="were expected"):
            call()
    for feedback, count in ((fresh, 1), (used, 3), (used, -1)):
        with pytest.raises(FeedbackError, match="more than were sent"):
            feedback.add_to(np.zeros(9), count)


# ---- density --------------------------------------------------------------------------------------------


def test_the_warm_up_falls_to_the_target_by_equal_factors() -> None:
    density = Density(0.01, warm_up=4)
    counts = [density.count(1_000_000, round_) for round_ in range(6)]
    assert counts == [1_000_000, 316_228, 100_000, 31_623, 10_000, 10_000]
    assert Density(0.025).count(66_955_010, 0) == 1_673_876
    assert Density(1e-6).count(10, 5) == 1


def test_the_threshold_moves_by_a_tenth_and_decides_how_many_are_sent() -> None:
    start = MovingThreshold(0.9).after(np.array([50, -40, 30, 20]), 10, 2)
    assert start.level == 4 << 16  # the second largest of the mean
    assert start.after(np.array([140, -140, 0, 0]), 10, 2).level == (9 * (4 << 16) + (14 << 16)) // 10
    assert start.count(np.array([140, -40, 39, 0]), 10, 1, 4) == 2
    assert start.count(np.array([1, 1, 1, 1]), 10, 1, 4) == 1
    assert start.count(np.array([140, 140, 140, 140]), 10, 1, 3) == 3


def test_the_density_follows_the_size_of_updates_within_its_bounds() -> None:
    study = CompressionSettings(mask="top", density=0.1, block=1, explore=0.2, schedule="moving")
    length, numbers = 2000, np.random.default_rng(1)
    assert (study.least, study.most) == (0.05, 0.2)
    scale, last, counts = 1e6, None, []
    for round_ in range(60):
        mask = mask_for(study, length, round_, public_seed(MANIFEST, round_, BASE), last)
        if round_ == 30:
            scale *= 4
        scale *= 0.97
        total = np.rint(scale * numbers.standard_t(3, mask.size)).astype(np.int64)
        last = after(study, mask, total, 5, length, last)
        counts.append(mask.size)
    assert all(100 <= count <= 400 for count in counts)
    assert min(counts[20:30]) < 200 < max(counts[31:40])


def test_one_call_gives_the_mask_of_any_study() -> None:
    length, seed = 600, SEED
    total = np.arange(60)
    for kind in ("cyclic", "random", "top", "energy"):
        study = CompressionSettings.model_validate({"mask": kind, "density": 0.1})
        norms = np.arange(10) if kind == "energy" else None
        first = mask_for(study, length, 0, seed, norms=norms)
        then = mask_for(study, length, 1, seed[::-1], after(study, first, total, 3, length, None), norms)
        assert first.size == then.size == 60
        if kind == "top":
            assert set(first.indices[-54:].tolist()) <= set(then.indices.tolist())
    assert mask_for(CompressionSettings(), length, 0, seed).size == length
    warm = CompressionSettings(mask="random", density=0.1, warm_up=2)
    assert [mask_for(warm, length, round_, seed).size for round_ in range(3)] == [600, 190, 60]
    with pytest.raises(MaskError, match="the sums of block norms come first"):
        mask_for(CompressionSettings(mask="energy", density=0.1), length, 0, seed)
    published = Published(masks.full(length), np.zeros(length, np.int64), 3)
    assert mask_for(replace_mask(study, "top"), length, 1, seed, published).size == 60


def replace_mask(study: CompressionSettings, mask: str) -> CompressionSettings:
    return study.model_copy(update={"mask": mask})


# ---- what the literature's choice does on sorted labels -------------------------------------------------


def learn(train: Patients, choose: Callable[[int, NDArray[np.float64]], Mask], feedback: bool) -> float:
    """The loss after 400 steps of 8 parties, each with patients of one outcome, each sending 1 value of 10."""
    parties = [train.take(rows) for rows in np.array_split(np.argsort(train.y, kind="stable"), 8)]
    model, waiting = np.zeros(10), [Feedback.start(10) for _ in parties]
    for step in range(400):
        total = np.zeros(10)
        for number, party in enumerate(parties):
            update = -0.5 * party.x.T @ (1 / (1 + np.exp(-party.x @ model)) - party.y) / len(party.y)
            if feedback:
                waiting[number].add_to(update, 1 if step else 0)
            mask = choose(step, update)
            waiting[number] = Feedback.after(update, mask)
            total += scattered(mask, mask.gather(update))
        model += total / len(parties)
    margin = train.x @ model
    return float(np.mean(np.logaddexp(0, margin) - train.y * margin))


def test_sorted_labels_teach_nothing_by_the_parties_own_largest_values_and_all_by_a_public_mask() -> None:
    train, _ = read_patients(FILES["4,238 rows"])

    def own(step: int, update: NDArray[np.float64]) -> Mask:
        return Mask(10, np.array([np.abs(update).argmax()]))

    def public(step: int, update: NDArray[np.float64]) -> Mask:
        return masks.cyclic(10, 1, step)

    assert learn(train, own, feedback=False) == pytest.approx(0.693, abs=0.0005)
    assert learn(train, public, feedback=True) == pytest.approx(0.5904, abs=0.002)


def test_residuals_then_mask_then_clip() -> None:
    """The order of a round: what is clipped is what is sent, and what waits is what is not."""
    feedback = replace(Feedback.start(4), values=np.array([0, 3, 0, 0], np.float32))
    update = np.array([4.0, 0.0, 100.0, 0.0])
    feedback.add_to(update, 0)
    mask = Mask(4, np.array([0, 1]))
    assert clip(mask.gather(update), 2.5).tolist() == [2.0, 1.5]
    rest = np.zeros(4)
    Feedback.after(update, mask).add_to(rest, mask.size)
    assert rest.tolist() == [0, 0, 100, 0]
