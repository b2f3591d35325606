"""Connections that harm without a word that anybody could refuse: real sockets, an attacker without libzmq."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from nacl.exceptions import CryptoError

from node import transport
from node.address import free_ports, join
from node.connections import MOST_PER_PARTY, MOST_STRANGERS
from node.gauge import peak_memory
from node.line import Peer
from node.transport import REFUSED, UNREAD_MESSAGES, Transport
from tests.end_to_end.commands import FULL, has_ipv6
from tests.fuzz.test_fuzz import mutated
from tests.node.test_transport import PUBLIC, SECRETS, Refusal
from tests.node.zmtp import COMMAND, GREETING, CurveClient, frame

NAMES = ("apex", "bo", "cy")
MAX_MESSAGE = 1 << 18
LIMIT = UNREAD_MESSAGES * MAX_MESSAGE
NO_HANDSHAKE = ("a connection from 127.0.0.1", "a CURVE handshake", "something else")
FEW_SILENT = f"at most {MOST_STRANGERS} connections that say nothing"
OVERSIZED = ("messages of the agreed size, and signs of life", "neither")


@dataclass
class Parent:
    """A transport that listens, in a thread of its own: what came, and what it refused."""

    port: int
    host: str = "127.0.0.1"
    log: list[Refusal] = field(default_factory=list)
    came: list[tuple[str, list[bytes]]] = field(default_factory=list)
    pause: float = 0.0
    ended: bool = False

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.ready = threading.Event()
        self._thread.start()
        assert self.ready.wait(10)

    def _run(self) -> None:
        peers = [Peer(each, PUBLIC[each], None) for each in NAMES]

        def refuse(who: str, expected: str, came: str) -> None:
            self.log.append((who, expected, came))

        made = Transport(SECRETS["apex"], peers, join(self.host, self.port), refuse, MAX_MESSAGE)
        self.ready.set()
        while not self.ended:
            self.came += made.poll(0.05)[0]
            if self.pause:
                time.sleep(self.pause)
        made.close()

    def close(self) -> None:
        self.ended = True
        self._thread.join(10)
        assert not self._thread.is_alive(), "the transport does not end"

    def until(self, done: Callable[[], object], seconds: float = 20.0) -> None:
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, f"it never came: {self.log[-3:]}, {self.came[-3:]}"
            time.sleep(0.01)

    def caller(self, name: str) -> CurveClient:
        return CurveClient(self.port, SECRETS[name], PUBLIC["apex"])

    def heard(self, name: str, word: bytes) -> CurveClient:
        """A connection over which this was said and heard."""
        client = self.caller(name).connect()
        client.send(word)
        self.until(lambda: (name, [word]) in self.came)
        return client


@pytest.fixture
def parent() -> Iterator[Parent]:
    (port,) = free_ports(1)
    made = Parent(port)
    yield made
    made.close()


def still_served(parent: Parent, client: CurveClient, name: str, word: bytes) -> None:
    client.send(word)
    parent.until(lambda: (name, [word]) in parent.came)


# ---- after the handshake --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 40, MAX_MESSAGE - 100], ids=["empty", "short", "long"])
def test_a_message_that_never_ends_is_cut_off_at_a_bound(parent: Parent, size: int) -> None:
    """libzmq's limits count whole messages: one with a million parts has none. Ours count the bytes."""
    honest = parent.heard("cy", b"hello")
    attacker = parent.heard("bo", b"hello")
    before, sent = peak_memory("self"), 0
    with contextlib.suppress(OSError):
        while sent < 20 * LIMIT:
            wire = b"".join(attacker.part(bytes(size), more=True) for _ in range(max(1, 60_000 // (size + 50))))
            attacker.socket.sendall(wire)
            sent += len(wire)
            time.sleep(0.001)  # half a gigabit a second: what fits between two looks depends on the peer's link
    assert sent < 20 * LIMIT
    grown = peak_memory("self") - before
    parent.until(lambda: parent.log)
    ((who, expected, came),) = parent.log
    assert (who, expected) == ("bo", f"an end to its message after {LIMIT} bytes")
    assert int(came.split()[0]) > LIMIT
    assert grown < 12 * LIMIT, f"{grown >> 20} MiB"
    still_served(parent, honest, "cy", b"still here")


def test_a_whole_message_of_very_many_parts_is_not_kept(parent: Parent) -> None:
    attacker = parent.heard("bo", b"hello")
    attacker.socket.sendall(b"".join(attacker.part(b"", more=True) for _ in range(5000)) + attacker.part(b""))
    parent.until(lambda: len(parent.came) == 2)
    assert 3 < len(parent.came[1][1]) < 6, "enough to be seen to be too many"


def test_an_oversized_message_is_said_to_be_one(parent: Parent) -> None:
    attacker = parent.heard("bo", b"hello")
    attacker.send(bytes(MAX_MESSAGE + 1))
    assert attacker.is_closed()
    parent.until(lambda: parent.log)
    assert parent.log == [("bo", *OVERSIZED)]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "HANDSHAKE_MS", 1000)


def test_a_flood_of_whole_messages_leaves_others_their_turn(parent: Parent) -> None:
    honest, attacker = parent.heard("cy", b"hello"), parent.heard("bo", b"hello")
    stop = threading.Event()

    def flood() -> None:
        with contextlib.suppress(OSError):
            while not stop.is_set():
                attacker.send(bytes(50_000), bytes(100_000))

    thread = threading.Thread(target=flood)
    thread.start()
    try:
        for number in range(20):
            began = time.monotonic()
            still_served(parent, honest, "cy", b"%d" % number)
            assert time.monotonic() - began < 3
    finally:
        stop.set()
        attacker.socket.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert sum(peer == "bo" for peer, _ in parent.came) > 20, "it did flood"


def test_one_party_holds_few_connections(parent: Parent) -> None:
    clients = [parent.heard("bo", b"0")]
    for _ in range(MOST_PER_PARTY):
        clients.append(parent.caller("bo").connect())
        clients[-1].send(b"1")
    assert clients[-1].is_closed()
    parent.until(lambda: ("bo", f"at most {MOST_PER_PARTY} connections of one party", "one more") in parent.log)
    still_served(parent, clients[0], "bo", b"the first one goes on")


def test_a_second_connection_that_goes_at_once_harms_nobody(parent: Parent) -> None:
    """To answer it is an error of libzmq's (EHOSTUNREACH), which must not end the node."""
    first = parent.heard("bo", b"first")
    parent.pause = 0.3  # the second is gone before anybody answers
    second = parent.caller("bo").connect()
    second.send(b"second")
    second.close()
    parent.until(lambda: ("bo", "one connection for one identity", "a second node with it") in parent.log)
    parent.pause = 0.0
    still_served(parent, first, "bo", b"still here")
    assert ("bo", [b"second"]) not in parent.came


# ---- before and inside the handshake --------------------------------------------------------------------


def step_greeting(client: CurveClient) -> None:
    client.socket.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + bytes(60))


def step_mechanism(client: CurveClient) -> None:
    client.socket.sendall(GREETING[:12] + b"NULL".ljust(20, b"\0") + bytes(32))


def step_after_greeting(client: CurveClient) -> None:
    client.greet()
    client.socket.sendall(os.urandom(300))


def step_hello(client: CurveClient) -> None:
    client.greet()
    hello = bytearray(client.hello())
    hello[-1] ^= 1
    client.socket.sendall(hello)


def step_hello_cut(client: CurveClient) -> None:
    client.greet()
    client.socket.sendall(frame(COMMAND, b"\x05HELLO\x01\x00" + bytes(20)))


def step_cookie(client: CurveClient) -> None:
    client.greet()
    client.socket.sendall(client.hello())
    client.socket.sendall(client.initiate(bytes(len(client.welcome()))))


def step_no_initiate(client: CurveClient) -> None:
    client.greet()
    client.socket.sendall(client.hello())
    client.welcome()
    client.socket.sendall(frame(0, b"\x07MESSAGE" + bytes(60)))


def step_long_command(client: CurveClient) -> None:
    client.greet()
    client.socket.sendall(bytes([COMMAND | 2]) + (1 << 40).to_bytes(8, "big") + bytes(1000))


STEPS = [
    step_greeting, step_mechanism, step_after_greeting, step_hello, step_hello_cut, step_cookie, step_no_initiate,
    step_long_command,
]  # fmt: skip


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__[5:])
def test_garbage_before_and_inside_the_handshake_is_refused_and_logged(
    parent: Parent, step: Callable[[CurveClient], None]
) -> None:
    honest, attacker = parent.heard("cy", b"hello"), parent.caller("bo")
    step(attacker)
    assert attacker.is_closed()
    parent.until(lambda: parent.log)
    ((who, expected, came),) = parent.log
    assert (expected, came) == NO_HANDSHAKE[1:]
    assert who in (NO_HANDSHAKE[0], "a connection"), "libzmq may end it before anybody sees where it is from"
    still_served(parent, honest, "cy", b"still here")
    assert {peer for peer, _ in parent.came} == {"cy"}


HANDSHAKES = 3000 if FULL else 60


def test_a_handshake_with_any_change_harms_nobody(parent: Parent) -> None:
    """A fuzz of every step with a member's key: bits, cuts, insertions, repetitions."""
    honest, draw = parent.heard("cy", b"hello"), random.Random(1)
    descriptors = len(os.listdir("/proc/self/fd"))
    for number in range(HANDSHAKES):
        attacker = parent.caller("bo")
        attacker.socket.settimeout(0.5)
        changed = draw.randrange(3)
        with contextlib.suppress(OSError, CryptoError):
            attacker.socket.sendall(mutated(GREETING, draw) if changed == 0 else GREETING)
            attacker.take_greeting()
            hello = attacker.hello()
            attacker.socket.sendall(mutated(hello, draw) if changed == 1 else hello)
            initiate = attacker.initiate(attacker.welcome())
            attacker.socket.sendall(mutated(initiate, draw) if changed == 2 else initiate)
            attacker.socket.sendall(draw.randbytes(draw.choice((1, 40, 3000))))
        attacker.close()
        if number % 20 == 0:
            still_served(parent, honest, "cy", b"%d" % number)
    still_served(parent, honest, "cy", b"still here")
    assert {peer for peer, _ in parent.came} == {"cy"}
    assert {expected for _, expected, _ in parent.log} <= {NO_HANDSHAKE[1], OVERSIZED[0], FEW_SILENT}
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 2 * MOST_STRANGERS


def test_half_open_connections_are_limited_and_leave_room(parent: Parent) -> None:
    honest = parent.heard("cy", b"hello")
    descriptors = len(os.listdir("/proc/self/fd"))
    half_open = [parent.caller("bo") for _ in range(3 * MOST_STRANGERS)]
    try:
        parent.until(lambda: len(parent.log) >= 2 * MOST_STRANGERS)
        who = "a connection from 127.0.0.1"
        assert set(parent.log) == {(who, FEW_SILENT, "one more")}
        assert half_open[0].is_closed(), "the oldest goes first"
        most = descriptors + len(half_open) + 3 * MOST_STRANGERS
        parent.until(lambda: len(os.listdir("/proc/self/fd")) <= most)  # libzmq closes its own in a moment
        still_served(parent, honest, "cy", b"still here")
        parent.heard("bo", b"and who speaks gets in").close()
    finally:
        for client in half_open:
            client.close()


@has_ipv6
def test_on_a_socket_for_both_every_caller_is_named_by_its_own_address(hurried: None) -> None:
    (port,) = free_ports(1, "::1")
    parent = Parent(port, "::")
    try:
        for host in ("127.0.0.1", "::1"):
            client = CurveClient(port, SECRETS["bo"], PUBLIC["apex"], host)
            client.greet()  # and then nothing: the handshake's deadline ends it
            assert client.is_closed()
            client.close()
        parent.until(lambda: len(parent.log) == 2)
        assert [who for who, *_ in parent.log] == ["a connection from 127.0.0.1", "a connection from ::1"]
    finally:
        parent.close()


def test_slow_loris_is_cut_off(hurried: None, parent: Parent) -> None:
    """A byte now and then: the whole handshake has one deadline."""
    honest, attacker = parent.heard("cy", b"hello"), parent.caller("bo")
    for byte in GREETING * 10:
        if parent.log:
            break
        with contextlib.suppress(OSError):
            attacker.socket.sendall(bytes([byte]))
        time.sleep(0.05)
    assert attacker.is_closed()
    assert parent.log == [NO_HANDSHAKE]
    still_served(parent, honest, "cy", b"still here")


def test_the_refused_second_connection_hears_why(parent: Parent) -> None:
    first, second = parent.heard("bo", b"first"), parent.caller("bo").connect()
    second.send(b"second")
    assert second.receive() == [REFUSED]
    first.close()
