"""The noise law of a sum, slot by slot, and the guard that holds an opened total against it.

An encryption with a special prime carries the rounding of its division only: independent, uniform in
[-1/2, 1/2] for each coefficient of both polynomials and of the encoded message. In slot j, with the
secret s, that is a variance of ``n * (N/24) * (2 + |s(zeta_j)|**2) / scale**2`` for the sum of n parties, in
the real and in the imaginary part alike. Measured on fresh keys the law holds to 1 %. (Equal messages would
round alike and their errors would add up; the canaries make every party's message another.)

Everything here is computed from the secret key and never leaves the key room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keys.plan import Plan

MAX_RESIDUAL = 0.25
SIGMAS = 10
"""A residual beyond this many sigma of its slot is no noise: honest rounds see one in 2^-40 or less."""

VARIANCE_SIGMAS = 8
WORST_SLOT = {4096: 3.0, 8192: 3.75}
"""Redraw a key whose worst slot exceeds this many times the rms: the scale is planned for it."""


@dataclass(frozen=True)
class NoiseLaw:
    """``sigma``: shape (N/2,), the standard deviation in each part of a slot for one party's ciphertext."""

    plan: Plan
    sigma: NDArray[np.float64]

    @classmethod
    def from_secret(cls, plan: Plan, secret_at_slots: NDArray[np.complex128]) -> NoiseLaw:
        """From s(zeta_j), the secret key evaluated at every slot's root, shape (N/2,)."""
        variance = plan.poly_modulus_degree / 24 * (2 + np.abs(secret_at_slots) ** 2)
        return cls(plan, np.sqrt(variance) / plan.scale)

    @property
    def worst_slot(self) -> float:
        """The worst slot's sigma over the rms of all."""
        return float(self.sigma.max() / np.sqrt(np.mean(self.sigma**2)))

    def fits(self, residuals: NDArray[np.float64], parties: int) -> bool:
        """Whether residuals look like the sum of just ``parties`` fresh encryptions, in every slot and overall.

        Args:
            residuals: shape (ciphertexts, N/2, 2), distances from the nearest integer.
        """
        sigma = self.sigma * np.sqrt(parties)
        # Beside the noise: float64 in encoding and decoding, relative to the largest total.
        floating = self.plan.max_total_per_slot * (parties / self.plan.max_parties) * 2.0**-50
        bound = np.minimum(SIGMAS * sigma + floating, MAX_RESIDUAL)
        if not (np.abs(residuals) <= bound[:, np.newaxis]).all():
            return False
        loud = sigma >= np.sqrt(np.mean(sigma**2)) / 2  # elsewhere float64 has its share
        squares = (residuals[:, loud] / sigma[loud][:, np.newaxis]) ** 2
        tolerance = VARIANCE_SIGMAS * np.sqrt(2 / squares.size)
        return bool(abs(squares.mean() - 1) <= tolerance)
