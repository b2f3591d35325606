"""A key of 32 bytes in m-of-n shares (Shamir, CACM 1979), by PyCryptodome's GF(2^128).

The library shares 16 bytes at a time; the two halves are shared apart, each with coefficients of its own, so
that fewer than m shares say nothing about either. Its arithmetic is Python's integers, not constant in time:
it runs when people split or recombine, never while a stranger could measure it.
"""

from __future__ import annotations

from collections.abc import Mapping

from Crypto.Protocol.SecretSharing import Shamir

from keys.canonical import canonical, digest
from keys.errors import WardtreeError

KEY_BYTES = 32
MAX_SHARES = 255
_HALF = 16


class ShareError(WardtreeError):
    """Shares from which the key cannot be had."""


def split(key: bytes, needed: int, given: int) -> tuple[bytes, ...]:
    """``given`` shares of 32 bytes; the i-th belongs to the index i + 1. Any ``needed`` of them give ``key``.

    Raises:
        ShareError: fewer than 2 would be needed, or more than there are.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"expected a key of {KEY_BYTES} bytes")
    if not 2 <= needed <= given <= MAX_SHARES:
        raise ShareError(f"expected 2 or more shares to be needed, of at most {MAX_SHARES}; came {needed} of {given}")
    halves = [Shamir.split(needed, given, key[start : start + _HALF]) for start in (0, _HALF)]
    return tuple(left + right for (_, left), (_, right) in zip(*halves, strict=True))


def combine(shares: Mapping[int, bytes]) -> bytes:
    """The key, from exactly as many shares as are needed, by index from 1. Wrong ones give a wrong key."""
    if not all(1 <= index <= MAX_SHARES and len(share) == KEY_BYTES for index, share in shares.items()):
        raise ValueError("expected shares of 32 bytes, by index from 1")
    halves = ([(index, share[at : at + _HALF]) for index, share in shares.items()] for at in (0, _HALF))
    return b"".join(Shamir.combine(half) for half in halves)


def share_digest(share_set: str, index: int, share: bytes) -> str:
    """SHA-256 that names a share and tells nothing of it: a share is 256 random bits."""
    return digest(
        canonical({"format": "wardtree-share/1", "index": index, "set": share_set, "share": share.hex()})
    ).hex()
