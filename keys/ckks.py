"""CKKS over ``tenseal.sealapi``: two powers, two types.

A :class:`Sealer` is public: it encrypts and adds. An :class:`Opener` is secret: it decrypts, checks,
and gives out integers or nothing. No object is both. TenSEAL's own context may or may not hold the
secret key (``make_context_public`` does not drop it), so it is not used; no Galois or relinearisation
keys are ever made.

SEAL saves to a path; that path is always a memfd, so no key and no ciphertext touches a disk.
Make every object after the last fork of a process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np
import tenseal.sealapi as seal

from keys.errors import WardtreeError
from keys.packing import Integers, pack, unpack
from keys.plan import Plan

MAX_CIPHERTEXT_BYTES = 1 << 20
PUBLIC_KEY_MAGIC = b"wardtree public key 1\n"
MAX_RESIDUAL = 0.25


class CiphertextError(WardtreeError):
    """A ciphertext that is not of this federation's plan."""


class KeyFileError(WardtreeError):
    """A key file that is not what it should be."""


class OpeningFailed(WardtreeError):  # noqa: N818 - the answer to everyone is only this word
    """The opening failed."""

    def __init__(self) -> None:
        super().__init__("failed")


@contextlib.contextmanager
def _memory_path() -> Iterator[tuple[int, str]]:
    descriptor = os.memfd_create("wardtree", os.MFD_CLOEXEC)
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _save(thing: seal.Ciphertext) -> bytes:
    with _memory_path() as (descriptor, path):
        thing.save(path)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _load(thing: seal.Ciphertext, context: seal.SEALContext, data: bytes) -> None:
    with _memory_path() as (descriptor, path):
        os.pwrite(descriptor, data, 0)
        thing.load(context, path)


def make_context(plan: Plan) -> seal.SEALContext:
    """The SEAL context of a plan.

    Raises:
        CiphertextError: SEAL refuses the parameters.
    """
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(plan.poly_modulus_degree)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(plan.poly_modulus_degree, list(plan.prime_bits)))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    if not context.parameters_set():
        raise CiphertextError(f"SEAL refuses the plan: {context.parameters_error_message()}")
    return context


def generate_keys(plan: Plan) -> tuple[bytes, bytes]:
    """A fresh key pair: the public key file's bytes, and the secret key's bytes to be sealed."""
    context = make_context(plan)
    generator = seal.KeyGenerator(context)
    public = seal.PublicKey()
    generator.create_public_key(public)
    return PUBLIC_KEY_MAGIC + _save(public), _save(generator.secret_key())


def _only_a_public_key(data: bytes, context: seal.SEALContext) -> seal.PublicKey:
    """Load a public key file, which must hold one SEAL public key and nothing behind it.

    Raises:
        KeyFileError: says what the file is instead, a secret key above all.
    """
    body = data.removeprefix(PUBLIC_KEY_MAGIC)
    with contextlib.suppress(ValueError, RuntimeError):
        _load(seal.SecretKey(), context, body)
        raise KeyFileError("the public key file carries a secret key: it must never leave the key holder")
    if body == data:
        raise KeyFileError("the public key file is not one of wardtree's (its first line differs)")
    public = seal.PublicKey()
    try:
        _load(public, context, body)
    except (ValueError, RuntimeError) as error:
        raise KeyFileError("the public key file does not hold a public key of this plan") from error
    # SEAL ignores what follows an object; a serialised TenSEAL context or a second key could hide there.
    if int.from_bytes(body[8:16], "little") != len(body):
        raise KeyFileError("the public key file carries more than a public key")
    return public


class Sealer:
    """Encrypts integers and adds ciphertexts. Holds no secret."""

    def __init__(self, plan: Plan, public_key: bytes) -> None:
        """Load the public key.

        Raises:
            KeyFileError: the file is no public key, or carries a secret key.
        """
        self.plan = plan
        self._context = make_context(plan)
        self._encryptor = seal.Encryptor(self._context, _only_a_public_key(public_key, self._context))
        self._encoder = seal.CKKSEncoder(self._context)
        self._evaluator = seal.Evaluator(self._context)

    def seal(self, values: Integers) -> bytes:
        """Encrypt one segment.

        Args:
            values: shape (length,), at most ``plan.values_per_segment`` of them.

        Returns:
            The segment's bytes: a msgpack array of ciphertexts.

        Raises:
            PackingError: a value exceeds the plan.
        """
        ciphertexts = []
        for slots in pack(values, self.plan):
            plaintext, ciphertext = seal.Plaintext(), seal.Ciphertext()
            self._encoder.encode(slots.tolist(), float(self.plan.scale), plaintext)
            self._encryptor.encrypt(plaintext, ciphertext)
            ciphertexts.append(_save(ciphertext))
        return _join(ciphertexts)

    def add(self, parts: Sequence[bytes]) -> bytes:
        """Add the same segment of several parties. One part alone is checked and passed on.

        Raises:
            CiphertextError: a part is not a segment of this plan, or the parts differ in length.
        """
        loaded = [load_segment(part, self.plan, self._context) for part in parts]
        if len({len(ciphertexts) for ciphertexts in loaded}) != 1:
            raise CiphertextError(f"segments of {[len(c) for c in loaded]} ciphertexts cannot be added")
        if len(parts) == 1:
            return parts[0]
        total, *others = loaded
        for ciphertexts in others:
            for into, other in zip(total, ciphertexts, strict=True):
                self._evaluator.add_inplace(into, other)
        return _join([_save(ciphertext) for ciphertext in total])


class Opener:
    """Decrypts totals. Lives in the key room only; gives out exact integers or fails."""

    def __init__(self, plan: Plan, secret_key: bytes) -> None:
        """Load the secret key.

        Raises:
            KeyFileError: the bytes are no secret key of this plan.
        """
        self.plan = plan
        self._context = make_context(plan)
        secret = seal.SecretKey()
        try:
            _load(secret, self._context, secret_key)
        except (ValueError, RuntimeError) as error:
            raise KeyFileError("the secret key is not one of this plan") from error
        self._decryptor = seal.Decryptor(self._context, secret)
        self._encoder = seal.CKKSEncoder(self._context)

    def open(self, segment: bytes, length: int, contributors: int) -> Integers:
        """Decrypt a segment's total and check it whole before any of it is released.

        Args:
            segment: the total of ``contributors`` parties, as :meth:`Sealer.add` gave it.
            length: integers in the segment, without padding.
            contributors: how many parties' updates the total claims to hold.

        Returns:
            Shape (length,): the exact sum.

        Raises:
            OpeningFailed: any check failed. It never says which: the check is an oracle.
        """
        try:
            ciphertexts = load_segment(segment, self.plan, self._context)
            if len(ciphertexts) != self.plan.ciphertexts(length):
                raise OpeningFailed
            slots = np.empty((len(ciphertexts), self.plan.slots), np.complex128)
            for row, ciphertext in zip(slots, ciphertexts, strict=True):
                plaintext = seal.Plaintext()
                self._decryptor.decrypt(ciphertext, plaintext)
                row[:] = self._encoder.decode_complex(plaintext)
            integers, residual = unpack(slots, self.plan)
        except (CiphertextError, ValueError, RuntimeError) as error:
            raise OpeningFailed from error
        honest = (
            residual <= MAX_RESIDUAL
            and not integers[length:].any()
            and int(np.abs(integers).max()) <= contributors * self.plan.max_value
        )
        if not honest:
            raise OpeningFailed
        return integers[:length]


def load_segment(data: bytes, plan: Plan, context: seal.SEALContext) -> list[seal.Ciphertext]:
    """Deserialise a segment and check every ciphertext against the plan.

    Verify the sender's signature first: SEAL's loader takes most bit flips for good.

    Raises:
        CiphertextError: names what differs.
    """
    ciphertexts = []
    for blob in _split(data, plan):
        ciphertext = seal.Ciphertext()
        try:
            _load(ciphertext, context, blob)
        except (ValueError, RuntimeError) as error:
            raise CiphertextError("a ciphertext does not load under this federation's parameters") from error
        if ciphertext.parms_id() != context.first_parms_id():
            raise CiphertextError("a ciphertext has other parameters")
        if ciphertext.size() != 2:
            raise CiphertextError(f"a ciphertext of 2 polynomials was expected, came {ciphertext.size()}")
        if ciphertext.scale != float(plan.scale):
            raise CiphertextError(f"a ciphertext with scale {plan.scale} was expected")
        if not ciphertext.is_ntt_form() or ciphertext.is_transparent():
            raise CiphertextError("a ciphertext is transparent or not in NTT form")
        ciphertexts.append(ciphertext)
    return ciphertexts


def _join(ciphertexts: Sequence[bytes]) -> bytes:
    packed = msgpack.packb(list(ciphertexts), use_bin_type=True)
    assert isinstance(packed, bytes)
    return packed


def _split(data: bytes, plan: Plan) -> list[bytes]:
    try:
        blobs = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=plan.segment_ciphertexts,
            max_bin_len=MAX_CIPHERTEXT_BYTES,
            max_str_len=0,
            max_map_len=0,
            max_ext_len=0,
        )
    except (ValueError, msgpack.UnpackException) as error:
        raise CiphertextError("a segment is not an array of ciphertexts") from error
    if not isinstance(blobs, list) or not blobs or not all(isinstance(blob, bytes) for blob in blobs):
        raise CiphertextError("a segment is not an array of ciphertexts")
    return blobs
