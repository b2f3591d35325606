"""Randomness for rounding and noise: ChaCha20 from libsodium under a fresh seed of the operating system.

Never a study's seed, which everyone knows, and none of the generators of numpy or torch: what they gave so far tells
what they will give, and torch's on a CPU has only 32 bits of seed. libsodium's expansion is five times faster than the
device.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable

import numpy as np
from nacl.utils import randombytes_deterministic
from numpy.typing import NDArray

Words = Callable[[int], NDArray[np.uint64]]
"""Gives so many uniform 64-bit words. :func:`words` is the only one outside tests."""


def words(count: int) -> NDArray[np.uint64]:
    """``count`` uniform 64-bit words."""
    return np.frombuffer(randombytes_deterministic(8 * count, os.urandom(32)), dtype=np.uint64)


def half_words(count: int) -> NDArray[np.uint32]:
    """``count`` uniform 32-bit words."""
    return np.frombuffer(randombytes_deterministic(4 * count, os.urandom(32)), dtype=np.uint32)


def uniforms(count: int) -> NDArray[np.float64]:
    """``count`` uniform multiples of 2^-53 in (0, 1]."""
    return ((words(count) >> np.uint64(11)) + np.uint64(1)).astype(np.float64) * 2.0**-53


def normals(count: int) -> NDArray[np.float64]:
    """``count`` standard normal values (Box and Muller 1958), none further out than 8.6.

    Floating point: who sees a result of them unrounded may learn from its last bits (Mironov 2012). They are for what
    is rounded to the grid of the integers before it leaves a room.
    """
    pairs = -(-count // 2)
    radius, angle = np.sqrt(-2 * np.log(uniforms(pairs))), 2 * math.pi * uniforms(pairs)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
