"""Questions for the time: what is said comes out, and nothing else does."""

from __future__ import annotations

import secrets

import msgpack
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from keys.identity import verify
from node.protocol.clock import DOMAIN, HEAD, Clock, is_clock, read

KEYS = {name: SigningKey(bytes([number]) * 32) for number, name in enumerate(("ada", "bo"), start=1)}
PUBLIC = {name: bytes(key.verify_key) for name, key in KEYS.items()}


def sign_as(name: str, wrong_domain: bool = False):  # type: ignore[no-untyped-def]
    def sign(domain: str, message: bytes) -> bytes:
        framed = b"wardtree/1/" + (b"frame" if wrong_domain else domain.encode()) + b"\0" + message
        return KEYS[name].sign(framed).signature

    return sign


def heard(parts: list[bytes], sender: str = "ada", recipient: str = "bo") -> Clock | None:
    return read(parts, sender, recipient, PUBLIC, verify)


@given(st.booleans(), st.binary(max_size=60), st.integers(0, (1 << 53) - 1))
def test_what_was_said_is_what_is_heard(is_answer: bool, greeting: bytes, milliseconds: int) -> None:
    said = Clock(is_answer, greeting, "ada", "bo", secrets.token_bytes(16), milliseconds)
    parts = said.parts(sign_as("ada"))
    assert is_clock(parts)
    assert heard(parts) == said
    assert heard(parts, sender="bo") is None
    assert heard(parts, recipient="ada") is None, "said to somebody else"
    assert heard(said.parts(sign_as("bo"))) is None
    assert heard(said.parts(sign_as("ada", wrong_domain=True))) is None, "a signature of the rounds' is none of these"
    for place in range(len(parts[1])):
        spoilt = bytearray(parts[1])
        spoilt[place] ^= 1
        assert heard([HEAD, bytes(spoilt)]) is None


@given(st.lists(st.binary(max_size=200), max_size=4), st.binary(max_size=300))
def test_any_other_bytes_are_nothing_and_never_an_exception(parts: list[bytes], body: bytes) -> None:
    assert heard(parts) is None
    assert heard([HEAD, sign_as("ada")(DOMAIN, body) + body]) is None


FIELDS = st.one_of(st.none(), st.booleans(), st.integers(-9, 1 << 62), st.binary(max_size=20), st.text(max_size=9))


@given(st.lists(FIELDS))
def test_other_fields_are_nothing(fields: list[object]) -> None:
    body = msgpack.packb(fields)
    assert heard([HEAD, sign_as("ada")(DOMAIN, body) + body]) is None
