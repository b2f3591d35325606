"""The debug check of sums, against Python's own integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from node.sumcheck import MODULUS, fingerprints, inner_product

SEED = bytes(range(32))
LIMIT = 2**20 - 1

lengths = st.integers(1, 3000)
seeds = st.binary(min_size=32, max_size=32)


def vector(seed: int, length: int, limit: int = LIMIT) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-limit, limit, length, endpoint=True)


def cut(length: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


def coefficients(seed: bytes, start: int, length: int) -> list[int]:
    """The random vector r itself, read off the unit vectors."""
    return [inner_product(seed, start, row) for row in np.eye(length, dtype=np.int64)]


@settings(max_examples=60, deadline=None)
@given(seeds, lengths, st.integers(0, 2**32), st.integers(0, 2**32))
def test_it_is_linear(seed: bytes, length: int, one: int, other: int) -> None:
    a, b = vector(one, length, LIMIT // 2), vector(other, length, LIMIT // 2)
    parts = cut(length, 700)
    both = zip(fingerprints(seed, a, parts), fingerprints(seed, b, parts), strict=True)
    assert fingerprints(seed, a + b, parts) == [sum(pair) % MODULUS for pair in both]
    assert fingerprints(seed, -a, parts) == [-value % MODULUS for value in fingerprints(seed, a, parts)]


@settings(max_examples=60, deadline=None)
@given(seeds, lengths, st.integers(0, 2**32), st.data())
def test_one_changed_integer_is_caught(seed: bytes, length: int, one: int, data: st.DataObject) -> None:
    values = vector(one, length, LIMIT - 1)
    before = fingerprints(seed, values, cut(length, 700))
    values[data.draw(st.integers(0, length - 1))] += data.draw(st.sampled_from((-1, 1)))
    assert fingerprints(seed, values, cut(length, 700)) != before


def test_two_exchanged_integers_and_another_seed_are_caught() -> None:
    values = vector(1, 50)
    before = fingerprints(SEED, values, cut(50, 20))
    assert fingerprints(SEED, np.roll(values, 1), cut(50, 20)) != before
    assert fingerprints(SEED[::-1], values, cut(50, 20)) != before


@settings(max_examples=60, deadline=None)
@given(lengths, st.integers(50, 1000), st.integers(0, 2**32))
def test_a_prefix_has_the_first_of_the_wholes(length: int, step: int, one: int) -> None:
    values = vector(one, length)
    each = fingerprints(SEED, values, cut(length, step))
    known = len(each) // 2
    assert fingerprints(SEED, values[: known * step], cut(known * step, step)) == each[:known]


@pytest.mark.parametrize("value", [LIMIT, -LIMIT])
def test_the_largest_integers_do_not_overflow(value: int) -> None:
    values = np.full(20_000, value)
    unit = inner_product(SEED, 0, np.ones(20_000, np.int64))
    assert inner_product(SEED, 0, values) == value * unit % MODULUS


def test_it_is_the_inner_product_with_one_vector_that_spans_the_field() -> None:
    r = coefficients(SEED, 0, 200)
    assert all(0 <= each < MODULUS for each in r)
    assert len(set(r)) == 200
    assert max(r) > MODULUS // 2 > 1 << 59
    values = vector(3, 200)
    assert inner_product(SEED, 0, values) == sum(a * b for a, b in zip(r, values.tolist(), strict=True)) % MODULUS
    assert not set(r) & set(coefficients(SEED, 200, 200)), "another segment has other coefficients"


@pytest.mark.parametrize("kind", ["<i4", np.int32, np.int64])
def test_the_type_of_the_integers_does_not_matter(kind: str) -> None:
    values = vector(4, 3000)
    assert inner_product(SEED, 0, values.astype(kind)) == inner_product(SEED, 0, values)
