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
    for blob in _split(data, plan):
        ciphertext = sealapi.Ciphertext()
        try:
            load(ciphertext, context, blob)
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

    def framed(content: bytes) -> bytes:
        # magic, header size, version 4.3, no compression, reserved; then the whole size
        return bytes.fromhex("5ea1100403000000") + struct.pack("<Q", 16 + len(content)) + content

    degree = plan.poly_modulus_degree
    words = np.repeat(np.array([c0, c1], dtype="<u8"), degree).tobytes()
    head = struct.pack("<4Q", *context.first_parms_id())
    head += struct.pack("<BQQQdQ", True, 2, degree, 1, scale, 1)  # NTT form, 2 polynomials, 1 prime
    ciphertext = sealapi.Ciphertext()
    load(ciphertext, context, framed(head + framed(struct.pack("<Q", 2 * degree) + words)))
    return ciphertext
