"""The opener's guard: the listed set is checked, not believed (design, sections 3 and 4).

Each attack of a malicious inner node comes twice: against the guard, and with the guard told the truth, which
shows that the attack would work if the claim were believed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
from tenseal import sealapi

from keys import canaries
from keys.ciphertexts import chosen_ciphertext, load_segment, make_context
from keys.ckks import Opener, OpeningFailed, Sealer, generate_keys
from keys.identity import Identity
from keys.noise import WORST_SLOT
from keys.packing import Integers
from keys.plan import Plan
from tests.keys.attack import segment_of

PLAN = Plan()
LENGTH = 3000
NAMES = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Round:
    """Four honest parties' ciphertexts of one segment, and what the key room knows."""

    sealer: Sealer
    opener: Opener
    updates: dict[str, Integers]
    parts: dict[str, bytes]
    keys: dict[str, bytes]

    def open(self, total: bytes, claimed: str) -> Integers:
        marks = canaries.total([self.keys[name] for name in claimed], PLAN, 0, PLAN.ciphertexts(LENGTH))
        return self.opener.open(total, LENGTH, len(claimed), marks)

    def sum(self, names: str) -> bytes:
        return self.sealer.add([self.parts[name] for name in names])


@cache
def honest_round(number: int = 1) -> Round:
    public, secret = generate_keys(PLAN)
    sealer, opener = Sealer(PLAN, public), Opener(PLAN, secret)
    holder = Identity.create("k")
    holder_key = holder.card("host:1", 0).box_key
    rng = np.random.default_rng(number)
    updates, parts, keys = {}, {}, {}
    for name in NAMES:
        key = canaries.round_key(Identity.create(name).box_secret, holder_key, bytes(32), number, bytes(32))
        updates[name] = rng.integers(-PLAN.max_value, PLAN.max_value + 1, LENGTH)
        parts[name] = sealer.seal(updates[name], canaries.digits(key, PLAN, 0, PLAN.ciphertexts(LENGTH)))
        keys[name] = key
    return Round(sealer, opener, updates, parts, keys)


def scaled(total: bytes, factor: int) -> bytes:
    """A total added to itself: what an inner node can do with public powers alone."""
    return honest_round().sealer.add([total] * factor)


def test_the_honest_total_opens() -> None:
    round_ = honest_round()
    assert np.array_equal(round_.open(round_.sum("abcd"), "abcd"), sum(round_.updates.values()))


@pytest.mark.parametrize(
    ("holds", "claims"),
    [("a", "abcd"), ("aabcd", "abcd"), ("abc", "abcd"), ("abcd", "abc"), ("abdd", "abcd")],
    ids=["all but one dropped", "one counted twice", "one dropped", "one hidden", "one replaced by another"],
)
def test_a_false_set_is_not_opened(holds: str, claims: str) -> None:
    round_ = honest_round()
    with pytest.raises(OpeningFailed, match=r"^failed$"):
        round_.open(round_.sum(holds), claims)
    truth = round_.open(round_.sum(holds), holds) if len(set(holds)) == len(holds) else None
    if truth is not None:
        assert np.array_equal(truth, sum(round_.updates[name] for name in holds)), "it holds what it holds"


@pytest.mark.parametrize("factor", [3, 16])
def test_a_multiplied_total_is_not_opened(factor: int) -> None:
    round_ = honest_round()
    with pytest.raises(OpeningFailed):
        round_.open(scaled(round_.sum("abcd"), factor), "abcd")


def test_added_encryptions_of_zero_are_noticed_by_their_noise() -> None:
    """Their canaries are zero, so the sum is right; the noise of eight contributions is not that of four."""
    round_ = honest_round()
    zero = round_.sealer.seal(np.zeros(LENGTH, np.int64))
    padded = round_.sealer.add([round_.sum("abcd"), *[zero] * 4])
    with pytest.raises(OpeningFailed):
        round_.open(padded, "abcd")


def test_an_old_ciphertext_is_not_opened_in_a_new_round() -> None:
    old, new = honest_round(1), honest_round(1)
    later = {
        name: canaries.round_key(Identity.create(name).box_secret, Identity.create("k").card("h:1", 0).box_key,
                                 bytes(32), 2, bytes(32))
        for name in NAMES
    }  # fmt: skip
    marks = canaries.total(later.values(), PLAN, 0, 1)
    with pytest.raises(OpeningFailed):
        new.opener.open(old.sum("abcd"), LENGTH, 4, marks)


def test_padding_that_is_not_zero_is_not_opened() -> None:
    round_ = honest_round()
    longer = round_.sealer.seal(np.ones(LENGTH + 1, np.int64))
    with pytest.raises(OpeningFailed):
        round_.opener.open(longer, LENGTH, 1)
    assert round_.opener.open(longer, LENGTH + 1, 1).all()


@pytest.mark.parametrize("t", [2**10, 2**14, PLAN.scale // 3, PLAN.scale])
def test_a_chosen_ciphertext_is_not_opened(t: int) -> None:
    """(0, t) added to an honest total moves slot j by t*s(zeta_j)/scale: off the grid, unless t is tiny."""
    round_ = honest_round()
    with pytest.raises(OpeningFailed):
        round_.open(probed(t), "abcd")


def test_a_probe_too_small_to_be_seen_changes_nothing_that_is_published() -> None:
    round_ = honest_round()
    assert np.array_equal(round_.open(probed(1), "abcd"), sum(round_.updates.values()))


def probed(t: int) -> bytes:
    context = make_context(PLAN)
    (total,) = load_segment(honest_round().sum("abcd"), PLAN, context)
    sealapi.Evaluator(context).add_inplace(total, chosen_ciphertext(PLAN, context, 0, t, float(PLAN.scale)))
    return segment_of([total], PLAN)


def test_canaries_are_the_same_for_both_sides_and_for_nobody_else() -> None:
    party, holder, other = (Identity.create(name) for name in ("p", "k", "x"))
    card = {identity.name: identity.card("host:1", 0).box_key for identity in (party, holder, other)}
    place = (b"m" * 32, 3, b"b" * 32)
    key = canaries.round_key(party.box_secret, card["k"], *place)
    assert key == canaries.round_key(holder.box_secret, card["p"], *place)
    others = {
        canaries.round_key(other.box_secret, card["k"], *place),
        canaries.round_key(party.box_secret, card["k"], b"n" * 32, 3, b"b" * 32),
        canaries.round_key(party.box_secret, card["k"], b"m" * 32, 4, b"b" * 32),
        canaries.round_key(party.box_secret, card["k"], b"m" * 32, 3, b"c" * 32),
    }
    assert key not in others
    assert len(others) == 4
    digits = canaries.digits(key, PLAN, 0, 400)
    assert digits.min() >= -PLAN.max_value
    assert digits.max() <= PLAN.max_value
    assert len(np.unique(digits)) > 1500, "2,000 draws of 14 bits"
    assert abs(digits.mean()) < 5 * PLAN.max_value / np.sqrt(3 * digits.size)


def test_the_noise_law_and_the_redrawn_keys() -> None:
    """Residuals of fresh sums against the law: the worst slot within 10 sigma, the variance within 5 percent."""
    public, secret = generate_keys(PLAN)
    opener, sealer = Opener(PLAN, secret), Sealer(PLAN, public)
    assert opener.worst_slot <= WORST_SLOT[PLAN.poly_modulus_degree]
    rng = np.random.default_rng(5)
    values = rng.integers(-PLAN.max_value, PLAN.max_value + 1, PLAN.values_per_segment)
    for parties in (1, 4):
        total = sealer.add([sealer.seal(values) for _ in range(parties)])
        assert np.array_equal(opener.open(total, values.size, parties), parties * values)


def test_zeros_made_in_advance_are_used_once_and_give_the_same_sums() -> None:
    public, secret = generate_keys(PLAN)
    sealer, opener = Sealer(PLAN, public), Opener(PLAN, secret)
    sealer.stock(3)
    assert sealer.stocked == 3
    values = np.arange(-4000, 4001)
    first, second = sealer.seal(values), sealer.seal(values)
    assert first != second
    assert sealer.stocked == 1
    sealer.seal(np.arange(PLAN.values_per_ciphertext + 1) % 7)
    assert sealer.stocked == 0, "one from the stock, one made directly"
    assert np.array_equal(opener.open(sealer.add([first, second]), values.size, 2), 2 * values)
