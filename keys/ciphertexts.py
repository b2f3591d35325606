"""SEAL's objects and their bytes: contexts, keys, ciphertexts.

SEAL saves to a path; that path is always a memfd or a pipe, so no key and no ciphertext touches a disk.
Make every object but the context after the last fork of a process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import weakref
from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
import zstandard
from tenseal import sealapi

from keys.plan import Plan
from keys.segments import CiphertextError, Words, read_segment

_LEVELS = {128: sealapi.SEC_LEVEL_TYPE.TC128, 192: sealapi.SEC_LEVEL_TYPE.TC192}


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


@cache
def make_context(plan: Plan) -> sealapi.SEALContext:
    """The SEAL context of a plan: tables that follow from its public numbers, made once in a process.

    It, its encoder and the public key alone of SEAL's objects may be made before a fork: nothing in them is random or
    secret, and SEAL starts no thread for them. Making it takes 7 ms, a third of what an enclave of a small model does.

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


def load_segment(segment: bytes, plan: Plan, context: sealapi.SEALContext) -> list[sealapi.Ciphertext]:
    """A segment's ciphertexts in SEAL, after every check of :func:`keys.segments.read_segment`.

    Verify the sender's signature first: most bit flips give another ciphertext of the same plan.

    Raises:
        CiphertextError: names what differs.
    """
    words = read_segment(segment, plan)
    return [to_seal(words[:, index], context, float(plan.scale)) for index in range(words.shape[1])]


def to_seal(words: Words, context: sealapi.SEALContext, scale: float) -> sealapi.Ciphertext:
    """The ciphertext with these residues, shape (2, N), written in SEAL's own format: every header is ours.

    Raises:
        CiphertextError: SEAL refuses the residues.
    """
    ciphertext = sealapi.Ciphertext()
    content = object_head(context.first_parms_id(), words.shape[1], 1, scale) + words.tobytes()
    try:
        load(ciphertext, context, framed(content, compression=0))
    except (ValueError, RuntimeError) as error:
        raise CiphertextError("SEAL does not load a ciphertext's residues") from error
    return ciphertext


class Scratch:
    """The way of SEAL's residues to numpy, for one owner in one process.

    SEAL gives Python one word at a time, or all of them in a file. The file is a pipe: a third of the way is saved
    against a memfd, whose pages come and go with every object. Where the kernel has no room left for a pipe
    that holds a whole object, which SEAL would wait to write for ever, it is a memfd all the same.
    """

    def __init__(self, degree: int) -> None:
        """For ciphertexts of up to two polynomials of ``degree`` residues."""
        self._degree = degree
        self._decompressor = zstandard.ZstdDecompressor()
        self._buffer = bytearray(32 * degree)
        self._read, write = os.pipe2(os.O_CLOEXEC)
        try:
            fcntl.fcntl(write, fcntl.F_SETPIPE_SZ, len(self._buffer))
        except OSError:
            os.close(self._read)
            os.close(write)
            self._read = write = os.memfd_create("wardtree", os.MFD_CLOEXEC)
        self._is_pipe = self._read != write
        self._path = f"/proc/self/fd/{write}"
        for descriptor in {self._read, write}:
            weakref.finalize(self, os.close, descriptor)

    def words(self, thing: sealapi.Ciphertext | sealapi.Plaintext) -> Words:
        """The residues of a ciphertext, shape (2, N), or of an encoded plaintext, (1, N), under one prime.

        Raises:
            CiphertextError: what came is not one whole object.
        """
        thing.save(self._path)
        if self._is_pipe:
            size = os.readv(self._read, [self._buffer])
        else:
            size = os.preadv(self._read, [self._buffer], 0)
            os.ftruncate(self._read, 0)
        if size != int.from_bytes(self._buffer[8:16], "little"):
            raise CiphertextError(f"an object of SEAL's came as {size} bytes, not whole or not alone")
        content = self._decompressor.decompress(memoryview(self._buffer)[16:size])
        polynomials = len(content) // (8 * self._degree)
        offset = len(content) - 8 * self._degree * polynomials
        return np.frombuffer(content, "<u8", offset=offset).reshape(polynomials, self._degree)


_MEMBERS = struct.Struct("<4QBQQQdQ")


def object_head(parms_id: Sequence[int], degree: int, primes: int, scale: float, written: int = 2) -> bytes:
    """What SEAL writes before the words of two polynomials: all of it follows from the plan.

    Of a ciphertext whose second polynomial follows from a seed only one polynomial is ``written``.
    """
    # NTT form, 2 polynomials, correction factor 1; then the header and the number of the words
    members = _MEMBERS.pack(*parms_id, True, 2, degree, primes, scale, 1)
    words = struct.pack("<Q", written * degree * primes)
    return members + object_header(16 + len(words) + 8 * written * degree * primes, compression=0) + words


def object_header(size: int, compression: int) -> bytes:
    """SEAL's: magic, header size, version 4.3, compression (0 none, 2 zstd), reserved, size of the whole."""
    return bytes.fromhex("5ea1100403") + bytes([compression, 0, 0]) + struct.pack("<Q", size)


def framed(content: bytes, compression: int) -> bytes:
    return object_header(16 + len(content), compression) + content


def _checked(blob: bytes, head: bytes, words: int) -> bytes:
    """The content of a SEAL file, decompressed, after every byte but its ``words`` was compared.

    SEAL must not parse a stranger's headers: nested compression in them makes it end the process, and a
    size of 0 or a huge one raises what it does not document. Words it checks itself, against the primes.
    """
    packed = blob[16:]
    size = len(head) + 8 * words
    try:
        # the size that the frame declares is what the decompressor would allocate
        if blob[:16] != object_header(len(blob), compression=2) or zstandard.frame_content_size(packed) != size:
            raise CiphertextError("a public key is not of the size of this plan's")
        content = zstandard.ZstdDecompressor().decompress(packed, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CiphertextError("a public key does not decompress") from error
    if content[: len(head)] != head:
        raise CiphertextError("a public key has other parameters than the plan's")
    return content


def load_public_key(data: bytes, plan: Plan, context: sealapi.SEALContext) -> sealapi.PublicKey:
    """Load a public key: just one, and nothing behind it.

    Raises:
        CiphertextError: it is something else.
    """
    degree, primes = plan.poly_modulus_degree, len(plan.prime_bits)
    head = object_head(context.key_parms_id(), degree, primes, 1.0)
    public = sealapi.PublicKey()
    try:
        load(public, context, framed(_checked(data, head, 2 * degree * primes), compression=0))
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


def chosen_ciphertext(plan: Plan, context: sealapi.SEALContext, c0: int, c1: int, scale: float) -> sealapi.Ciphertext:
    """The ciphertext with constant polynomials (c0, c1), written in SEAL's own format.

    Whoever decrypts (0, 1) reads the secret key: the key room does it to learn its own noise, and tests do
    it to attack. What comes from outside is always given the plan's scale, by :func:`load_segment`.
    """
    words = np.repeat(np.array([[c0], [c1]], "<u8"), plan.poly_modulus_degree, axis=1)
    return to_seal(words, context, scale)
