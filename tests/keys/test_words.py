"""Digests as words, as they are spoken and as they are heard."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mnemonic import Mnemonic

from keys.words import FINGERPRINT, WordsError, difference, in_lines, understand, words

LIST = Mnemonic("english").wordlist


def test_the_words_are_bip_39s() -> None:
    """The specification's own vectors, of 32 bytes."""
    assert words(bytes(32), 24) == ("abandon",) * 23 + ("art",)
    assert words(b"\xff" * 32, 24) == ("zoo",) * 23 + ("vote",)
    assert words(bytes.fromhex("7f" * 32), 4) == ("legal", "winner", "thank", "year")
    assert hashlib.sha256("\n".join([*LIST, ""]).encode()).hexdigest() == (
        "2f5eed53a4727b4bf8880d8f3f199efc90e58503646d9ff8eff3a2ed3b24dbda"
    ), "the list as the specification publishes it"


@given(st.binary(min_size=32, max_size=32))
def test_a_fingerprint_is_seventy_seven_bits(digest: bytes) -> None:
    spoken = words(digest)
    assert len(spoken) == FINGERPRINT == 7
    bits = "".join(f"{LIST.index(word):011b}" for word in spoken)
    assert int(bits, 2) == int.from_bytes(digest, "big") >> (256 - 77)
    assert " ".join(in_lines(digest)).split()[:7] == list(spoken)


@given(st.lists(st.sampled_from(LIST), min_size=1, max_size=9))
def test_four_letters_are_enough_in_any_case(spoken: list[str]) -> None:
    assert understand("  ".join(word[:4].upper() for word in spoken)) == tuple(spoken)
    assert understand("\n".join(spoken)) == tuple(spoken)


@pytest.mark.parametrize("typed", ["zebrax", "abandonn", "ab", "1", "ābandon", "abandon-ability"])
def test_what_is_no_word_is_named(typed: str) -> None:
    with pytest.raises(WordsError, match="word 2: .* is not in the list"):
        understand(f"zoo {typed}")


def test_a_difference_is_told_without_the_right_word() -> None:
    expected = words(bytes(range(32)))
    assert difference(expected, expected) is None
    heard = (*expected[:2], "zoo", *expected[3:])
    told = difference(heard, expected)
    assert told == "different: word 3"
    assert expected[2] not in told
    assert difference(expected[:5], expected) == "expected 7 words, came 5"
