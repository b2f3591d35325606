"""The wire's residues: the same primes, the same sums and the same ciphertexts as SEAL's, bit for bit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tenseal.sealapi as seal
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import ciphertexts
from keys.ciphertexts import Scratch, load_segment, make_context, to_seal
from keys.ckks import Opener, Sealer, generate_keys
from keys.packing import pack
from keys.plan import DATA_PRIME_BITS, SECURITY_BITS, SPECIAL_PRIME_BITS, Plan, least_scale
from keys.segments import (
    HEAD_BYTES,
    CiphertextError,
    Words,
    add,
    add_words,
    ciphertext_bytes,
    data_prime,
    fingerprint,
    pack_words,
    read_segment,
    unpack_words,
    write_segment,
)

PLAN = Plan()
PLANS = (PLAN, Plan(8192, (60, 60), 25 * 8192 * 2, 2, 18, 14, 4))
DEGREE = PLAN.poly_modulus_degree
DATA_BITS = range(DATA_PRIME_BITS[0], DATA_PRIME_BITS[1] + 1)


@cache
def pair(plan: Plan = PLAN) -> tuple[bytes, bytes]:
    return generate_keys(plan)


def residues(plan: Plan, seed: int, count: int = 2) -> Words:
    """Shape (2, count, N), with the largest residue and zero among them."""
    drawn = np.random.default_rng(seed).integers(
        0, data_prime(plan), (2, count, plan.poly_modulus_degree), dtype=np.uint64
    )
    drawn[0, 0, :2] = data_prime(plan) - 1, 0
    return drawn


# ---- the prime ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring", sorted(SECURITY_BITS[128]))
def test_the_prime_is_the_one_that_seal_takes(ring: int) -> None:
    for bits in DATA_BITS:
        for special in {SPECIAL_PRIME_BITS, bits, DATA_PRIME_BITS[1]}:
            if bits + special <= SECURITY_BITS[128][ring]:
                plan = Plan(ring, (bits, special), least_scale(ring, 2), 1, 5, 4, 2, canary_digits=17)
                assert data_prime(plan) == seal.CoeffModulus.Create(ring, [bits, special])[0].value()


# ---- words and bytes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", DATA_BITS)
def test_packing_closes_the_gaps_and_nothing_else(bits: int) -> None:
    words = np.random.default_rng(bits).integers(0, 1 << bits, (3, DEGREE), dtype=np.uint64)
    words[0, 0], words[2, -1] = (1 << bits) - 1, 0
    packed = pack_words(words, bits)
    assert packed.nbytes == 3 * DEGREE * bits // 8
    assert np.array_equal(unpack_words(packed, bits), words)


@pytest.mark.parametrize("bits", [24, 37, 40, 59, 60])
def test_a_packed_column_is_one_long_number(bits: int) -> None:
    """What the docstring says, in Python's integers: residue r of a column at bit r * bits."""
    words = np.random.default_rng(1).integers(0, 1 << bits, (1, DEGREE), dtype=np.uint64)
    packed = pack_words(words, bits)[0]
    rows = next(rows for rows in (1, 2, 4, 8, 16, 32, 64) if rows * bits % 64 == 0)
    for column in (0, DEGREE // rows - 1):
        expected = sum(int(word) << (row * bits) for row, word in enumerate(words[0].reshape(rows, -1)[:, column]))
        assert int.from_bytes(packed.reshape(rows * bits // 64, -1)[:, column].tobytes(), "little") == expected


def test_golden_bytes() -> None:
    plan = replace(PLAN, segment_ciphertexts=16)
    assert fingerprint(plan).hex() == "6390d0268881c438bff6183f349eb833db1513bf41b3738d70d5e90731ac97fe"
    words = (np.arange(2 * DEGREE, dtype=np.uint64) * np.uint64(0x1357_9BDF_0246) + np.uint64(7)).reshape(2, 1, DEGREE)
    segment = write_segment(words % np.uint64(data_prime(plan)), plan)
    assert len(segment) == HEAD_BYTES + ciphertext_bytes(plan) == 32 + 61_440
    assert hashlib.sha256(segment).hexdigest() == "f23ef3756473a6fc25ef0a715222099e0471b04c2355d0bb70308ed3bdba4570"


@pytest.mark.parametrize("plan", PLANS, ids=["N=4096", "N=8192"])
def test_a_segment_reads_back_and_seal_loads_the_same_residues(plan: Plan) -> None:
    words = residues(plan, 3)
    segment = write_segment(words, plan)
    assert np.array_equal(read_segment(segment, plan), words)
    scratch = Scratch(plan.poly_modulus_degree)
    for index, ciphertext in enumerate(load_segment(segment, plan, make_context(plan))):
        assert np.array_equal(scratch.words(ciphertext), words[:, index])
        assert [ciphertext[at] for at in (0, 1, -1 + 2 * plan.poly_modulus_degree)] == [
            int(words[at]) for at in ((0, index, 0), (0, index, 1), (1, index, -1))
        ]


def test_residues_that_are_none_and_ciphertexts_that_hide_nothing_are_refused() -> None:
    prime = data_prime(PLAN)
    for place in ((0, 0, 0), (1, 1, DEGREE - 1)):
        for value in (prime, prime + 1, 2**60 - 1):
            words = residues(PLAN, 4)
            words[place] = value
            with pytest.raises(CiphertextError, match="not below the prime"):
                read_segment(write_segment(words, PLAN), PLAN)
            with pytest.raises(CiphertextError, match="SEAL does not load"):
                to_seal(words[:, place[1]], make_context(PLAN), float(PLAN.scale))
    words = residues(PLAN, 5)
    words[1, 1] = 0
    with pytest.raises(CiphertextError, match="transparent"):
        read_segment(write_segment(words, PLAN), PLAN)
    assert to_seal(words[:, 1], make_context(PLAN), float(PLAN.scale)).is_transparent()
    words[1, 1, 77] = 1
    assert np.array_equal(read_segment(write_segment(words, PLAN), PLAN), words)


def test_every_other_plan_is_refused_by_name() -> None:
    segment = write_segment(residues(PLAN, 6), PLAN)
    for other in (replace(PLAN, scale=PLAN.scale + 1), replace(PLAN, canary_digits=6), replace(PLAN, max_parties=63)):
        with pytest.raises(CiphertextError, match="other parameters, or another scale"):
            read_segment(segment, other)


# ---- sums -----------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 6), st.integers(1, 3), st.sampled_from(PLANS), st.integers(0, 2**32))
def test_sums_are_those_of_seals_evaluator(parties: int, count: int, plan: Plan, seed: int) -> None:
    segments = [write_segment(residues(plan, seed + party, count), plan) for party in range(parties)]
    context, scratch = make_context(plan), Scratch(plan.poly_modulus_degree)
    evaluator = seal.Evaluator(context)
    total, *others = (load_segment(segment, plan, context) for segment in segments)
    for ciphertexts_ in others:
        for into, other in zip(total, ciphertexts_, strict=True):
            evaluator.add_inplace(into, other)
    assert add(segments, plan) == write_segment(np.stack([scratch.words(each) for each in total], axis=1), plan)


def test_every_edge_of_the_prime_is_added_right() -> None:
    prime = data_prime(PLAN)
    edges = np.array([0, 1, 2, prime // 2, prime // 2 + 1, prime - 2, prime - 1], dtype=np.uint64)
    left, right = (each.ravel().copy() for each in np.meshgrid(edges, edges))
    expected = [(int(a) + int(b)) % prime for a, b in zip(left, right, strict=True)]
    add_words(left, right, prime)
    assert left.tolist() == expected


# ---- what the Sealer does with them ---------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS, ids=["N=4096", "N=8192"])
def test_sealing_is_seals_own_addition_of_a_message_to_a_zero(plan: Plan) -> None:
    sealer, context = Sealer(plan, pair(plan)[0]), make_context(plan)
    values = np.random.default_rng(8).integers(-plan.max_value, plan.max_value + 1, 2 * plan.values_per_ciphertext)
    sealer.stock(2)
    expected = []
    for zero, slots in zip(sealer._zeros, pack(values, plan), strict=True):
        second = unpack_words(np.frombuffer(zero.second, "<u8").reshape(1, -1), plan.prime_bits[0])
        ciphertext = to_seal(np.stack([zero.first, second[0]]), context, float(plan.scale))
        plaintext = seal.Plaintext()
        seal.CKKSEncoder(context).encode(slots.tolist(), float(plan.scale), plaintext)
        seal.Evaluator(context).add_plain_inplace(ciphertext, plaintext)
        expected.append(Scratch(plan.poly_modulus_degree).words(ciphertext))
    assert np.array_equal(read_segment(sealer.seal(values), plan), np.stack(expected, axis=1))


def test_a_used_zero_is_gone() -> None:
    """It is taken from the stock and wiped: with it, the ciphertext, which others have, gives the message."""
    sealer = Sealer(PLAN, pair()[0])
    sealer.stock(2)
    zeros = list(sealer._zeros)
    assert all(zero.first.any() for zero in zeros)
    sealer.seal(np.arange(9000) % 8000)
    assert sealer.stocked == 0
    assert not any(zero.first.any() for zero in zeros)
    seconds = {zero.second for zero in zeros}
    sealer.stock(3)
    assert len(seconds | {zero.second for zero in sealer._zeros}) == 5, "no zero comes twice"


def test_without_room_for_a_pipe_the_way_is_a_memfd(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine whose user has all the pipes that the kernel allows."""

    def refuse(*_: object) -> None:
        raise PermissionError

    sealer = Sealer(PLAN, pair()[0])
    assert sealer._scratch._is_pipe
    monkeypatch.setattr(ciphertexts.fcntl, "fcntl", refuse)
    without = Sealer(PLAN, pair()[0])
    assert not without._scratch._is_pipe
    values = np.arange(-9000, 9000) % 8000
    total = add([sealer.seal(values), without.seal(values)], PLAN)
    assert np.array_equal(Opener(PLAN, pair()[1]).open(total, values.size, 2), 2 * values)


def test_a_node_that_only_adds_has_no_seal_in_its_memory() -> None:
    program = "import sys, node.relay; print([name for name in sys.modules if 'tenseal' in name or 'sealapi' in name])"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "[]\n"
