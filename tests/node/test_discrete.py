"""Samplers of integer noise: exact probabilities, seen in draws and in single choices."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chi2

from node.privacy import chacha, discrete
from node.privacy.discrete import discrete_gaussian, discrete_laplace, is_below

RARE = 1e-9
"""An honest sampler fails one test of these with this probability."""


def gaussian_weights(variance: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    x = np.arange(-math.ceil(12 * math.sqrt(variance)), math.ceil(12 * math.sqrt(variance)) + 1)
    weights = np.exp(-(x**2) / (2 * variance))
    return x, weights / weights.sum()


def laplace_weights(scale: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    x = np.arange(-60 * scale, 60 * scale + 1)
    weights = np.exp(-abs(x) / scale)
    return x, weights / weights.sum()


def misfit(drawn: NDArray[np.int64], x: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """The p-value of Pearson's chi-square, values of an expected count below 20 taken together at either end."""
    counts = np.bincount(drawn - x[0], minlength=x.size).astype(float)
    expected = weights * drawn.size
    many = expected >= 20
    first, last = np.flatnonzero(many)[[0, -1]]
    cut = np.array([0, *range(first, last + 1), last + 1]) if first else np.arange(x.size)
    seen, wanted = np.add.reduceat(counts, cut), np.add.reduceat(expected, cut)
    used = wanted > 5
    statistic = ((seen - wanted)[used] ** 2 / wanted[used]).sum()
    return float(chi2.sf(statistic, used.sum() - 1))


@pytest.mark.parametrize("variance", [1, 2, 4, 9, 100, 12_345])
def test_the_discrete_gaussian_has_its_probabilities(variance: int) -> None:
    drawn = discrete_gaussian(300_000, variance)
    assert misfit(drawn, *gaussian_weights(variance)) > RARE


@pytest.mark.parametrize("scale", [1, 2, 5, 300])
def test_the_discrete_laplace_has_its_probabilities(scale: int) -> None:
    drawn = discrete_laplace(300_000, scale)
    assert misfit(drawn, *laplace_weights(scale)) > RARE


def test_the_test_of_fit_sees_what_is_wrong_by_two_percent() -> None:
    drawn = discrete_gaussian(300_000, 104)
    assert misfit(drawn, *gaussian_weights(100)) < RARE


@pytest.mark.parametrize("variance", [10**6, 10**12, 1 << 48])
def test_moments_where_there_are_too_many_values_to_count(variance: int) -> None:
    count = 300_000
    scaled = discrete_gaussian(count, variance) / math.sqrt(variance)
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3)):
        spread = math.sqrt({1: 1, 2: 2, 3: 15, 4: 96}[power] / count)
        assert abs((scaled**power).mean() - moment) < 6.2 * spread  # 6.2 sigma: 10^-9


def scripted(seed: int) -> chacha.Words:
    generator = np.random.default_rng(seed)  # for tests only: the same words for two samplers
    return lambda count: generator.integers(0, 2**64, count, np.uint64)


@pytest.mark.parametrize("sampler", [discrete_gaussian, discrete_laplace])
def test_doubles_decide_as_exact_arithmetic_does(sampler: object, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = [sampler(600, 77, scripted(seed)) for seed in range(3)]  # type: ignore[operator]
    calls: list[Fraction] = []
    honest = discrete.is_below

    def watched(word: int, octave: int, exponent: Fraction, words: chacha.Words) -> bool:
        calls.append(exponent)
        return honest(word, octave, exponent, words)

    monkeypatch.setattr(discrete, "is_below", watched)
    monkeypatch.setattr(discrete, "DOUBT", 1e9)  # nothing is left to doubles
    slow = [sampler(600, 77, scripted(seed)) for seed in range(3)]  # type: ignore[operator]
    assert len(calls) > 2000
    assert all(np.array_equal(one, other) for one, other in zip(quick, slow, strict=True))


@given(st.integers(0, 2**64 - 1), st.integers(0, 3), st.fractions(0, 60, max_denominator=10**9))
def test_a_choice_is_the_exact_one(word: int, octave: int, exponent: Fraction) -> None:
    exponent += octave  # so that the chance is at most 1
    chance = math.exp(octave * math.log(2) - float(exponent))
    uniform = word / 2**64
    if abs(uniform - chance) > 1e-12:
        assert is_below(word, octave, exponent) == (uniform < chance)


def test_a_choice_that_64_bits_leave_open_takes_more() -> None:
    """exp(-1) = 0.5e2d58d8b3bcdf1a badec7829054f90d... in base 16 (Knuth, volume 1, appendix A)."""
    word, rest = 0x5E2D58D8B3BCDF1A, 0xBADEC7829054F90D
    asked = []

    def more(value: int) -> chacha.Words:
        def give(count: int) -> NDArray[np.uint64]:
            asked.append(count)
            return np.array([value], np.uint64)

        return give

    assert is_below(word, 0, Fraction(1), more(rest - 1))
    assert not is_below(word, 0, Fraction(1), more(rest + 1))
    assert asked == [1, 1]
    assert is_below(word - 1, 0, Fraction(1), more(0))
    assert not is_below(word + 1, 0, Fraction(1), more(0))
    assert asked == [1, 1]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 300), st.integers(1, 1 << 48))
def test_the_number_that_was_asked_for_comes(count: int, variance: int) -> None:
    drawn = discrete_gaussian(count, variance)
    assert drawn.shape == (count,)
    assert drawn.dtype == np.int64
    assert not count or abs(drawn).max() < 40 * math.sqrt(variance) + 1


def test_draws_differ_whatever_the_seeds() -> None:
    drawn = []
    for _ in range(2):
        np.random.seed(1)
        drawn.append(discrete_gaussian(100, 10**9))
    assert not np.array_equal(*drawn)


def test_what_cannot_be_drawn_is_refused() -> None:
    for call in (lambda: discrete_gaussian(1, 0), lambda: discrete_gaussian(1, (1 << 48) + 1)):
        with pytest.raises(ValueError, match="a variance of 1 to"):
            call()
    with pytest.raises(ValueError, match="a scale of 1 to"):
        discrete_laplace(1, 0)


def test_normals_are_normal() -> None:
    drawn = np.sort(chacha.normals(100_001))
    from scipy.stats import kstest

    assert kstest(drawn, "norm").pvalue > RARE
    assert chacha.uniforms(10).max() <= 1
