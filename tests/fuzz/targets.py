"""What is fuzzed: every place where bytes of others are read. A target takes bytes and raises what is wrong.

Imported by ``run.py`` alone, which has the modules below instrumented for coverage.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import msgpack
import numpy as np

from keys.plan import Plan
from keys.segments import CiphertextError, read_segment, write_segment
from node.channel import Channel, ChannelClosedError
from node.protocol import events as ev
from node.protocol.codec import KINDS, Codec, Frame, RemoteProtocolError
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.link import BYE, CREDIT, DATA, HELLO, Link, Wire
from node.protocol.messages import (
    STATISTICS,
    TRAIN,
    Absent,
    Close,
    Fail,
    Finish,
    Gone,
    Joined,
    Message,
    Open,
    Partial,
    Snapshot,
    Total,
)
from node.protocol.party import Party, Rules
from node.protocol.posture import UNCONFINED
from node.protocol.schedule import Schedule
from node.published import state_from, state_part, state_size
from node.update import Model
from tests.node.messages import BASE, MANIFEST, STATE, one_of_each
from tests.node.played_node import CONFINED
from topology import Member, Placement, Roster

NAMES = ("ada", "bo", "cy", "di", "eva")
ROSTER = Roster(tuple(map(Member, NAMES)), "ada")

EXAMPLES = one_of_each(NAMES, CONFINED)
assert tuple(map(type, EXAMPLES)) == KINDS


# ---- the decoder ----------------------------------------------------------------------------------------


def _anybody(key: bytes, domain: str, message: bytes, signature: bytes) -> bool:
    """As if everyone had signed whatever comes: a malicious member can sign any bytes, a stranger none."""
    return True


def _sign(domain: str, message: bytes) -> bytes:
    return bytes(64)


CODEC = Codec(MANIFEST, ROSTER, {name: name.encode() for name in NAMES}, _anybody)
_SPLIT = struct.Struct("<BH")


def _envelope(data: bytes) -> tuple[bytes, bytes]:
    """Flags, the header's length, header, payload; a flag repairs what mutation would never guess."""
    if len(data) < _SPLIT.size:
        return data, b""
    flags, length = _SPLIT.unpack_from(data)
    packed, payload = data[_SPLIT.size : _SPLIT.size + length], data[_SPLIT.size + length :]
    if flags & 1:
        try:
            header = msgpack.unpackb(packed, strict_map_key=False)
        except Exception:
            return bytes(64) + packed, payload
        if isinstance(header, list) and len(header) == 11:
            header[2], header[10] = MANIFEST, hashlib.sha256(payload).digest()
            try:
                packed = msgpack.packb(header)
            except Exception:
                return bytes(64) + packed, payload
    return bytes(64) + packed, payload


def decoder(data: bytes) -> None:
    """Any bytes are a frame that comes out again as it went in, or a RemoteProtocolError."""
    try:
        frame = CODEC.decode("cy", *_envelope(data))
    except RemoteProtocolError as error:
        if error.who != "cy" or "\n" in str(error):
            raise RuntimeError("not one line that names the neighbour") from error
        return
    again = CODEC.encode(frame.message, frame.sender, frame.recipient, _sign)
    assert CODEC.decode("cy", *again.parts).message == frame.message


def _frame_seeds() -> Iterator[bytes]:
    for message in EXAMPLES:
        for recipient in ("", "ada"):
            frame = CODEC.encode(message, "bo", recipient, _sign)
            packed = frame.envelope[64:]
            for flags in (0, 1):
                yield _SPLIT.pack(flags, len(packed)) + packed + frame.payload


# ---- links ----------------------------------------------------------------------------------------------

WINDOW = 3
OURS = 0x5555


def link(data: bytes) -> None:
    """Whatever a neighbour's wires say: in order, never beyond the window, and nothing of ours grows without bound."""
    side = Link(OURS, WINDOW)
    unconsumed: deque[object] = deque()
    while data:
        action, data = data[0], data[1:]
        if action < 32:
            if side.established and side.pending < WINDOW:
                side.send((b"e", b"p"))
        elif action < 64:
            if unconsumed:
                unconsumed.popleft()
                side.consumed()
        else:
            parts, data = [data[:29]], data[29:]
            if action & 1:
                parts += [b"envelope", b"payload"]
            wire = Wire.parse(parts)
            if wire is None:
                continue
            fault = side.fault(wire)
            if fault:
                assert all(fault)
                continue
            before = side.established
            items, replies = side.receive(wire)
            if side.established != before:
                unconsumed.clear()
            unconsumed.extend(items)
            assert all(Wire.parse(reply.parts()) == reply for reply in replies)
            assert sum(reply.kind == DATA for reply in replies) <= WINDOW
        assert len(unconsumed) <= WINDOW
        assert 0 <= side.pending <= WINDOW


def _link_seeds() -> Iterator[bytes]:
    def wire(kind: int, peer: int, sequence: int, received: int, limit: int) -> bytes:
        return struct.pack(">BQQIII", kind, 7, peer, sequence, received, limit)

    hello = wire(HELLO, OURS, 1, 0, WINDOW)
    yield bytes([64]) + wire(HELLO, 0, 0, 0, WINDOW) + bytes([64]) + hello + bytes([0, 0, 0])
    yield bytes([64]) + hello + bytes([65]) + wire(DATA, OURS, 1, 0, WINDOW) + bytes([65]) + wire(DATA, OURS, 2, 0, 3)
    yield bytes([64]) + hello + bytes([0, 0, 0, 64]) + wire(CREDIT, OURS, 0, 1, 4) + bytes([64]) + hello
    yield bytes([64]) + hello + bytes([64]) + wire(BYE, OURS, 0, 0, 3) + bytes([65]) + wire(DATA, OURS, 4, 0, 2**32 - 1)


# ---- ciphertexts ----------------------------------------------------------------------------------------

PLAN = Plan(segment_ciphertexts=2)


def segment(data: bytes) -> None:
    """Any bytes are a segment that comes out again as it went in, or a CiphertextError."""
    if data[:1] == b"\x01":  # one ciphertext's worth of what came: else nothing ever has the right length
        rest = data[33:] or b"\0"
        size = 2 * PLAN.poly_modulus_degree * PLAN.prime_bits[0] // 8
        data = data[:33] + (rest * (size // len(rest) + 1))[:size]
    try:
        words = read_segment(data[1:], PLAN)
    except CiphertextError:
        return
    assert write_segment(words, PLAN) == data[1:]


def _segment_seeds() -> Iterator[bytes]:
    words = np.ones((2, 1, PLAN.poly_modulus_degree), "<u8")
    whole = write_segment(words, PLAN)
    yield b"\x01" + whole[:40]
    yield b"\x01" + whole[:32] + b"\xff" * 8
    yield b"\x00" + whole[:64]


# ---- the published state in parts -----------------------------------------------------------------------


def state(data: bytes) -> None:
    """Any parts are a state, whose parts are those bytes, or none; a digest exists for each."""
    cut = data[0] if data else 0
    parts = [data[1 : 1 + cut], data[1 + cut :]]
    model = state_from(parts)
    if model is None:
        return
    assert len(model.digest(MANIFEST)) == 32
    size = state_size(model)
    assert size == len(data) - 1
    again = state_from([state_part(model, part, 16) for part in range(-(-size // 16))])
    assert again is not None
    assert again.digest(MANIFEST) == model.digest(MANIFEST)


def _state_seeds() -> Iterator[bytes]:
    for model in (
        Model(-1, np.zeros(3, np.float32)),
        Model(5, np.ones(2, np.float32), np.arange(4.0), 7),
    ):
        yield bytes([24]) + state_part(model, 0, 10_000)


# ---- pipes between the rooms ----------------------------------------------------------------------------


def channel(data: bytes) -> None:
    """Whatever a room writes into its pipe: messages, or the channel is closed."""
    read, write = os.pipe()
    ours = Channel(read, None, limit=1 << 16)
    try:
        os.write(write, data[: 1 << 15])
        os.close(write)
        while True:
            message = ours.receive(1)
            assert isinstance(message["kind"], str)
    except ChannelClosedError:
        return
    finally:
        ours.close()


def _channel_seeds() -> Iterator[bytes]:
    for fields in ({}, {"round": 3, "values": b"x" * 20}, {"names": ["a", "b"], "own": None}):
        body = msgpack.packb({"kind": "segment", **fields}, use_bin_type=True)
        yield struct.pack(">I", len(body)) + body
    yield struct.pack(">I", 1) + b"\xc0"


# ---- the round machines ---------------------------------------------------------------------------------

PLACEMENT = Placement(ROSTER, b"seed")
RULES = Rules(Schedule(3), 2, 10, 2, 20.0, 30.0)


@dataclass
class Draw:
    """Numbers out of bytes; zeros when they have come to an end."""

    data: bytes

    def below(self, limit: int) -> int:
        byte, self.data = self.data[:1], self.data[1:]
        return (byte[0] if byte else 0) % limit

    def of(self, things: Any) -> Any:
        return things[self.below(len(things))]

    def names(self) -> frozenset[str]:
        bits = self.below(256)
        return frozenset(name for index, name in enumerate(NAMES) if bits >> index & 1)


def _message(draw: Draw) -> Message:
    """Any message, its fields near those that matter."""
    round_, base, segment_ = draw.below(5), draw.of((BASE, STATE, bytes(32))), draw.below(4)
    match draw.below(10):
        case 0:
            place, posture = draw.of((*NAMES, "mallory", "")), draw.of((CONFINED, CONFINED, UNCONFINED.text, "x"))
            return Joined(round_, base, draw.below(5), draw.below(5), place, posture)
        case 1:
            return Open(round_, base, draw.names(), draw.of(("train", "statistics", "x")), draw.of((25, 3, 0)), True, 9)
        case 2:
            return Partial(round_, base, segment_, draw.names(), draw.of((0, 1, 2, 63, 64, 1 << 50)), b"c")
        case 3:
            return Absent(round_, base)
        case 4:
            return Total(round_, base, segment_, draw.names(), bytes(draw.of((40, 20, 12, 0))))
        case 5:
            return Close(round_, base, draw.names(), segment_, draw.of((STATE, BASE, b"\x44" * 32)))
        case 6:
            return Fail(round_, base, "reason", draw.below(8) == 7)
        case 7:
            return Finish(base)
        case 8:
            return Gone(base, draw.of((*NAMES, "mallory")))
        case _:
            return Snapshot(base, segment_, draw.of((1, 2, 3, 1 << 50)), bytes(draw.of((40, 24, 41, 0))))


def _answers(draw: Draw, command: ev.Command) -> Iterator[ev.Event]:
    """What a node's other parts would answer at once."""
    match command:
        case ev.Merge(round_, attempt, segment_, parts):
            assert parts
            if draw.below(4) == 3:
                yield ev.NotMerged(round_, attempt, segment_, (draw.below(len(parts)),))
            else:
                yield ev.Merged(round_, attempt, segment_, b"sum")
        case ev.OpenTotal(round_, segment_, others, own, _):
            assert len(others) + own > RULES.min_hidden, "an opening in which somebody is not hidden"
            yield ev.Opened(round_, segment_, bytes(40))
        case ev.Apply(round_, _, _, _, state_):
            yield ev.Applied(round_, state_ or b"\x55" * 32, 40)
        case ev.Adopt(closes, parts):
            good = len(b"".join(parts)) == 40
            yield ev.Adopted(closes[-1].close.state, 40) if good else ev.NotAdopted()


def _run_machine(party: Party, data: bytes) -> None:
    draw = Draw(data)
    ended, opened = False, set()

    def happen(event: ev.Event) -> None:
        nonlocal ended
        waiting = deque([event])
        while waiting and not ended:
            for command in party.handle(waiting.popleft()):
                if isinstance(command, ev.OpenTotal):
                    assert (command.round, command.segment) not in opened, "a segment is opened twice"
                    opened.add((command.round, command.segment))
                ended = ended or isinstance(command, ev.Stop)
                waiting.extend(_answers(draw, command))

    happen(ev.Ready(BASE, {TRAIN: 25, STATISTICS: draw.of((0, 3))}, 40, 200, CONFINED))
    while draw.data and not ended:
        peer = draw.of([name for name in NAMES if name != party.me])
        match draw.below(12):
            case 0 | 1:
                happen(ev.Up(peer))
            case 2:
                happen(ev.Down(peer, bool(draw.below(2))))
            case 3:
                happen(ev.Room(peer, draw.below(3)))
            case 4:
                happen(ev.Sealed(draw.below(5), draw.below(3), b"own"))
            case 5:
                happen(draw.of((ev.Contributed, ev.OwnLost))(draw.below(5)))
            case 6:
                happen(ev.Expired(draw.of(("join", "settle", "round", "gather", "silence", "dial", "goodbye"))))
            case _:
                message = _message(draw)
                frame = Frame(peer, "", message, b"", b"")
                sender, recipient = draw.of((peer, "ada", *NAMES)), draw.of((party.me, "", "ada", *NAMES))
                happen(ev.Received(peer, sender, recipient, message, frame))


def contributor(data: bytes) -> None:
    """Whatever neighbours say and in whatever order: commands, never an exception."""
    apex, leaf = PLACEMENT.order[0], PLACEMENT.order[-1]
    _run_machine(Contributor(leaf if data[:1] > b"\x7f" else apex, PLACEMENT, RULES), data[1:])


def keyholder(data: bytes) -> None:
    """Likewise; and never an opening below the quorum, nor two of one segment."""
    _run_machine(KeyHolder("ada", PLACEMENT, RULES), data)


def _machine_seeds() -> Iterator[bytes]:
    for start in range(8):
        yield hashlib.shake_256(b"machine" + bytes([start])).digest(200)


# ---- all of them ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """``run`` raises for bytes that show a bug; ``seeds`` are where the search begins."""

    run: Callable[[bytes], None]
    seeds: Callable[[], Iterator[bytes]]
    longest: int


TARGETS = {
    "decoder": Target(decoder, _frame_seeds, 1024),
    "link": Target(link, _link_seeds, 600),
    "segment": Target(segment, _segment_seeds, 200),
    "state": Target(state, _state_seeds, 200),
    "channel": Target(channel, _channel_seeds, 300),
    "contributor": Target(contributor, _machine_seeds, 400),
    "keyholder": Target(keyholder, _machine_seeds, 400),
}
