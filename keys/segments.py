"""Ciphertexts on the wire, and their sum: residues modulo one public prime. No SEAL, no key.

A segment is a fingerprint of the plan, then the first polynomials of its ciphertexts, then the second ones.
A polynomial is its N residues in the order of SEAL's words, each in as many bits as the prime has:
exactly ``N * bits / 8`` bytes. So there is no header to parse and nothing to decompress, and a node of the
tree, which only adds, needs nothing but this module. Adding ciphertexts is adding residues; tests hold the
sum to SEAL's own, bit for bit. Encryption, encoding and decryption are SEAL's (``keys/ckks.py``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from keys.canonical import canonical
from keys.errors import WardtreeError
from keys.plan import Plan

Words = NDArray[np.uint64]
"""Residues modulo the data prime, little-endian; the last axis is one polynomial's N."""

HEAD_BYTES = 32
_WORD = 64
_WITNESSES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


class CiphertextError(WardtreeError):
    """A ciphertext that is not of this federation's plan."""


# ---- the prime ------------------------------------------------------------------------------------------


@cache
def data_prime(plan: Plan) -> int:
    """The prime q that a plan's ciphertexts are reduced by, as SEAL chooses it: of its bits, 1 modulo 2N.

    SEAL gives the largest primes of one size to the last who ask for that size.
    """
    data, special = plan.prime_bits
    step = 2 * plan.poly_modulus_degree
    skipped = 1 if data == special else 0
    candidate = ((1 << data) - 1) // step * step + 1
    while skipped or not _is_prime(candidate):
        skipped -= _is_prime(candidate)
        candidate -= step
    return candidate


def _is_prime(number: int) -> bool:
    """Miller and Rabin's test with the bases that leave no doubt below 2^64 (Sorenson and Webster, 2015)."""
    twos = (number - 1 & 1 - number).bit_length() - 1
    odd = number >> twos
    for witness in _WITNESSES:
        powers = [pow(witness, odd << twice, number) for twice in range(twos)]
        if powers[0] != 1 and number - 1 not in powers:
            return False
    return True


# ---- words and bytes ------------------------------------------------------------------------------------


def pack_words(words: Words, bits: int) -> Words:
    """Close the gaps between residues of so many bits: shape (polynomials, N) to (polynomials, N * bits / 64).

    A polynomial is 64 rows of N/64 residues, and bits rows of as many words hold them: in each column residue r
    takes the bits from ``r * bits`` on. (Fewer rows where bits and 64 have a factor in common.)
    """
    rows, full = _rows(bits)
    shaped = words.reshape(len(words), rows, -1)
    first, gone = np.divmod(_WORD * np.arange(full), bits)  # a word begins in this residue, at this bit
    packed = shaped[:, first]
    packed >>= _shifts(gone)
    for later in range(1, 1 + (_WORD - 1 + int(gone.max())) // bits):
        part = shaped[:, np.minimum(first + later, rows - 1)]  # beyond the last the shift is 64, and leaves nothing
        part <<= _shifts(later * bits - gone)
        packed |= part
    return packed.reshape(len(words), -1)


def unpack_words(packed: Words, bits: int) -> Words:
    """The inverse of :func:`pack_words`; a new array."""
    rows, full = _rows(bits)
    shaped = packed.reshape(len(packed), full, -1)
    first, gone = np.divmod(bits * np.arange(rows), _WORD)  # a residue begins in this word, at this bit
    words = shaped[:, first]
    words >>= _shifts(gone)
    rest = shaped[:, np.minimum(first + 1, full - 1)]
    rest <<= _shifts(_WORD - gone)
    words |= rest
    words &= np.uint64((1 << bits) - 1)
    return words.reshape(len(packed), -1)


def _rows(bits: int) -> tuple[int, int]:
    """Rows of residues, and the rows of full 64-bit words that hold them."""
    common = math.gcd(bits, _WORD)
    return _WORD // common, bits // common


def _shifts(bits: NDArray[np.int64]) -> Words:
    """One for every row; numpy shifts by 64 and more to zero."""
    return bits.astype(np.uint64)[:, np.newaxis]


@cache
def fingerprint(plan: Plan) -> bytes:
    """HEAD_BYTES in front of every segment: what was made under another plan is refused by name."""
    return hashlib.sha256(b"wardtree/segment/1\0" + canonical(plan.to_dict())).digest()


def ciphertext_bytes(plan: Plan) -> int:
    """Bytes of one ciphertext in a segment: two polynomials."""
    return 2 * plan.poly_modulus_degree * plan.prime_bits[0] // 8


def segment_bytes(plan: Plan, ciphertexts: int) -> int:
    """Bytes of a segment of so many ciphertexts."""
    return HEAD_BYTES + ciphertexts * ciphertext_bytes(plan)


def write_segment(words: Words, plan: Plan) -> bytes:
    """The segment of some ciphertexts' residues, shape (2, ciphertexts, N)."""
    return fingerprint(plan) + pack_words(words.reshape(-1, words.shape[-1]), plan.prime_bits[0]).tobytes()


def read_segment(segment: bytes, plan: Plan) -> Words:
    """The residues of a segment's ciphertexts, shape (2, ciphertexts, N): a new array.

    Raises:
        CiphertextError: another plan's, of another size, a residue that is none, or a ciphertext that hides nothing.
    """
    if segment[:HEAD_BYTES] != fingerprint(plan):
        raise CiphertextError("a segment has other parameters, or another scale than the plan's, or is none at all")
    each, size = ciphertext_bytes(plan), len(segment) - HEAD_BYTES
    count, odd = divmod(size, each)
    if odd or not 1 <= count <= plan.segment_ciphertexts:
        raise CiphertextError(
            f"a segment of 1 to {plan.segment_ciphertexts} ciphertexts of {each} bytes was expected, came {size} bytes"
        )
    packed = np.frombuffer(segment, "<u8", offset=HEAD_BYTES).reshape(2 * count, -1)
    words = unpack_words(packed, plan.prime_bits[0]).reshape(2, count, -1)
    largest = words.max(axis=-1)
    if largest.max() >= data_prime(plan):
        raise CiphertextError("a ciphertext has a residue that is not below the prime")
    if not largest[1].all():
        raise CiphertextError("a ciphertext is transparent")
    return words


# ---- the sum --------------------------------------------------------------------------------------------


def add_words(total: Words, other: Words, prime: int) -> None:
    """``total`` becomes ``total + other`` modulo the prime; shapes alike, (..., N), all residues below it."""
    degree = total.shape[-1]
    reduced = np.empty(degree, "<u8")
    for into, more in zip(total.reshape(-1, degree), other.reshape(-1, degree), strict=True):
        np.add(into, more, out=into)  # below 2^61
        np.subtract(into, np.uint64(prime), out=reduced)  # wraps to more than the sum where that is below the prime
        np.minimum(into, reduced, out=into)


def add(parts: Sequence[bytes], plan: Plan) -> bytes:
    """Add the same segment of several parties. One part alone is checked and passed on.

    Raises:
        CiphertextError: a part is not a segment of this plan, or the parts differ in length.
    """
    total, *others = (read_segment(part, plan) for part in parts)
    lengths = [total.shape[1], *(other.shape[1] for other in others)]
    if len(set(lengths)) != 1:
        raise CiphertextError(f"segments of {lengths} ciphertexts cannot be added")
    if not others:
        return parts[0]
    for other in others:
        add_words(total, other, data_prime(plan))
    return write_segment(total, plan)


def faulty(parts: Sequence[bytes], plan: Plan, ciphertexts: int) -> tuple[int, ...]:
    """The places of those parts that are no segments of so many ciphertexts of this plan."""
    size = segment_bytes(plan, ciphertexts)
    return tuple(place for place, part in enumerate(parts) if len(part) != size or not _is_segment(part, plan))


def _is_segment(part: bytes, plan: Plan) -> bool:
    try:
        read_segment(part, plan)
    except CiphertextError:
        return False
    return True
