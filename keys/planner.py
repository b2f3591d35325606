"""The planner: the CKKS plan with the fewest bytes that keeps a federation's sums exact.

plan = choose(max_parties=64, value_bits=14, parameters=11_000_000)
explain(plan, 11_000_000).bytes_per_parameter    # 7.51

One 60-bit prime holds a total of about 40 bits: several narrow digits share it. Where there is little to
hold, a smaller prime makes smaller ciphertexts: they take as many bits a coefficient as the prime has.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction

from keys.noise import MAX_RESIDUAL, WORST_SLOT
from keys.plan import (
    DATA_PRIME_BITS,
    PUBLISHED_BITS,
    SECURITY_BITS,
    SPECIAL_PRIME_BITS,
    VALUE_BITS,
    Plan,
    PlanError,
    canaries_for,
    least_prime_bits,
    least_scale,
    packed,
)
from keys.segments import ciphertext_bytes

MAX_PARAMETERS = 10**9
SEGMENT_BYTES = 1 << 18
SEGMENT_CIPHERTEXTS = 64
PUBLISHED_BYTES = PUBLISHED_BITS // 8
_MAX_PARTIES_SEARCHED = 1 << PUBLISHED_BITS


@dataclass(frozen=True)
class Explanation:
    """What a plan means for an update of ``parameters`` values.

    Attributes:
        ciphertext_bytes: one ciphertext.
        bytes_per_parameter: of the whole upload.
        ciphertexts, segments: of one update.
        bytes_up: one party's update, or a sum of them: what a link carries upward in a round.
        bytes_down: the published total, on the same link.
        rms_sigma: root mean square over the slots of the noise of a full sum, in integers.
        worst_over_rms: a key whose worst slot has more than so many times the rms is redrawn.
        worst_sigma: noise of the worst slot that a key may have.
        failure_bits: an honest round fails with probability below 2^-failure_bits.
        bits_left: of the data prime, above the largest total.
        digit_left: how many times the largest total would fit a digit.
        prime_bits_allowed: largest sum of prime bits at this security level.
    """

    ciphertext_bytes: int
    bytes_per_parameter: float
    ciphertexts: int
    segments: int
    bytes_up: int
    bytes_down: int
    rms_sigma: float
    worst_over_rms: float
    worst_sigma: float
    failure_bits: float
    bits_left: float
    digit_left: float
    prime_bits_allowed: int


def choose(
    max_parties: int, value_bits: int, parameters: int | None = None, security: int = 128, max_noise: int = 0
) -> Plan:
    """The plan with the fewest bytes.

    Args:
        max_parties: parties whose integers a sum may hold, at least 2.
        value_bits: bits of one party's signed integer, 4 to 24.
        parameters: length of an update; None: not known yet, so the fewest bytes for a long one.
        security: 128 or 192 bits.
        max_noise: ten sigma of the noise added to a total on purpose, in integers.

    Raises:
        PlanError: an argument is out of range, or no plan is exact; says why, and what would fit.
    """
    for name, value, (low, high) in (
        ("parties", max_parties, (2, None)),
        ("bits of a value", value_bits, VALUE_BITS),
        ("parameters", parameters, (1, MAX_PARAMETERS)),
        ("noise", max_noise, (0, None)),
    ):
        if value is not None and (value < low or (high is not None and value > high)):
            until = "at least {}" if high is None else "{} to {}"
            raise PlanError(f"plan: {until.format(low, high)} {name} were expected, came {value}")
    if security not in SECURITY_BITS:
        raise PlanError(f"plan: a security level of {security} bits is not one of {sorted(SECURITY_BITS)}")
    plans = list(_exact_plans(max_parties, value_bits, parameters, security, max_noise))
    if not plans:
        raise PlanError(_refusal(max_parties, value_bits, security, max_noise))
    return min(plans, key=lambda plan: (_cost(plan, parameters), plan.poly_modulus_degree, plan.digits))


def explain(plan: Plan, parameters: int) -> Explanation:
    """The cost, error and reserves of ``plan`` for an update of ``parameters`` values.

    A coefficient's noise is a sum of independent roundings, uniform in [-1/2, 1/2], so a slot's is strictly
    sub-Gaussian: it exceeds x sigma with a probability of at most 2 exp(-x^2/2). Every part of every slot is
    counted as if it were the worst.
    """
    ring, count = plan.poly_modulus_degree, plan.ciphertexts(parameters)
    size = ciphertext_bytes(plan)
    # A ternary secret has |s(zeta)|^2 = 2N/3 on average; the law is keys/noise.py's.
    rms = math.sqrt(plan.max_parties * ring / 24 * (2 + 2 * ring / 3)) / plan.scale
    worst = WORST_SLOT[ring] * rms
    tail = (MAX_RESIDUAL / worst) ** 2 / 2 / math.log(2) - 1
    need = math.log2(2 * math.sqrt(2) * plan.max_total_per_slot * plan.scale)
    return Explanation(
        ciphertext_bytes=size,
        bytes_per_parameter=count * size / parameters,
        ciphertexts=count,
        segments=-(-count // plan.segment_ciphertexts),
        bytes_up=count * size,
        bytes_down=parameters * PUBLISHED_BYTES,
        rms_sigma=rms,
        worst_over_rms=WORST_SLOT[ring],
        worst_sigma=worst,
        failure_bits=tail - math.log2(count * ring),
        bits_left=plan.prime_bits[0] - need,
        digit_left=(1 << (plan.digit_bits - 1)) / plan.max_total,
        prime_bits_allowed=SECURITY_BITS[plan.security][ring],
    )


def _exact_plans(
    max_parties: int, value_bits: int, parameters: int | None, security: int, max_noise: int
) -> Iterator[Plan]:
    """The smallest exact plan of every ring and number of digits."""
    total = max_parties * ((1 << (value_bits - 1)) - 1) + max_noise
    digit_bits = total.bit_length() + 1
    canaries = canaries_for(value_bits)
    if digit_bits > PUBLISHED_BITS:
        return
    for ring in SECURITY_BITS[security]:
        scale = least_scale(ring, max_parties)
        low, high = DATA_PRIME_BITS[0], min(DATA_PRIME_BITS[1], SECURITY_BITS[security][ring] - SPECIAL_PRIME_BITS)
        for digits in itertools.count(1):
            least = max(low, least_prime_bits(packed(total, digits, digit_bits), scale))
            if least > high:
                break
            plan = Plan(
                poly_modulus_degree=ring,
                prime_bits=(least, SPECIAL_PRIME_BITS),
                scale=scale,
                digits=digits,
                digit_bits=digit_bits,
                value_bits=value_bits,
                max_parties=max_parties,
                canary_digits=canaries,
                security=security,
                max_noise=max_noise,
            )
            yield replace(plan, segment_ciphertexts=_segment(plan, parameters))


def _segment(plan: Plan, parameters: int | None) -> int:
    """Ciphertexts of about 256 KB, on their way up or opened on their way down; no more than are needed."""
    whole = round(SEGMENT_BYTES / max(ciphertext_bytes(plan), PUBLISHED_BYTES * plan.values_per_ciphertext))
    needed = SEGMENT_CIPHERTEXTS if parameters is None else plan.ciphertexts(parameters)
    return max(1, min(whole, needed, SEGMENT_CIPHERTEXTS))


def _cost(plan: Plan, parameters: int | None) -> Fraction:
    """Bytes of the update, or of one value where its length is not known."""
    if parameters is None:
        return Fraction(ciphertext_bytes(plan), plan.values_per_ciphertext)
    return Fraction(ciphertext_bytes(plan) * plan.ciphertexts(parameters))


def _refusal(max_parties: int, value_bits: int, security: int, max_noise: int) -> str:
    """Why nothing is exact, and the nearest that is."""

    def exact(parties: int, bits: int, noise: int) -> bool:
        return any(_exact_plans(parties, bits, 1, security, noise))

    total = max_parties * ((1 << (value_bits - 1)) - 1) + max_noise
    if total.bit_length() >= PUBLISHED_BITS:
        why = f"reach {total:,}, beyond the {PUBLISHED_BITS} bits in which they are published"
    else:
        why = f"of up to {total:,} leave no room for the noise in any prime of {security}-bit security"
    parties = _largest(lambda n: exact(n, value_bits, max_noise), 2, min(max_parties, _MAX_PARTIES_SEARCHED))
    bits = _largest(lambda b: exact(max_parties, b, max_noise), VALUE_BITS[0], value_bits)
    noise = _largest(lambda x: exact(max_parties, value_bits, x), 0, min(max_noise, 1 << PUBLISHED_BITS))
    fitting = [
        f"at most {parties} parties with {value_bits} bits" if parties is not None else "",
        f"at most {bits} bits for {max_parties} parties" if bits is not None else "",
        f"noise of at most {noise:,}" if noise is not None and max_noise else "",
    ]
    fits = ", or ".join(filter(None, fitting)) or "nothing: fewer parties, fewer bits and less noise together"
    noisy = f" and noise of up to {max_noise:,}" if max_noise else ""
    return (
        f"plan: sums over {max_parties} parties of {value_bits}-bit values{noisy} cannot be exact: totals {why}. "
        f"What fits: {fits}"
    )


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from ``low`` to ``high`` that fits, where all below one that fits fit as well."""
    if not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low
