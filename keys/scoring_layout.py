"""How patients' features and a layer's weights become integers in slots, so that their scores come out exact.

A layer gives each patient ``outputs`` scores: the products of ``features`` numbers with as many weights, summed, and a
bias. Under encryption slots are multiplied and added slot by slot, and never moved (that would take rotation keys):
a feature has a *block* of slots, two patients in each (its real and its imaginary part), as many blocks as fit lie
side by side, and what does not fit is in further ciphertexts, the *terms*, which are added. The blocks of the sum
are added after decryption.

Features and weights are whole numbers, so a score is one, and it is told from the noise of the encryption by
rounding. No SEAL here, no key.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError

Integers = NDArray[np.int64]
Slots = NDArray[np.complex128]

RING = 8192
SLOTS = RING // 2
PRIME_BITS = (54, 54, 20)
"""Two primes for the data; SEAL wants a third, which symmetric encryption does not use. 128 bits in all, of the 152
that 192-bit security allows in this ring."""
SECURITY = 192

FEATURE_BITS, WEIGHT_BITS = 15, 16
"""Of the largest whole numbers, without a sign, where MAX_TERMS ciphertexts are added: as much as the primes hold."""
MAX_BIAS = 2**38
MAX_TERMS = 512
MAX_PATIENTS = 2 * SLOTS
MAX_OUTPUTS = 1000

SEALED_SCALE, PLAIN_SCALE = 2.0**35, 2.0**31
"""Of what is encrypted, and of what it is multiplied with: :meth:`Layout.noise` says why they suffice."""

_ERROR_VARIANCE = 10.5
"""Of a coefficient of SEAL's noise: a centred binomial of 42 bits."""
SIGMAS = 10
MAX_RESIDUAL = 0.25


class ScoringError(WardtreeError):
    """Features, weights or files of an encrypted scoring that do not fit."""


@dataclass(frozen=True)
class Layout:
    """Where the features of so many patients lie."""

    patients: int
    features: int
    outputs: int

    def __post_init__(self) -> None:
        """Raises ScoringError for more than fits."""
        for what, value, most in (
            ("patients", self.patients, MAX_PATIENTS),
            ("features", self.features, MAX_TERMS * SLOTS),
            ("outputs", self.outputs, MAX_OUTPUTS),
        ):
            if not 1 <= value <= most:
                raise ScoringError(f"expected 1 to {most} {what} in one batch, came {value}")
        if self.terms > MAX_TERMS:
            raise ScoringError(
                f"{self.features} features of {self.patients} patients take {self.terms} ciphertexts that are added, "
                f"and sums of at most {MAX_TERMS} are exact: make batches of fewer patients"
            )

    @classmethod
    def of_model(cls, features: int, outputs: int) -> Layout:
        """Of an encrypted model: as many patients as there can be, so that a block fills a ciphertext. What is opened
        of a patient is its whole score then, and no part of it, from which a feature could be read.

        Raises:
            ScoringError: more features than sums are exact for.
        """
        if features > MAX_TERMS:
            raise ScoringError(f"an encrypted model has at most {MAX_TERMS} features, came one of {features}")
        return cls(MAX_PATIENTS, features, outputs)

    @property
    def pairs(self) -> int:
        """Slots in a block: two patients in each."""
        return -(-self.patients // 2)

    @property
    def blocks(self) -> int:
        """Features side by side in a ciphertext."""
        return min(SLOTS // self.pairs, self.features)

    @property
    def terms(self) -> int:
        """Ciphertexts that are multiplied and added for each output."""
        return -(-self.features // self.blocks)

    @property
    def _spare_bits(self) -> int:
        """Bits more for either factor in a shorter sum: a quarter of the terms leaves room for one in both."""
        return ((MAX_TERMS // self.terms).bit_length() - 1) // 2

    @property
    def max_feature(self) -> int:
        """The largest absolute whole number of a feature."""
        return (1 << FEATURE_BITS + self._spare_bits) - 1

    @property
    def max_weight(self) -> int:
        """The largest absolute whole number of a weight."""
        return (1 << WEIGHT_BITS + self._spare_bits) - 1

    @property
    def most(self) -> int:
        """The largest absolute integer that a block of a sum can hold."""
        return self.terms * self.max_feature * self.max_weight + MAX_BIAS

    @property
    def noise(self) -> float:
        """The largest standard deviation of an opened slot's distance from its integer, in either part.

        Of the encrypted factor: SEAL's noise and the rounding of the encoding, multiplied with the other factor; of the
        plain one: the rounding of its encoding, multiplied with the encrypted one. (Slots of a polynomial with
        coefficients of variance v have N*v/2 in each part.) For the factors at their largest.
        """
        largest = max(math.sqrt(2) * self.max_feature, self.max_weight)
        sealed = math.sqrt(RING / 2 * (_ERROR_VARIANCE + 1 / 12)) * largest / SEALED_SCALE
        plain = math.sqrt(RING / 2 / 12) * largest / PLAIN_SCALE
        return math.sqrt(self.terms) * math.hypot(sealed, plain)

    @property
    def tolerance(self) -> float:
        """A residual beyond it is no noise: ten sigma, never above 1/4; and what float64 loses in the encodings."""
        return min(SIGMAS * self.noise + self.most * 2.0**-48, MAX_RESIDUAL)

    def arrange(self, features: Integers) -> Slots:
        """(patients, features) as (terms, SLOTS): two patients in a slot, zeros where nobody is."""
        padded = np.zeros((2 * self.pairs, self.terms * self.blocks), np.int64)
        padded[: self.patients, : self.features] = features
        both = padded[: self.pairs].T + 1j * padded[self.pairs :].T
        return self._slots(both.reshape(self.terms, -1))

    def spread(self, weights: Integers) -> Slots:
        """One output's weights, (features,), as (terms, SLOTS): the same for every patient of a block."""
        padded = np.zeros(self.terms * self.blocks, np.int64)
        padded[: self.features] = weights
        return self._slots(np.repeat(padded, self.pairs).reshape(self.terms, -1).astype(np.complex128))

    def bias(self, value: int) -> Slots:
        """(SLOTS,): the bias for every patient, in the first block alone."""
        (slots,) = self._slots(np.full((1, self.pairs), value * (1 + 1j)))
        return np.asarray(slots)

    def gather(self, parts: Integers) -> Integers:
        """Opened integers of one output, (SLOTS, 2), as (patients,): blocks added, pairs parted."""
        blocks = parts[: self.blocks * self.pairs].reshape(self.blocks, self.pairs, 2).sum(axis=0)
        return np.asarray(blocks.T.reshape(-1)[: self.patients], np.int64)

    def _slots(self, used: Slots) -> Slots:
        slots = np.zeros((len(used), SLOTS), np.complex128)
        slots[:, : used.shape[1]] = used
        return slots


def to_integers(values: NDArray[np.floating[Any]], step: float, most: int) -> Integers:
    """Values in steps, to the nearest: never clipped.

    Raises:
        ScoringError: a value is not finite, or beyond ``most`` steps; says in how many rows, and the first.
    """
    steps = np.asarray(values, np.float64) / step
    wrong = ~np.isfinite(steps) | (np.abs(steps) > most + 0.5)
    if wrong.any():
        rows = np.flatnonzero(wrong.reshape(len(wrong), -1).any(axis=1))
        raise ScoringError(
            f"expected finite values within {most * step:g}, came others in {len(rows)} rows, the first of them row "
            f"{rows[0] + 1}"
        )
    return np.clip(np.rint(steps), -most, most).astype(np.int64)
