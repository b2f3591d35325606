"""Signed statements: what one person declares for the record, in a file of its own that anyone may read.

A statement says who declares what and when; its signature is Ed25519 in the domain "statement". Whose key
that must be follows from where the statement is used: the roster of a manifest, or the list of share holders.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.errors import WardtreeError
from keys.identity import SIGNATURE_BYTES, Identity, check_name, verify
from keys.manifest import format_time, parse_time
from keys.vault import naming, read_bounded

MAX_STATEMENT = 2**18  # bytes
_DOMAIN = "statement"
_FORMAT = "wardtree-statement/1"
_FIELDS = {"by": (str,), "content": (dict,), "format": (str,), "kind": (str,), "signature": (str,), "time": (str,)}

KINDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "revocation": {"manifest": (str,), "reason": (str,), "text": (str,)},
    "split": {
        "public_key": (str,),
        "set": (str,),
        "needed": (int,),
        "holders": (list,),
        "shares": (list,),
        "text": (str,),
    },
    "recombination": {"public_key": (str,), "set": (str,), "holders": (list,), "text": (str,)},
    "destruction": {"public_key": (str,), "transcript": (str,), "open_sets": (list,), "text": (str,)},
    "share-destruction": {"set": (str,), "share": (str,), "text": (str,)},
}
"""The fields of each kind's content. ``text`` is the same in plain words, for whoever reads the file."""


class StatementError(WardtreeError):
    """A statement that is not what it must be."""


@dataclass(frozen=True)
class Statement:
    """One declaration, not yet judged: ``check`` says whether a key signed it."""

    kind: str
    by: str
    time: str
    content: Mapping[str, Any]
    signature: bytes

    @classmethod
    def make(cls, identity: Identity, kind: str, content: Mapping[str, Any], now: datetime) -> Statement:
        """Sign ``content``, which has the fields of its kind."""
        body = _body(kind, identity.name, format_time(now), content)
        return cls.from_dict(body | {"signature": identity.sign(_DOMAIN, canonical(body)).hex()})

    @classmethod
    def from_dict(cls, value: object) -> Statement:
        """Raises StatementError, FormatError or another WardtreeError unless ``value`` has the form of one."""
        values = fields(value, "statement", _FIELDS)
        if values["format"] != _FORMAT:
            raise StatementError(f"statement: format: expected {_FORMAT!r}, came {values['format']!r}")
        if values["kind"] not in KINDS:
            raise StatementError(f"statement: kind: expected one of {', '.join(KINDS)}, came {values['kind']!r}")
        content = fields(values["content"], f"statement: {values['kind']}", KINDS[values["kind"]])
        parse_time(values["time"])
        signature = unhex(values["signature"], SIGNATURE_BYTES, "statement: signature")
        return cls(values["kind"], check_name(values["by"]), values["time"], content, signature)

    @classmethod
    def read(cls, path: Path) -> Statement:
        """The statement in a file. Raises WardtreeErrors that name the file."""
        data = read_bounded(path, MAX_STATEMENT)
        with naming(path):
            return cls.from_dict(parse(data, MAX_STATEMENT))

    def check(self, key: bytes) -> None:
        """Raises StatementError unless the Ed25519 key signed this."""
        if not verify(key, _DOMAIN, canonical(self._body()), self.signature):
            raise StatementError(f"{self.kind}: not signed by {self.by!r} as the record knows it")

    def to_dict(self) -> dict[str, Any]:
        return self._body() | {"signature": self.signature.hex()}

    def to_json(self) -> bytes:
        return canonical(self.to_dict())

    @property
    def digest(self) -> str:
        return digest(self.to_json()).hex()

    def _body(self) -> dict[str, Any]:
        return _body(self.kind, self.by, self.time, self.content)


def _body(kind: str, by: str, time: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {"by": by, "content": dict(content), "format": _FORMAT, "kind": kind, "time": time}
