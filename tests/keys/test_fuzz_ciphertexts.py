"""Mutated frames and mutated ciphertexts: the signature stops the first, our loader and the opening the second.

2,000 of each; with WARDTREE_FULL=1 200,000 of each, in some minutes, with the counts printed. What is
done to a mutant follows from its index, which the message of a failure names.
"""

from __future__ import annotations

import os
import re
import resource
import signal
import struct
import sys
import time
from collections import Counter
from random import Random

import msgpack
import numpy as np
import pytest
import zstandard

from keys.ciphertexts import load_segment, make_context, save
from keys.ckks import PUBLIC_KEY_MAGIC, KeyFileError, Opener, OpeningFailed, Sealer, generate_keys
from keys.plan import Plan
from keys.segments import HEAD_BYTES, CiphertextError, Words, data_prime, read_segment, write_segment
from node.protocol.codec import RemoteProtocolError
from tests.keys.survey import FULL, HEADROOM, Task, survey
from tests.node.test_codec import CODEC, EXAMPLES, NAMES, encode, signed

COUNT = 200_000 if FULL else 2_000
HEADERS = 160
"""SEAL's headers lie in the first bytes of a ciphertext, a frame's signature and header as well."""

EDGES = (0, 1, 2, 3, 2**31, 2**32, 2**60, 2**63 - 1, 2**63, 2**64 - 1, 0x7FF0 << 48, 0x7FF8 << 48)


def mutate(data: bytes, random: Random) -> bytes:
    """One to three changes, half of them among the headers: flips, edge values, cuts, insertions, copies."""
    mutant = bytearray(data)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        if not mutant:
            return b"\0"
        at = random.randrange(min(len(mutant), HEADERS) if random.random() < 0.5 else len(mutant))
        length = random.choice((1, 2, 8, 64, 4096))
        match random.randrange(12):
            case 0 | 1 | 2 | 3 | 4 | 5 | 6:
                mutant[at] ^= 1 << random.randrange(8)
            case 7:
                mutant[at] = random.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 8:
                mutant[at : at + 8] = struct.pack("<Q", random.choice(EDGES))
            case 9:
                del mutant[at : at + length if random.random() < 0.7 else None]
            case 10:
                mutant[at:at] = random.randbytes(length)
            case _:
                start = random.randrange(len(mutant))
                mutant[at : at + length] = mutant[start : start + length]
    return bytes(mutant)


def report(title: str, counts: Counter[str], began: float) -> None:
    if FULL:
        lines = "".join(f"\n  {count:8}  {label}" for label, count in counts.most_common())
        print(f"\n{title}: {counts.total()} in {time.monotonic() - began:.0f} s{lines}", file=sys.stderr)


# ---- frames: the signature ------------------------------------------------------------------------------

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493
FRAMES = [encode(message, sender, recipient) for message in EXAMPLES for sender in NAMES for recipient in ("", *NAMES)]
GENUINE = {frame.parts for frame in FRAMES}


def mutated_frame(random: Random) -> tuple[bytes, bytes]:
    """Something near a genuine frame that nobody signed."""
    (envelope, payload), (other, other_payload) = random.choice(FRAMES).parts, random.choice(FRAMES).parts
    signature, packed = envelope[:64], envelope[64:]
    match random.randrange(8):
        case 0 | 1 | 2:
            return mutate(envelope, random), payload
        case 3:
            return envelope, mutate(payload, random) if payload else other_payload
        case 4:  # another frame's signature
            return other[:64] + packed, payload
        case 5:  # the same signature, S + L instead of S: Ed25519 as first published would take it
            larger = int.from_bytes(signature[32:], "little") + GROUP_ORDER
            return signature[:32] + larger.to_bytes(32, "little") + packed, payload
        case 6:  # another field of the header, packed as it should be
            header = msgpack.unpackb(packed)
            header[random.choice((1, 3, 4, 5, 7, 8))] = msgpack.unpackb(other[64:])[random.choice((3, 5, 7, 8))]
            return signature + msgpack.packb(header), payload
        case _:  # signed indeed, but by another member, or as something else than a frame
            header = msgpack.unpackb(packed)
            stranger = random.choice([name for name in NAMES if name != header[7]])
            return random.choice((signed(header, stranger), signed(header, header[7], "ledger"))), payload


def refusal(frame: tuple[bytes, bytes]) -> str | None:
    try:
        CODEC.decode("cy", *frame)
    except RemoteProtocolError as error:
        return f"refused: expected {error.expected}"
    return None


@pytest.mark.timeout(1200)
def test_no_mutated_frame_is_accepted() -> None:
    assert all(CODEC.decode("cy", *parts).parts == parts for parts in GENUINE)
    began, refusals = time.monotonic(), Counter[str]()
    index = 0
    while refusals.total() < COUNT:
        index += 1
        frame = mutated_frame(Random(f"frame {index}"))
        if frame not in GENUINE:
            refusals[refusal(frame) or f"frame {index} was accepted"] += 1
    report("mutated frames", refusals, began)
    assert not [reason for reason in refusals if "accepted" in reason]
    assert sum(n for reason, n in refusals.items() if "signed by" in reason) > COUNT // 10, "few reached the signature"


# ---- children in which SEAL may crash -------------------------------------------------------------------


def test_a_crash_a_hang_and_an_escaped_error_are_seen() -> None:
    def make() -> Task:
        def task(index: int) -> str:
            match index:
                case 2:
                    os.kill(os.getpid(), signal.SIGSEGV)
                case 5:
                    time.sleep(10)
                case 6:
                    bytearray(4 * HEADROOM)
            return "well"

        return task

    counts = survey(make, range(8), hang_seconds=0.5)
    assert counts == {
        "well": 5,
        "killed by SIGSEGV at 2": 1,
        "killed by SIGALRM at 5": 1,
        "escaped at 6: MemoryError: ": 1,
    }


# ---- ciphertexts: what a member of the federation may sign ----------------------------------------------

PLAN = Plan()
OTHERS, LENGTH = 3, 1000
SAME, FAILED, REFUSED = "unchanged: opens exactly", "loads, then the opening fails", "refused: "
SIZES = re.compile(r"(?<=came )\d+(?= bytes)")


def a_federation() -> tuple[Sealer, Opener, bytes, bytes, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """Sealer, opener, the others' total, our own segment, and what the sum of both should open to."""
    public, secret = PAIR
    sealer, opener = Sealer(PLAN, public), Opener(PLAN, secret)
    parts = np.random.default_rng(7).integers(-PLAN.max_value, PLAN.max_value + 1, (OTHERS + 1, LENGTH))
    total = sealer.add([sealer.seal(part) for part in parts[1:]])
    return sealer, opener, total, sealer.seal(parts[0]), parts.sum(0)


PAIR = generate_keys(PLAN)


def mutated_words(words: Words, random: Random) -> Words:
    """One to three changes to residues, shape (2, ciphertexts, N): single ones, runs, whole polynomials."""
    mutant, prime = words.copy(), data_prime(PLAN)
    edges = (0, 1, prime - 1, prime, prime + 1, 2**60 - 1)
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        at = random.randrange(2), random.randrange(words.shape[1]), random.randrange(words.shape[2])
        polynomial = mutant[at[:2]]
        match random.randrange(8):
            case 0 | 1 | 2:
                mutant[at] ^= np.uint64(1 << random.randrange(60))
            case 3:
                mutant[at] = random.choice(edges)
            case 4:
                polynomial[at[2] : at[2] + random.choice((2, 8, 512))] = random.choice(edges)
            case 5:
                polynomial[:] = random.choice((0, 1, random.randrange(prime)))
            case 6:
                polynomial[:] = np.roll(polynomial, random.choice((-1, 1, 2048)))
            case _:
                mutant[:] = random.choice((mutant[::-1].copy(), mutant * np.uint64(2) % np.uint64(prime)))
    return mutant


def make_mutant_task() -> Task:
    """Judge one mutated segment that a member signed: load it, add it to an honest total, open."""
    sealer, opener, total, own, expected = a_federation()
    context = make_context(PLAN)
    words = read_segment(own, PLAN)
    head, body = own[:HEAD_BYTES], own[HEAD_BYTES:]
    (ciphertext,) = load_segment(own, PLAN, context)
    saved = save(ciphertext)

    def segment_of(random: Random) -> bytes:
        match random.randrange(10):
            case 0:
                return mutate(own, random)
            case 1 | 2 | 3 | 4:  # under the plan's own fingerprint
                return head + mutate(body, random)
            case 5 | 6 | 7 | 8:
                return write_segment(mutated_words(words, random), PLAN)
            case _:  # SEAL's own format, with or without the plan's fingerprint
                return random.choice((b"", head)) + mutate(saved, random)

    def task(index: int) -> str:
        segment = segment_of(Random(f"ciphertext {index}"))
        try:
            loaded = load_segment(segment, PLAN, context)
        except CiphertextError as error:
            return f"{REFUSED}{SIZES.sub('N', str(error))}"
        for one in loaded:
            assert one.parms_id() == context.first_parms_id()
            assert (one.size(), one.poly_modulus_degree(), one.coeff_modulus_size()) == (
                2,
                PLAN.poly_modulus_degree,
                1,
            )
            assert one.scale == PLAN.scale
        try:
            opened = opener.open(sealer.add([total, segment]), LENGTH, OTHERS + 1)
        except OpeningFailed:
            return FAILED
        except CiphertextError as error:
            assert len(loaded) != words.shape[1]
            return f"{REFUSED}{SIZES.sub('N', str(error))}"
        assert segment == own, "a changed ciphertext passed"
        assert np.array_equal(opened, expected), "a wrong sum was opened"
        return SAME

    return task


@pytest.mark.timeout(1200)
def test_signed_mutants_crash_nothing_and_open_to_nothing_wrong() -> None:
    began = time.monotonic()
    counts = survey(make_mutant_task, range(COUNT))
    report("validly signed mutants", counts, began)
    wrong = {answer: n for answer, n in counts.items() if not answer.startswith((SAME, FAILED, REFUSED))}
    assert not wrong
    assert counts.total() == COUNT
    assert counts[FAILED] > COUNT // 2, "few got past the loader"


# ---- key files: what is still SEAL's own format -----------------------------------------------------------


def seal_framed(content: bytes, compression: int = 0) -> bytes:
    """SEAL's header: magic, its size, version 4.3, compression (0 none, 1 zlib, 2 zstd), reserved, whole size."""
    header = bytes.fromhex("5ea1100403") + bytes([compression, 0, 0])
    return header + struct.pack("<Q", 16 + len(content)) + content


def zstd_framed(content: bytes, declared: int | None = None, zeros: int = 0) -> bytes:
    """A zstd frame (RFC 8878) without compression, behind the content ``zeros`` times 128 KiB of zeros.

    Args:
        declared: the content size that the frame's header claims; None: the true one.
    """
    step = 1 << 17
    blocks = [(len(part), 0, part) for part in (content[at : at + step] for at in range(0, len(content), step))]
    blocks += [(step, 1, b"\0")] * zeros
    size = len(content) + zeros * step if declared is None else declared
    frame = bytes.fromhex("28b52ffd e0") + struct.pack("<Q", size)
    for number, (length, kind, part) in enumerate(blocks, 1):
        frame += struct.pack("<I", length << 3 | kind << 1 | (number == len(blocks)))[:3] + part
    return frame


def key_file(frame: bytes) -> bytes:
    return PUBLIC_KEY_MAGIC + seal_framed(frame, 2)


def key_content() -> bytes:
    """What SEAL compresses: the members of a public key, 73 bytes, then a header, a length and the words."""
    return zstandard.ZstdDecompressor().decompress(PAIR[0].removeprefix(PUBLIC_KEY_MAGIC)[16:])


def answers_to(files: list[bytes]) -> Counter[str]:
    """What the loader of public keys makes of each, in children."""

    def make() -> Task:
        def task(index: int) -> str:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            try:
                Sealer(PLAN, files[index])
                answer = "loaded"
            except KeyFileError:
                answer = "refused"
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            return answer if grown < 32 << 10 else f"{answer} {index} took {grown} KiB"

        return task

    return survey(make, range(len(files)))


def test_what_is_framed_by_hand_is_what_seal_writes() -> None:
    """Or the next two tests would not get behind the headers."""
    assert answers_to([key_file(zstd_framed(key_content()))]) == {"loaded": 1}


def test_headers_that_end_a_process_inside_seal_do_not_reach_it() -> None:
    """Found by a fuzz: SEAL 4.3 calls std::terminate on the first four, and raises IndexError on the last.

    Compression inside the compression, said to be longer than what is there: 150 bytes end the process.
    """
    content = key_content()
    members, words = content[:73], content[89:]
    inner = bytes.fromhex("5ea1100403")
    nested = [
        members + inner + bytes([compression, 0, 0]) + struct.pack("<Q", size) + body
        for compression in (1, 2)
        for size, body in ((17, b""), (1 << 20, words))
    ]
    no_polynomials = content[:33] + bytes(8) + content[41:]
    assert answers_to([key_file(zstd_framed(each)) for each in (*nested, no_polynomials)]) == {"refused": 5}


def test_a_decompression_bomb_costs_nothing() -> None:
    """A few kilobytes that say how to write 2 GB of zeros, or claim to."""
    content = key_content()
    frames = (
        zstd_framed(content, zeros=1 << 14),
        zstd_framed(content, declared=len(content), zeros=1 << 14),
        zstd_framed(b"", zeros=1 << 14),
        zstd_framed(b"", declared=len(content), zeros=1 << 14),
        zstd_framed(content, declared=1 << 40),
    )
    assert answers_to([key_file(frame) for frame in frames]) == {"refused": 5}
