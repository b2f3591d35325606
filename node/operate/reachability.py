"""Whether a node's network is ready, before the study: ``wardtree check-network``.

Everyone whom this node may ever dial is tried: first by plain TCP, which tells a wrong port from a firewall; then by
the real transport with the real keys, which tells a wrong server key from an unknown client key; then by a signed
exchange of the time. With ``listen`` the other side of the same is played for those who may dial this node.
"""

from __future__ import annotations

import errno
import secrets
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from keys.identity import Identity, verify
from node.address import is_ipv6, split
from node.home import Home
from node.line import HANDSHAKE_REFUSED, KEY_REFUSED, Peer
from node.neighbours import ENVELOPE_BYTES, greeting
from node.protocol import clock
from node.transport import REFUSED, Transport

CONNECT_SECONDS, SPEAK_SECONDS, HANDSHAKE_SECONDS, ANSWER_SECONDS = 3.0, 2.0, 6.0, 3.0
ASK_SECONDS, AGAIN_SECONDS, LINGER_SECONDS, TURN_SECONDS = 0.5, 1.0, 1.0, 0.05
NEAR_SECONDS = 60.0
"""Ledgers, manifests and transcripts carry times: two clocks that differ by more make them hard to believe."""

MOST_NOTES = 20
_SIGNATURE = (0xFF, 0x7F)
"""First and tenth byte of what every ZeroMQ socket says first (ZMTP 3.1, RFC 37)."""

State = Literal[
    "good", "already connected", "refused", "timeout", "unreachable", "unknown host", "something else listens",
    "wrong server key", "unknown client key", "another manifest", "clock", "no answer", "did not come",
]  # fmt: skip

MEANING: dict[State, str] = {
    "good": "reached, keys accepted, clocks near",
    "already connected": "reached and accepted; a node, or another check, with our identity is connected to it",
    "refused": "its machine answers that nothing listens on this port",
    "timeout": "nothing answers: the packets are dropped on the way",
    "unreachable": "there is no way to its address",
    "unknown host": "its host name has no address here",
    "something else listens": "whatever listens there is no node",
    "wrong server key": "a node answers, but not with the key that the manifest has for it",
    "unknown client key": "a node answers, but does not let our key in",
    "another manifest": "a node answers that follows another manifest",
    "clock": f"its clock and ours differ by more than {NEAR_SECONDS:.0f} s",
    "no answer": "connected, but it did not tell the time",
    "did not come": "it did not connect to us while we listened",
}
REMEDIES: dict[State, str] = {
    "refused": "start `wardtree check-network --listen 300` or the node there; if it runs, compare its port with the "
    "endpoint in the manifest, and what forwards the port",
    "timeout": "let this address and port through the firewalls of both sides",
    "unreachable": "ask your network's people for a route to this address",
    "unknown host": "compare the host name in the manifest with your DNS",
    "something else listens": "compare the endpoint in the manifest; a proxy in between must pass TCP as it is",
    "wrong server key": "another party's node runs there, or one with an older identity: compare `wardtree ceremony "
    "verify --by-voice` on both sides",
    "unknown client key": "its node follows a manifest without this identity: let both join the same one",
    "another manifest": "let both join the newest (`wardtree ceremony join`)",
    "clock": "let both machines follow a time server (chrony, systemd-timesyncd)",
    "no answer": "start `wardtree check-network --listen 300` there",
    "did not come": "let its people run `wardtree check-network` while this one listens: it names what is wrong",
}


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Finding(_Part):
    """One party that this node may be connected to."""

    party: str
    side: Literal["above", "below"] = Field(description="above: this node dials it; below: it dials this node.")
    endpoint: str | None = Field(description="Where the manifest says that the one who is dialled listens.")
    state: State
    found: str = Field(description="What that means, in words.")
    remedy: str | None = Field(description="What to do about it.")
    clock_seconds: float | None = Field(description="Its clock minus ours; null where it did not tell.")

    @property
    def is_good(self) -> bool:
        return self.state in ("good", "already connected")


class NetworkReport(_Part):
    """What ``wardtree check-network --json`` prints."""

    party: str
    manifest_version: int
    listened_seconds: float
    ok: bool
    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = Field(description="Whatever else was refused meanwhile: strangers, say.")


@dataclass
class _Probe:
    """One party that we dial, and how far we have come with it."""

    name: str
    address: str | None
    state: State = "timeout"
    step: Literal["knock", "speak", "dial", "ask", "done", "rest"] = "knock"
    due: float = 0.0
    ask_due: float = 0.0
    door: socket.socket | None = None
    nonce: bytes = b""
    asked_at: float = 0.0
    offset: float | None = None


class Check:
    """Both sides of one node's check; everything happens in :meth:`run`."""

    def __init__(self, home: Home, identity: Identity, listens: bool, now: Callable[[], float] = time.time) -> None:
        """
        Args:
            listens: whether those who may dial this node are waited for.
            now: the wall clock.

        Raises:
            TransportError: the port is in use, by the node itself, say.
        """
        self._home, self._identity, self._now, self._listens = home, identity, now, listens
        self._greeting = greeting(home.manifest)
        self._keys = home.manifest.signing_keys
        self._notes: dict[str, int] = {}
        self._good_until = 0.0
        ladder = () if home.is_key_holder else home.placement.ladder(home.name)
        self._above = {name: _Probe(name, home.addresses.get(name)) for name in ladder}
        order = home.placement.order if listens and home.bind else ()
        self._below: dict[str, tuple[State, float | None]] = {
            name: ("did not come", None)
            for name in order
            if name != home.name and home.name in home.placement.ladder(name)
        }
        for probe in self._above.values():
            if probe.address is None:
                probe.state, probe.step = "unknown host", "done"
        peers = [Peer(card.name, card.curve_key, home.address(card)) for card in home.manifest.cards]
        bind = home.bind if listens else None
        self._transport = Transport(identity.curve_secret, peers, bind, self._refused, ENVELOPE_BYTES)

    def run(self, seconds: float) -> NetworkReport:
        """Try until all is good, or for this long; each once where nobody is waited for."""
        began = time.monotonic()
        while not self._is_done(began + seconds):
            for probe in self._above.values():
                self._step(probe, time.monotonic())
            messages, _, connected = self._transport.poll(TURN_SECONDS)
            for name in connected:
                self._above[name].step, self._above[name].due = "ask", time.monotonic() + ANSWER_SECONDS
            for peer, parts in messages:
                self._take(peer, parts)
        for probe in self._above.values():
            self._leave(probe)
        self._transport.close()
        findings = tuple(self._findings())
        return NetworkReport(
            party=self._home.name,
            manifest_version=self._home.manifest.version,
            listened_seconds=time.monotonic() - began if self._listens else 0.0,
            ok=all(finding.is_good for finding in findings),
            findings=findings,
            notes=tuple(f"{text} ({count} times)" if count > 1 else text for text, count in self._notes.items()),
        )

    def _is_done(self, deadline: float) -> bool:
        tried = all(probe.step == "done" for probe in self._above.values())
        if not self._listens:
            return tried
        good = all(probe.state in ("good", "already connected") for probe in self._above.values() if probe.address)
        came = all(state == "good" for state, _ in self._below.values())
        now = time.monotonic()
        self._good_until = self._good_until or now + LINGER_SECONDS if tried and good and came else 0.0
        return 0.0 < self._good_until <= now or now >= deadline

    def _findings(self) -> list[Finding]:
        above: list[tuple[str, Literal["above", "below"], str | None, State, float | None]] = [
            (name, "above", self._home.manifest.card(name).endpoint, probe.state, probe.offset)
            for name, probe in self._above.items()
        ]
        below: list[tuple[str, Literal["above", "below"], str | None, State, float | None]] = [
            (name, "below", self._home.card.endpoint, state, offset) for name, (state, offset) in self._below.items()
        ]
        return [
            Finding(
                party=name,
                side=side,
                endpoint=endpoint,
                state=state,
                found=MEANING[state] + (f": {_told(offset)}" if offset is not None else ""),
                remedy=REMEDIES.get(state),
                clock_seconds=None if offset is None else round(offset, 3),
            )
            for name, side, endpoint, state, offset in above + below
        ]

    # ---- those we dial ----------------------------------------------------------------------------------

    def _step(self, probe: _Probe, now: float) -> None:
        match probe.step:
            case "knock" if probe.door is None:
                self._knock(probe, now)
            case "knock":
                self._see_door(probe, now)
            case "speak":
                self._hear(probe, now)
            case "dial":
                self._see_handshake(probe, now)
            case "ask":
                self._ask(probe, now)
            case "rest" if now >= probe.due:
                probe.step = "knock"

    def _knock(self, probe: _Probe, now: float) -> None:
        assert probe.address is not None
        probe.door = socket.socket(socket.AF_INET6 if is_ipv6(probe.address) else socket.AF_INET)
        probe.door.setblocking(False)
        probe.due = now + CONNECT_SECONDS
        try:
            code = probe.door.connect_ex(split(probe.address))
        except socket.gaierror:
            self._settle(probe, "unknown host")
            return
        if code not in (0, errno.EINPROGRESS):
            self._settle(probe, _by_error(code))

    def _see_door(self, probe: _Probe, now: float) -> None:
        assert probe.door is not None
        if _is_ready(probe.door, select.POLLOUT):
            code = probe.door.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                self._settle(probe, _by_error(code))
            else:
                probe.step, probe.due = "speak", now + SPEAK_SECONDS
        elif now >= probe.due:
            self._settle(probe, "timeout")

    def _hear(self, probe: _Probe, now: float) -> None:
        """A ZeroMQ socket speaks first; what else listens there says something else, or waits."""
        assert probe.door is not None
        if _is_ready(probe.door, select.POLLIN):
            try:
                said = probe.door.recv(10)
            except OSError:
                said = b""
            if len(said) == 10 and (said[0], said[9]) == _SIGNATURE:
                # The door stays open meanwhile: who listens is not told of a connection that ended at once.
                probe.step, probe.due = "dial", now + HANDSHAKE_SECONDS
                self._transport.dial(probe.name)
            else:
                self._settle(probe, "something else listens")
        elif now >= probe.due:
            self._settle(probe, "something else listens")

    def _see_handshake(self, probe: _Probe, now: float) -> None:
        refusal = self._transport.refusal(probe.name)
        if refusal == KEY_REFUSED:
            self._settle(probe, "unknown client key")
        elif refusal == HANDSHAKE_REFUSED:
            self._settle(probe, "wrong server key")
        elif now >= probe.due:
            self._settle(probe, "something else listens")

    def _ask(self, probe: _Probe, now: float) -> None:
        if now >= probe.due:
            self._settle(probe, "no answer")
        elif now >= probe.ask_due:
            probe.ask_due = now + ASK_SECONDS
            if not probe.nonce:
                probe.nonce, probe.asked_at = secrets.token_bytes(clock.NONCE_BYTES), self._now()
            self._send(probe.name, is_answer=False, nonce=probe.nonce)

    def _settle(self, probe: _Probe, state: State) -> None:
        """What came of it; with others to wait for it is tried again, since they may only be starting."""
        self._leave(probe)
        probe.state, probe.nonce = state, b""
        good = state in ("good", "already connected")
        probe.step = "rest" if self._listens and not good else "done"
        probe.due = time.monotonic() + AGAIN_SECONDS

    def _leave(self, probe: _Probe) -> None:
        self._transport.hang_up(probe.name)
        if probe.door is not None:
            probe.door.close()
            probe.door = None

    # ---- what comes -------------------------------------------------------------------------------------

    def _take(self, peer: str, parts: list[bytes]) -> None:
        now = self._now()
        probe = self._above.get(peer)
        if parts == [REFUSED] and probe:
            self._settle(probe, "already connected")
            return
        told = clock.read(parts, peer, self._home.name, self._keys, verify)
        if told is None:
            return  # a node that says hello, say: it runs, and has no part in this
        state: State = "good"
        if told.is_answer and probe and probe.step == "ask" and told.nonce == probe.nonce:
            probe.offset = told.milliseconds / 1000 - (probe.asked_at + now) / 2
            self._settle(probe, self._judged(told, probe.offset))
        elif not told.is_answer:
            self._send(peer, is_answer=True, nonce=told.nonce)
            if peer in self._below:
                offset = told.milliseconds / 1000 - now
                state = self._judged(told, offset)
                self._below[peer] = state, offset

    def _judged(self, told: clock.Clock, offset: float) -> State:
        if told.greeting != self._greeting:
            return "another manifest"
        return "good" if abs(offset) <= NEAR_SECONDS else "clock"

    def _send(self, peer: str, is_answer: bool, nonce: bytes) -> None:
        message = clock.Clock(is_answer, self._greeting, self._home.name, peer, nonce, round(1000 * self._now()))
        self._transport.send(peer, message.parts(self._identity.sign))

    def _refused(self, who: str, expected: str, came: str) -> None:
        if who in self._above:
            return  # it is named with its party
        note = f"{who}: expected {expected}, came {came}"
        if note in self._notes or len(self._notes) < MOST_NOTES:
            self._notes[note] = self._notes.get(note, 0) + 1


def _by_error(code: int) -> State:
    match code:
        case errno.ECONNREFUSED:
            return "refused"
        case errno.ETIMEDOUT:
            return "timeout"
    return "unreachable"


def _is_ready(door: socket.socket, kind: int) -> bool:
    poller = select.poll()
    poller.register(door, kind)
    return bool(poller.poll(0))


def _told(offset: float) -> str:
    minutes = f"{abs(offset) / 60:.1f} minutes" if abs(offset) >= 60 else f"{abs(offset):.1f} s"
    return f"its clock is {minutes} {'ahead of' if offset > 0 else 'behind'} ours"
