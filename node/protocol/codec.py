"""Messages as signed frames: the grammar on the wire.

A frame is two byte strings, ``envelope`` and ``payload``::

    envelope = signature (64 bytes, Ed25519) header
    header   = msgpack array [version, kind, manifest, round, segment, contributors, base,
                              sender, recipient, details, payload digest]

    version       int, 1                     sender, recipient   str, names of parties; "" = everyone
    kind          int, see KINDS             contributors        bin, bitmap over the roster, b"" = none
    manifest      bin 32, its digest         details             array, the kind's other fields in order
    round, segment int >= 0                  payload digest      bin 32, SHA-256
    base          bin 32, digest of the state the round works on

The signature covers the header under the domain "frame", and through the digest the payload. It is
checked before anything looks into a payload. Nothing here raises anything but
:class:`RemoteProtocolError`, whatever the bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import msgpack

from node.protocol.messages import Absent, Close, Fail, Finish, Gone, Joined, Message, Open, Partial, Snapshot, Total
from topology import Roster

VERSION = 1
SIGNATURE_BYTES = 64
MAX_HEADER_BYTES = 8192
MAX_INTEGER = 1 << 53
MAX_TEXT = 200

COMMON = ("round", "segment", "contributors", "base")
PAYLOADS: Mapping[type[Any], str] = {Partial: "ciphertexts", Total: "integers", Snapshot: "content"}
KINDS: tuple[type[Any], ...] = (Joined, Open, Partial, Absent, Total, Close, Fail, Finish, Gone, Snapshot)
"""The kind on the wire is the place in this tuple: append, never reorder."""

Sign = Callable[[str, bytes], bytes]
Verify = Callable[[bytes, str, bytes, bytes], bool]


class RemoteProtocolError(Exception):
    """A peer sent what it must not; it is dropped, counted and logged with who, expected and came."""

    def __init__(self, who: str, expected: str, came: str) -> None:
        super().__init__(f"{who}: expected {expected}, came {came}")
        self.who, self.expected, self.came = who, expected, came


@dataclass(frozen=True)
class Frame:
    """A message with its route, and the exact bytes to pass on."""

    sender: str
    recipient: str
    message: Message
    envelope: bytes
    payload: bytes

    @property
    def parts(self) -> tuple[bytes, bytes]:
        return self.envelope, self.payload


@dataclass(frozen=True)
class Codec:
    """Encodes and decodes the frames of one federation, under one manifest."""

    manifest: bytes
    roster: Roster
    keys: Mapping[str, bytes]
    verify: Verify

    def encode(self, message: Message, sender: str, recipient: str, sign: Sign) -> Frame:
        """Sign a message for one recipient, or for everyone (``""``)."""
        kind = type(message)
        payload = getattr(message, PAYLOADS[kind]) if kind in PAYLOADS else b""
        header = [
            VERSION,
            KINDS.index(kind),
            self.manifest,
            getattr(message, "round", 0),
            getattr(message, "segment", 0),
            self.roster.to_bitmap(message.contributors) if hasattr(message, "contributors") else b"",
            message.base,
            sender,
            recipient,
            [getattr(message, name) for name in _details(kind)],
            hashlib.sha256(payload).digest(),
        ]
        packed = msgpack.packb(header, use_bin_type=True)
        return Frame(sender, recipient, message, sign("frame", packed) + packed, payload)

    def decode(self, who: str, envelope: bytes, payload: bytes) -> Frame:
        """Check and decode a frame that came from the neighbour ``who``.

        Raises:
            RemoteProtocolError: for any bytes that are not a valid frame of this federation.
        """
        signature, packed = envelope[:SIGNATURE_BYTES], envelope[SIGNATURE_BYTES:]
        if len(packed) > MAX_HEADER_BYTES:
            raise RemoteProtocolError(who, f"a header of {MAX_HEADER_BYTES} bytes", f"{len(packed)} bytes")
        header = _unpack(who, packed)
        version, number, manifest, round_, segment, bitmap, base, sender, recipient, details, digest = header
        if type(version) is not int or version != VERSION or not _is_index(number, len(KINDS)):
            raise RemoteProtocolError(who, f"protocol version {VERSION} and a known kind", "another")
        if manifest != self.manifest:
            raise RemoteProtocolError(who, "a frame under our manifest", "one under another manifest")
        if not isinstance(sender, str) or sender not in self.keys:
            raise RemoteProtocolError(who, "a sender on the roster", "a stranger")
        if not self.verify(self.keys[sender], "frame", packed, signature):
            raise RemoteProtocolError(who, f"a frame signed by {sender}", "a false signature")
        if not isinstance(recipient, str) or (recipient and recipient not in self.keys):
            raise RemoteProtocolError(who, "a recipient on the roster", "a stranger")
        if hashlib.sha256(payload).digest() != digest:
            raise RemoteProtocolError(who, "the payload that was signed", "another")
        kind = KINDS[number]
        values: dict[str, Any] = {"round": round_, "segment": segment, "base": base}
        if "contributors" in kind.__dataclass_fields__:
            values["contributors"] = self._contributors(who, bitmap)
        elif bitmap != b"":
            raise RemoteProtocolError(who, "no contributors", "some")
        if kind in PAYLOADS:
            values[PAYLOADS[kind]] = payload
        elif payload:
            raise RemoteProtocolError(who, "no payload", f"{len(payload)} bytes")
        names = _details(kind)
        if not isinstance(details, list) or len(details) != len(names):
            raise RemoteProtocolError(who, f"{len(names)} details", "another number")
        values.update(zip(names, details, strict=True))
        message = _build(who, kind, values)
        return Frame(sender, recipient, message, envelope, payload)

    def _contributors(self, who: str, bitmap: object) -> frozenset[str]:
        try:
            if not isinstance(bitmap, bytes):
                raise ValueError("no bitmap")
            return self.roster.from_bitmap(bitmap)
        except ValueError as error:
            raise RemoteProtocolError(who, "a contributor set over our roster", "another") from error


def _details(kind: type[Any]) -> list[str]:
    return [field.name for field in fields(kind) if field.name not in (*COMMON, PAYLOADS.get(kind))]


def _unpack(who: str, packed: bytes) -> list[Any]:
    try:
        header = msgpack.unpackb(
            packed,
            raw=False,
            max_array_len=16,
            max_map_len=0,
            max_ext_len=0,
            max_bin_len=MAX_HEADER_BYTES,
            max_str_len=MAX_TEXT,
        )
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise RemoteProtocolError(who, "a msgpack header", "something else") from error
    if not isinstance(header, list) or len(header) != 11:
        raise RemoteProtocolError(who, "a header of 11 fields", "something else")
    return header


def _is_index(value: object, limit: int) -> bool:
    return type(value) is int and 0 <= value < limit


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "int": lambda value: _is_index(value, MAX_INTEGER),
    "bool": lambda value: type(value) is bool,
    "str": lambda value: type(value) is str and len(value) <= MAX_TEXT,
    "frozenset[str]": lambda value: isinstance(value, frozenset),
}


def _build(who: str, kind: type[Any], values: dict[str, Any]) -> Message:
    """Fill the dataclass of a kind after checking every field's type and bounds."""
    for name, value in list(values.items()):
        field = kind.__dataclass_fields__.get(name)
        if field is None:
            if type(value) is not int or value != 0:
                raise RemoteProtocolError(who, f"no {name}", "one")
            del values[name]
            continue
        if field.type == "bytes":
            good = isinstance(value, bytes) and (name in PAYLOADS.values() or len(value) == 32)
        else:
            good = _CHECKS[field.type](value)
        if not good:
            raise RemoteProtocolError(who, f"{kind.__name__}.{name} of type {field.type}", "something else")
    message: Message = kind(**values)
    return message
