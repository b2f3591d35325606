"""Scoring under encryption: two powers, two types.

A :class:`ScoringKey` is secret, and its owner's alone: it encrypts one batch and opens that batch's scores. A
:class:`Scorer` has no key at all: it multiplies what is encrypted with what it has in the clear. It does not matter
which of the two are the patients' features and which the weights.

Encryption is symmetric, so half of each ciphertext is a seed of 64 bytes. A key is for one batch: whatever becomes
known of it opens nothing else. What is opened are exact integers (``keys/scoring_layout.py``), for the reason in
docs/why-exact-integers.md, or nothing; a batch is opened once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import zstandard
from tenseal import sealapi

from keys.ciphertexts import framed, load, object_head, object_header, save
from keys.ckks import KeyFileError, OpeningFailed
from keys.scoring_layout import (
    MAX_BIAS,
    PLAIN_SCALE,
    PRIME_BITS,
    RING,
    SEALED_SCALE,
    SECURITY,
    SLOTS,
    Integers,
    Layout,
    ScoringError,
    Slots,
)
from keys.segments import Words, pack_words, unpack_words

_PRIMES = len(PRIME_BITS) - 1
_BITS = PRIME_BITS[0]
_POLYNOMIAL_BYTES = _PRIMES * RING * _BITS // 8
_SEED_BYTES = 64
SEALED_BYTES = _POLYNOMIAL_BYTES + _SEED_BYTES
"""Of a fresh ciphertext: one polynomial, and the seed of the other."""
SCORE_BYTES = 2 * _POLYNOMIAL_BYTES
"""Of a ciphertext that was computed on."""

_BLAKE2XB = b"\x01"
_SEED_INFO = 1 + _SEED_BYTES


@cache
def _context() -> sealapi.SEALContext:
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(RING)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(RING, list(PRIME_BITS)))
    levels = {128: sealapi.SEC_LEVEL_TYPE.TC128, 192: sealapi.SEC_LEVEL_TYPE.TC192}
    context = sealapi.SEALContext(parameters, True, levels[SECURITY])
    assert context.parameters_set(), context.parameters_error_message()
    return context


class ScoringKey:
    """The secret of one batch."""

    def __init__(self, secret: bytes) -> None:
        """Load a key that :meth:`generate` made. Raises KeyFileError."""
        key = sealapi.SecretKey()
        try:
            load(key, _context(), secret)
        except (ValueError, RuntimeError) as error:
            raise KeyFileError("expected the key of a batch, came something else") from error
        self._encryptor = sealapi.Encryptor(_context(), key)
        self._decryptor = sealapi.Decryptor(_context(), key)
        self._encoder = sealapi.CKKSEncoder(_context())

    @staticmethod
    def generate() -> bytes:
        """A fresh secret key's bytes, to be sealed."""
        return save(sealapi.KeyGenerator(_context()).secret_key())

    def seal(self, slots: Slots) -> bytes:
        """Encrypt (terms, SLOTS), integers in both parts: SEALED_BYTES for each term."""
        return b"".join(map(self._seal, slots))

    def seal_model(self, layout: Layout, weights: Integers, biases: Integers) -> bytes:
        """Encrypt (outputs, features) and (outputs,): outputs * (terms + 1) ciphertexts, those of a term together, so
        that each factor of theirs is needed once; at the end the biases, to be multiplied with one step."""
        spread = [layout.spread(row) for row in weights]
        terms = (each[term] for term in range(layout.terms) for each in spread)
        return b"".join(map(self._seal, itertools.chain(terms, map(layout.bias, biases.tolist()))))

    def _seal(self, slots: Slots) -> bytes:
        plaintext = sealapi.Plaintext()
        self._encoder.encode(slots.tolist(), SEALED_SCALE, plaintext)
        content = _content(save(self._encryptor.encrypt_symmetric(plaintext)))
        start = len(_head(SEALED_SCALE, written=1))
        words = np.frombuffer(content, "<u8", _PRIMES * RING, start).reshape(_PRIMES, RING)
        return pack_words(words, _BITS).tobytes() + content[-_SEED_BYTES:]

    def open(self, scores: bytes, layout: Layout) -> Integers:
        """Decrypt what a :class:`Scorer` gave for a batch of this key, and check it whole.

        Returns:
            (patients, outputs): the exact scores, in steps.

        Raises:
            OpeningFailed: a check failed; nothing is released, and the key must not be used again.
        """
        try:
            opened = [self._open(words, layout) for words in _scores(scores, layout.outputs)]
        except (ScoringError, ValueError, RuntimeError) as error:
            raise OpeningFailed from error
        return np.stack(opened, axis=1)

    def _open(self, words: Words, layout: Layout) -> Integers:
        ciphertext, plaintext = sealapi.Ciphertext(), sealapi.Plaintext()
        content = _head(SEALED_SCALE * PLAIN_SCALE, written=2) + words.tobytes()
        load(ciphertext, _context(), framed(content, compression=0))
        self._decryptor.decrypt(ciphertext, plaintext)
        slots = np.array(self._encoder.decode_complex(plaintext)[:SLOTS], np.complex128)
        parts = np.stack([slots.real, slots.imag], axis=1)
        nearest = np.rint(parts)
        honest = (
            np.abs(parts - nearest).max() <= layout.tolerance
            and np.abs(nearest).max() <= layout.most
            and not nearest[layout.blocks * layout.pairs :].any()
        )
        if not honest:
            raise OpeningFailed
        return layout.gather(nearest.astype(np.int64))


class Scorer:
    """Multiplies and adds, without a key."""

    def __init__(self) -> None:
        self._encoder = sealapi.CKKSEncoder(_context())
        self._evaluator = sealapi.Evaluator(_context())

    def score_patients(self, batch: bytes, layout: Layout, weights: Integers, biases: Integers) -> bytes:
        """The encrypted scores of encrypted patients.

        Args:
            batch: (terms) ciphertexts of ``layout.arrange(features)``.
            weights: (outputs, features), at most ``layout.max_weight``; not all zero for any output.
            biases: (outputs,), at most MAX_BIAS.

        Raises:
            ScoringError: the batch or the weights are not of this layout.
        """
        _check("weights", weights, (layout.outputs, layout.features), layout.max_weight)
        _check("biases", biases, (layout.outputs,), MAX_BIAS)
        factors = [layout.spread(row) for row in weights]
        totals: list[sealapi.Ciphertext | None] = [None] * layout.outputs
        for term, sealed in enumerate(self._sealed(batch, layout.terms)):
            for output, slots in enumerate(factors):
                totals[output] = self._plus(totals[output], sealed, self._factor(slots[term]))
        return self._finish(totals, layout, biases)

    def score_model(self, model: bytes, layout: Layout, features: Integers) -> bytes:
        """The encrypted scores of patients in the clear under an encrypted model.

        Args:
            model: of :meth:`ScoringKey.seal_model`.
            features: (patients, features), at most ``layout.max_feature``; patients at most those of the layout.

        Raises:
            ScoringError: the model or the features are not of this layout.
        """
        patients = min(len(features), layout.patients)
        _check("features", features, (patients, layout.features), layout.max_feature)
        everyone = np.zeros((layout.patients, layout.features), np.int64)
        everyone[:patients] = features
        terms = [*layout.arrange(everyone), np.ones(SLOTS, np.complex128)]
        totals: list[sealapi.Ciphertext | None] = [None] * layout.outputs
        sealed = self._sealed(model, layout.outputs * len(terms))
        for slots in terms:
            factor = self._factor(slots)
            totals = [self._plus(total, next(sealed), factor) for total in totals]
        return self._finish(totals, layout, np.zeros(layout.outputs, np.int64))

    def _sealed(self, data: bytes, count: int) -> Iterator[sealapi.Ciphertext]:
        if len(data) != count * SEALED_BYTES:
            raise ScoringError(f"expected {count} ciphertexts of {SEALED_BYTES} bytes, came {len(data)} bytes")
        for start in range(0, len(data), SEALED_BYTES):
            packed = np.frombuffer(data, "<u8", _POLYNOMIAL_BYTES // 8, start)
            seed = data[start + _POLYNOMIAL_BYTES : start + SEALED_BYTES]
            words = unpack_words(packed.reshape(_PRIMES, -1), _BITS)
            info = object_header(16 + _SEED_INFO, compression=0) + _BLAKE2XB + seed
            content = _head(SEALED_SCALE, written=1) + words.tobytes() + info
            ciphertext = sealapi.Ciphertext()
            try:
                load(ciphertext, _context(), framed(content, compression=0))
            except (ValueError, RuntimeError) as error:
                raise ScoringError("a ciphertext has residues that are none") from error
            yield ciphertext

    def _factor(self, slots: Slots) -> sealapi.Plaintext | None:
        """None for zeros: they add nothing, and SEAL would refuse them."""
        return self._encoded(slots, PLAIN_SCALE) if slots.any() else None

    def _plus(
        self, total: sealapi.Ciphertext | None, sealed: sealapi.Ciphertext, factor: sealapi.Plaintext | None
    ) -> sealapi.Ciphertext | None:
        """The total and one product."""
        if factor is None:
            return total
        product = sealapi.Ciphertext()
        self._evaluator.multiply_plain(sealed, factor, product)
        if total is None:
            return product
        self._evaluator.add_inplace(total, product)
        return total

    def _finish(self, totals: Sequence[sealapi.Ciphertext | None], layout: Layout, biases: Integers) -> bytes:
        parts = []
        for output, (total, bias) in enumerate(zip(totals, biases.tolist(), strict=True)):
            if total is None:
                raise ScoringError(f"output {output + 1}: expected a factor that is not zero, came zeros only")
            if bias:
                plaintext = self._encoded(layout.bias(bias), SEALED_SCALE * PLAIN_SCALE)
                self._evaluator.add_plain_inplace(total, plaintext)
            content = _content(save(total))
            words = np.frombuffer(content, "<u8", 2 * _PRIMES * RING, len(content) - 16 * _PRIMES * RING)
            parts.append(pack_words(words.reshape(2 * _PRIMES, RING), _BITS).tobytes())
        return b"".join(parts)

    def _encoded(self, slots: Slots, scale: float) -> sealapi.Plaintext:
        plaintext = sealapi.Plaintext()
        self._encoder.encode(slots.tolist(), scale, plaintext)
        return plaintext


def _scores(data: bytes, outputs: int) -> Iterator[Words]:
    """The residues of each output's ciphertext."""
    if len(data) != outputs * SCORE_BYTES:
        raise ScoringError(f"expected {outputs} ciphertexts of {SCORE_BYTES} bytes, came {len(data)} bytes")
    for start in range(0, len(data), SCORE_BYTES):
        packed = np.frombuffer(data, "<u8", SCORE_BYTES // 8, start)
        yield unpack_words(packed.reshape(2 * _PRIMES, -1), _BITS)


def _check(what: str, values: Integers, shape: tuple[int, ...], most: int) -> None:
    if values.shape != shape or np.abs(values).max() > most:
        raise ScoringError(f"{what}: expected shape {shape} and at most {most}, came {values.shape}")


def _head(scale: float, written: int) -> bytes:
    return object_head(_context().first_parms_id(), RING, _PRIMES, scale, written)


def _content(saved: bytes) -> bytes:
    """What SEAL saved, without its compression."""
    return zstandard.ZstdDecompressor().decompress(saved[16:])
