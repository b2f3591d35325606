"""The key from decryptions: the attack of Li and Micciancio (EUROCRYPT 2021), and a contributor's probes.

A ciphertext (c0, c1) satisfies c0 + c1*s = p (mod q): p is what decryption sees, the message with its noise.
Whoever has p exactly solves for the secret key s. Raw CKKS decryptions, float64 numbers, are p in another
form: encoding them again gives p exactly. Rounded to the integers that were encrypted they give the
message without its noise, and the equation no longer holds for s.

``scripts/attack`` prints all figures of ``docs/why-exact-integers.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import tenseal as ts
import tenseal.sealapi as seal
from numpy.typing import NDArray

from keys.ciphertexts import Scratch, chosen_ciphertext, load, load_segment, make_context
from keys.ckks import Opener, OpeningFailed, Sealer, generate_keys
from keys.packing import Integers, pack
from keys.plan import Plan
from keys.segments import write_segment

Words = NDArray[Any]
"""Residues modulo q as Python integers, shape (N,): q has up to 60 bits, so products need 120."""

PARTIES = 4
AGGREGATES = 8
"""Ciphertexts attacked for each figure: one key's guesses then stray from 1/3 by 0.003 or less (one sigma)."""

DP_SIGMA = 32.0
"""Of each party's discrete Gaussian noise, in grid steps."""

PLANS = (
    Plan(),
    Plan(poly_modulus_degree=8192, prime_bits=(60, 60), scale=25 * 8192 * 2, digit_bits=18, max_parties=4),
)
CKKS_VECTORS = ((4096, (40, 20, 40), 2.0**20), (8192, (60, 40, 40), 2.0**40))
"""What ``ts.ckks_vector`` is commonly run with: ring, primes, scale."""


# ---- the number-theoretic transform, in SEAL's order ----------------------------------------------------


@cache
def _inverse_roots(q: int, degree: int) -> tuple[int, ...]:
    """Powers of the inverse of the least primitive 2N-th root of unity, exponents bit-reversed: SEAL's choice."""
    candidates = (pow(base, (q - 1) // (2 * degree), q) for base in range(2, q))
    root = next(candidate for candidate in candidates if pow(candidate, degree, q) == q - 1)
    least = min(pow(root, odd, q) for odd in range(1, 2 * degree, 2))
    bits = degree.bit_length() - 1
    return tuple(pow(least, -int(f"{index:0{bits}b}"[::-1], 2), q) for index in range(degree))


def inverse_ntt(values: Words, q: int) -> Words:
    """Coefficients, centred around 0, of the polynomial modulo X^N + 1 with these values at SEAL's roots."""
    degree = values.size
    roots = np.array(_inverse_roots(q, degree), dtype=object)
    width = 1
    while (half := degree // (2 * width)) >= 1:
        pairs = values.reshape(half, 2, width)
        low, high = pairs[:, 0], pairs[:, 1]
        twiddles = roots[half : 2 * half, np.newaxis]
        values = np.stack([(low + high) % q, (low - high) * twiddles % q], axis=1).reshape(-1)
        width *= 2
    coefficients = values * pow(degree, -1, q) % q
    return np.where(coefficients > q // 2, coefficients - q, coefficients)


def inverses(values: Words, q: int) -> Words:
    """Inverses modulo the prime q; a zero, one in 2^45 ciphertexts or fewer, raises ValueError."""
    return np.array([pow(int(value), -1, q) for value in values], dtype=object)


# ---- key recovery ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A ciphertext and what it is said to decrypt to: values at SEAL's roots modulo the first prime q."""

    c0: Words
    c1: Words
    message: Words


def recover(sample: Sample, q: int) -> Words:
    """The secret key's coefficients from one ciphertext and all its complex slots."""
    return _ternary(inverse_ntt((sample.message - sample.c0) * inverses(sample.c1, q) % q, q))


def recover_from_real_parts(first: Sample, second: Sample, q: int) -> Words:
    """The same from two ciphertexts and the real parts of their slots; ``message`` encodes twice those.

    Twice the real part is p(X) + p(1/X). In SEAL's order the values of p(1/X) are those of p backwards, so
    each ciphertext gives one linear equation in every s[i] and s[-1-i]: Cramer's rule.
    """
    known = [sample.message - sample.c0 - sample.c0[::-1] for sample in (first, second)]
    determinant = (first.c1 * second.c1[::-1] - second.c1 * first.c1[::-1]) % q
    numerator = known[0] * second.c1[::-1] - known[1] * first.c1[::-1]
    return _ternary(inverse_ntt(numerator * inverses(determinant, q) % q, q))


def _ternary(coefficients: Words) -> Words:
    """The likeliest of -1, 0, 1: right for the true key, and one in three for anything that looks random."""
    return np.clip(coefficients, -1, 1)


def _words(thing: Any, start: int, degree: int) -> Words:
    return np.array([thing[index] for index in range(start, start + degree)], dtype=object)


def _sample(ciphertext: Any, message: Any, degree: int) -> Sample:
    second = ciphertext.coeff_modulus_size() * degree
    return Sample(_words(ciphertext, 0, degree), _words(ciphertext, second, degree), _words(message, 0, degree))


def _encoded(context: Any, slots: NDArray[np.complex128], scale: float) -> Any:
    plaintext = seal.Plaintext()
    seal.CKKSEncoder(context).encode(slots.tolist(), scale, plaintext)
    return plaintext


def _first_prime(context: Any) -> int:
    return int(context.first_context_data().parms().coeff_modulus()[0].value())


# ---- federations to attack ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Fractions of the secret key's coefficients that the attack got right.

    Attributes:
        raw: from float64 decryptions of aggregates; the worst of the aggregates.
        published: from the exact integers, as wardtree publishes them; the mean over the aggregates. None: what
            was attacked publishes no integers.
    """

    setting: str
    dp_noise: bool
    raw: float
    published: float | None


def updates(length: int, dp_noise: bool, limit: int, rng: np.random.Generator) -> Integers:
    """Quantised updates of all parties, shape (PARTIES, length), if wanted with discrete Gaussian noise added."""
    integers = np.rint(np.clip(rng.normal(0, limit / 8, (PARTIES, length)), -limit / 2, limit / 2)).astype(np.int64)
    if dp_noise:
        support = np.arange(-math.ceil(10 * DP_SIGMA), math.ceil(10 * DP_SIGMA) + 1)
        weights = np.exp(-(support**2) / (2 * DP_SIGMA**2))
        integers += rng.choice(support, integers.shape, p=weights / weights.sum())
    return integers


def attack_wardtree(plan: Plan, dp_noise: bool, aggregates: int = AGGREGATES) -> Outcome:
    """Attack totals under a plan: their raw decryptions, and what the Opener gives out."""
    context, scale, rng = make_context(plan), float(plan.scale), np.random.default_rng()
    public, secret = generate_keys(plan)
    sealer, opener, q = Sealer(plan, public), Opener(plan, secret), _first_prime(context)
    secret_key = seal.SecretKey()
    load(secret_key, context, secret)
    decryptor, encoder = seal.Decryptor(context, secret_key), seal.CKKSEncoder(context)
    truth = inverse_ntt(_words(secret_key.data(), 0, plan.poly_modulus_degree), q)
    assert set(truth) == {-1, 0, 1}, "the transform is not SEAL's"
    raw: list[float] = []
    published: list[float] = []
    for _ in range(aggregates):
        parts = updates(plan.values_per_ciphertext, dp_noise, plan.max_value, rng)
        total = sealer.add([sealer.seal(part) for part in parts])
        (ciphertext,) = load_segment(total, plan, context)
        decrypted = seal.Plaintext()
        decryptor.decrypt(ciphertext, decrypted)
        floats = np.array(encoder.decode_complex(decrypted))[: plan.slots]
        assert np.array_equal(opener.open(total, parts.shape[1], PARTIES), parts.sum(0))
        integers = sum(pack(part, plan)[0] for part in parts)  # packing is linear: the published total, packed
        for slots, fractions in ((floats, raw), (integers, published)):
            sample = _sample(ciphertext, _encoded(context, slots, scale), plan.poly_modulus_degree)
            fractions.append(float(np.mean(recover(sample, q) == truth)))
    setting = f"wardtree's plan, N={plan.poly_modulus_degree} {list(plan.prime_bits)}"
    return Outcome(setting, dp_noise, min(raw), float(np.mean(published)))


def attack_ckks_vector(degree: int, primes: tuple[int, ...], scale: float, dp_noise: bool) -> Outcome:
    """Attack two totals of plain ``ts.ckks_vector``, from what its ``decrypt`` returns."""
    context = ts.context(ts.SCHEME_TYPE.CKKS, degree, -1, list(primes))
    context.global_scale = scale
    inner, limit, rng = context.seal_context().data, 8191, np.random.default_rng()
    samples = []
    for _ in range(2):
        parts = updates(degree // 2, dp_noise, limit, rng) / limit
        total = ts.ckks_vector(context, parts[0].tolist())
        for part in parts[1:]:
            total += ts.ckks_vector(context, part.tolist())
        twice = 2 * np.array(total.decrypt()).astype(np.complex128)
        samples.append(_sample(total.ciphertext()[0], _encoded(inner, twice, scale), degree))
    q = _first_prime(inner)
    truth = inverse_ntt(_words(context.secret_key().data.data(), 0, degree), q)
    right = float(np.mean(recover_from_real_parts(samples[0], samples[1], q) == truth))
    return Outcome(f"ts.ckks_vector, N={degree} {list(primes)}", dp_noise, right, None)


# ---- probes of a malicious contributor ------------------------------------------------------------------


@dataclass(frozen=True)
class ProbeRate:
    """How a probe (0, t*scale) fared.

    Attributes:
        parties: in the total, the prober included.
    """

    parties: int
    where: str
    t: float
    trials: int
    passed: int


@cache
def _context(plan: Plan) -> seal.SEALContext:
    return make_context(plan)


def segment_of(ciphertexts: Sequence[seal.Ciphertext], plan: Plan) -> bytes:
    """What a member can put on the wire of what it made in SEAL."""
    scratch = Scratch(plan.poly_modulus_degree)
    return write_segment(np.stack([scratch.words(one) for one in ciphertexts], axis=1), plan)


def probe(plan: Plan, slots: NDArray[np.complex128]) -> bytes:
    """The segment (0, slots*scale), slots of shape (N/2,): slot j of its decryption is slots[j] * s(zeta_j)."""
    context = _context(plan)
    ciphertext = chosen_ciphertext(plan, context, 0, 1, 1.0)
    seal.Evaluator(context).multiply_plain_inplace(ciphertext, _encoded(context, slots, float(plan.scale)))
    return segment_of([ciphertext], plan)


class Prober:
    """One key, honest totals, and a contributor who adds to them what it likes.

    The key room holds the noise of a total against the number of parties, so the stronger probe is chosen for
    each place: over all slots (a constant polynomial, which needs no rounding) it goes on top of an honest
    encryption; over one slot, where rounding the polynomial makes as much noise as an encryption, in place of one.
    """

    def __init__(self, plan: Plan, parties: int) -> None:
        self.plan, self.parties = plan, parties
        public, secret = generate_keys(plan)
        self.sealer, self.opener = Sealer(plan, public), Opener(plan, secret)
        self.rng = np.random.default_rng()
        self.length = plan.values_per_ciphertext
        limit = plan.max_value // 8
        parts = self.rng.integers(-limit, limit + 1, (parties - 1, self.length))
        self.expected = parts.sum(0)
        self.others = self.sealer.add([self.sealer.seal(part) for part in parts])
        self.all = self.sealer.add([self.others, self.sealer.seal(np.zeros(self.length, np.int64))])

    def opened(self, *parts: bytes) -> Integers | None:
        """What the key room would publish of the sum of these segments; None: failed."""
        try:
            return self.opener.open(self.sealer.add(parts), self.length, self.parties)
        except OpeningFailed:
            return None

    def over_all_slots(self, t: float) -> Integers | None:
        return self.opened(self.all, probe(self.plan, np.full(self.plan.slots, t, np.complex128)))

    def over_one_slot(self, t: float) -> Integers | None:
        slots = np.zeros(self.plan.slots, np.complex128)
        slots[self.rng.integers(self.plan.slots)] = t
        return self.opened(self.others, probe(self.plan, slots))


def probe_rates(plan: Plan, parties: int, keys: int, slots: int) -> Iterator[ProbeRate]:
    """Pass rates over fresh keys: all slots once a key and t, one slot ``slots`` times a key and t."""
    probers = [Prober(plan, parties) for _ in range(keys)]
    for t in (2.0**-16, 2.0**-14, 2.0**-12, 1.0, 2.0**8):
        results = [prober.over_all_slots(t) is not None for prober in probers]
        yield ProbeRate(parties, "all slots", t, len(results), sum(results))
    for t in (2.0**-8, 2.0**-4, 1.0, 2.0**8, 2.0**19):
        results = [prober.over_one_slot(t) is not None for prober in probers for _ in range(slots)]
        yield ProbeRate(parties, "one slot", t, len(results), sum(results))


def main() -> None:
    print("Fraction of the secret key's coefficients recovered (guessing gives 0.333)")
    print(f"{'':42}{'DP noise':>9}{'raw decryptions':>17}{'as published':>14}")
    outcomes = [attack_ckks_vector(*setting, noise) for setting in CKKS_VECTORS for noise in (False, True)]
    outcomes += [attack_wardtree(plan, noise) for plan in PLANS for noise in (False, True)]
    for row in outcomes:
        published = "-" if row.published is None else f"{row.published:.3f}"
        print(f"{row.setting:42}{'yes' if row.dp_noise else 'no':>9}{row.raw:17.3f}{published:>14}")
    print("\nProbes (0, t*scale) added to an honest total: how often the key room's check passes them")
    print(f"{'parties':>7}  {'where':10}{'t':>12}{'t*rms s':>10}{'passed':>8}{'of':>7}{'rate':>9}")
    rms = math.sqrt(2 * PLANS[0].poly_modulus_degree / 3)  # of |s(zeta_j)|
    for parties in (PARTIES, PLANS[0].max_parties):
        for rate in probe_rates(PLANS[0], parties, keys=10, slots=100):
            counts = f"{rate.passed:8}{rate.trials:7}{rate.passed / rate.trials:9.4f}"
            print(f"{rate.parties:7}  {rate.where:10}{rate.t:12.6g}{rate.t * rms:10.3g}{counts}")


if __name__ == "__main__":
    main()
