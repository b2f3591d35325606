"""The CKKS plan of a federation: ring, primes, scale, and how integers share a slot.

A plan is public and part of the signed manifest. It makes sums of quantised updates *exact*: the
scale keeps the noise of the worst slot far below half an integer (Li and Micciancio, EUROCRYPT 2021,
show why nothing less than exact integers may ever be published), and the digits are wide enough for
the sum of every party's largest value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from keys.errors import WardtreeError

SECURITY_BITS = {4096: 109, 8192: 218}
"""Largest total of prime bits with 128-bit security (HomomorphicEncryption.org standard, 2018)."""


class PlanError(WardtreeError):
    """The CKKS plan cannot give exact sums."""


@dataclass(frozen=True)
class Plan:
    """CKKS parameters and packing.

    Attributes:
        poly_modulus_degree: N; a ciphertext has N/2 complex slots.
        prime_bits: the data prime, then the special prime.
        scale: the integer by which slots are scaled before rounding to the ring.
        digits: integers per real or imaginary part of a slot.
        digit_bits: T; a digit holds sums in [-2^(T-1), 2^(T-1)).
        value_bits: bits of one party's signed integer; it is at most 2^(value_bits-1) - 1.
        max_parties: how many such integers a digit can sum.
        segment_ciphertexts: ciphertexts in a full segment.
    """

    poly_modulus_degree: int = 4096
    prime_bits: tuple[int, ...] = (60, 30)
    scale: int = 655_360
    digits: int = 2
    digit_bits: int = 20
    value_bits: int = 14
    max_parties: int = 64
    segment_ciphertexts: int = 16

    def __post_init__(self) -> None:
        limit = SECURITY_BITS.get(self.poly_modulus_degree)
        if limit is None:
            raise PlanError(f"plan: ring degree {self.poly_modulus_degree} is not one of {sorted(SECURITY_BITS)}")
        if sum(self.prime_bits) > limit:
            raise PlanError(f"plan: {sum(self.prime_bits)} bits of primes exceed the {limit} of 128-bit security")
        if min(self.digits, self.segment_ciphertexts, self.value_bits - 1, self.max_parties - 1) < 1:
            raise PlanError("plan: digits, value bits, parties and segment size must be positive")
        if self.max_parties * self.max_value >= 1 << (self.digit_bits - 1):
            raise PlanError(
                f"plan: {self.max_parties} parties with values up to {self.max_value} overflow a digit of "
                f"{self.digit_bits} bits"
            )
        noise_factor = 20 if self.poly_modulus_degree == 4096 else 25
        needed = noise_factor * self.poly_modulus_degree * math.sqrt(self.max_parties)
        if self.scale < needed:
            raise PlanError(f"plan: a scale of {self.scale} is below {needed:.0f}, so sums would not be exact")
        if math.sqrt(2) * self.max_total_per_slot >= 2 ** (self.prime_bits[0] - 1) / self.scale:
            raise PlanError("plan: the largest total does not fit the data prime at this scale")

    @property
    def max_value(self) -> int:
        """The largest absolute integer that one party may contribute."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def max_total_per_slot(self) -> int:
        """The largest absolute integer in one part of a slot after ``max_parties`` additions."""
        largest = self.max_parties * self.max_value
        return sum(largest << (digit * self.digit_bits) for digit in range(self.digits))

    @property
    def slots(self) -> int:
        return self.poly_modulus_degree // 2

    @property
    def values_per_ciphertext(self) -> int:
        """Integers in one ciphertext: real and imaginary part of every slot, ``digits`` in each."""
        return 2 * self.slots * self.digits

    @property
    def values_per_segment(self) -> int:
        return self.values_per_ciphertext * self.segment_ciphertexts

    def ciphertexts(self, length: int) -> int:
        """Ciphertexts that ``length`` integers need."""
        return -(-length // self.values_per_ciphertext)

    def segments(self, length: int) -> tuple[slice, ...]:
        """How a vector of ``length`` integers is cut: one slice a segment, in order."""
        step = self.values_per_segment
        return tuple(slice(start, min(start + step, length)) for start in range(0, length, step))

    def to_dict(self) -> dict[str, object]:
        """For the manifest: integers only."""
        return {**asdict(self), "prime_bits": list(self.prime_bits)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, object]) -> Plan:
        """The inverse of :meth:`to_dict`.

        Raises:
            PlanError: a key is missing, unknown or not an integer, or the plan is not exact.
        """
        expected = set(cls.__dataclass_fields__)
        if set(fields) != expected:
            wrong = ", ".join(sorted(set(fields) ^ expected))
            raise PlanError(f"plan: exactly the keys {sorted(expected)} were expected; these differ: {wrong}")
        values: dict[str, object] = {}
        for key, value in fields.items():
            parts = value if key == "prime_bits" and isinstance(value, list) else [value]
            if not all(type(part) is int for part in parts):
                raise PlanError(f"plan: {key} should be made of integers, came {value!r}")
            values[key] = tuple(parts) if key == "prime_bits" else value
        return cls(**values)  # type: ignore[arg-type]
