"""Exact samplers of integer noise: the discrete Gaussian and the discrete Laplace distribution.

Noise in floating point carries marks of its making that give the value under it away (Mironov 2012), and a sampler
whose probabilities are only nearly right has no proof. Here every probability is exact, as it is with the samplers of
Canonne, Kamath and Steinke ("The Discrete Gaussian for Differential Privacy", 2020), in another way that suits arrays:

1. *Propose* x = sign * (k * width + place): k with probability 2^-(k+1), place uniform below ``width``, a fair sign;
   a negative zero is drawn again. All of it comes from whole random words, so it is exact.
2. *Accept* with probability 2^k * exp(-g(x)), where exp(-g) is the wanted weight. It is at most 1 because ``width`` is
   chosen so: g(k * width) >= k ln 2. What is accepted then has exactly the wanted distribution.
3. The uniform number of this choice has as many bits as it takes. Its first 64 decide against a double of 2^k exp(-g)
   wherever the two are further apart than that double can be wrong; else, once in 10^12, further bits are drawn and
   compared with exp(-g) to so many digits that the answer is certain.

How long it takes tells how many proposals were refused; what was accepted does not depend on that.

One departure, on purpose: k ends at 31, so that noise has a largest value, more than 36 sigma out. What is cut off has
a probability below 2^-900.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from node.privacy import chacha

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]

MAX_VARIANCE = 1 << 48
"""Squares of all proposals fit 64 bits."""

MAX_SCALE = 1 << 24

_BLOCK = 1 << 16
_WIDEST = 1 << 25
_LN2 = math.log(2)
DOUBT = 2.0**-40
"""The double is at most 2^-43 off, as a part of itself: an exponent below 70 in a few operations of 2^-53 each."""


def discrete_gaussian(count: int, variance: int, words: chacha.Words = chacha.words) -> Integers:
    """``count`` integers x, each with probability proportional to exp(-x^2 / (2 variance)).

    Args:
        variance: sigma squared, 1 to 2^48. (The variance of what is drawn is lower by less than 10^-6 of it.)
        words: for tests.
    """
    if not 1 <= variance <= MAX_VARIANCE:
        raise ValueError(f"a variance of 1 to {MAX_VARIANCE} was expected, came {variance}")
    width = math.isqrt(variance * 13863 // 10000 + 1) + 1  # at least sigma * sqrt(2 ln 2)
    return _sample(
        count, width, lambda x: x * x / (2.0 * variance), lambda x: Fraction(x * x, 2 * variance), words
    )  # fmt: skip


def discrete_laplace(count: int, scale: int, words: chacha.Words = chacha.words) -> Integers:
    """``count`` integers x, each with probability proportional to exp(-abs(x) / scale).

    Args:
        scale: 1 to 2^24.
        words: for tests.
    """
    if not 1 <= scale <= MAX_SCALE:
        raise ValueError(f"a scale of 1 to 2^24 was expected, came {scale}")
    width = scale * 6932 // 10000 + 1  # at least scale * ln 2
    return _sample(count, width, lambda x: abs(x) / float(scale), lambda x: Fraction(abs(x), scale), words)


def _sample(
    count: int,
    width: int,
    exponent: Callable[[Integers], Floats],
    exactly: Callable[[int], Fraction],
    words: chacha.Words,
) -> Integers:
    assert 0 < width < _WIDEST
    drawn: list[Integers] = []
    missing = count
    while missing > 0:
        accepted = _accepted(min(_BLOCK, 2 * missing + 32), width, exponent, exactly, words)[:missing]
        drawn.append(accepted)
        missing -= accepted.size
    return np.concatenate([np.zeros(0, np.int64), *drawn])


def _accepted(
    tries: int,
    width: int,
    exponent: Callable[[Integers], Floats],
    exactly: Callable[[int], Fraction],
    words: chacha.Words,
) -> Integers:
    """Of so many proposals those that are accepted."""
    proposal = words(tries)
    tossed, place = proposal >> np.uint64(32), (proposal & np.uint64(0xFFFFFFFF)).astype(np.int64)
    octave = (32 - np.frexp(tossed.astype(np.float64))[1]).astype(np.int64)  # leading zeros of 32 tosses
    # Uniform below 2 * width: the last, incomplete run of 32-bit words is left out.
    fair = (tossed > 0) & (place < 2**32 - 2**32 % (2 * width))
    place %= 2 * width
    negative = place >= width
    place[negative] -= width
    x = octave * width + place
    fair &= ~(negative & (x == 0))
    uniform = words(tries)
    with np.errstate(under="ignore"):
        chance = np.exp(octave * _LN2 - exponent(x))
    distance = uniform * 2.0**-64 - chance
    doubt = chance * DOUBT + 2.0**-62  # a word is a piece of 2^-64; as a double it is off by less than 2^-53 of it
    accept = fair & (distance < -doubt)
    for index in np.flatnonzero(fair & (abs(distance) <= doubt)).tolist():
        accept[index] = is_below(int(uniform[index]), int(octave[index]), exactly(int(x[index])), words)
    return np.where(negative, -x, x)[accept]


def is_below(word: int, octave: int, exponent: Fraction, words: chacha.Words = chacha.words) -> bool:
    """Whether a uniform number that begins with the 64 bits ``word`` is below 2^octave * exp(-exponent), which is at
    most 1. Draws further bits until it is certain."""
    if exponent == 0:
        return True
    bits, digits = 64, 40
    while True:
        with localcontext() as context:
            context.prec, context.Emin, context.Emax = digits, -(10**6), 10**6
            nearly = Fraction((-Decimal(exponent.numerator) / Decimal(exponent.denominator)).exp()) * 2**octave
        # Decimal rounds quotient and exp correctly: what may be wrong is below (exponent + 1) in the last digit.
        wrong = nearly * (exponent + 2) / 10 ** (digits - 1)
        if Fraction(word + 1, 1 << bits) <= nearly - wrong:
            return True
        if Fraction(word, 1 << bits) >= nearly + wrong:
            return False
        word = (word << 64) | int(words(1)[0])
        bits, digits = bits + 64, digits + 20
