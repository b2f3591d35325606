"""A node's neighbours in the tree: frames in and out over reliable links, whatever the sockets do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from keys.identity import Identity, verify
from keys.manifest import Manifest
from node.home import Home, HomeError
from node.line import Peer
from node.protocol import clock
from node.protocol import events as ev
from node.protocol.codec import Codec, Frame, RemoteProtocolError
from node.protocol.link import BYE, HELLO, Link, Wire
from node.protocol.messages import Message
from node.transport import REFUSED, Traffic, Transport

IDENTITY_GRACE_SECONDS = 20.0
"""How long our parent may still hold a dead connection of ours before we believe in a second node."""

BEAT_SECONDS = 1.0
"""So often every neighbour hears from us."""

GONE_BEATS, SILENT_BEATS = 2, 10
"""Beats without a connection, and beats without a word over one, after which a neighbour is given up. They
are counted while we run ourselves, so that a node that was stopped, or whose clock jumped, blames nobody."""

CLOCK_SECONDS = 0.1
"""We tell the time no oftener."""

ENVELOPE_BYTES = 64 << 10
"""More than an envelope, or what the transport itself puts around a payload."""

Refused = Callable[[str, str, str], None]


@dataclass
class Neighbour:
    """One party that we are linked to."""

    link: Link
    silent: int = 0
    unreachable: int = 0


def greeting(manifest: Manifest) -> bytes:
    """What a node says of its manifest before anything else: 16 + 8 + 32 bytes."""
    return bytes.fromhex(manifest.federation) + manifest.version.to_bytes(8, "big") + bytes.fromhex(manifest.digest)


def understand(greeting: bytes) -> tuple[str, int, str] | None:
    """Federation, version and digest in a greeting, None if it is none."""
    if len(greeting) != 56:
        return None
    return greeting[:16].hex(), int.from_bytes(greeting[16:24], "big"), greeting[24:].hex()


class Neighbours:
    """Everyone that this node is linked to: transport, links and codec together."""

    def __init__(self, home: Home, identity: Identity, refused: Refused) -> None:
        """Bind.

        Args:
            refused: called with who, what was expected, what came, for everything that is dropped.

        Raises:
            TransportError: the port is in use, say.
        """
        self._me, self._sign, self._refused = home.name, identity.sign, refused
        self._window = home.rules.window
        self._manifest, self._greeting = home.manifest, greeting(home.manifest)
        self._above = set() if home.is_key_holder else set(home.placement.ladder(home.name))
        self._later: set[str] = set()
        self.codec = Codec(home.digest, home.roster, home.manifest.signing_keys, verify)
        self._all: dict[str, Neighbour] = {}
        self._dialled: set[str] = set()
        peers = [Peer(card.name, card.curve_key, home.address(card)) for card in home.manifest.cards]
        largest = home.plan.max_segment_bytes + ENVELOPE_BYTES
        self.transport = Transport(identity.curve_secret, peers, home.bind, refused, largest)
        self._second_since: float | None = None
        self.heard_at: float | None = None
        self._told_time = float("-inf")

    @property
    def traffic(self) -> Traffic:
        return self.transport.traffic

    # ---- links ------------------------------------------------------------------------------------------

    def dial(self, peer: str) -> None:
        """Connect to a party above us, and stay at it."""
        self.hang_up(peer)
        self._dialled.add(peer)
        self._all[peer] = self._new()
        self.transport.dial(peer)

    def hang_up(self, peer: str) -> None:
        """Leave a party that we dialled."""
        neighbour = self._all.pop(peer, None)
        if neighbour and neighbour.link.established:
            self.transport.send(peer, neighbour.link.bye().parts())
        self._dialled.discard(peer)
        self.transport.hang_up(peer)

    def introduce(self, peer: str) -> None:
        """Say hello: after every connection that we made."""
        if peer in self._all:
            self._put(peer, [self._all[peer].link.hello()])

    def beat(self) -> Iterator[ev.Down]:
        """To be called every :data:`BEAT_SECONDS`: gives the neighbours that are not there any more."""
        for peer, neighbour in list(self._all.items()):
            if self._all.get(peer) is not neighbour:
                continue  # it was left because of one before it
            neighbour.silent += 1
            reached = self.transport.send(peer, neighbour.link.beat().parts())
            neighbour.unreachable = 0 if reached else neighbour.unreachable + 1
            if neighbour.link.established and (neighbour.unreachable >= GONE_BEATS or neighbour.silent >= SILENT_BEATS):
                yield self._lose(peer)

    def _lose(self, peer: str, left: bool = False) -> ev.Down:
        del self._all[peer]
        if peer in self._dialled:  # until the machine hangs up, it may come back
            self._all[peer] = self._new()
        else:
            self.transport.forget(peer)
        return ev.Down(peer, left)

    def _new(self) -> Neighbour:
        return Neighbour(Link(secrets.randbits(63) | 1, self._window, self._greeting))

    # ---- out --------------------------------------------------------------------------------------------

    def sign(self, message: Message, recipient: str) -> Frame:
        """A message of ours as a frame, for ``recipient`` ("" for everyone)."""
        return self.codec.encode(message, self._me, recipient, self._sign)

    def send(self, peer: str, message: Message, recipient: str) -> None:
        """Sign a message and hand it to the link."""
        self.forward(peer, self.sign(message, recipient))

    def forward(self, peer: str, frame: Frame) -> None:
        """Hand a frame to the link as it came."""
        self._put(peer, self._all[peer].link.send(frame.parts))

    def consume(self, peer: str) -> None:
        """One item of a neighbour is done with."""
        if peer in self._all:
            self._put(peer, self._all[peer].link.consumed())

    def _put(self, peer: str, wires: list[Wire]) -> None:
        for wire in wires:
            self.transport.send(peer, wire.parts())  # if it is lost, the link's next HELLO finds out

    # ---- in ---------------------------------------------------------------------------------------------

    def take(self, peer: str, parts: list[bytes]) -> Iterator[ev.Event]:
        """What a message of the transport means to the round machine.

        Raises:
            HomeError: another node with our identity is connected, or all above us follow a later manifest.
        """
        if clock.is_clock(parts):
            self._tell_time(peer, parts)
            return
        wire = Wire.parse(parts)
        if parts == [REFUSED] and peer in self._dialled:
            self._wait_for_our_predecessor(peer)
            return
        if wire and wire.kind == HELLO and wire.item != (self._greeting,):
            self._refuse_another_manifest(peer, wire)
            return
        if wire is None:
            if parts != [b""]:  # the probe of a parent that heard a second node with our identity
                self._refused(peer, "a wire", "something else")
            return
        if wire.kind == BYE:
            if peer in self._all and self._all[peer].link.is_left_by(wire):
                yield self._lose(peer, left=True)
            return
        self._second_since, self.heard_at = None, time.time()
        neighbour = self._all.setdefault(peer, self._new())
        neighbour.silent = 0
        link, known = neighbour.link, neighbour.link.established
        fault = link.fault(wire)
        if fault:
            self._refused(peer, *fault)
            return
        items, replies = link.receive(wire)
        self._put(peer, replies)
        if link.established != known:
            yield ev.Up(peer)
        for envelope, payload in items:
            try:
                frame = self.codec.decode(peer, envelope, payload)
            except RemoteProtocolError as error:
                self._refused(error.who, error.expected, error.came)
                self.consume(peer)
            else:
                yield ev.Received(peer, frame.sender, frame.recipient, frame.message, frame)
        if self._all.get(peer) is neighbour:
            yield ev.Room(peer, link.pending)

    def _tell_time(self, peer: str, parts: list[bytes]) -> None:
        """Answer a party whose people run `wardtree check-network` while this node runs."""
        now = time.monotonic()
        asked = clock.read(parts, peer, self._me, self._manifest.signing_keys, verify)
        if asked is None or asked.is_answer:
            self._refused(peer, "a question for the time", "something else")
        elif now - self._told_time >= CLOCK_SECONDS:
            self._told_time = now
            answer = clock.Clock(True, self._greeting, self._me, peer, asked.nonce, round(1000 * time.time()))
            self.transport.send(peer, answer.parts(self._sign))

    def _refuse_another_manifest(self, peer: str, wire: Wire) -> None:
        """Say why on both sides: nothing is exchanged with a party that does not follow our very manifest."""
        ours = self._manifest
        theirs = understand(wire.item[0])
        came = "something else" if theirs is None else f"version {theirs[1]} ({theirs[2][:16]})"
        if theirs and theirs[0] != ours.federation:
            came = "that of another federation"
        self._refused(peer, f"version {ours.version} of the manifest ({ours.digest[:16]})", came)
        if wire.sequence == 0:  # it asks for an answer: it gets ours, and asks for none
            self._put(peer, [Wire(HELLO, secrets.randbits(63) | 1, wire.session, 1, 0, 0, (self._greeting,))])
        if theirs and theirs[0] == ours.federation and theirs[1] > ours.version:
            self._later.add(peer)
        if self._above and self._above <= self._later:  # one of them alone could lie, to stop who is below it
            raise HomeError(
                f"{', '.join(sorted(self._above))} follow a later manifest than version {ours.version}, which this "
                "node follows: join it (`wardtree ceremony join`)"
            )

    def _wait_for_our_predecessor(self, parent: str) -> None:
        """Refused as the second: it may be a dead connection of our own, so try again for a while."""
        now = time.monotonic()
        if self._second_since is None:
            self._second_since = now
        if now - self._second_since > IDENTITY_GRACE_SECONDS:
            raise HomeError(
                f"{parent} already talks to another node with the identity of {self._me}; two nodes need two identities"
            )
