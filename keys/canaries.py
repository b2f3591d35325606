"""Canaries: digits by which the key room checks the listed set instead of believing it.

Without them a malicious inner node could drop all children but one and claim them all: the "total" would be
one hospital's update. So every party puts into every ciphertext digits that only it and the key holder
can compute, and the key room publishes nothing unless their total is the sum over the listed set. They
come from keyed BLAKE2b (RFC 7693) under the X25519 key that the two share, expanded by SHAKE-256.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from nacl.bindings import crypto_box_beforenm

from keys.packing import Integers
from keys.plan import Plan

KEY_BYTES = 32
_WORD = 8


def round_key(own_secret: bytes, their_public: bytes, manifest: bytes, round_: int, base: bytes) -> bytes:
    """What a party and the key holder share for one round on one base model; 32 bytes.

    Args:
        own_secret: our X25519 box secret.
        their_public: the other's box key, from its card.
        manifest: digest of the manifest.
        base: digest of the model that the round works on.
    """
    shared = crypto_box_beforenm(their_public, own_secret)
    message = manifest + round_.to_bytes(8, "big", signed=True) + base
    return hashlib.blake2b(message, key=shared, digest_size=KEY_BYTES, person=b"wardtree canary").digest()


def digits(key: bytes, plan: Plan, segment: int, ciphertexts: int) -> Integers:
    """One party's canaries of one segment: shape (ciphertexts, plan.canary_digits), in [-max, max]."""
    needed = plan.canary_digits * _WORD
    rows = []
    for index in range(ciphertexts):
        place = segment.to_bytes(8, "big") + index.to_bytes(8, "big")
        stream = hashlib.shake_256(b"wardtree canary\0" + key + place).digest(needed)
        rows.append(np.frombuffer(stream, dtype="<u8"))
    # 64-bit words modulo a span of at most 24 bits: the bias is below 2^-40.
    span = np.uint64(2 * plan.max_value + 1)
    return (np.stack(rows) % span).astype(np.int64) - plan.max_value


def total(keys: Iterable[bytes], plan: Plan, segment: int, ciphertexts: int) -> Integers:
    """The sum over the parties of a listed set; shape as :func:`digits`."""
    result = np.zeros((ciphertexts, plan.canary_digits), np.int64)
    for key in keys:
        result += digits(key, plan, segment, ciphertexts)
    return result
