"""Real sockets on this machine: who gets in, as whom, and who harms whom."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import zmq
from nacl.public import PrivateKey
from zmq.utils import z85

from node import line
from node.address import free_ports, join
from node.line import Peer
from node.transport import REFUSED, Transport, TransportError
from tests.end_to_end.commands import has_ipv6

NAMES = ("apex", "bo", "cy")
SECRETS = {name: bytes([number]) * 32 for number, name in enumerate((*NAMES, "mallory"), start=1)}
PUBLIC = {name: bytes(PrivateKey(secret).public_key) for name, secret in SECRETS.items()}
MAX_MESSAGE = 1 << 20
Refusal = tuple[str, str, str]


@dataclass
class Node:
    """A transport, what came, and what it refused."""

    transport: Transport
    log: list[Refusal]
    came: list[tuple[str, list[bytes]]] = field(default_factory=list)
    connections: list[str] = field(default_factory=list)

    def turn(self) -> None:
        messages, _, connected = self.transport.poll(0.01)
        self.came += messages
        self.connections += connected


@dataclass
class World:
    """Those who listen, and everything that talks to them; all of it is closed at the end."""

    ports: dict[str, int]
    host: str = "127.0.0.1"
    nodes: list[Node] = field(default_factory=list)
    sockets: list[Any] = field(default_factory=list)
    context: zmq.Context[zmq.Socket[bytes]] = field(default_factory=zmq.Context)

    @property
    def port(self) -> int:
        return self.ports["apex"]

    def node(
        self,
        name: str,
        *,
        bind: bool = False,
        dial: str = "apex",
        secret: bytes | None = None,
        host: str | None = None,
    ) -> Node:
        """A node that listens, or one that dials; ``host``: instead of the world's."""
        at = {each: join(host or self.host, port) for each, port in self.ports.items()}
        peers = [Peer(each, PUBLIC[each], at.get(each)) for each in NAMES]
        log: list[Refusal] = []

        def refuse(who: str, expected: str, came: str) -> None:
            log.append((who, expected, came))

        made = Transport(secret or SECRETS[name], peers, at[name] if bind else None, refuse, MAX_MESSAGE)
        if not bind:
            made.dial(dial)
        self.nodes.append(Node(made, log))
        return self.nodes[-1]

    def end(self, node: Node) -> None:
        self.nodes.remove(node)
        node.transport.close()

    def client(self, name: str, routing_id: bytes | None = None) -> zmq.Socket[bytes]:
        """A DEALER of an attacker's making, with the CURVE key of ``name``."""
        dealer = self.plain_client(zmq.DEALER, connect=False)
        dealer.curve_publickey, dealer.curve_secretkey = z85.encode(PUBLIC[name]), z85.encode(SECRETS[name])
        dealer.curve_serverkey = z85.encode(PUBLIC["apex"])
        if routing_id is not None:
            dealer.setsockopt(zmq.ROUTING_ID, routing_id)
        dealer.connect(f"tcp://127.0.0.1:{self.port}")
        return dealer

    def plain_client(self, kind: int, *, connect: bool = True) -> zmq.Socket[bytes]:
        made = self.context.socket(kind)
        made.linger = 0
        self.sockets.append(made)
        if connect:
            made.connect(f"tcp://127.0.0.1:{self.port}")
        return made

    def until(self, done: Callable[[], object], seconds: float = 10.0) -> None:
        """Let everybody have their turn until this holds."""
        deadline = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < deadline, "it never came"
            for node in self.nodes:
                node.turn()

    def a_while(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        self.until(lambda: time.monotonic() > deadline, seconds + 1)

    def close(self) -> None:
        for each in [*self.sockets, *(node.transport for node in self.nodes)]:
            each.close()
        self.context.term()


@pytest.fixture
def world() -> Iterator[World]:
    world = World(dict(zip(("apex", "bo"), free_ports(2), strict=True)))
    yield world
    world.close()


def connected(world: World, parent: Node, name: str) -> Node:
    """A node that the parent has heard."""
    child = world.node(name)
    world.until(lambda: child.transport.send("apex", [b"hello"]))
    world.until(lambda: (name, [b"hello"]) in parent.came)
    return child


def test_children_talk_to_their_parent_and_each_hears_only_its_own(world: World) -> None:
    parent = world.node("apex", bind=True)
    bo, cy = connected(world, parent, "bo"), connected(world, parent, "cy")
    assert parent.transport.send("bo", [b"to", b"bo"])
    assert parent.transport.send("cy", [b"to", b"cy"])
    world.until(lambda: bo.came and cy.came)
    assert (bo.came, cy.came) == ([("apex", [b"to", b"bo"])], [("apex", [b"to", b"cy"])])
    assert parent.transport.traffic.sent == {"bo": 4, "cy": 4}
    assert parent.transport.traffic.received == {"bo": 5, "cy": 5}
    assert (bo.connections, cy.connections, parent.log, bo.log) == (["apex"], ["apex"], [], [])


@has_ipv6
def test_over_ipv6_as_over_ipv4(world: World) -> None:
    world.host = "::1"
    parent = world.node("apex", bind=True)
    bo = connected(world, parent, "bo")
    assert parent.transport.send("bo", [b"to", b"bo"])
    world.until(lambda: bo.came)
    assert (bo.came, bo.connections, parent.log, bo.log) == ([("apex", [b"to", b"bo"])], ["apex"], [], [])


@has_ipv6
def test_a_stranger_over_ipv6_is_refused_as_well(world: World) -> None:
    world.host = "::1"
    parent = world.node("apex", bind=True)
    mallory = world.node("bo", secret=SECRETS["mallory"])
    world.until(lambda: parent.log and mallory.log)
    assert parent.log[0][1:] == ("a CURVE key of the manifest", "a stranger's")
    assert not mallory.transport.send("apex", [b"let me in"])


@has_ipv6
def test_who_listens_on_all_ipv6_addresses_listens_on_those_of_ipv4_too(world: World) -> None:
    parent = world.node("apex", bind=True, host="::")
    for name, host in (("bo", "::1"), ("cy", "127.0.0.1")):
        world.node(name, host=host)
    world.until(lambda: all(node.connections for node in world.nodes[1:]))
    assert parent.log == []


@has_ipv6
def test_who_listens_on_all_ipv4_addresses_is_not_reached_over_ipv6(world: World) -> None:
    world.node("apex", bind=True, host="0.0.0.0")
    over_four, over_six = world.node("bo", host="127.0.0.1"), world.node("cy", host="::1")
    world.until(lambda: over_four.connections)
    world.a_while(0.5)
    assert over_six.connections == []


def test_a_strangers_key_is_refused_counted_and_logged(world: World) -> None:
    parent = world.node("apex", bind=True)
    mallory = world.node("bo", secret=SECRETS["mallory"])
    world.until(lambda: len(parent.log) >= 2 and mallory.log)  # each of its attempts counts
    expected = (f"key {z85.encode(PUBLIC['mallory']).decode()}", "a CURVE key of the manifest", "a stranger's")
    gone_at_once = ("a connection", "a CURVE handshake", "something else")
    assert expected in parent.log
    assert set(parent.log) <= {expected, gone_at_once}, "libzmq may end one before we look at it"
    assert not mallory.transport.send("apex", [b"let me in"])
    assert mallory.connections == []
    assert mallory.log[0][:2] == ("apex", "a CURVE handshake")
    connected(world, parent, "bo")
    assert parent.came == [("bo", [b"hello"])]


def test_a_parent_with_another_key_is_not_talked_to(world: World) -> None:
    impostor = world.node("apex", bind=True, secret=SECRETS["mallory"])
    child = world.node("bo")
    world.a_while(0.5)
    assert not child.transport.send("apex", [b"for the apex"])
    assert (child.connections, impostor.came) == ([], [])


def test_who_speaks_is_the_key_and_not_the_routing_id(world: World) -> None:
    parent = world.node("apex", bind=True)
    cy = connected(world, parent, "cy")
    forger = world.client("bo", routing_id=b"cy")
    forger.send_multipart([b"I am cy"])
    world.until(lambda: len(parent.came) == 2)
    assert parent.came[1] == ("bo", [b"I am cy"])
    assert parent.transport.send("cy", [b"for cy"])
    world.until(lambda: cy.came)
    assert not forger.poll(100), "what is for cy does not go where the routing id says cy"


def test_a_second_connection_of_one_identity_waits_for_the_end_of_the_first(world: World) -> None:
    parent = world.node("apex", bind=True)
    first = connected(world, parent, "bo")
    parent.came.clear()
    second = world.node("bo")
    world.until(lambda: second.transport.send("apex", [b"second"]))
    world.until(lambda: second.came)
    assert second.came == [("apex", [REFUSED])]
    assert parent.came == [], "what the second says is not taken for the first's word"
    assert parent.log == [("bo", "one connection for one identity", "a second node with it")]
    assert parent.transport.send("bo", [b"still yours"])
    world.until(lambda: ("apex", [b"still yours"]) in first.came)
    world.end(first)
    world.a_while(0.3)
    assert second.transport.send("apex", [b"now"])
    world.until(lambda: ("bo", [b"now"]) in parent.came)
    assert parent.transport.send("bo", [b"yours now"])
    world.until(lambda: ("apex", [b"yours now"]) in second.came)


def test_a_port_in_use_is_one_line(world: World) -> None:
    world.node("apex", bind=True)
    with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{world.port}") as caught:
        world.node("apex", bind=True)
    assert "\n" not in str(caught.value)


def test_an_oversized_message_disconnects_its_sender_alone(world: World) -> None:
    parent = world.node("apex", bind=True)
    cy = connected(world, parent, "cy")
    sender = world.client("bo")
    sender.send_multipart([b"x" * (MAX_MESSAGE - 100)])
    world.until(lambda: len(parent.came) == 2)
    events = sender.get_monitor_socket(zmq.EVENT_DISCONNECTED)
    world.sockets.append(events)
    sender.send_multipart([b"x" * (MAX_MESSAGE + 1)])
    world.until(lambda: events.poll(0))
    sender.disable_monitor()
    world.until(lambda: cy.transport.send("apex", [b"here"]))
    world.until(lambda: ("cy", [b"here"]) in parent.came)
    assert [(peer, len(parts[0])) for peer, parts in parent.came if peer == "bo"] == [("bo", MAX_MESSAGE - 100)]
    assert cy.connections == ["apex"]


def test_clients_without_curve_and_garbage_on_the_port_do_no_harm(world: World) -> None:
    parent = world.node("apex", bind=True)
    bo = connected(world, parent, "bo")
    for kind in (zmq.DEALER, zmq.REQ):
        world.plain_client(kind).send(b"without a key", zmq.NOBLOCK)
    for garbage in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 5000,
        b"",
        b"\xff\0\0\0\0\0\0\0\1\x7f\3\0CURVE" + b"\xee" * 90,
    ):
        with socket.create_connection(("127.0.0.1", world.port)) as plain:
            plain.sendall(garbage)
            world.a_while(0.05)
    silent = socket.create_connection(("127.0.0.1", world.port))
    world.sockets.append(silent)
    world.a_while(0.3)
    assert bo.transport.send("apex", [b"still here"])
    world.until(lambda: ("bo", [b"still here"]) in parent.came)
    assert {peer for peer, _ in parent.came} == {"bo"}


def test_what_goes_nowhere_is_said_to_go_nowhere(world: World) -> None:
    parent = world.node("apex", bind=True)
    child = world.node("bo")
    assert not parent.transport.send("bo", [b"it has not called yet"])
    assert not parent.transport.send("nobody", [b"?"])
    assert not child.transport.send("cy", [b"a leaf has no children"])
    world.until(lambda: child.transport.send("apex", [b"hello"]))
    world.until(lambda: parent.came)
    world.end(child)
    world.until(lambda: not parent.transport.send("bo", [b"it has gone"]))
    lonely = world.node("cy")
    world.end(parent)
    world.until(lambda: not lonely.transport.send("apex", [b"no parent"]))


def test_a_child_that_came_before_its_parent_connects_when_it_comes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line, "REDIAL_SECONDS", 0.2)
    child = world.node("bo")
    world.a_while(0.3)
    assert not child.transport.send("apex", [b"too early"])
    parent = world.node("apex", bind=True)
    world.until(lambda: child.connections == ["apex"])
    world.end(parent)
    world.a_while(0.2)
    again = world.node("apex", bind=True)
    world.until(lambda: child.connections == ["apex", "apex"])
    assert child.transport.send("apex", [b"back"])
    world.until(lambda: again.came == [("bo", [b"back"])])


def test_a_node_moves_from_one_parent_to_another_and_back(world: World) -> None:
    apex, bo = world.node("apex", bind=True), world.node("bo", bind=True)
    cy = connected(world, apex, "cy")
    cy.transport.dial("bo")
    world.until(lambda: cy.transport.send("bo", [b"hello"]))
    assert cy.transport.send("apex", [b"goodbye"])
    cy.transport.hang_up("apex")
    world.until(lambda: ("cy", [b"hello"]) in bo.came and ("cy", [b"goodbye"]) in apex.came)
    assert cy.connections == ["apex", "bo"]
    assert not cy.transport.send("apex", [b"it is no neighbour any more"])
    world.until(lambda: not apex.transport.send("cy", [b"it has left"]))
    apex.transport.forget("cy")
    apex.came.clear()
    cy.transport.hang_up("bo")
    cy.transport.hang_up("bo")  # nothing to do
    cy.transport.dial("apex")
    world.until(lambda: cy.transport.send("apex", [b"back"]))
    world.until(lambda: apex.came == [("cy", [b"back"])])
    assert (apex.log, bo.log) == ([], []), "it was one node all the time"


def test_whoever_listens_dials_as_well(world: World) -> None:
    """An inner node: below the apex, above cy."""
    apex, bo = world.node("apex", bind=True), world.node("bo", bind=True)
    bo.transport.dial("apex")
    cy = world.node("cy", dial="bo")
    world.until(lambda: bo.connections and cy.connections)
    assert bo.transport.send("apex", [b"up"])
    assert cy.transport.send("bo", [b"up"])
    world.until(lambda: apex.came and bo.came)
    assert (apex.came, bo.came) == ([("bo", [b"up"])], [("cy", [b"up"])])
    assert apex.transport.send("bo", [b"down"])
    assert bo.transport.send("cy", [b"down"])
    world.until(lambda: len(bo.came) == 2 and cy.came)
    assert (bo.came[1], cy.came) == (("apex", [b"down"]), [("bo", [b"down"])])
