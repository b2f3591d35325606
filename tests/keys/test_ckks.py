"""Exact integers in CKKS: what goes in as integers comes out as their sum, bit for bit, or not at all."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import tenseal.sealapi as seal
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.ciphertexts import _MEMBERS, make_context
from keys.ckks import (
    PUBLIC_KEY_MAGIC,
    KeyFileError,
    Opener,
    OpeningFailed,
    Sealer,
    generate_keys,
)
from keys.packing import PackingError, pack, unpack
from keys.plan import Plan, PlanError
from keys.segments import CiphertextError

PLAN = Plan()


@cache
def pair() -> tuple[bytes, bytes]:
    return generate_keys(PLAN)


@cache
def sealer() -> Sealer:
    return Sealer(PLAN, pair()[0])


@cache
def opener() -> Opener:
    return Opener(PLAN, pair()[1])


@given(st.integers(1, 20_000), st.integers(0, 2**32))
def test_packing_round_trip(length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(-PLAN.max_value, PLAN.max_value + 1, length)
    canaries = rng.integers(-PLAN.max_value, PLAN.max_value + 1, (PLAN.ciphertexts(length), PLAN.canary_digits))
    unpacked = unpack(pack(values, PLAN, canaries), PLAN)
    assert not unpacked.residuals.any()
    assert np.array_equal(unpacked.values[:length], values)
    assert not unpacked.values[length:].any()
    assert np.array_equal(unpacked.canaries, canaries)


@pytest.mark.parametrize("sign", [1, -1])
def test_packing_carries_at_the_extremes(sign: int) -> None:
    length = PLAN.values_per_ciphertext
    alternating = np.where(np.arange(length) % 2, PLAN.max_value, -PLAN.max_value)
    for values in (np.full(length, sign * PLAN.max_value), sign * alternating):
        unpacked = unpack(PLAN.max_parties * pack(values, PLAN), PLAN)
        assert np.array_equal(unpacked.values, PLAN.max_parties * values)


def test_values_beyond_the_plan_are_refused() -> None:
    with pytest.raises(PackingError, match="exceeds the 14 bits"):
        pack(np.array([PLAN.max_value + 1]), PLAN)
    with pytest.raises(PackingError, match="nothing"):
        pack(np.array([], dtype=np.int64), PLAN)


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9000), st.integers(0, 2**32))
def test_sums_are_exact(parties: int, length: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    updates = rng.integers(-PLAN.max_value, PLAN.max_value + 1, (parties, length))
    total = sealer().add([sealer().seal(update) for update in updates])
    assert np.array_equal(opener().open(total, length, parties), updates.sum(0))


@pytest.mark.parametrize("sign", [1, -1])
def test_sums_are_exact_with_everyone_at_the_limit(sign: int) -> None:
    update = np.full(PLAN.values_per_ciphertext, sign * PLAN.max_value)
    # Equal plaintexts round alike, and their errors would add up: canaries make them differ, here as in a round.
    marks = np.random.default_rng().integers(
        -PLAN.max_value, PLAN.max_value + 1, (PLAN.max_parties, 1, PLAN.canary_digits)
    )
    total = sealer().add([sealer().seal(update, mark) for mark in marks])
    opened = opener().open(total, update.size, PLAN.max_parties, marks.sum(axis=0))
    assert np.array_equal(opened, PLAN.max_parties * update)


def test_addition_in_any_grouping_gives_the_same_bytes() -> None:
    a, b, c = (sealer().seal(np.array([i])) for i in range(3))
    assert sealer().add([sealer().add([a, b]), c]) == sealer().add([a, sealer().add([b, c])])


def test_a_total_that_fails_a_check_is_not_opened() -> None:
    full = sealer().seal(np.full(100, PLAN.max_value))
    with pytest.raises(OpeningFailed, match="^failed$"):
        opener().open(sealer().add([full, full]), 100, contributors=1)
    with pytest.raises(OpeningFailed, match="^failed$"):
        opener().open(full, 99, contributors=1)
    other_key, _ = generate_keys(PLAN)
    with pytest.raises(OpeningFailed, match="^failed$"):
        opener().open(Sealer(PLAN, other_key).seal(np.array([1, 2, 3])), 3, contributors=64)


def test_two_powers_two_types() -> None:
    assert not hasattr(Sealer, "open")
    assert not hasattr(Opener, "seal")
    assert not any("decrypt" in name for name in vars(sealer()))


def test_a_public_key_file_with_a_secret_key_is_refused() -> None:
    public, secret = pair()
    for disguise in (secret, PUBLIC_KEY_MAGIC + secret):
        with pytest.raises(KeyFileError, match="carries a secret key"):
            Sealer(PLAN, disguise)
    with pytest.raises(KeyFileError, match="more than a public key"):
        Sealer(PLAN, public + secret)
    with pytest.raises(KeyFileError, match="first line differs"):
        Sealer(PLAN, public.removeprefix(PUBLIC_KEY_MAGIC))
    with pytest.raises(KeyFileError, match="does not hold"):
        Sealer(PLAN, public[:-100])


def test_no_header_byte_of_a_public_key_file_reaches_seal_unchecked() -> None:
    """Some of them, nested compression above all, make SEAL end the process."""
    body = pair()[0].removeprefix(PUBLIC_KEY_MAGIC)
    content = zstandard.ZstdDecompressor().decompress(body[16:])
    for place in range(_MEMBERS.size + 24):
        changed = bytearray(content)
        changed[place] ^= 2
        packed = zstandard.ZstdCompressor().compress(bytes(changed))
        disguised = body[:8] + (16 + len(packed)).to_bytes(8, "little") + packed
        with pytest.raises(KeyFileError, match="does not hold"):
            Sealer(PLAN, PUBLIC_KEY_MAGIC + disguised)


def test_foreign_and_broken_segments_are_named() -> None:
    good = sealer().seal(np.arange(5))
    small = Plan(prime_bits=(50, 30), digits=1)
    foreign = Sealer(small, generate_keys(small)[0]).seal(np.arange(5))
    for bad, reason in (
        (foreign, "other parameters"),
        (b"", "or is none at all"),
        (good[1:], "or is none at all"),
        (good[:32], "came 0 bytes"),
        (good[:-7], "1 to 4 ciphertexts of 61440 bytes was expected, came 61433 bytes"),
        (good + b"x", "came 61441 bytes"),
        (good[:32] + 17 * good[32:], "came 1044480 bytes"),
    ):
        with pytest.raises(CiphertextError, match=reason):
            sealer().add([good, bad])
    with pytest.raises(CiphertextError, match="cannot be added"):
        sealer().add([good, sealer().seal(np.zeros(PLAN.values_per_ciphertext + 1, np.int64))])
    rescaled = Plan(scale=700_000, digits=1)
    with pytest.raises(CiphertextError, match="another scale"):
        sealer().add([good, Sealer(rescaled, pair()[0]).seal(np.arange(5))])


def test_a_key_file_holds_no_evaluation_keys() -> None:
    assert len(pair()[0]) < 150_000, "Galois keys would make it tens of megabytes"
    assert make_context(PLAN).parameters_set()
    assert seal.SEC_LEVEL_TYPE.TC128 is not None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"scale": 2**18}, "not be exact"),
        ({"max_parties": 65}, "overflow a digit"),
        ({"prime_bits": [60, 60]}, "128-bit security"),
        ({"prime_bits": [40, 30]}, "does not fit"),
        ({"poly_modulus_degree": 2048}, "ring degree"),
        ({"digits": 0}, "positive"),
    ],
)
def test_plans_that_cannot_be_exact_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.from_dict({**PLAN.to_dict(), **change})


def test_a_plan_survives_the_manifest() -> None:
    assert Plan.from_dict(PLAN.to_dict()) == PLAN
    with pytest.raises(PlanError, match="integers"):
        Plan.from_dict({**PLAN.to_dict(), "scale": 655360.0})
    with pytest.raises(PlanError, match="these differ: extra"):
        Plan.from_dict({**PLAN.to_dict(), "extra": 1})
