"""Identities sign for one purpose at a time; a card that exists has verified."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.canonical import canonical, parse
from keys.errors import WardtreeError
from keys.identity import Card, Identity, IdentityError, bucket, verify

FIXED = Identity("cleveland", b"\x01" * 32, b"\x02" * 32, b"\x03" * 32)
CARD = FIXED.card("10.0.0.1:5000", 303)

GOLDEN_CARD = (
    b'{"box_key":"5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22","curve_key":'
    b'"ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59","endpoint":"10.0.0.1:50'
    b'00","examples":256,"format":"wardtree-card/1","name":"cleveland","signature":"d3a47da08df0'
    b"26d74a16564288c032c29b338f15106f452ad99c5c9021007b9e762fff261d621f403e68bbafbfcb578f71e3d1"
    b'8ac5aa32d3d56a10aa66365801","signing_key":"8a88e3dd7409f195fd52db2d3cba5d72ca6709bf1d94121'
    b'bf3748801b40f6f5c"}'
)
GOLDEN_FINGERPRINT = "hire walnut car immune polar notice artwork"

names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True)
keys = st.binary(min_size=32, max_size=32)


def test_the_bytes_of_a_card_are_pinned() -> None:
    assert CARD.to_json() == GOLDEN_CARD
    assert " ".join(CARD.fingerprint) == GOLDEN_FINGERPRINT


@settings(deadline=None)
@given(
    names,
    keys,
    keys,
    keys,
    st.sampled_from([None, "host:1", "a.example.org:65535", "[::1]:80"]),
    st.integers(0, 2**30),
)
def test_identities_and_cards_come_back(
    name: str, seed: bytes, curve: bytes, box: bytes, endpoint: str | None, examples: int
) -> None:
    identity = Identity(name, seed, curve, box)
    assert Identity.from_bytes(identity.to_bytes()) == identity
    card = identity.card(endpoint, examples)
    assert Card.from_json(card.to_json()) == card
    assert card.examples == bucket(examples)


def test_two_identities_share_no_key() -> None:
    one, two = Identity.create("a"), Identity.create("a")
    assert len({one.signing_seed, one.curve_secret, one.box_secret}) == 3
    assert not set(one.card(None, 0).keys) & set(two.card(None, 0).keys)


def test_a_repr_shows_no_secret() -> None:
    assert repr(FIXED) == str(FIXED) == "Identity(name='cleveland')"


@given(st.binary(max_size=50))
def test_a_signature_is_good_for_its_key_domain_and_message_only(message: bytes) -> None:
    signature = FIXED.sign("manifest", message)
    key = CARD.signing_key
    assert verify(key, "manifest", message, signature)
    assert not verify(key, "card", message, signature)
    assert not verify(key, "manifest", message + b"x", signature)
    assert not verify(Identity.create("a").card(None, 0).signing_key, "manifest", message, signature)


@given(st.integers(0, 64 * 8 - 1))
def test_a_flipped_bit_makes_a_signature_false(bit: int) -> None:
    changed = bytearray(FIXED.sign("manifest", b"text"))
    changed[bit // 8] ^= 1 << bit % 8
    assert not verify(CARD.signing_key, "manifest", b"text", bytes(changed))


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_garbage_keys_and_signatures_are_just_false(key: bytes, signature: bytes) -> None:
    assert verify(key, "manifest", b"text", signature) is False
    assert verify(b"\0" * 32, "manifest", b"text", b"\0" * 64) is False


@pytest.mark.parametrize("domain", ["", "a\0b", "A", "a b"])
def test_a_domain_cannot_reach_into_the_message(domain: str) -> None:
    with pytest.raises(ValueError, match="domain"):
        FIXED.sign(domain, b"")


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (3, 4),
        (5, 4),
        (6, 8),
        (11, 8),
        (12, 16),
        (303, 256),
        (2**20, 2**20),
        (2**40, 2**20),
    ],
)
def test_bucket_examples(examples: int, expected: int) -> None:
    assert bucket(examples) == expected


@given(st.integers(1, 2**20))
def test_bucket_is_the_nearest_power_of_two_in_log_scale(examples: int) -> None:
    result = bucket(examples)
    assert result == 2 ** round(math.log2(examples))
    assert bucket(result) == result


def test_bucket_refuses_less_than_nothing() -> None:
    with pytest.raises(IdentityError, match="expected 0 or more, came -1"):
        bucket(-1)


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "å", "a" * 41, "a\n", "a b"])
def test_bad_names_are_refused(name: str) -> None:
    with pytest.raises(IdentityError, match="name: expected"):
        Identity.create(name)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:01",
        "Host:1",
        "a b:1",
        "host:1\n",
        "::1:1",
        "[::1:1",
        "[:::]:1",
        "[10.0.0.1]:1",
        "-a:1",
        "h:١",
    ],
)
def test_bad_endpoints_are_refused(endpoint: str) -> None:
    with pytest.raises(IdentityError, match="card of 'cleveland': endpoint: expected host:port"):
        FIXED.card(endpoint, 0)


@pytest.mark.parametrize(
    "key",
    [
        bytes(32),  # of order 4
        b"\x01" + bytes(31),  # of order 1
        CARD.box_key[:-1] + bytes([CARD.box_key[-1] | 0x80]),  # the same point, spelled another way
        (2**255 - 19 + 9).to_bytes(32, "little"),  # the base point, likewise
        CARD.box_key[:-1],
    ],
)
def test_weak_and_odd_x25519_keys_are_refused(key: bytes) -> None:
    with pytest.raises(IdentityError, match="box_key: expected an X25519"):
        replace(CARD, box_key=key)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "hungary"}, "card of 'hungary': its own signature is false"),
        ({"endpoint": "10.0.0.2:5000"}, "signature is false"),
        ({"endpoint": None}, "signature is false"),
        ({"examples": 512}, "signature is false"),
        ({"examples": 300}, "examples: expected 0 or a power of two"),
        ({"examples": 2**21}, "examples: expected 0 or a power of two"),
        ({"examples": -1}, "examples: expected 0 or a power of two"),
        ({"examples": True}, "examples: expected an integer, came true or false"),
        ({"signing_key": "00" * 32}, "signature is false"),
        ({"signing_key": CARD.signing_key.hex().upper()}, "signing_key: expected 64 lower-case hex"),
        ({"box_key": "00"}, "box_key: expected 64 lower-case hex"),
        ({"curve_key": CARD.box_key.hex()}, "signature is false"),
        ({"signature": "00" * 64}, "signature is false"),
        ({"format": "wardtree-card/2"}, "format: expected 'wardtree-card/1', came 'wardtree-card/2'"),
        ({"extra": 1}, "unknown field 'extra'"),
    ],
)
def test_a_changed_card_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(WardtreeError, match=why):
        Card.from_json(canonical({**CARD.to_dict(), **change}))


@pytest.mark.parametrize("name", sorted(CARD.to_dict()))
def test_a_missing_field_is_named(name: str) -> None:
    values = CARD.to_dict()
    del values[name]
    with pytest.raises(WardtreeError, match=f"missing field '{name}'"):
        Card.from_json(canonical(values))


def test_an_identity_that_is_not_one_is_refused_without_showing_it() -> None:
    values = parse(FIXED.to_bytes(), 4096)
    assert isinstance(values, dict)
    for name in ("signing_seed", "curve_secret", "box_secret"):
        with pytest.raises(WardtreeError, match=name) as caught:
            Identity.from_bytes(canonical({**values, name: "5ec2e7"}))
        assert "5ec2e7" not in str(caught.value)
    with pytest.raises(IdentityError, match="format"):
        Identity.from_bytes(canonical({**values, "format": "x"}))


def test_the_fingerprint_is_of_name_and_keys_which_vouch_for_the_rest() -> None:
    assert {FIXED.card(None, 303).fingerprint, FIXED.card("10.0.0.1:5000", 0).fingerprint} == {CARD.fingerprint}
    others = [Identity.create("cleveland"), replace(FIXED, name="hungary")]
    others += [replace(FIXED, **{key: bytes([9] * 32)}) for key in ("signing_seed", "curve_secret", "box_secret")]
    assert len({each.card(None, 303).fingerprint for each in others} | {CARD.fingerprint}) == 6
