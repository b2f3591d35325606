"""The debug check that an opened total is exactly the sum of what the enclaves sealed.

For a random vector r that the launcher draws for each round, every enclave reports ⟨r, q⟩ mod 2^61 - 1 of
its integers q, segment by segment, and the launcher compares the sums with ⟨r, total⟩. A wrong total passes
with probability 2^-61. The figures say something about updates, so this exists in tests and in
``wardtree local`` only,
and only where the manifest allows it.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

MODULUS = (1 << 61) - 1
_CHUNK = 1 << 10


def fingerprints(seed: bytes, values: NDArray[np.signedinteger], segments: Iterable[slice]) -> list[int]:
    """⟨r, values⟩ mod 2^61 - 1 of each segment of a vector: a round may be closed with the first few of them."""
    return [inner_product(seed, part.start, values[part]) for part in segments]


def inner_product(seed: bytes, start: int, values: NDArray[np.signedinteger]) -> int:
    """⟨r, values⟩ mod 2^61 - 1, where r is this round's random vector from index ``start`` on.

    Args:
        seed: 32 bytes, new for each round.
        start: index of the first value in the whole vector; a multiple of a segment's length.
        values: shape (length,), absolute values below 2^20.
    """
    generator = np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16], "little"), counter=start))
    total = 0
    for begin in range(0, values.size, _CHUNK):
        part = values[begin : begin + _CHUNK].astype(np.int64)
        r = generator.integers(0, MODULUS, part.size, dtype=np.int64)
        # 2^10 products of 31 by 20 bits stay below 2^61: no sum overflows.
        low, high = int((part * (r & 0x7FFFFFFF)).sum()), int((part * (r >> 31)).sum())
        total += low + (high << 31)
    return total % MODULUS
