"""A node's neighbours in the tree: frames in and out over reliable links, whatever the sockets do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

from keys.identity import Identity, verify
from keys.manifest import Manifest
from node.home import Home, HomeError
from node.protocol import events as ev
from node.protocol.codec import Codec, Frame, RemoteProtocolError
from node.protocol.link import HELLO, Link, Wire
from node.protocol.messages import Message
from node.transport import REFUSED, Peer, Traffic, Transport

IDENTITY_GRACE_SECONDS = 20.0
"""How long our parent may still hold a dead connection of ours before we believe in a second node."""

REINTRODUCE_SECONDS = 1.0

Refused = Callable[[str, str, str], None]


def greeting(manifest: Manifest) -> bytes:
    """What a node says of its manifest before anything else: 16 + 8 + 32 bytes."""
    return bytes.fromhex(manifest.federation) + manifest.version.to_bytes(8, "big") + bytes.fromhex(manifest.digest)


def understand(greeting: bytes) -> tuple[str, int, str] | None:
    """Federation, version and digest in a greeting, None if it is none."""
    if len(greeting) != 56:
        return None
    return greeting[:16].hex(), int.from_bytes(greeting[16:24], "big"), greeting[24:].hex()


class Neighbours:
    """Parent and children of one node: transport, links and codec together."""

    def __init__(self, home: Home, identity: Identity, refused: Refused) -> None:
        """Bind and dial.

        Args:
            refused: called with who, what was expected, what came, for everything that is dropped.

        Raises:
            TransportError: the port is in use, say.
        """
        self._me, self._sign, self._refused = home.name, identity.sign, refused
        self._codec = Codec(home.digest, home.roster, home.manifest.signing_keys, verify)
        self.parent = home.tree.parent.get(home.name)
        children = home.tree.children[home.name]
        self._manifest, self._session = home.manifest, secrets.randbits(63) | 1
        self._greeting = greeting(home.manifest)
        self._links = {
            peer: Link(self._session, home.rules.window, self._greeting) for peer in (*children, self.parent) if peer
        }
        peers = {card.name: Peer(card.name, card.curve_key, card.endpoint) for card in home.manifest.cards}
        self.transport = Transport(
            identity.curve_secret,
            peers.values(),
            home.bind if children else None,
            peers[self.parent] if self.parent else None,
            refused,
        )
        self._second_since: float | None = None

    @property
    def traffic(self) -> Traffic:
        return self.transport.traffic

    # ---- out --------------------------------------------------------------------------------------------

    def send(self, peer: str, message: Message, recipient: str) -> None:
        """Sign a message for ``recipient`` ("" for everyone) and hand it to the link."""
        self.forward(peer, self._codec.encode(message, self._me, recipient, self._sign))

    def forward(self, peer: str, frame: Frame) -> None:
        self._put(peer, self._links[peer].send(frame.parts))

    def consume(self, peer: str) -> None:
        self._put(peer, self._links[peer].consumed())

    def introduce(self) -> None:
        """Say hello to our parent: after every connection, and again while it believes in a second node."""
        if self.parent:
            self._put(self.parent, [self._links[self.parent].hello()])

    def _put(self, peer: str, wires: list[Wire]) -> None:
        for wire in wires:
            self.transport.send(peer, wire.parts())  # if it is lost, the link's next HELLO finds out

    # ---- in ---------------------------------------------------------------------------------------------

    def take(self, peer: str, parts: list[bytes]) -> Iterator[ev.Received | ev.Room]:
        """What a message of the transport means to the round machine.

        Raises:
            HomeError: another node with our identity is connected, or our parent follows a later manifest.
        """
        link, wire = self._links.get(peer), Wire.parse(parts)
        if parts == [REFUSED]:
            self._wait_for_our_predecessor()
        elif wire and wire.kind == HELLO and wire.item != (self._greeting,):
            self._refuse_another_manifest(peer, wire)
        elif link is None or wire is None:
            if parts != [b""]:  # the probe of a parent that heard a second node with our identity
                self._refused(peer, "a wire of a neighbour in the tree", "something else")
        else:
            self._second_since = None
            items, replies = link.receive(wire)
            self._put(peer, replies)
            for envelope, payload in items:
                try:
                    frame = self._codec.decode(peer, envelope, payload)
                except RemoteProtocolError as error:
                    self._refused(error.who, error.expected, error.came)
                    self.consume(peer)
                else:
                    yield ev.Received(peer, frame.sender, frame.recipient, frame.message, frame)
            yield ev.Room(peer, link.pending)

    def _refuse_another_manifest(self, peer: str, wire: Wire) -> None:
        """Say why on both sides: nothing is exchanged with a party that does not follow our very manifest."""
        ours = self._manifest
        theirs = understand(wire.item[0])
        came = "something else" if theirs is None else f"version {theirs[1]} ({theirs[2][:16]})"
        if theirs and theirs[0] != ours.federation:
            came = "that of another federation"
        self._refused(peer, f"version {ours.version} of the manifest ({ours.digest[:16]})", came)
        if wire.sequence == 0:  # it asks for an answer: it gets ours, and asks for none
            self._put(peer, [Wire(HELLO, self._session, wire.session, 1, 0, 0, (self._greeting,))])
        if peer == self.parent and theirs and theirs[0] == ours.federation and theirs[1] > ours.version:
            raise HomeError(
                f"{peer} follows version {theirs[1]} of the manifest, this node version {ours.version}: "
                f"join version {theirs[1]} (`wardtree ceremony join`)"
            )

    def _wait_for_our_predecessor(self) -> None:
        """Refused as the second: it may be a dead connection of our own, so try again for a while."""
        now = time.monotonic()
        if self._second_since is None:
            self._second_since = now
        if now - self._second_since > IDENTITY_GRACE_SECONDS:
            raise HomeError(
                f"{self.parent} already talks to another node with the identity of {self._me}; "
                "two nodes need two identities"
            )

    @property
    def is_second(self) -> bool:
        """Whether our parent refuses us, for now, as the second node with our identity."""
        return self._second_since is not None
