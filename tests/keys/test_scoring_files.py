"""Files of an encrypted scoring: what was written comes back, and nothing else is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.errors import WardtreeError
from keys.identity import Identity
from keys.scoring_files import BATCH, MAX_FILE, MODEL, SCORES, ScoringFile, read_scoring_file, step_from
from keys.scoring_layout import MAX_PATIENTS, ScoringError

ADA, MALLORY = Identity.create("ada"), Identity.create("mallory")
KEYS = {"ada": ADA.card(None, 0).signing_key}
FACTS = {"patients": 3, "features": 2, "outputs": 1, "model": "ab" * 32, "feature_step": (0.1).hex()}
BODY = b"ciphertexts" * 50
FILE = ScoringFile(BATCH, "ada", FACTS, BODY)


def test_what_was_written_comes_back() -> None:
    assert ScoringFile.from_bytes(FILE.to_bytes(ADA), BATCH, KEYS) == FILE
    unsigned = replace(FILE, by=None)
    assert ScoringFile.from_bytes(unsigned.to_bytes(None), BATCH, None) == unsigned
    assert FILE.step("feature_step") == 0.1
    assert unsigned.digest != FILE.digest


@settings(max_examples=300)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_byte_is_signed(place: int, change: int) -> None:
    data = bytearray(FILE.to_bytes(ADA))
    data[place % len(data)] ^= change
    with pytest.raises(WardtreeError):
        ScoringFile.from_bytes(bytes(data), BATCH, KEYS)


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_by_a_message(data: bytes) -> None:
    for prefix in (b"", b"wardtree-scoring/1\n"):
        with pytest.raises(WardtreeError):
            ScoringFile.from_bytes(prefix + data, BATCH, None)


def test_whose_signature_counts() -> None:
    for wrong, why in (
        (replace(FILE, by=None).to_bytes(None), "came none; or take it --unsigned"),
        (FILE.to_bytes(None), "came none; or take it --unsigned"),
        (replace(FILE, by="mallory").to_bytes(MALLORY), "signed by mallory, who is no member"),
        (FILE.to_bytes(MALLORY), "the signature of ada is false"),
    ):
        with pytest.raises(ScoringError, match=why):
            ScoringFile.from_bytes(wrong, BATCH, KEYS)


def test_facts_that_do_not_fit_are_named() -> None:
    for change, why in (
        ({"patients": 0}, "expected 1 to 8192 patients"),
        ({"patients": 8193}, "expected 1 to 8192 patients"),
        ({"features": 2**40}, "features in one batch"),
        ({"outputs": 0}, "outputs"),
        ({"model": "AB" * 32}, "model: expected 64 lower-case hex digits"),
        ({"feature_step": "0.1"}, "step: expected a positive number"),
        ({"feature_step": (-1.0).hex()}, "step: expected a positive number"),
        ({"feature_step": "inf"}, "step: expected a positive number"),
        ({"more": 1}, "unknown field 'more'"),
    ):
        wrong = replace(FILE, facts=FACTS | change).to_bytes(ADA)
        with pytest.raises(WardtreeError, match=why):
            ScoringFile.from_bytes(wrong, BATCH, KEYS)
    with pytest.raises(ScoringError, match="expected scores, came 'batch'"):
        ScoringFile.from_bytes(FILE.to_bytes(ADA), SCORES, KEYS)


def test_an_encrypted_model_that_would_give_parts_of_scores_is_refused() -> None:
    """With few patients features lie side by side, and who opens would read products with one feature alone."""
    facts = FACTS | {"patients": MAX_PATIENTS, "weight_step": (0.01).hex()}
    whole = ScoringFile(MODEL, "ada", facts, BODY)
    assert ScoringFile.from_bytes(whole.to_bytes(ADA), MODEL, KEYS) == whole
    parts = replace(whole, facts=facts | {"patients": 10})
    with pytest.raises(ScoringError, match="would tell its owner parts of a patient's score"):
        ScoringFile.from_bytes(parts.to_bytes(ADA), MODEL, KEYS)


@given(st.floats(1e-20, 1e20))
def test_a_step_is_the_same_float(step: float) -> None:
    assert step_from(step.hex()) == step


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "batch.enc"
    with path.open("wb") as file:
        file.truncate(MAX_FILE[BATCH] + 1)
    with pytest.raises(WardtreeError, match=r"batch\.enc: expected at most"):
        read_scoring_file(path, BATCH, None)
