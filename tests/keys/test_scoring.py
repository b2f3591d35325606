"""Scores under encryption: exact for every layout and for the largest factors, or refused."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import scoring_layout
from keys.ckks import KeyFileError, OpeningFailed
from keys.scoring import SCORE_BYTES, SEALED_BYTES, Scorer, ScoringKey
from keys.scoring_layout import (
    MAX_PATIENTS,
    MAX_RESIDUAL,
    MAX_TERMS,
    SLOTS,
    Integers,
    Layout,
    ScoringError,
    to_integers,
)


def new_key() -> ScoringKey:
    return ScoringKey(ScoringKey.generate())


def draw(layout: Layout, seed: int) -> tuple[Integers, Integers, Integers]:
    generator = np.random.default_rng(seed)
    return (
        generator.integers(-layout.max_feature, layout.max_feature + 1, (layout.patients, layout.features)),
        generator.integers(-layout.max_weight, layout.max_weight + 1, (layout.outputs, layout.features)),
        generator.integers(-(2**37), 2**37, layout.outputs),
    )


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 3), st.integers(0, 2**31))
def test_scores_of_encrypted_patients_are_those_in_the_clear(
    patients: int, features: int, outputs: int, seed: int
) -> None:
    layout = Layout(patients, features, outputs)
    x, weights, biases = draw(layout, seed)
    key = new_key()
    batch = key.seal(layout.arrange(x))
    assert len(batch) == layout.terms * SEALED_BYTES
    scores = Scorer().score_patients(batch, layout, weights, biases)
    assert len(scores) == outputs * SCORE_BYTES
    assert np.array_equal(key.open(scores, layout), x @ weights.T + biases)


@settings(max_examples=4, deadline=None)
@given(st.integers(1, 50), st.integers(1, 30), st.integers(1, 2), st.integers(0, 2**31))
def test_scores_under_an_encrypted_model_are_those_in_the_clear(
    patients: int, features: int, outputs: int, seed: int
) -> None:
    layout = Layout(patients, features, outputs)
    x, weights, biases = draw(layout, seed)
    key = new_key()
    model = key.seal_model(layout, weights, biases)
    fewer = x[: max(1, patients // 2)]
    for some in (x, fewer):
        scores = Scorer().score_model(model, layout, some)
        assert np.array_equal(key.open(scores, layout)[: len(some)], some @ weights.T + biases)


class CountedBytes(bytes):
    """Bytes that count how many of them are copied by slicing."""

    copied = 0

    def __getitem__(self, at: Any) -> Any:
        part = super().__getitem__(at)
        self.copied += len(part) if isinstance(at, slice) else 0
        return part


def test_scoring_reads_each_ciphertext_once() -> None:
    """A batch or a model is hundreds of megabytes: work that grows with the square of it never ends."""
    layout = Layout(4096, 20, 2)
    x, weights, biases = draw(layout, 5)
    key = new_key()
    for data, score in (
        (CountedBytes(key.seal_model(layout, weights, biases)), lambda it: Scorer().score_model(it, layout, x)),
        (
            CountedBytes(key.seal(layout.arrange(x))),
            lambda it: Scorer().score_patients(it, layout, weights, biases),
        ),
    ):
        assert np.array_equal(key.open(score(data), layout), x @ weights.T + biases)
        assert data.copied <= len(data)


def test_an_encrypted_model_gives_its_owner_whole_scores_and_no_parts_of_them() -> None:
    """Each opened slot that is a patient's is its score: nowhere is a product with one feature of it alone."""
    layout = Layout.of_model(5, 2)
    assert (layout.blocks, layout.terms) == (1, 5)
    assert layout.pairs == SLOTS, "a block fills the ciphertext"
    everyone, weights, biases = draw(layout, 4)
    x, key = everyone[:30], new_key()
    opened = key.open(Scorer().score_model(key.seal_model(layout, weights, biases), layout, x), layout)
    assert np.array_equal(opened[:30], x @ weights.T + biases)
    assert (opened[30:] == biases).all()
    with pytest.raises(ScoringError, match="at most 512 features, came one of 513"):
        Layout.of_model(MAX_TERMS + 1, 1)
    with pytest.raises(ScoringError, match="features: expected shape"):
        Scorer().score_model(b"", Layout(3, 5, 2), x)


@pytest.mark.parametrize("patients", [2 * SLOTS, 2 * SLOTS - 1, SLOTS // 2 + 1])
def test_the_largest_factors_stay_exact(patients: int) -> None:
    layout = Layout(patients, 12, 1)
    x = np.full((patients, 12), layout.max_feature)
    weights = np.full((1, 12), -layout.max_weight)
    key = new_key()
    scores = Scorer().score_patients(key.seal(layout.arrange(x)), layout, weights, np.array([-(2**38)]))
    assert (key.open(scores, layout) == -12 * layout.max_feature * layout.max_weight - 2**38).all()


def test_the_scales_suffice_for_the_longest_sums_and_the_primes_hold_them() -> None:
    modulus_bits = sum(scoring_layout.PRIME_BITS[:-1]) - 0.01  # both primes are just below their power of two
    for terms in range(1, MAX_TERMS + 1):
        layout = Layout(MAX_PATIENTS, terms, 1)
        assert layout.tolerance < MAX_RESIDUAL
        coefficient = np.sqrt(2) * layout.most * scoring_layout.SEALED_SCALE * scoring_layout.PLAIN_SCALE
        assert np.log2(coefficient) < modulus_bits - 1
    assert sum(scoring_layout.PRIME_BITS) <= 152  # HomomorphicEncryption.org: N=8192, 192 bits


def test_the_noise_is_what_the_layout_says() -> None:
    """Of the whole way: the residuals of honest scores, against the standard deviation that tolerance is made of."""
    layout = Layout(MAX_PATIENTS, 8, 1)
    x, weights = np.full((MAX_PATIENTS, 8), layout.max_feature), np.full((1, 8), layout.max_weight)
    key = new_key()
    seen: list[float] = []
    scores = Scorer().score_patients(key.seal(layout.arrange(x)), layout, weights, np.zeros(1, np.int64))
    rint = np.rint

    def spy(values: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        seen.extend((values - rint(values)).ravel().tolist())
        return rint(values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "rint", spy)
        key.open(scores, layout)
    assert 0.5 * layout.noise < np.std(seen) < 1.1 * layout.noise


def test_what_is_no_score_opens_to_nothing() -> None:
    layout = Layout(20, 5, 2)
    x, weights, biases = draw(layout, 1)
    key, other = new_key(), new_key()
    batch = key.seal(layout.arrange(x))
    scores = Scorer().score_patients(batch, layout, weights, biases)
    flipped = bytearray(scores)
    flipped[1000] ^= 1
    random = np.random.default_rng(0).bytes(len(scores))
    probe = bytearray(scores)  # (0, t): the key itself, as large as a score
    probe[: SCORE_BYTES // 2] = bytes(SCORE_BYTES // 2)
    for wrong in (bytes(flipped), random, scores[:-1], scores + b"\0", bytes(probe)):
        with pytest.raises(OpeningFailed, match=r"^failed$"):
            key.open(wrong, layout)
    with pytest.raises(OpeningFailed):
        other.open(scores, layout)
    assert np.array_equal(key.open(scores, layout), x @ weights.T + biases)


def test_a_key_is_no_key_of_another_kind() -> None:
    for wrong in (b"", b"no key", ScoringKey.generate()[:-1]):
        with pytest.raises(KeyFileError):
            ScoringKey(wrong)


def test_batches_and_weights_that_do_not_fit_are_refused() -> None:
    layout = Layout(4, 3, 1)
    x, weights, biases = draw(layout, 2)
    batch = new_key().seal(layout.arrange(x))
    scorer = Scorer()
    with pytest.raises(ScoringError, match="expected 1 ciphertexts"):
        scorer.score_patients(batch[:-1], layout, weights, biases)
    with pytest.raises(ScoringError, match="residues that are none"):
        scorer.score_patients(b"\xff" * len(batch), layout, weights, biases)
    with pytest.raises(ScoringError, match="weights: expected shape"):
        scorer.score_patients(batch, layout, weights[:, :2], biases)
    with pytest.raises(ScoringError, match="weights: expected shape"):
        scorer.score_patients(batch, layout, weights * 0 + layout.max_weight + 1, biases)
    with pytest.raises(ScoringError, match="zeros only"):
        scorer.score_patients(batch, layout, weights * 0, biases)
    for sizes in ((0, 1, 1), (MAX_PATIENTS + 1, 1, 1), (MAX_PATIENTS, MAX_TERMS + 1, 1), (1, 1, 1001)):
        with pytest.raises(ScoringError):
            Layout(*sizes)


@given(st.lists(st.floats(-4, 4), min_size=1, max_size=20))
def test_integers_are_the_nearest_and_never_clipped(values: list[float]) -> None:
    most = Layout(1, 1, 1).max_feature
    step = 4 / most
    whole = to_integers(np.array([values]), step, most)
    assert np.abs(whole * step - values).max() <= step * 0.5000001
    for wrong in (4.1, float("nan"), float("inf")):
        with pytest.raises(ScoringError, match="1 rows, the first of them row 2"):
            to_integers(np.array([values, [wrong] * len(values)]), step, most)


def test_a_hundred_patients_take_less_than_twenty_milliseconds_each() -> None:
    for features, outputs in ((9, 1), (512, 7)):
        layout = Layout(100, features, outputs)
        x, weights, biases = draw(layout, 3)
        new_key().seal(layout.arrange(x))  # tables that are made once
        began = time.process_time()
        key = new_key()
        scores = Scorer().score_patients(key.seal(layout.arrange(x)), layout, weights, biases)
        key.open(scores, layout)
        assert (time.process_time() - began) / 100 < 0.020
