"""Digests as words, for people who compare them over the telephone.

The words are BIP-39's English list (2,048 common words, 11 bits each; the first four letters of each are
its own), taken from the package ``mnemonic``, which its authors keep. A whole digest is BIP-39's 24 words,
the last of which carries a checksum; a fingerprint is the first seven of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from mnemonic import Mnemonic

from keys.errors import WardtreeError

FINGERPRINT = 7
"""77 bits: whoever looks for another key with the same words has to make 2**77 of them. Not enough for a
text whose author may write two of them (2**38 tries): such a digest is read out whole."""

_LETTERS = 4  # of a word, which decide it


class WordsError(WardtreeError):
    """What was typed are not words of the list."""


def words(digest: bytes, count: int = FINGERPRINT) -> tuple[str, ...]:
    """The first ``count`` of the 24 words of 32 bytes."""
    if len(digest) != 32 or not 1 <= count <= 24:
        raise ValueError("expected 32 bytes and 1 to 24 words")
    return tuple(_list().to_mnemonic(digest).split()[:count])


def in_lines(digest: bytes) -> list[str]:
    """All 24 words, six a line."""
    whole = words(digest, 24)
    return [" ".join(whole[start : start + 6]) for start in range(0, 24, 6)]


def understand(text: str) -> tuple[str, ...]:
    """The words that somebody typed: any case, any white space, four letters are enough.

    Raises:
        WordsError: names the first that is no word of the list.
    """
    known = {word[:_LETTERS]: word for word in _list().wordlist}
    understood = []
    for number, typed in enumerate(text.lower().split(), start=1):
        word = known.get(typed[:_LETTERS])
        if word is None or not word.startswith(typed):
            raise WordsError(f"word {number}: {typed!r} is not in the list; spell it out again")
        understood.append(word)
    return tuple(understood)


def difference(heard: Sequence[str], expected: Sequence[str]) -> str | None:
    """What is wrong with the words that were heard, None if nothing is. The right word is not told."""
    if len(heard) != len(expected):
        return f"expected {len(expected)} words, came {len(heard)}"
    wrong = [str(number) for number, (a, b) in enumerate(zip(heard, expected, strict=True), start=1) if a != b]
    return f"different: word {', '.join(wrong)}" if wrong else None


@cache
def _list() -> Mnemonic:
    return Mnemonic("english")
