"""The CKKS plan of a federation: ring, primes, scale, and how integers share a slot.

A plan is public and part of the signed manifest. It makes sums of quantised updates *exact*: the
scale keeps the noise of the worst slot far below half an integer (Li and Micciancio, EUROCRYPT 2021,
show why nothing less than exact integers may ever be published), and the digits are wide enough for
the sum of every party's largest value.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from keys.errors import WardtreeError

SECURITY_BITS = {128: {4096: 109, 8192: 218}, 192: {4096: 75, 8192: 152}}
"""Largest total of prime bits by security level and ring (HomomorphicEncryption.org standard, 2018)."""

SPECIAL_PRIME_BITS = 20
"""The special prime only divides the noise of encryption: measured, 20 bits do it as well as 46."""

DATA_PRIME_BITS = (24, 60)
"""60 is SEAL's largest; below 24 the primes of a bit size can lie too far below its power of two."""

VALUE_BITS = (4, 24)
PUBLISHED_BITS = 32
"""Totals are published as signed integers of so many bits."""

CANARY_BITS = 64
"""At least so many bits of canaries in every ciphertext: a false contributor set passes with 2^-64."""

NOISE_FACTOR = {4096: 20, 8192: 25}
"""Scale per N * sqrt(parties) at which ten sigma of the worst slot that a key may have are 1/4."""


MAX_SEGMENT_CIPHERTEXTS = 1024
"""The largest segment: 67 MB at N=4096. Nodes hold a few of them at a time."""


class PlanError(WardtreeError):
    """The CKKS plan cannot give exact sums."""


def canaries_for(value_bits: int) -> int:
    """Digits for CANARY_BITS bits of canaries: each is one of 2^value_bits - 1 values."""
    return math.ceil(CANARY_BITS / math.log2((1 << value_bits) - 1))


def least_scale(ring: int, parties: int) -> int:
    """The smallest scale that keeps sums of ``parties`` exact: 20 N sqrt(parties), at N=8192 25."""
    return math.isqrt((NOISE_FACTOR[ring] * ring) ** 2 * parties - 1) + 1


def least_prime_bits(total: int, scale: int) -> int:
    """Bits of the smallest data prime q with ``sqrt(2) * (total + 1) < q / (2 * scale)``.

    Args:
        total: largest absolute integer in either part of a slot; one more leaves the noise its room.

    SEAL takes the largest prime of a bit size that is 1 modulo 2N; from 24 bits on it is above 63/64 of
    the power of two (tested for all).
    """
    least = math.isqrt(8 * ((total + 1) * scale) ** 2) + 1
    return (-(-least * 64 // 63) - 1).bit_length()


def packed(value: int, digits: int, digit_bits: int) -> int:
    """What a part of a slot holds when each of its digits is ``value``."""
    return sum(value << (digit * digit_bits) for digit in range(digits))


@dataclass(frozen=True)
class Plan:
    """CKKS parameters and packing. ``keys/planner.py`` chooses one; the defaults are its choice for 64 x 14 bits.

    Attributes:
        poly_modulus_degree: N; a ciphertext has N/2 complex slots.
        prime_bits: the data prime, then the special prime.
        scale: the integer by which slots are scaled before rounding to the ring.
        digits: integers per real or imaginary part of a slot.
        digit_bits: T; a digit holds sums in [-2^(T-1), 2^(T-1)).
        value_bits: bits of one party's signed integer; it is at most 2^(value_bits-1) - 1.
        max_parties: how many such integers a digit can sum.
        segment_ciphertexts: ciphertexts in a full segment.
        canary_digits: digits of every ciphertext that carry canaries instead of values.
        security: 128 or 192 bits.
        max_noise: the largest absolute noise, in integers, that a total may carry on purpose (differential
            privacy: ten sigma of it).
    """

    poly_modulus_degree: int = 4096
    prime_bits: tuple[int, ...] = (60, SPECIAL_PRIME_BITS)
    scale: int = 655_360
    digits: int = 2
    digit_bits: int = 20
    value_bits: int = 14
    max_parties: int = 64
    segment_ciphertexts: int = 4
    canary_digits: int = 5
    security: int = 128
    max_noise: int = 0

    def __post_init__(self) -> None:
        limits = SECURITY_BITS.get(self.security)
        if limits is None:
            raise PlanError(f"plan: a security level of {self.security} bits is not one of {sorted(SECURITY_BITS)}")
        limit = limits.get(self.poly_modulus_degree)
        if limit is None:
            raise PlanError(f"plan: ring degree {self.poly_modulus_degree} is not one of {sorted(limits)}")
        low, high = DATA_PRIME_BITS
        if len(self.prime_bits) != 2 or not (
            low <= self.prime_bits[0] <= high and SPECIAL_PRIME_BITS <= self.prime_bits[1] <= high
        ):
            raise PlanError(
                f"plan: a data prime of {low} to {high} bits and a special prime of {SPECIAL_PRIME_BITS} to "
                f"{high} were expected, came {list(self.prime_bits)}"
            )
        if sum(self.prime_bits) > limit:
            raise PlanError(
                f"plan: {sum(self.prime_bits)} bits of primes exceed the {limit} of {self.security}-bit security"
            )
        self._check_integers()
        needed = least_scale(self.poly_modulus_degree, self.max_parties)
        if self.scale < needed:
            raise PlanError(f"plan: a scale of {self.scale} is below {needed}, so sums would not be exact")
        if self.prime_bits[0] < least_prime_bits(self.max_total_per_slot, self.scale):
            raise PlanError("plan: the largest total does not fit the data prime at this scale")

    def _check_integers(self) -> None:
        if self.segment_ciphertexts > MAX_SEGMENT_CIPHERTEXTS:
            raise PlanError(
                f"plan: segments of at most {MAX_SEGMENT_CIPHERTEXTS} ciphertexts were expected, "
                f"came {self.segment_ciphertexts}"
            )
        if min(self.digits, self.segment_ciphertexts, self.max_parties - 1, self.max_noise + 1) < 1:
            raise PlanError("plan: digits, parties and segment size must be positive, noise not negative")
        low, high = VALUE_BITS
        if not low <= self.value_bits <= high:
            raise PlanError(f"plan: values of {low} to {high} bits were expected, came {self.value_bits}")
        if self.digits * self.digit_bits > sys.float_info.mant_dig:
            limit = sys.float_info.mant_dig
            raise PlanError(f"plan: {self.digits} digits of {self.digit_bits} bits exceed float64's {limit}")
        if self.canary_digits < canaries_for(self.value_bits) or self.values_per_ciphertext < 1:
            raise PlanError(
                f"plan: {self.canary_digits} canary digits of {self.value_bits} bits are fewer than the "
                f"{canaries_for(self.value_bits)} that {CANARY_BITS} bits of canaries need"
            )
        if self.digit_bits > PUBLISHED_BITS:
            raise PlanError(
                f"plan: a digit of {self.digit_bits} bits exceeds the {PUBLISHED_BITS} of what is published"
            )
        if self.digit_bits < self.max_total.bit_length() + 1:
            raise PlanError(
                f"plan: {self.max_parties} parties with values up to {self.max_value} overflow a digit of "
                f"{self.digit_bits} bits"
            )

    @property
    def max_value(self) -> int:
        """The largest absolute integer that one party may contribute."""
        return (1 << (self.value_bits - 1)) - 1

    @property
    def max_total(self) -> int:
        """The largest absolute integer in a digit after ``max_parties`` additions, noise included."""
        return self.max_parties * self.max_value + self.max_noise

    @property
    def max_total_per_slot(self) -> int:
        """The largest absolute integer in one part of a slot after ``max_parties`` additions."""
        return packed(self.max_total, self.digits, self.digit_bits)

    @property
    def slots(self) -> int:
        return self.poly_modulus_degree // 2

    @property
    def digits_per_ciphertext(self) -> int:
        """Integers in one ciphertext: real and imaginary part of every slot, ``digits`` in each."""
        return 2 * self.slots * self.digits

    @property
    def values_per_ciphertext(self) -> int:
        """Integers of an update in one ciphertext: all its digits but the canaries."""
        return self.digits_per_ciphertext - self.canary_digits

    @property
    def values_per_segment(self) -> int:
        return self.values_per_ciphertext * self.segment_ciphertexts

    @property
    def max_segment_bytes(self) -> int:
        """No segment is larger, encrypted on its way up or opened on its way down."""
        ciphertext = 16 * self.poly_modulus_degree + 1024  # two polynomials of 64-bit words, headers, zstd's worst
        return self.segment_ciphertexts * max(ciphertext, PUBLISHED_BITS // 8 * self.values_per_ciphertext)

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
