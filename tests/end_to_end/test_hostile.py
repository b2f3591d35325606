"""Hostile input over real sockets to real nodes: each is refused by name, and harms nobody.

One federation lives through all of it. What its members are told to refuse comes from ``mallory``, a member that
is a child of the apex; what ends connections is in ``tests/node/test_connections.py``.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import msgpack
import pytest
from nacl.public import PrivateKey
from zmq.utils import z85

from keys import ceremony
from keys.ceremony import load_identity
from node.home import load_home
from node.neighbours import greeting
from node.protocol.link import DATA, HELLO, Wire
from node.protocol.messages import Absent, Fail, Finish, Gone, Joined, Open, Total
from tests.end_to_end.commands import FULL
from tests.end_to_end.hostile import Mallory, World, living
from tests.node.test_codec import BOMBS
from tests.node.test_connections import STEPS
from tests.node.zmtp import CurveClient
from topology import Tree

REVOKED = "party-06"
FLOOD_SECONDS = 60.0 if FULL else 1.5
Flood = Callable[[CurveClient, bytes], Iterator[bytes]]
MAY_GROW = 48 << 20
"""Bytes that a flood may add to the most memory that a node ever had."""


def leaf_below_the_apex(tree: Tree) -> set[str]:
    return {next(name for name in tree.children[tree.apex] if not tree.children[name])}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Six parties, of whom one was revoked and one is mallory; the others have begun."""
    with living(tmp_path_factory.mktemp("hostile"), 6, leaf_below_the_apex, REVOKED) as world:
        world.mallory(leaf_below_the_apex(world.tree).pop(), world.tree.apex)
        world.until(lambda: world.rounds(world.tree.apex) >= 1, 60)
        yield world


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    """Linked to the apex, and in the round that has just opened: what it says in that is the test's."""
    if not world.mallories:
        world.mallory(leaf_below_the_apex(world.tree).pop(), world.tree.apex)
    (made,) = world.mallories
    made.behaves = False
    next_round(world, made)
    yield made
    if made in world.mallories:
        made.behaves = True
        made.stay_away()
    world.honest_rounds_go_on()


def next_round(world: World, mallory: Mallory) -> Open:
    """Wait for a round to open that counts on mallory."""
    before = mallory.opening

    def opened() -> bool:
        opening = mallory.opening
        return opening is not None and opening is not before and mallory.name in opening.contributors

    world.until(opened)
    assert mallory.opening is not None
    return mallory.opening


def closed_over(world: World, round_: int) -> set[str]:
    """Wait for the end of a round; gives its contributors."""

    def applied() -> list[list[str]]:
        mine = [event for event in world.events if event["kind"] == "applied" and event["party"] == world.tree.apex]
        return [event["contributors"] for event in mine if event["round"] == round_]

    world.until(applied)
    return set(applied()[0])


def everyone(world: World) -> set[str]:
    return set(world.tree.children)


def test_a_member_that_is_played_contributes_like_any_other(world: World, mallory: Mallory) -> None:
    """Or what follows would prove nothing."""
    assert mallory.opening is not None
    mallory.contribute()
    assert closed_over(world, mallory.opening.round) == everyone(world)
    assert not [line for line in world.dropped(world.tree.apex) if line[0] == mallory.name]


# ---- who may connect ------------------------------------------------------------------------------------


def test_a_strangers_curve_key(world: World) -> None:
    secret = b"\x07" * 32
    _is_kept_out(world, secret, z85.encode(bytes(PrivateKey(secret).public_key)).decode())


def test_a_revoked_member(world: World, mallory: Mallory) -> None:
    """It signed the first version of the manifest, and is not in the second."""
    identity = load_identity(world.home(REVOKED), world.passphrase(REVOKED))
    _is_kept_out(world, identity.curve_secret, z85.encode(bytes(PrivateKey(identity.curve_secret).public_key)).decode())
    assert mallory.opening is not None
    since = len(world.events)
    header = mallory.header(Absent(mallory.opening.round, mallory.opening.base))
    header[7] = REVOKED
    packed = msgpack.packb(header)
    mallory.forward(identity.sign("frame", packed) + packed)
    world.refusal(world.tree.apex, mallory.name, "a sender on the roster", since)


def _is_kept_out(world: World, secret: bytes, key: str) -> None:
    since = len(world.events)
    client = _client(world, secret)
    thread = threading.Thread(target=lambda: _try(client))
    thread.start()
    world.refusal(world.tree.apex, f"key {key}", "a CURVE key of the manifest", since)
    thread.join(10)
    client.close()


def _client(world: World, secret: bytes) -> CurveClient:
    card = ceremony.read_card(world.home(world.tree.apex) / ceremony.CARD)
    return CurveClient(int(str(card.endpoint).rpartition(":")[2]), secret, card.curve_key)


def _try(client: CurveClient) -> None:
    with contextlib.suppress(OSError):
        client.connect()
        client.receive()


# ---- replayed frames ------------------------------------------------------------------------------------


def test_a_frame_of_the_same_round_once_more(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    frame = mallory.say(mallory.partial(0))
    mallory.forward(*frame.parts)
    world.refusal(world.tree.apex, mallory.name, "the next segment", since)
    mallory.finish()
    assert closed_over(world, mallory.opening.round) == everyone(world), "and it counts once"


def test_a_frame_of_an_older_round(world: World, mallory: Mallory) -> None:
    old = mallory.say(mallory.partial(0))
    mallory.finish()
    since = len(world.events)
    opening = next_round(world, mallory)
    mallory.forward(*old.parts)
    world.refusal(world.tree.apex, mallory.name, f"round {opening.round} on our state", since)
    mallory.contribute()
    assert closed_over(world, opening.round) == everyone(world)


def test_a_frame_of_another_federation(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    partial = mallory.partial()
    mallory.forward(mallory.forged(partial, manifest=hashlib.sha256(b"another").digest()), partial.ciphertexts)
    world.refusal(world.tree.apex, mallory.name, "a frame under our manifest", since)
    mallory.contribute()
    assert closed_over(world, mallory.opening.round) == everyone(world)


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
    assert closed_over(world, mallory.opening.round) == everyone(world)


# ---- forged contributor sets ----------------------------------------------------------------------------


def _sibling(world: World, mallory: Mallory) -> str:
    return next(name for name in world.tree.children[world.tree.apex] if name != mallory.name)


SETS: dict[str, Callable[[World, Mallory], set[str]]] = {
    "the empty set": lambda world, mallory: set(),
    "a sibling's subtree": lambda world, mallory: {_sibling(world, mallory)},
    "an overlap with a sibling's": lambda world, mallory: {mallory.name, _sibling(world, mallory)},
    "its parent": lambda world, mallory: {mallory.name, world.tree.apex},
    "the key holder": lambda world, mallory: {mallory.name, world.tree.key_holder},
    "everyone": lambda world, mallory: everyone(world),
}


@pytest.mark.parametrize("forge", SETS.values(), ids=SETS.keys())
def test_a_forged_contributor_set(world: World, mallory: Mallory, forge: Callable[..., set[str]]) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    mallory.say(mallory.partial(contributors=frozenset(forge(world, mallory))))
    world.refusal(world.tree.apex, mallory.name, "contributors of the sender's subtree", since)
    mallory.contribute()
    assert closed_over(world, mallory.opening.round) == everyone(world)


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
        Total(round_, base, 0, frozenset(everyone(world)), bytes(100)),
    )
    for message in false:
        mallory.say(message, "")
    world.until(
        lambda: world.counted(world.tree.apex, mallory.name, "a message on its proper way", since) == len(false)
    )
    mallory.say(Gone(base, _sibling(world, mallory)), world.tree.key_holder)  # it is not below mallory
    mallory.say(Joined(round_, base, 2**53 - 1, 2**53 - 1, mallory.target), world.tree.key_holder)
    mallory.contribute()
    assert closed_over(world, round_) == everyone(world)


def test_two_different_totals_for_one_segment(world: World, mallory: Mallory) -> None:
    assert mallory.opening is not None
    since = len(world.events)
    mallory.say(mallory.partial(0))
    mallory.say(mallory.partial(0, mallory.ciphertexts(0, value=-1)))
    world.refusal(world.tree.apex, mallory.name, "the next segment", since)
    mallory.finish()
    assert closed_over(world, mallory.opening.round) == everyone(world), "the first one counts, with its canaries"


def test_another_set_for_a_later_segment(world: World, mallory: Mallory) -> None:
    """The round ends with what was opened; the next one is whole again."""
    since = len(world.events)
    mallory.say(mallory.partial(0))
    mallory.say(mallory.partial(1, contributors=frozenset({mallory.name, _sibling(world, mallory)})))
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
    since = len(world.events)
    for packed in BOMBS.values():
        mallory.forward(mallory.signed(packed))
    world.until(lambda: world.counted(world.tree.apex, mallory.name, "header", since) == len(BOMBS))
    assert world.peak(world.tree.apex) < 200 << 20
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
    assert closed_over(world, mallory.opening.round) == everyone(world) - {mallory.name}


def test_a_flood_of_attempts(world: World, mallory: Mallory) -> None:
    """Each makes its parent begin anew. After some it is not heard any more."""
    since = len(world.events)
    part = mallory.ciphertexts(0)
    for attempt in range(20):
        mallory.say(mallory.partial(0, part, attempt=attempt))
    world.refusal(world.tree.apex, mallory.name, "at most 8 attempts", since)
    mallory.stay_away()


# ---- connections ----------------------------------------------------------------------------------------


def test_garbage_half_open_connections_and_slow_loris(world: World) -> None:
    since, curve = len(world.events), load_identity(world.home(REVOKED), world.passphrase(REVOKED)).curve_secret
    clients = []
    for step in STEPS:
        clients.append(_client(world, curve))
        thread = threading.Thread(target=step, args=(clients[-1],))
        thread.start()
        world.until(lambda: not thread.is_alive())  # noqa: B023 - it is called before the loop goes on
    clients += [_client(world, curve) for _ in range(200)]
    for client in clients[-50:]:
        client.socket.sendall(b"\xff")
    host = "a connection from 127.0.0.1"
    world.refusal(world.tree.apex, host, "a CURVE handshake", since)
    world.refusal(world.tree.apex, host, "at most 64 connections", since)
    world.honest_rounds_go_on()
    assert world.relay(world.tree.apex).num_fds() < 300
    for client in clients:
        client.close()


# ---- floods ---------------------------------------------------------------------------------------------

SESSION, CREDIT_FOR = 77, 4


def _data_beyond_credit(client: CurveClient, greeting: bytes) -> Iterator[bytes]:
    yield client.part(Wire(HELLO, SESSION, 0, 0, 0, CREDIT_FOR).parts()[0], True) + client.part(greeting)
    answer = Wire.parse(client.receive())
    assert answer is not None
    theirs = answer.session
    yield client.part(Wire(HELLO, SESSION, theirs, 1, 0, CREDIT_FOR).parts()[0], True) + client.part(greeting)
    envelope, payload = bytes(300), bytes(100_000)
    for sequence in range(100, 1 << 30):
        head = Wire(DATA, SESSION, theirs, sequence, 0, CREDIT_FOR).parts()[0]
        yield client.part(head, True) + client.part(envelope, True) + client.part(payload)


def _garbage(client: CurveClient, greeting: bytes) -> Iterator[bytes]:
    while True:
        yield b"".join(client.part(b"garbage") for _ in range(100))


def _new_sessions(client: CurveClient, greeting: bytes) -> Iterator[bytes]:
    """Each is that of a node that was restarted: allowed, and answered."""
    for session in range(1, 1 << 60):
        yield client.part(Wire(HELLO, session, 0, 0, 0, CREDIT_FOR).parts()[0], True) + client.part(greeting)


def _endless_message(client: CurveClient, greeting: bytes) -> Iterator[bytes]:
    yield client.part(b"")  # a whole one: now it is known whose connection this is
    while True:
        yield b"".join(client.part(b"", True) for _ in range(1000))


FLOODS = {
    "data beyond its credit": (_data_beyond_credit, "data within a credit of"),
    "garbage": (_garbage, "a wire"),
    "ever new sessions": (_new_sessions, ""),
    "messages without an end": (_endless_message, "an end to its message"),
}


class Flooder(threading.Thread):
    """Says what it says over ever new connections with a member's key, as fast as they take it."""

    def __init__(self, connect: Callable[[], CurveClient], flood: Flood, greeting: bytes) -> None:
        super().__init__()
        self._connect, self._flood, self._greeting = connect, flood, greeting
        self.until = time.monotonic() + FLOOD_SECONDS
        self.sent = self.connections = 0

    def run(self) -> None:
        while time.monotonic() < self.until:
            client = self._connect()
            with contextlib.suppress(OSError):
                client.connect()
                self.connections += 1
                for wire in self._flood(client, self._greeting):
                    client.socket.sendall(wire)
                    self.sent += len(wire)
                    if time.monotonic() > self.until:
                        break
            with contextlib.suppress(OSError):
                client.socket.shutdown(socket.SHUT_RDWR)
            client.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("flood", "expected"), FLOODS.values(), ids=FLOODS.keys())
def test_a_flood_from_an_authenticated_child(world: World, flood: Flood, expected: str) -> None:
    """Bounded memory, honest rounds go on; with WARDTREE_FULL=1 a minute of each."""
    apex, name = world.tree.apex, leaf_below_the_apex(world.tree).pop()
    for mallory in list(world.mallories):
        world.end(mallory)
    world.honest_rounds_go_on()
    identity = load_identity(world.home(name), world.passphrase(name))
    words = greeting(load_home(world.home(name), datetime.now(UTC)).manifest)
    since, before, rounds = len(world.events), world.peak(apex), world.rounds(apex)
    cpu = sum(world.relay(apex).cpu_times()[:2])
    flooder = Flooder(lambda: _client(world, identity.curve_secret), flood, words)
    flooder.start()
    world.until(lambda: not flooder.is_alive(), FLOOD_SECONDS + 30)
    grown, made = world.peak(apex) - before, world.rounds(apex) - rounds
    used = sum(world.relay(apex).cpu_times()[:2]) - cpu
    print(
        f"\n{flood.__name__}: {flooder.sent / 1e6:.0f} MB over {flooder.connections} connections in "
        f"{FLOOD_SECONDS:.0f} s; memory {before >> 20} + {grown >> 20} MiB; {made} rounds; {used:.0f} s of processor"
    )
    assert grown < MAY_GROW, f"{grown >> 20} MiB"
    if expected:
        world.refusal(apex, name, expected, since)
    lines = [event for event in world.events[since:] if event["kind"] == "dropped" and event["party"] == apex]
    assert len(lines) < 30 + 4 * FLOOD_SECONDS, "the log is not flooded"
    assert made >= 1
    world.honest_rounds_go_on()
