"""What time is it at yours? Asked and answered outside of any round, before there is one. Pure.

``wardtree check-network`` asks, and it or a running node answers::

    parts  = HEAD, signature (64 bytes, Ed25519) body
    body   = msgpack array [is answer, greeting, sender, recipient, nonce, milliseconds since 1970]

The signature is over the body under the domain "clock", so that it is good for nothing else; the greeting says which
manifest the sender follows, and an answer repeats the nonce of its question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import msgpack

HEAD = b"wardtree clock"
DOMAIN = "clock"
NONCE_BYTES = 16
_SIGNATURE_BYTES, _MOST_BYTES, _LATEST = 64, 512, 1 << 53

Sign = Callable[[str, bytes], bytes]
Verify = Callable[[bytes, str, bytes, bytes], bool]


@dataclass(frozen=True)
class Clock:
    """One question or answer."""

    is_answer: bool
    greeting: bytes
    sender: str
    recipient: str
    nonce: bytes
    milliseconds: int

    def parts(self, sign: Sign) -> list[bytes]:
        """As it goes over the socket."""
        body = msgpack.packb(
            [self.is_answer, self.greeting, self.sender, self.recipient, self.nonce, self.milliseconds]
        )
        return [HEAD, sign(DOMAIN, body) + body]


def is_clock(parts: list[bytes]) -> bool:
    """Whether a message claims to be a question or an answer."""
    return parts[:1] == [HEAD]


def read(parts: list[bytes], sender: str, recipient: str, keys: Mapping[str, bytes], verify: Verify) -> Clock | None:
    """The question or answer in a message that came from ``sender``; None if it is none, or not signed by it for us."""
    if len(parts) != 2 or not is_clock(parts) or len(parts[1]) > _MOST_BYTES:
        return None
    signature, body = parts[1][:_SIGNATURE_BYTES], parts[1][_SIGNATURE_BYTES:]
    if sender not in keys or not verify(keys[sender], DOMAIN, body, signature):
        return None
    try:
        fields = msgpack.unpackb(body, raw=False, max_array_len=6, max_map_len=0, max_ext_len=0)
    except (ValueError, RecursionError, msgpack.UnpackException):
        return None
    if not isinstance(fields, list) or [type(field) for field in fields] != [bool, bytes, str, str, bytes, int]:
        return None
    clock = Clock(*fields)
    named = (clock.sender, clock.recipient) == (sender, recipient)
    return clock if named and len(clock.nonce) == NONCE_BYTES and 0 <= clock.milliseconds < _LATEST else None
