"""SEAL's objects and their bytes: contexts, ciphertexts, segments.

SEAL saves to a path; that path is always a memfd, so no key and no ciphertext touches a disk.
Make every object after the last fork of a process.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator, Sequence

import msgpack
import numpy as np
import zstandard
from tenseal import sealapi

from keys.errors import WardtreeError
from keys.plan import Plan

MAX_CIPHERTEXT_BYTES = 1 << 20
_LEVELS = {128: sealapi.SEC_LEVEL_TYPE.TC128, 192: sealapi.SEC_LEVEL_TYPE.TC192}


class CiphertextError(WardtreeError):
    """A ciphertext that is not of this federation's plan."""


@contextlib.contextmanager
def _memory_path() -> Iterator[tuple[int, str]]:
    descriptor = os.memfd_create("wardtree", os.MFD_CLOEXEC)
    try:
        yield descriptor, f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def save(thing: sealapi.Ciphertext) -> bytes:
    """The bytes of a SEAL object."""
    with _memory_path() as (descriptor, path):
        thing.save(path)
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def load(thing: sealapi.Ciphertext, context: sealapi.SEALContext, data: bytes) -> None:
    """Fill a SEAL object from bytes.

    Raises:
        ValueError, RuntimeError: SEAL refuses them.
    """
    with _memory_path() as (descriptor, path):
        os.pwrite(descriptor, data, 0)
        thing.load(context, path)


def make_context(plan: Plan) -> sealapi.SEALContext:
    """The SEAL context of a plan.

    Raises:
        CiphertextError: SEAL refuses the parameters.
    """
    parameters = sealapi.EncryptionParameters(sealapi.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(plan.poly_modulus_degree)
    parameters.set_coeff_modulus(sealapi.CoeffModulus.Create(plan.poly_modulus_degree, list(plan.prime_bits)))
    context = sealapi.SEALContext(parameters, True, _LEVELS[plan.security])
    if not context.parameters_set():
        raise CiphertextError(f"SEAL refuses the plan: {context.parameters_error_message()}")
    return context


def load_segment(data: bytes, plan: Plan, context: sealapi.SEALContext) -> list[sealapi.Ciphertext]:
    """Deserialise a segment and check every ciphertext against the plan.

    Verify the sender's signature first: SEAL's loader takes most bit flips for good.

    Raises:
        CiphertextError: names what differs.
    """
    ciphertexts = []
    degree = plan.poly_modulus_degree
    head = _head(context.first_parms_id(), degree, 1, float(plan.scale))
    for blob in _split(data, plan):
        ciphertext = sealapi.Ciphertext()
        try:
            load(ciphertext, context, _framed(_checked(blob, head, 2 * degree), compression=0))
        except (ValueError, RuntimeError) as error:
            raise CiphertextError("a ciphertext does not load under this federation's parameters") from error
        if ciphertext.is_transparent():
            raise CiphertextError("a ciphertext is transparent")
        ciphertexts.append(ciphertext)
    return ciphertexts


_MEMBERS = struct.Struct("<4QBQQQdQ")


def _head(parms_id: Sequence[int], degree: int, primes: int, scale: float) -> bytes:
    """What SEAL writes before the words of two polynomials: all of it follows from the plan."""
    # NTT form, 2 polynomials, correction factor 1; then the header and the number of the words
    members = _MEMBERS.pack(*parms_id, True, 2, degree, primes, scale, 1)
    words = struct.pack("<Q", 2 * degree * primes)
    return members + _header(16 + len(words) + 16 * degree * primes, compression=0) + words


def _header(size: int, compression: int) -> bytes:
    """SEAL's: magic, header size, version 4.3, compression (0 none, 2 zstd), reserved, size of the whole."""
    return bytes.fromhex("5ea1100403") + bytes([compression, 0, 0]) + struct.pack("<Q", size)


def _framed(content: bytes, compression: int) -> bytes:
    return _header(16 + len(content), compression) + content


def _checked(blob: bytes, head: bytes, words: int) -> bytes:
    """The content of a SEAL object, decompressed, after every byte but its ``words`` was compared.

    SEAL must not parse a stranger's headers: nested compression in them makes it end the process, and a
    size of 0 or a huge one raises what it does not document. Words it checks itself, against the primes.
    """
    packed = blob[16:]
    size = len(head) + 8 * words
    try:
        # the size that the frame declares is what the decompressor would allocate
        if blob[:16] != _header(len(blob), compression=2) or zstandard.frame_content_size(packed) != size:
            raise CiphertextError("a ciphertext is not of the size of this federation's")
        content = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CiphertextError("a ciphertext does not decompress") from error
    if content[: len(head)] != head:
        raise CiphertextError("a ciphertext has other parameters, or another scale than the plan's")
    return content


def load_public_key(data: bytes, plan: Plan, context: sealapi.SEALContext) -> sealapi.PublicKey:
    """Load a public key: just one, and nothing behind it.

    Raises:
        CiphertextError: it is something else.
    """
    degree, primes = plan.poly_modulus_degree, len(plan.prime_bits)
    head = _head(context.key_parms_id(), degree, primes, 1.0)
    public = sealapi.PublicKey()
    try:
        load(public, context, _framed(_checked(data, head, 2 * degree * primes), compression=0))
    except (ValueError, RuntimeError) as error:
        raise CiphertextError("a public key does not load under this plan") from error
    return public


def is_secret_key(data: bytes, plan: Plan) -> bool:
    """Whether bytes look like a SEAL secret key of this plan, by their size: one polynomial over all primes."""
    try:
        size = zstandard.frame_content_size(data[16:])
    except zstandard.ZstdError:
        return False
    # parms_id, coefficient count, scale; then a header, a length and the words
    return bool(size == 48 + 24 + 8 * plan.poly_modulus_degree * len(plan.prime_bits))


def join(ciphertexts: Sequence[bytes]) -> bytes:
    """A segment: a msgpack array of ciphertexts."""
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


def chosen_ciphertext(plan: Plan, context: sealapi.SEALContext, c0: int, c1: int, scale: float) -> sealapi.Ciphertext:
    """The ciphertext with constant polynomials (c0, c1), written in SEAL's own format.

    Whoever decrypts (0, 1) reads the secret key: the key room does it to learn its own noise, and tests do
    it to attack. No loader of ours takes one from outside: :func:`load_segment` demands the plan's scale.
    """
    degree = plan.poly_modulus_degree
    words = np.repeat(np.array([c0, c1], dtype="<u8"), degree).tobytes()
    head = _head(context.first_parms_id(), degree, 1, scale)
    ciphertext = sealapi.Ciphertext()
    load(ciphertext, context, _framed(head + words, compression=0))
    return ciphertext
