"""Encryptions to compare ours with: none, and approximate CKKS as the paper sets it up.

For experiments with public data only. These decrypt *approximately*, and whoever publishes such a result publishes
the secret key with it (docs/why-exact-integers.md). They live here, outside of the node: no study can name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import tenseal as ts
from numpy.typing import NDArray

Values = NDArray[np.float64]


class Scheme(Protocol):
    """One party's side of an additive encryption."""

    def protect(self, values: Values) -> bytes:
        """Encrypt an update of shape (P,)."""

    def add(self, parts: Sequence[bytes]) -> bytes:
        """Add several parties' updates, or sums."""

    def open(self, total: bytes) -> Values:
        """Decrypt a sum: shape (P,)."""


class Plain:
    """No encryption: eight bytes a value."""

    def protect(self, values: Values) -> bytes:
        return values.astype("<f8").tobytes()

    def add(self, parts: Sequence[bytes]) -> bytes:
        total = self.open(parts[0]).copy()
        for part in parts[1:]:
            total += self.open(part)
        return total.tobytes()

    def open(self, total: bytes) -> Values:
        return np.frombuffer(total, "<f8")


@dataclass(frozen=True)
class Setting:
    """CKKS parameters: ring degree, bits of the primes, bits of the scale."""

    degree: int
    primes: tuple[int, ...]
    scale_bits: int

    @property
    def name(self) -> str:
        return f"CKKS {self.degree} {list(self.primes)} 2^{self.scale_bits}"


SMALL = Setting(4096, (40, 20, 40), 20)
LARGE = Setting(8192, (60, 40, 40, 60), 40)

PLAIN, OURS = "plain", "wardtree"
SETTINGS: dict[str, Setting | None] = {PLAIN: None, SMALL.name: SMALL, LARGE.name: LARGE}
"""Of what is compared with ours, by name; None: no encryption."""
SCHEMES = (*SETTINGS, OURS)


class Approximate:
    """``tenseal.ckks_vector`` of a whole update; with the secret key at the root of the tree only."""

    def __init__(self, context: bytes) -> None:
        """``context`` is public, or holds the secret key: one of :func:`make_contexts`."""
        self._context = ts.context_from(context)

    def protect(self, values: Values) -> bytes:
        return bytes(ts.ckks_vector(self._context, values.tolist()).serialize())

    def add(self, parts: Sequence[bytes]) -> bytes:
        if len(parts) == 1:
            return parts[0]
        total = ts.ckks_vector_from(self._context, parts[0])
        for part in parts[1:]:
            total += ts.ckks_vector_from(self._context, part)
        return bytes(total.serialize())

    def open(self, total: bytes) -> Values:
        return np.asarray(ts.ckks_vector_from(self._context, total).decrypt())


def make_contexts(setting: Setting) -> tuple[bytes, bytes]:
    """The public context, and the one with the secret key. No rotation or relinearisation keys: sums need none."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, setting.degree, coeff_mod_bit_sizes=list(setting.primes))
    context.global_scale = 2.0**setting.scale_bits
    flags = {"save_public_key": True, "save_galois_keys": False, "save_relin_keys": False}
    return (
        bytes(context.serialize(save_secret_key=False, **flags)),
        bytes(context.serialize(save_secret_key=True, **flags)),
    )


def make_scheme(context: bytes | None) -> Scheme:
    """The encryption behind a context, or none."""
    return Plain() if context is None else Approximate(context)
