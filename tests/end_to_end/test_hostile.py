"""Hostile input over real sockets to real nodes: what a member may not say is refused by name, and harms nobody.

One federation lives through all of it. What its members are told to refuse comes from ``mallory``, a member that
is a child of the apex; who connects and how is in ``test_hostile_connections.py``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgpack
import pytest

from keys.ceremony import load_identity
from node.protocol.messages import Absent, Fail, Finish, Gone, Joined, Open, Total
from tests.end_to_end.hostile import CONFINED, MAY_GROW, Mallory, World
from tests.node.test_codec import BOMBS

pytestmark = pytest.mark.confined


def test_a_member_that_is_played_contributes_like_any_other(world: World, mallory: Mallory) -> None:
    """Or what follows would prove nothing."""
    assert mallory.opening is not None
    mallory.contribute()
    assert world.closed_over(mallory.opening.round) == world.everyone
    assert not [line for line in world.dropped(world.tree.apex) if line[0] == mallory.name]


# ---- replayed frames ------------------------------------------------------------------------------------


def test_a_frame_of_the_same_round_once_more(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    frame = mallory.say(mallory.partial(0))
    mallory.forward(*frame.parts)
    world.refusal(world.tree.apex, mallory.name, "the next segment", since)
    mallory.finish()
    assert world.closed_over(mallory.opening.round) == world.everyone, "and it counts once"


def test_a_frame_of_an_older_round(world: World, mallory: Mallory) -> None:
    old = mallory.say(mallory.partial(0))
    mallory.finish()
    since = len(world.events)
    opening = world.next_round(mallory)
    mallory.forward(*old.parts)
    world.refusal(world.tree.apex, mallory.name, f"round {opening.round} on our state", since)
    mallory.contribute()
    assert world.closed_over(opening.round) == world.everyone


def test_a_frame_of_another_federation(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    partial = mallory.partial()
    mallory.forward(mallory.forged(partial, manifest=hashlib.sha256(b"another").digest()), partial.ciphertexts)
    world.refusal(world.tree.apex, mallory.name, "a frame under our manifest", since)
    mallory.contribute()
    assert world.closed_over(mallory.opening.round) == world.everyone


def test_a_frame_of_the_key_holders_sent_back_up(world: World, mallory: Mallory) -> None:
    since = len(world.events)
    frame = next(event.frame for event in mallory.heard if isinstance(event.message, Open))
    mallory.forward(*frame.parts)
    world.refusal(world.tree.apex, mallory.name, "a message on its proper way", since)
    mallory.contribute()


def test_a_frame_of_a_sibling(world: World, mallory: Mallory) -> None:
    """Stolen, or handed over by an accomplice."""
    assert mallory.opening is not None
    since = len(world.events)
    sibling = next(name for name in world.tree.children[world.tree.apex] if name != mallory.name)
    identity = load_identity(world.home(sibling), world.passphrase(sibling))
    header = mallory.header(Absent(mallory.opening.round, mallory.opening.base))
    header[7] = sibling
    packed = msgpack.packb(header)
    mallory.forward(identity.sign("frame", packed) + packed)
    world.refusal(world.tree.apex, mallory.name, "a message on its proper way", since)
    mallory.contribute()
    assert world.closed_over(mallory.opening.round) == world.everyone


# ---- forged contributor sets ----------------------------------------------------------------------------


SETS: dict[str, Callable[[World, Mallory], set[str]]] = {
    "the empty set": lambda world, mallory: set(),
    "a sibling's subtree": lambda world, mallory: {world.sibling(mallory)},
    "an overlap with a sibling's": lambda world, mallory: {mallory.name, world.sibling(mallory)},
    "its parent": lambda world, mallory: {mallory.name, world.tree.apex},
    "the key holder": lambda world, mallory: {mallory.name, world.tree.key_holder},
    "everyone": lambda world, mallory: world.everyone,
}


@pytest.mark.parametrize("forge", SETS.values(), ids=SETS.keys())
def test_a_forged_contributor_set(world: World, mallory: Mallory, forge: Callable[..., set[str]]) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    mallory.say(mallory.partial(contributors=frozenset(forge(world, mallory))))
    world.refusal(world.tree.apex, mallory.name, "contributors of the sender's subtree", since)
    mallory.contribute()
    assert world.closed_over(mallory.opening.round) == world.everyone


def test_strangers_in_a_contributor_set(world: World, mallory: Mallory) -> None:
    since = len(world.events)
    partial = mallory.partial()
    for bitmap in (b"\xff", b"", b"\x01\x01", "all"):
        mallory.forward(mallory.forged(partial, contributors=bitmap), partial.ciphertexts)
    world.until(lambda: world.counted(world.tree.apex, mallory.name, "a contributor set over our roster", since) == 4)
    mallory.contribute()


# ---- false frames ---------------------------------------------------------------------------------------


def test_a_false_signature(world: World, mallory: Mallory) -> None:
    since = len(world.events)
    partial = mallory.partial()
    envelope = bytearray(mallory.forged(partial))
    envelope[3] ^= 1
    mallory.forward(bytes(envelope), partial.ciphertexts)
    world.refusal(world.tree.apex, mallory.name, f"a frame signed by {mallory.name}", since)
    mallory.contribute()


def test_words_of_the_key_holder_from_somebody_else(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    round_, base, since = mallory.opening.round, mallory.opening.base, len(world.events)
    false = (
        Fail(round_, base, "the study is over", True),
        Finish(base),
        Total(round_, base, 0, frozenset(world.everyone), bytes(100)),
    )
    for message in false:
        mallory.say(message, "")
    world.until(
        lambda: world.counted(world.tree.apex, mallory.name, "a message on its proper way", since) == len(false)
    )
    mallory.say(Gone(base, world.sibling(mallory)), world.tree.key_holder)  # it is not below mallory
    mallory.say(Joined(round_, base, 2**53 - 1, 2**53 - 1, mallory.target, CONFINED), world.tree.key_holder)
    mallory.contribute()
    assert world.closed_over(round_) == world.everyone


def test_two_different_totals_for_one_segment(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    mallory.say(mallory.partial(0))
    mallory.say(mallory.partial(0, mallory.ciphertexts(0, value=-1)))
    world.refusal(world.tree.apex, mallory.name, "the next segment", since)
    mallory.finish()
    assert world.closed_over(mallory.opening.round) == world.everyone, "the first one counts, with its canaries"


def test_another_set_for_a_later_segment(world: World, mallory: Mallory) -> None:
    """The round ends with what was opened; the next one is whole again."""
    since = len(world.events)
    mallory.say(mallory.partial(0))
    mallory.say(mallory.partial(1, contributors=frozenset({mallory.name, world.sibling(mallory)})))
    world.refusal(world.tree.apex, mallory.name, "contributors of the sender's subtree", since)
    mallory.stay_away()


def test_a_truncated_frame(world: World, mallory: Mallory) -> None:
    since = len(world.events)
    partial = mallory.partial()
    envelope = mallory.forged(partial)
    mallory.forward(envelope, partial.ciphertexts[:-1])
    world.refusal(world.tree.apex, mallory.name, "the payload that was signed", since)
    mallory.forward(envelope[:-1], partial.ciphertexts)
    world.until(lambda: world.counted(world.tree.apex, mallory.name, "", since) == 2)
    mallory.forward(b"")
    world.until(lambda: world.counted(world.tree.apex, mallory.name, "", since) == 3)
    mallory.contribute()


def test_an_oversized_frame(world: World, mallory: Mallory) -> None:
    since = len(world.events)
    mallory.forward(mallory.forged(mallory.partial()), bytes(1 << 20))
    world.refusal(world.tree.apex, mallory.name, "messages of the agreed size", since)
    world.end(mallory)


def test_msgpack_bombs(world: World, mallory: Mallory) -> None:
    """Depth and counts, in headers that are rightly signed."""
    since, before = len(world.events), world.peak(world.tree.apex)
    for packed in BOMBS.values():
        mallory.forward(mallory.signed(packed))
    world.until(lambda: world.counted(world.tree.apex, mallory.name, "header", since) == len(BOMBS))
    assert world.peak(world.tree.apex) < before + MAY_GROW
    mallory.contribute()


def test_ciphertexts_that_are_none(world: World, mallory: Mallory) -> None:
    """It is named and left out; the round goes on without it."""
    assert mallory.opening is not None
    genuine = mallory.ciphertexts(0)
    since = len(world.events)
    for number, garbage in enumerate((b"garbage", genuine[:-8], genuine + genuine[32:], b"\xff" * len(genuine))):
        mallory.say(mallory.partial(0, garbage, attempt=number))
    world.refusal(world.tree.apex, mallory.name, "ciphertexts of this federation's plan", since)
    mallory.stay_away()
    assert world.closed_over(mallory.opening.round) == world.everyone - {mallory.name}


def test_a_flood_of_attempts(world: World, mallory: Mallory) -> None:
    """Each makes its parent begin anew. After some it is not heard any more."""
    since = len(world.events)
    part = mallory.ciphertexts(0)
    for attempt in range(20):
        mallory.say(mallory.partial(0, part, attempt=attempt))
    world.refusal(world.tree.apex, mallory.name, "at most 8 attempts", since)
    mallory.stay_away()
