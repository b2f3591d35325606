"""Who connects to real nodes, how, and how much it says: strangers, the revoked, garbage, floods. All harm nobody.

One federation lives through all of it, until at the end a false total stops it for everyone.
"""

from __future__ import annotations

import contextlib
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
from keys.segments import add
from node.home import load_home
from node.neighbours import greeting
from node.protocol.link import DATA, HELLO, Wire
from node.protocol.messages import Absent
from tests.end_to_end.commands import FULL
from tests.end_to_end.hostile import MAY_GROW, REVOKED, Mallory, World, leaf_below_the_apex
from tests.node.test_connections import STEPS
from tests.node.zmtp import CurveClient

pytestmark = pytest.mark.confined

FLOOD_SECONDS = 60.0 if FULL else 1.5
Flood = Callable[[CurveClient, bytes], Iterator[bytes]]


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


# ---- the end --------------------------------------------------------------------------------------------


def test_a_false_total_ends_the_study_and_nobody_hears_why(world: World) -> None:
    """A child counts itself twice: the key room opens nothing more, and everyone is told "failed" and nothing else."""
    (mallory,) = world.mallories or [world.mallory(leaf_below_the_apex(world.tree).pop(), world.tree.apex)]
    mallory.behaves = False
    round_ = world.next_round(mallory).round
    running = set(world.launcher.running)
    for segment in range(mallory.segments):
        ours = mallory.ciphertexts(segment)
        mallory.say(mallory.partial(segment, add([ours, ours], mallory.home.plan)))
    world.until(lambda: not world.launcher.running)
    told = {event["party"]: event["error"] for event in world.events if event["kind"] == "stopped"}
    private = "(the opening was refused; the key is retired)"
    others = dict.fromkeys(running - {world.federation.key_holder}, f"round {round_}: failed")
    assert told == others | {world.federation.key_holder: f"round {round_}: failed {private}"}
    assert not [event for event in world.events if event["kind"] == "applied" and event["round"] >= round_]
