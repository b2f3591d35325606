"""CKKS over ``tenseal.sealapi``: two powers, two types.

A :class:`Sealer` is public: it encrypts and adds. An :class:`Opener` is secret: it decrypts, checks,
and gives out integers or nothing. No object is both. TenSEAL's own context may or may not hold the
secret key (``make_context_public`` does not drop it), so it is not used; no Galois or relinearisation
keys are ever made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tenseal import sealapi

from keys.ciphertexts import (
    Scratch,
    chosen_ciphertext,
    is_secret_key,
    load,
    load_public_key,
    load_segment,
    make_context,
    save,
)
from keys.errors import WardtreeError
from keys.noise import WORST_SLOT, NoiseLaw
from keys.packing import Integers, Slots, pack, unpack
from keys.plan import Plan
from keys.segments import CiphertextError, Words, add, add_words, data_prime, fingerprint, pack_words

PUBLIC_KEY_MAGIC = b"wardtree public key 1\n"


class KeyFileError(WardtreeError):
    """A key file that is not what it should be."""


class OpeningFailed(WardtreeError):  # noqa: N818 - the answer to everyone is only this word
    """The opening failed."""

    def __init__(self) -> None:
        super().__init__("failed")


def prepare(plan: Plan, public_key: bytes | None = None) -> None:
    """Compute what follows from the plan and the public key; processes that are forked later need not do it again.

    Raises:
        KeyFileError: the file is no public key, or carries a secret key.
    """
    _encoder(plan)
    data_prime(plan)
    fingerprint(plan)
    if public_key is not None:
        _only_a_public_key(public_key, plan)


def generate_keys(plan: Plan) -> tuple[bytes, bytes]:
    """A fresh key pair: the public key file's bytes, and the secret key's bytes to be sealed.

    Keys whose worst slot is noisier than the scale is planned for are drawn again.
    """
    context = make_context(plan)
    while True:
        generator = sealapi.KeyGenerator(context)
        secret = save(generator.secret_key())
        if Opener(plan, secret).worst_slot <= WORST_SLOT[plan.poly_modulus_degree]:
            public = sealapi.PublicKey()
            generator.create_public_key(public)
            return PUBLIC_KEY_MAGIC + save(public), secret


@lru_cache(maxsize=1)
def _encoder(plan: Plan) -> sealapi.CKKSEncoder:
    """SEAL's encoder: tables of roots of unity and nothing else, so that it may be made before a fork."""
    return sealapi.CKKSEncoder(make_context(plan))


@lru_cache(maxsize=1)
def _only_a_public_key(data: bytes, plan: Plan) -> sealapi.PublicKey:
    """Load a public key file, which must hold one SEAL public key and nothing behind it.

    Raises:
        KeyFileError: says what the file is instead, a secret key above all.
    """
    body = data.removeprefix(PUBLIC_KEY_MAGIC)
    if is_secret_key(body, plan):
        raise KeyFileError("the public key file carries a secret key: it must never leave the key holder")
    if body == data:
        raise KeyFileError("the public key file is not one of wardtree's (its first line differs)")
    # SEAL ignores what follows an object; a serialised TenSEAL context or a second key could hide there.
    if int.from_bytes(body[8:16], "little") < len(body):
        raise KeyFileError("the public key file carries more than a public key")
    try:
        return load_public_key(body, plan, make_context(plan))
    except CiphertextError as error:
        raise KeyFileError("the public key file does not hold a public key of this plan") from error


@dataclass(frozen=True)
class _Zero:
    """An encryption of zero: the residues of the first polynomial, shape (N,), and the second one's bytes.

    Only the first takes up the message, so the second is ready to be sent.
    """

    first: Words
    second: bytes


class Sealer:
    """Encrypts integers and adds ciphertexts. Holds no secret but its stock of zeros."""

    def __init__(self, plan: Plan, public_key: bytes) -> None:
        """Load the public key.

        Raises:
            KeyFileError: the file is no public key, or carries a secret key.
        """
        self.plan = plan
        self._context = make_context(plan)
        self._encryptor = sealapi.Encryptor(self._context, _only_a_public_key(public_key, plan))
        self._encoder = _encoder(plan)
        self._scratch = Scratch(plan.poly_modulus_degree)
        self._zeros: deque[_Zero] = deque()

    def stock(self, count: int) -> None:
        """Make encryptions of zero in advance: they need no data, and are three quarters of what sealing costs.

        Each is used once and taken out before its use: a zero used twice gives away the difference of two
        updates. The stock belongs to this object in this process; it must not survive a fork.
        """
        for _ in range(count):
            zero = sealapi.Ciphertext()
            self._encryptor.encrypt_zero(zero)
            words = self._scratch.words(zero)
            second = pack_words(words[1:].copy(), self.plan.prime_bits[0]).tobytes()
            self._zeros.append(_Zero(words[0].copy(), second))

    @property
    def stocked(self) -> int:
        """Encryptions of zero in stock."""
        return len(self._zeros)

    def seal(self, values: Integers, canaries: Integers | None = None) -> bytes:
        """Encrypt one segment; uses the stock as far as it goes.

        Args:
            values: shape (length,), at most ``plan.values_per_segment`` of them.
            canaries: shape (ciphertexts, plan.canary_digits); None: zeros.

        Returns:
            The segment's bytes, as in ``keys/segments.py``.

        Raises:
            PackingError: a value exceeds the plan.
        """
        packed = pack(values, self.plan, canaries)
        first = np.empty((len(packed), self.plan.poly_modulus_degree), "<u8")
        seconds = [self._encrypt(slots, into) for slots, into in zip(packed, first, strict=True)]
        return b"".join([fingerprint(self.plan), pack_words(first, self.plan.prime_bits[0]).data, *seconds])

    def _encrypt(self, slots: Slots, first: Words) -> bytes:
        """Write a ciphertext's first polynomial, shape (N,); gives the second one's bytes.

        With a zero in stock the encoded message is added to it, which is what SEAL's encryption does as well: tested
        bit for bit against SEAL.
        """
        plaintext = sealapi.Plaintext()
        self._encoder.encode(slots.tolist(), float(self.plan.scale), plaintext)
        if not self._zeros:
            ciphertext = sealapi.Ciphertext()
            self._encryptor.encrypt(plaintext, ciphertext)
            words = self._scratch.words(ciphertext)
            first[:] = words[0]
            return pack_words(words[1:].copy(), self.plan.prime_bits[0]).tobytes()
        zero = self._zeros.popleft()
        first[:] = self._scratch.words(plaintext)[0]
        add_words(first, zero.first, data_prime(self.plan))
        zero.first.fill(0)  # it may never be used again, nor be compared with the ciphertext
        return zero.second

    def add(self, parts: Sequence[bytes]) -> bytes:
        """As :func:`keys.segments.add`, which needs no key."""
        return add(parts, self.plan)


class Opener:
    """Decrypts totals. Lives in the key room only; gives out exact integers or fails."""

    def __init__(self, plan: Plan, secret_key: bytes) -> None:
        """Load the secret key, and learn the noise of each of its slots.

        Raises:
            KeyFileError: the bytes are no secret key of this plan.
        """
        self.plan = plan
        self._context = make_context(plan)
        secret = sealapi.SecretKey()
        try:
            load(secret, self._context, secret_key)
        except (ValueError, RuntimeError) as error:
            raise KeyFileError("the secret key is not one of this plan") from error
        self._decryptor = sealapi.Decryptor(self._context, secret)
        self._encoder = _encoder(plan)
        # (0, 1) at scale 1 decrypts to the secret key's polynomial: its values at the slots give the noise.
        key_itself = chosen_ciphertext(plan, self._context, 0, 1, 1.0)
        self._noise = NoiseLaw.from_secret(plan, self._decrypt([key_itself])[0])

    @property
    def worst_slot(self) -> float:
        """Sigma of the key's noisiest slot over the rms of all."""
        return self._noise.worst_slot

    def open(self, segment: bytes, length: int, contributors: int, canaries: Integers | None = None) -> Integers:
        """Decrypt a segment's total and check it whole before any of it is released.

        Args:
            segment: the total of ``contributors`` parties, as :meth:`Sealer.add` gave it.
            length: integers in the segment, without padding.
            contributors: how many parties' updates the total claims to hold.
            canaries: the sum of their canaries, shape (ciphertexts, plan.canary_digits); None: zeros.

        Returns:
            Shape (length,): the exact sum.

        Raises:
            OpeningFailed: any check failed. It never says which: the check is an oracle.
        """
        try:
            ciphertexts = load_segment(segment, self.plan, self._context)
            if len(ciphertexts) != self.plan.ciphertexts(length):
                raise OpeningFailed
            opened = unpack(self._decrypt(ciphertexts), self.plan)
        except (CiphertextError, ValueError, RuntimeError) as error:
            raise OpeningFailed from error
        expected = np.zeros_like(opened.canaries) if canaries is None else canaries
        honest = (
            self._noise.fits(opened.residuals, contributors)
            and np.array_equal(opened.canaries, expected)
            and not opened.values[length:].any()
            and int(np.abs(opened.values).max()) <= contributors * self.plan.max_value + self.plan.max_noise
        )
        if not honest:
            raise OpeningFailed
        return opened.values[:length]

    def _decrypt(self, ciphertexts: Iterable[sealapi.Ciphertext]) -> Slots:
        def decrypted() -> Iterator[list[complex]]:
            for ciphertext in ciphertexts:
                plaintext = sealapi.Plaintext()
                self._decryptor.decrypt(ciphertext, plaintext)
                yield self._encoder.decode_complex(plaintext)[: self.plan.slots]

        return np.array(list(decrypted()), dtype=np.complex128)
