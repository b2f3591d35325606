"""Shares give the key back when there are enough of the right ones, and nothing else does."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.shares import ShareError, combine, share_digest, split

# Made by B. Poettering's ssss 0.5 (ssss-split -s 128 -D), as published with PyCryptodome: 5 of 7.
SSSS_SECRET = bytes.fromhex("4a78db90fbf35da5545d2fb728e87596")
SSSS = [
    bytes.fromhex(share)
    for share in (
        "08daf9a25d8aa184cfbf02b30a0ed6a0",
        "dda28261e36f0b14168c2cf153fb734e",
        "e9fdec5505d674a57f9836c417c1ecaa",
        "4dce5636ae06dee42d2c82e65f06c735",
        "3963dc118afc2ba798fa1d452b28ef00",
        "6dfe6ff5b09e94d2f84c382b12f42424",
        "6faea9d4d4a4e201bf6c90b9000630c3",
    )
]


def carryless_power(base: int, exponent: int) -> int:
    """``base ** exponent`` of polynomials over GF(2), too small to need a reduction."""
    result = 1
    for _ in range(exponent):
        result = sum_of(base << bit for bit in range(result.bit_length()) if result >> bit & 1)
    return result


def sum_of(terms: object) -> int:
    total = 0
    for term in terms:  # type: ignore[attr-defined]
        total ^= term
    return total


def test_published_shares_give_the_published_secret() -> None:
    """ssss adds x^m to its polynomial, Shamir and we do not: take it off, and put two halves together."""
    ours = {}
    for index, share in enumerate(SSSS, start=1):
        plain = (int.from_bytes(share, "big") ^ carryless_power(index, 5)).to_bytes(16, "big")
        ours[index] = plain + plain
    for chosen in itertools.islice(itertools.combinations(ours, 5), 8):
        assert combine({index: ours[index] for index in chosen}) == SSSS_SECRET * 2
    assert combine({index: ours[index] for index in (1, 2, 3, 4)}) != SSSS_SECRET * 2


@settings(max_examples=30, deadline=None)
@given(key=st.binary(min_size=32, max_size=32), data=st.data())
def test_any_m_shares_give_the_key_and_fewer_do_not(key: bytes, data: st.DataObject) -> None:
    given_ = data.draw(st.integers(2, 6))
    needed = data.draw(st.integers(2, given_))
    shares = dict(enumerate(split(key, needed, given_), start=1))
    assert all(len(share) == 32 for share in shares.values())
    for chosen in itertools.combinations(shares, needed):
        assert combine({index: shares[index] for index in chosen}) == key
    if needed > 2:
        assert combine({index: shares[index] for index in range(1, needed)}) != key


def test_the_halves_are_shared_apart() -> None:
    """With the same coefficients, equal halves of a key would show as equal halves of a share."""
    shares = split(bytes(32), 2, 3)
    assert all(share[:16] != share[16:] for share in shares)
    assert len(set(shares) | set(split(bytes(32), 2, 3))) == 6


def test_a_wrong_share_gives_a_wrong_key_and_its_digest_tells() -> None:
    key = bytes(range(32))
    first, second, _ = split(key, 2, 3)
    wrong = bytes([second[0] ^ 1]) + second[1:]
    assert combine({1: first, 2: wrong}) != key
    name = "0123456789abcdef"
    digests = {share_digest(name, 2, second), share_digest(name, 2, wrong), share_digest(name, 1, second)}
    assert len(digests | {share_digest("f" * 16, 2, second)}) == 4


@pytest.mark.parametrize(("needed", "given_"), [(0, 3), (1, 3), (4, 3), (2, 256), (2, 1)])
def test_numbers_that_make_no_custody_are_refused(needed: int, given_: int) -> None:
    with pytest.raises(ShareError, match=f"came {needed} of {given_}"):
        split(bytes(32), needed, given_)


@pytest.mark.parametrize("shares", [{0: bytes(32), 1: bytes(32)}, {1: bytes(31)}, {256: bytes(32)}])
def test_shares_of_another_form_are_our_bug(shares: dict[int, bytes]) -> None:
    with pytest.raises(ValueError, match="expected shares of 32 bytes"):
        combine(shares)
    with pytest.raises(ValueError, match="expected a key of 32 bytes"):
        split(bytes(16), 2, 3)
