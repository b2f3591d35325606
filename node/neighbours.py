"""A node's neighbours in the tree: frames in and out over reliable links, whatever the sockets do."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator

from keys.identity import Identity, verify
from node.home import Home, HomeError
from node.protocol import events as ev
from node.protocol.codec import Codec, Frame, RemoteProtocolError
from node.protocol.link import Link, Wire
from node.protocol.messages import Message
from node.transport import REFUSED, Peer, Traffic, Transport

IDENTITY_GRACE_SECONDS = 20.0
"""How long our parent may still hold a dead connection of ours before we believe in a second node."""

REINTRODUCE_SECONDS = 1.0

ENVELOPE_BYTES = 64 << 10
"""More than an envelope, or what the transport itself puts around a payload."""

Refused = Callable[[str, str, str], None]


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
        session = secrets.randbits(63) | 1
        self._links = {peer: Link(session, home.rules.window) for peer in (*children, self.parent) if peer}
        peers = {card.name: Peer(card.name, card.curve_key, card.endpoint) for card in home.manifest.cards}
        self.transport = Transport(
            identity.curve_secret,
            peers.values(),
            home.bind if children else None,
            peers[self.parent] if self.parent else None,
            refused,
            home.plan.max_segment_bytes + ENVELOPE_BYTES,
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
            HomeError: another node with our identity is connected.
        """
        link, wire = self._links.get(peer), Wire.parse(parts)
        if parts == [REFUSED]:
            self._wait_for_our_predecessor()
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
