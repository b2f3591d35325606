"""The planner: every plan is exact under the noise law, none is smaller, and what cannot be exact is refused."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.ciphertexts import make_context
from keys.ckks import Opener, Sealer, generate_keys
from keys.noise import MAX_RESIDUAL, WORST_SLOT
from keys.packing import pack, unpack
from keys.plan import NOISE_FACTOR, SECURITY_BITS, Plan, PlanError, least_scale
from keys.planner import SEGMENT_BYTES, choose, explain
from keys.segments import HEAD_BYTES, ciphertext_bytes

STANDARD = {128: seal.SEC_LEVEL_TYPE.TC128, 192: seal.SEC_LEVEL_TYPE.TC192}
DATA_BITS = range(24, 61)

parties = st.one_of(st.integers(2, 256), st.sampled_from([2, 3, 4, 16, 32, 64, 255, 256]))
bits = st.integers(4, 24)
lengths = st.one_of(st.integers(1, 50_000), st.integers(1, 10**9))
security = st.sampled_from([128, 192])
noises = st.one_of(st.just(0), st.integers(0, 255))  # so much is left of 32 bits beside 256 parties' 24


def context(ring: int, primes: tuple[int, ...], level: int) -> seal.SEALContext:
    """SEAL's own word on a prime list, at the security level that is meant."""
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(ring)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(ring, list(primes)))
    return seal.SEALContext(parameters, True, STANDARD[level])


def exact(ring: int, prime: int, digits: int, width: int, total: float, count: int) -> bool:
    """The noise law in its own words: is there a scale for a sum of ``count`` parties up to ``total`` a digit?"""
    scale = {4096: 20, 8192: 25}[ring] * ring * math.sqrt(count)
    part = sum(total * 2.0 ** (width * digit) for digit in range(digits))
    return math.sqrt(2) * part < 2.0**prime / (2 * scale)


@given(parties, bits, lengths, security, noises)
def test_every_plan_obeys_the_law(count: int, value: int, length: int, level: int, noise: int) -> None:
    plan = choose(count, value, length, level, noise)
    ring, total = plan.poly_modulus_degree, count * (2 ** (value - 1) - 1) + noise
    assert (plan.max_parties, plan.value_bits, plan.security, plan.max_noise) == (count, value, level, noise)
    assert 2 ** (plan.digit_bits - 1) > total >= 2 ** (plan.digit_bits - 2), "as wide as it must be, no wider"
    assert total < 2**31
    assert plan.scale >= NOISE_FACTOR[ring] * ring * math.sqrt(count) * (1 - 1e-15)
    assert exact(ring, plan.prime_bits[0], plan.digits, plan.digit_bits, total, count)
    assert plan.digits * plan.digit_bits <= 53
    assert sum(plan.prime_bits) <= {128: {4096: 109, 8192: 218}, 192: {4096: 75, 8192: 152}}[level][ring]
    assert plan.canary_digits == math.ceil(64 / math.log2(2**value - 1))
    assert Plan.from_dict(plan.to_dict()) == plan


@given(parties, bits, lengths, security)
def test_segments_fit_a_message_and_the_update(count: int, value: int, length: int, level: int) -> None:
    plan = choose(count, value, length, level)
    up, down = plan.segment_ciphertexts * ciphertext_bytes(plan), 4 * plan.values_per_segment
    assert 1 <= plan.segment_ciphertexts <= min(64, plan.ciphertexts(length))
    assert max(up, down) <= 1.5 * SEGMENT_BYTES
    if plan.segment_ciphertexts < plan.ciphertexts(length):
        assert max(up, down) > 0.6 * SEGMENT_BYTES


@given(parties, bits, st.one_of(st.none(), lengths), security, noises)
def test_nothing_smaller_is_exact(count: int, value: int, length: int | None, level: int, noise: int) -> None:
    plan = choose(count, value, length, level, noise)
    total = count * (2 ** (value - 1) - 1) + noise

    def cost(ring: int, prime: int, digits: int) -> Fraction:
        size, values = ring * prime // 4, ring * digits - math.ceil(64 / value)
        return Fraction(size, values) if length is None else Fraction(size * math.ceil(length / values))

    candidates = [
        cost(ring, prime, digits)
        for ring, prime, digits in itertools.product((4096, 8192), DATA_BITS, range(1, 12))
        if prime + 20 <= SECURITY_BITS[level][ring]
        # What the planner leaves for a prime below its power of two, any other plan leaves as well.
        and exact(ring, prime, digits, plan.digit_bits, (total + 1) * 64 / 63, count)
    ]
    assert cost(plan.poly_modulus_degree, plan.prime_bits[0], plan.digits) <= min(candidates)


@settings(max_examples=60, deadline=None)
@given(parties, bits, lengths, security, st.sampled_from([1, -1]))
def test_sums_at_the_limit_come_apart_again_in_float64(
    count: int, value: int, length: int, level: int, sign: int
) -> None:
    plan = choose(count, value, length, level)
    largest = np.full(plan.values_per_ciphertext, sign * plan.max_value)
    canaries = np.full((1, plan.canary_digits), sign * plan.max_value)
    alternating = np.where(np.arange(largest.size) % 2, largest, -largest)
    for values in (largest, alternating):
        sums = unpack(count * pack(values, plan, canaries), plan)
        assert np.array_equal(sums.values, count * values)
        assert np.array_equal(sums.canaries, count * canaries)


@given(parties, bits, security, st.integers(1, 100_000), st.sampled_from([1, -1]))
def test_noise_on_purpose_has_room(count: int, value: int, level: int, noise: int, sign: int) -> None:
    plan = choose(count, min(value, 20), None, level, noise)
    part = sum(sign * plan.max_total << (digit * plan.digit_bits) for digit in range(plan.digits))
    assert abs(part) == plan.max_total_per_slot
    sums = unpack(np.full((1, plan.slots), complex(part, -part)), plan)
    assert set(np.unique(sums.values)) == {-plan.max_total, plan.max_total}


@settings(max_examples=40, deadline=None)
@given(parties, bits, lengths, security)
def test_seal_takes_every_planned_prime_list(count: int, value: int, length: int, level: int) -> None:
    plan = choose(count, value, length, level)
    assert make_context(plan).parameters_set()
    assert context(plan.poly_modulus_degree, plan.prime_bits, level).parameters_set()


@pytest.mark.parametrize("ring", [4096, 8192])
def test_a_prime_is_as_near_its_power_of_two_as_the_law_takes_it(ring: int) -> None:
    for size in DATA_BITS:
        for special in {20, size}:
            prime = seal.CoeffModulus.Create(ring, [size, special])[0].value()
            assert 63 * 2**size < 64 * prime < 64 * 2**size


@pytest.mark.parametrize(("ring", "level"), [(4096, 128), (8192, 128), (4096, 192)])
def test_ciphertexts_are_as_large_as_planned(ring: int, level: int) -> None:
    for size in (24, 29, 32, 36, 40, 48, 55, 60):
        if size + 20 > SECURITY_BITS[level][ring]:
            continue
        plan = Plan(ring, (size, 20), least_scale(ring, 2), 1, 5, 4, 2, canary_digits=17, security=level)
        sealed = Sealer(plan, generate_keys(plan)[0]).seal(np.arange(-7, 8))
        assert len(sealed) == HEAD_BYTES + ciphertext_bytes(plan)


@pytest.mark.parametrize(
    ("count", "value", "digits", "width", "most"),
    [(64, 14, 2, 20, 7.6), (64, 7, 3, 13, 5.0), (32, 8, 3, 13, 5.0)],
)
def test_published_figures(count: int, value: int, digits: int, width: int, most: float) -> None:
    plan = choose(count, value, 1_000_000)
    assert (plan.poly_modulus_degree, plan.digits, plan.digit_bits) == (4096, digits, width)
    assert explain(plan, 1_000_000).bytes_per_parameter <= most


def test_the_default_plan_is_the_planners_for_64_parties_and_14_bits() -> None:
    assert choose(64, 14) == Plan()
    assert choose(64, 14, 11_000_000) == Plan()
    explained = explain(Plan(), 11_511_784)
    assert explained.bytes_up <= 95_000_000, "the whole ResNet-18"
    assert explained.bytes_down == 4 * 11_511_784


def test_192_bits_take_smaller_primes_or_a_larger_ring() -> None:
    strict, usual = (choose(64, 14, 1_000_000, security=level) for level in (192, 128))
    assert explain(strict, 1_000_000).bytes_up > explain(usual, 1_000_000).bytes_up


def test_a_small_update_takes_a_smaller_prime_instead_of_more_digits() -> None:
    plan = choose(64, 14, 3591)
    assert plan.digits == 1
    assert plan.segment_ciphertexts == 1
    assert ciphertext_bytes(plan) < ciphertext_bytes(choose(64, 14, 1_000_000))


@given(parties, bits, lengths, security)
def test_the_explanation_keeps_its_promises(count: int, value: int, length: int, level: int) -> None:
    plan = choose(count, value, length, level)
    told = explain(plan, length)
    assert told.ciphertexts == math.ceil(length / plan.values_per_ciphertext)
    assert told.segments == len(plan.segments(length)) if length < 10**6 else told.segments >= 1
    assert told.bytes_up == told.ciphertexts * ciphertext_bytes(plan)
    assert told.bytes_per_parameter == told.bytes_up / length
    assert told.worst_sigma == pytest.approx(WORST_SLOT[plan.poly_modulus_degree] * told.rms_sigma)
    assert 10 * told.worst_sigma <= MAX_RESIDUAL * 1.001
    assert told.rms_sigma == pytest.approx(math.sqrt(count) * plan.poly_modulus_degree / 6 / plan.scale, rel=1e-3)
    assert told.failure_bits > 40
    assert told.bits_left > 0
    assert 1 < told.digit_left <= 2


@pytest.mark.parametrize(
    ("arguments", "reasons"),
    [
        ((1, 14), ["at least 2 parties", "came 1"]),
        ((64, 3), ["4 to 24 bits of a value", "came 3"]),
        ((64, 25), ["4 to 24 bits of a value", "came 25"]),
        ((64, 14, 0), ["1 to 1000000000 parameters", "came 0"]),
        ((64, 14, 10**9 + 1), ["parameters", "came 1000000001"]),
        ((64, 14, None, 256), ["256 bits is not one of [128, 192]"]),
        ((64, 14, None, 128, -1), ["at least 0 noise", "came -1"]),
        ((257, 24), ["beyond the 32 bits", "at most 256 parties with 24 bits", "at most 23 bits for 257 parties"]),
        ((1024, 24), ["reach 8,589,933,568", "at most 256 parties", "at most 22 bits for 1024 parties"]),
        ((64, 14, None, 128, 2**31), ["noise of up to 2,147,483,648", "noise of at most 2,146,959,423"]),
        ((2, 4, None, 128, 2**40), ["noise of at most 2,147,483,633"]),
        ((10**8, 4), ["no room for the noise", "parties with 4 bits"]),
        ((10**400, 24), ["beyond the 32 bits", "at most 256 parties with 24 bits"]),
        ((10**400, 24, None, 128, 2**31), ["What fits: nothing"]),
    ],
)
def test_what_cannot_be_exact_is_refused_with_what_would_fit(arguments: tuple[int, ...], reasons: list[str]) -> None:
    with pytest.raises(PlanError) as caught:
        choose(*arguments)
    assert "\n" not in str(caught.value)
    for reason in reasons:
        assert reason in str(caught.value)


@given(st.integers(2, 5000), bits, security)
def test_what_a_refusal_says_would_fit_does(count: int, value: int, level: int) -> None:
    try:
        choose(count, value, None, level)
    except PlanError as error:
        most = int(str(error).split("at most ")[1].split(" parties")[0])
        assert most < count
        assert choose(most, value, None, level).max_parties == most
        with pytest.raises(PlanError, match="cannot be exact"):
            choose(most + 1, value, None, level)
    else:
        assert count * (2 ** (value - 1) - 1) < 2**31


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prime_bits": [60]}, "a data prime of 24 to 60 bits"),
        ({"prime_bits": [60, 19]}, "a special prime of 20"),
        ({"prime_bits": [60, 20, 20]}, "were expected, came"),
        ({"digits": 3}, "exceed float64's 53"),
        ({"digits": 10**9, "digit_bits": 10**9}, "exceed float64's 53"),
        ({"digits": 1, "digit_bits": 33}, "the 32 of what is published"),
        ({"value_bits": 10**9}, "values of 4 to 24 bits"),
        ({"canary_digits": 4}, "fewer than the 5"),
        ({"max_noise": 64}, "overflow a digit"),
        ({"max_noise": -1}, "not negative"),
        ({"security": 192}, "exceed the 75 of 192-bit security"),
        ({"segment_ciphertexts": 1025}, "segments of at most 1024 ciphertexts"),
        ({"scale": 655_359}, "is below 655360"),
    ],
)
def test_a_manifests_plan_is_held_to_the_same_law(change: dict[str, object], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.from_dict({**Plan().to_dict(), **change})


@pytest.mark.parametrize(("count", "value", "level"), [(2, 20, 128), (3, 24, 128), (2, 7, 192), (2, 17, 192)])
def test_planned_sums_are_exact_in_seal(count: int, value: int, level: int) -> None:
    """The widest totals of few parties, where float64 has the least to spare: all at the limit, and alternating.

    Alternating parts of a slot are the pattern X^(N/4), which gathers the whole update in few coefficients.
    """
    plan = choose(count, value, 10**6, level)
    public, secret = generate_keys(plan)
    sealer, opener = Sealer(plan, public), Opener(plan, secret)
    largest = np.full(plan.values_per_ciphertext, plan.max_value)
    for update in (largest, -largest, np.where(np.arange(largest.size) % 4 < 2, largest, -largest)):
        sealed = [sealer.seal(update) for _ in range(count)]
        assert len(sealed[0]) * plan.segment_ciphertexts <= plan.max_segment_bytes
        assert 4 * plan.values_per_segment <= plan.max_segment_bytes
        total = sealer.add(sealed)
        assert np.array_equal(opener.open(total, update.size, count), count * update)
