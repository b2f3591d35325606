"""The grammar on the wire: what is valid comes through whole, all else is a RemoteProtocolError."""

from __future__ import annotations

import hashlib
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.identity import Identity, verify
from node.protocol.codec import KINDS, Codec, Frame, RemoteProtocolError
from node.protocol.link import DATA, Wire
from node.protocol.messages import Absent, Close, Fail, Finish, Gone, Joined, Message, Open, Partial, Snapshot, Total
from tests.node.messages import BASE, MANIFEST, STATE, one_of_each
from topology import Member, Roster

NAMES = ("ada", "bo", "cy")
SEEDS = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}
IDENTITIES = {name: Identity(name, seed, b"c" * 32, b"b" * 32) for name, seed in SEEDS.items()}
KEYS = {name: identity.card(None, 0).signing_key for name, identity in IDENTITIES.items()}
CODEC = Codec(MANIFEST, Roster(tuple(map(Member, NAMES)), "ada"), KEYS, verify)

EXAMPLES = one_of_each(NAMES, "required landlock=7 gaps=swap")

digests = st.binary(min_size=32, max_size=32)
numbers = st.integers(0, 2**53 - 1)
sets = st.frozensets(st.sampled_from(NAMES))
texts = st.text(st.characters(codec="utf-8"), max_size=50)
payloads = st.binary(max_size=300)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(Joined, numbers, digests, numbers, numbers, texts, texts),
    st.builds(Open, numbers, digests, sets, texts, numbers, st.booleans(), numbers),
    st.builds(Partial, numbers, digests, numbers, sets, numbers, payloads),
    st.builds(Absent, numbers, digests),
    st.builds(Total, numbers, digests, numbers, sets, payloads),
    st.builds(Close, numbers, digests, sets, numbers, digests),
    st.builds(Fail, numbers, digests, texts, st.booleans()),
    st.builds(Finish, digests),
    st.builds(Gone, digests, texts),
    st.builds(Snapshot, digests, numbers, numbers, payloads),
)


def encode(message: Message, sender: str = "bo", recipient: str = "ada") -> Frame:
    return CODEC.encode(message, sender, recipient, IDENTITIES[sender].sign)


def signed(header: object, signer: str = "bo", domain: str = "frame") -> bytes:
    """An envelope around any header at all, rightly signed: what a malicious member can make."""
    packed: bytes = msgpack.packb(header, use_bin_type=True)
    return IDENTITIES[signer].sign(domain, packed) + packed


def header_of(message: Message) -> list[Any]:
    header = msgpack.unpackb(encode(message).envelope[64:])
    assert isinstance(header, list)
    return header


def refused(envelope: bytes, payload: bytes = b"") -> RemoteProtocolError:
    with pytest.raises(RemoteProtocolError) as caught:
        CODEC.decode("cy", envelope, payload)
    assert caught.value.who == "cy", "the neighbour that passed it on is named"
    assert "\n" not in str(caught.value)
    return caught.value


# ---- what is valid --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(messages, st.sampled_from(NAMES), st.sampled_from(("", *NAMES)))
def test_every_message_comes_out_as_it_went_in(message: Message, sender: str, recipient: str) -> None:
    frame = encode(message, sender, recipient)
    assert CODEC.decode(sender, *frame.parts) == frame == Frame(sender, recipient, message, *frame.parts)


def test_there_is_an_example_of_every_kind_in_the_order_of_the_wire() -> None:
    assert tuple(map(type, EXAMPLES)) == KINDS


GOLDEN: dict[type[Any], str] = {
    Joined: (
        "df6341431c241da92588b2934b896e6792fa0ca7d3c8d4792550ca2ac828fcd793771b12a4131e2c77fec770ec750f07bd0b8233"
        "a5699d6f318027dc2143aa089b0100c42011111111111111111111111111111111111111111111111111111111111111110700c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa3616461940602a26379bd726571"
        "7569726564206c616e646c6f636b3d3720676170733d73776170c420e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934c"
        "a495991b7852b855"
    ),
    Open: (
        "2ff4ec1199fe6754c0232fbcad2e6e7d1a710cfe2d08d26bee8ce13c86bdf5931c29bb5558a4ae7ef11c5efcf1d001d92325dd9a"
        "4c91fc57006e9a1a00fad70b9b0101c42011111111111111111111111111111111111111111111111111111111111111110700c4"
        "0107c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646194a5747261696ecd03"
        "e8c3cd7530c420e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ),
    Partial: (
        "ade04acf0e3266111435c355c4f6f71a24f796b1e8f8dde01bca25920bc8dc5b4d8c2de2596d2fc9a803cf2fdd14f62fb6148dd2"
        "2dbefd51132d0740e3ab230c9b0102c42011111111111111111111111111111111111111111111111111111111111111110703c4"
        "0106c4202222222222222222222222222222222222222222222222222222222222222222a2626fa36164619101c42017274f71c0"
        "4793d5dcea48f4e619ac29e6d60cd5813646e75361625a29acb12e"
    ),
    Absent: (
        "6b177131d55b1bdb83bae52bf7b78c10f376561b65e9fdb325b08baca81efdb15f9e00e1dfbed21a5b62990d5660390481061a42"
        "a056894891f7ddb3c04e42049b0103c42011111111111111111111111111111111111111111111111111111111111111110700c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646190c420e3b0c44298fc1c"
        "149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ),
    Total: (
        "97d635fdbc0b39f67039bb7c9961cf5a93bd3c4b99d8e04a6f0db5bad7c14de3abc3395a5f6c916fc413a04ba91318e3f1e0cd4d"
        "56cb001b7c2b8bd9db49a30a9b0104c42011111111111111111111111111111111111111111111111111111111111111110703c4"
        "0107c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646190c420f1dd6683235e"
        "1aa7d979daa077abd17e105ba076ef135c7a747a88c681a25a46"
    ),
    Close: (
        "8e4f8d1598f5c064beb31a6c741e8e2c8a63e9e76e76cb909f089b5fee29b84a91db19995cce3c87899fbe1391380060cd9a2262"
        "fee367f1ba5defcba9cdf10f9b0105c42011111111111111111111111111111111111111111111111111111111111111110700c4"
        "0107c4202222222222222222222222222222222222222222222222222222222222222222a2626fa36164619204c4203333333333"
        "333333333333333333333333333333333333333333333333333333c420e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b93"
        "4ca495991b7852b855"
    ),
    Fail: (
        "cb837eb1313d21eea6cf436f978b5e5c3eb29f4440cbd5757d3fffed7fdbdf28a57703f0fe9b4d4905a956c0573f1f7c1400a5f5"
        "2b2a10efe8484a6c930dd70f9b0106c42011111111111111111111111111111111111111111111111111111111111111110700c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646192bd74686520726f756e"
        "642069732062656c6f77207468652071756f72756dc2c420e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b"
        "7852b855"
    ),
    Finish: (
        "a8b7a9bebff640902d8d20ba5f02a4f42a4a2658f4f1a29a86c9572581abf9d4a7b732663c801bd2563107ded9595476cfec2b60"
        "32dc59f54134748e4189c4089b0107c42011111111111111111111111111111111111111111111111111111111111111110000c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646190c420e3b0c44298fc1c"
        "149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ),
    Gone: (
        "7fab85d7389ea0ab6e5480dd65b50c924c6ebfa05ee8ff1d52e44054cf2671aea0b2032195defd48db58845b84522945f89ad8ec"
        "f47e3ff8081ef53217fefb0a9b0108c42011111111111111111111111111111111111111111111111111111111111111110000c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa361646191a26379c420e3b0c442"
        "98fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    ),
    Snapshot: (
        "1a190024af839e504eecd6144bf19c10502bf63770586fc064134c3ba9d5b94772c58645e9a6448229aa6f442a7c516dcfc4d716"
        "a9d548a692f2bf38cd83c90a9b0109c42011111111111111111111111111111111111111111111111111111111111111110001c4"
        "00c4202222222222222222222222222222222222222222222222222222222222222222a2626fa36164619103c420ed7002b439e9"
        "ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    ),
}


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_the_bytes_on_the_wire_never_change(message: Message) -> None:
    """Golden: another version of this program must read them; a change needs another protocol version."""
    assert encode(message).envelope.hex() == GOLDEN[type(message)]


def test_the_header_of_a_link_is_29_bytes_that_never_change() -> None:
    wire = Wire(DATA, 0x0102030405060708, 0x1112131415161718, 0x21222324, 0x31323334, 0x41424344, (b"e", b"p"))
    head, *item = wire.parts()
    assert head.hex() == "0201020304050607081112131415161718212223243132333441424344"
    assert (len(head), item) == (29, [b"e", b"p"])
    assert Wire.parse(wire.parts()) == wire


# ---- what is not ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda message: type(message).__name__)
def test_any_flipped_bit_and_any_cut_is_refused(message: Message) -> None:
    envelope, payload = encode(message).parts
    for at in range(8 * len(envelope)):
        refused(_flip(envelope, at), payload)
    for at in range(8 * len(payload)):
        refused(envelope, _flip(payload, at))
    for end in range(len(envelope)):
        refused(envelope[:end], payload)
    for end in range(len(payload)):
        refused(envelope, payload[:end])
    refused(envelope + b"\0", payload)
    refused(envelope, payload + b"\0")


def _flip(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << (bit % 8)
    return bytes(changed)


VERSION, KIND, UNDER, ROUND, SEGMENT, SET, ON, SENDER, RECIPIENT, DETAILS, PAYLOAD = range(11)
JOINED, OPEN, PARTIAL, _, _, CLOSE, FAIL, FINISH, *_ = EXAMPLES
WRONG: dict[str, tuple[Message, int, Any, str]] = {
    "another version": (PARTIAL, VERSION, 2, "protocol version 1"),
    "true for the version": (PARTIAL, VERSION, True, "protocol version 1"),
    "unknown kind": (PARTIAL, KIND, len(KINDS), "a known kind"),
    "negative kind": (PARTIAL, KIND, -1, "a known kind"),
    "true for the kind": (PARTIAL, KIND, True, "a known kind"),
    "another manifest": (PARTIAL, UNDER, b"\x12" * 32, "our manifest"),
    "no manifest": (PARTIAL, UNDER, None, "our manifest"),
    "a stranger as sender": (PARTIAL, SENDER, "mallory", "a sender on the roster"),
    "nobody as sender": (PARTIAL, SENDER, "", "a sender on the roster"),
    "a list as sender": (PARTIAL, SENDER, ["bo"], "a sender on the roster"),
    "another member as sender": (PARTIAL, SENDER, "cy", "signed by cy"),
    "a stranger as recipient": (PARTIAL, RECIPIENT, "mallory", "a recipient on the roster"),
    "a number as recipient": (PARTIAL, RECIPIENT, 0, "a recipient on the roster"),
    "set too long": (PARTIAL, SET, b"\x06\0", "contributor set"),
    "set empty": (PARTIAL, SET, b"", "contributor set"),
    "a fourth of three parties": (PARTIAL, SET, b"\x08", "contributor set"),
    "set as text": (PARTIAL, SET, "\x06", "contributor set"),
    "a set where there is none": (JOINED, SET, b"\x06", "no contributors"),
    "negative round": (PARTIAL, ROUND, -1, "Partial.round"),
    "round beyond 2**53": (PARTIAL, ROUND, 2**53, "Partial.round"),
    "true for the round": (PARTIAL, ROUND, True, "Partial.round"),
    "a float for the round": (PARTIAL, ROUND, 7.0, "Partial.round"),
    "true for the segment": (PARTIAL, SEGMENT, True, "Partial.segment"),
    "a segment where there is none": (CLOSE, SEGMENT, 1, "no segment"),
    "false for no segment": (CLOSE, SEGMENT, False, "no segment"),
    "a round where there is none": (FINISH, ROUND, 1, "no round"),
    "base of 31 bytes": (PARTIAL, ON, BASE[:31], "Partial.base"),
    "base of 33 bytes": (PARTIAL, ON, BASE + b"\0", "Partial.base"),
    "base as text": (PARTIAL, ON, "\x22" * 32, "Partial.base"),
    "details missing": (CLOSE, DETAILS, [4], "2 details"),
    "details too many": (CLOSE, DETAILS, [4, STATE, 0], "2 details"),
    "details as a number": (CLOSE, DETAILS, 4, "2 details"),
    "state of 31 bytes": (CLOSE, DETAILS, [4, STATE[:31]], "Close.state"),
    "negative segments": (CLOSE, DETAILS, [-1, STATE], "Close.segments"),
    "a number for true": (OPEN, DETAILS, ["train", 1000, 1, 30_000], "Open.key_holder_contributes"),
    "a list for text": (FAIL, DETAILS, [["reason"], False], "Fail.reason"),
    "a number for the parent": (JOINED, DETAILS, [6, 2, 1, "posture"], "Joined.parent"),
    "a number for the posture": (JOINED, DETAILS, [6, 2, "cy", 7], "Joined.posture"),
    "payload swapped": (PARTIAL, PAYLOAD, hashlib.sha256(b"other").digest(), "the payload that was signed"),
    "no payload digest": (PARTIAL, PAYLOAD, None, "the payload that was signed"),
}


@pytest.mark.parametrize(("message", "field", "value", "expected"), WRONG.values(), ids=WRONG.keys())
def test_each_field_wrong_once_is_refused_and_named_though_signed(
    message: Message, field: int, value: Any, expected: str
) -> None:
    header = header_of(message)
    header[field] = value
    assert expected in str(refused(signed(header), encode(message).payload))


def test_a_payload_where_there_is_none_is_refused_though_signed() -> None:
    header = header_of(EXAMPLES[3])
    header[PAYLOAD] = hashlib.sha256(b"x").digest()
    assert "no payload" in str(refused(signed(header), b"x"))


def test_a_signature_for_another_purpose_or_by_another_member_is_false() -> None:
    for envelope in (signed(header_of(PARTIAL), domain="ledger"), signed(header_of(PARTIAL), signer="cy")):
        assert "signed by bo" in str(refused(envelope, encode(PARTIAL).payload))


def test_the_payload_of_one_frame_does_not_fit_another() -> None:
    other = encode(Partial(7, BASE, 4, frozenset({"bo", "cy"}), 1, b"others"))
    assert "the payload that was signed" in str(refused(encode(PARTIAL).envelope, other.payload))


BOMBS = {
    "deep nesting": b"\x91" * 8000,
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "huge text": b"\xdb\xff\xff\xff\xff",
    "huge extension": b"\xc9\xff\xff\xff\xff\x01",
    "an extension": b"\x9b" + b"\xd4\x01\x00" * 11,
    "a timestamp": b"\x9b" + b"\xd6\xff\x00\x00\x00\x00" * 11,
    "an empty timestamp": b"\x9b" + b"\xc7\x00\xff" * 11,
    "a map": b"\x9b" + b"\x81\x00\x00" * 11,
    "arrays of arrays": b"\x9b" + (b"\x9f" + b"\x9f" * 15) * 11,
    "text that is not UTF-8": b"\x9b" + b"\xa1\xff" * 11,
    "a number instead of an array": b"\x01",
    "ten fields": b"\x9a" + b"\x00" * 10,
    "two headers": b"\x9b" + b"\x00" * 11 + b"\x00",
    "a reserved byte": b"\xc1",
    "a header too long": b"\x9b" + b"\x00" * 9000,
}


@pytest.mark.parametrize("packed", BOMBS.values(), ids=BOMBS.keys())
def test_a_msgpack_bomb_is_refused(packed: bytes) -> None:
    refused(IDENTITIES["bo"].sign("frame", packed) + packed)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), st.binary(max_size=50))
def test_random_bytes_are_refused(envelope: bytes, payload: bytes) -> None:
    refused(envelope, payload)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(EXAMPLES), st.dictionaries(st.integers(0, 10), anything, min_size=1, max_size=3))
def test_whatever_a_member_signs_is_a_frame_or_a_protocol_error(message: Message, change: dict[int, Any]) -> None:
    header = [change.get(field, value) for field, value in enumerate(header_of(message))]
    try:
        frame = CODEC.decode("cy", signed(header), encode(message).payload)
    except RemoteProtocolError:
        return
    assert header_of(frame.message)[ROUND:SENDER] == header[ROUND:SENDER], "only what was said is understood"
