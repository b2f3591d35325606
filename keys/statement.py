"""Signed statements: what one person declares for the record, in a file of its own that anyone may read.

A statement says who declares what and when; its signature is Ed25519 in the domain "statement". Whose key
that must be follows from where the statement is used: the roster of a manifest, or the holders of shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from keys.canonical import canonical, fields, hidden_letter, parse, unhex
from keys.errors import WardtreeError
from keys.identity import SIGNATURE_BYTES, Identity, check_name, verify
from keys.manifest import format_time, parse_time
from keys.vault import naming, read_bounded

MAX_STATEMENT = 2**18  # bytes
KEYS_LOST, WITHDRAWN = "keys-lost", "withdrawn"
"""Why a party revokes its signature: others may have its keys, or it no longer agrees."""

_DOMAIN = "statement"
_FORMAT = "wardtree-statement/1"
_FIELDS = {"by": (str,), "content": (dict,), "format": (str,), "kind": (str,), "signature": (str,), "time": (str,)}
_HEX = {"manifest": 32, "public_key": 32, "transcript": 32, "set": 8, "share": 32}

KINDS: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "revocation": {"manifest": (str,), "reason": (str,)},
    "split": {"public_key": (str,), "set": (str,), "needed": (int,), "holders": (list,), "shares": (list,)},
    "recombination": {"public_key": (str,), "set": (str,), "holders": (list,)},
    "destruction": {"public_key": (str,), "transcript": (str,), "open_sets": (list,), "no_copies": (bool,)},
    "share-destruction": {"set": (str,), "share": (str,)},
}
"""The fields of each kind's content."""


class StatementError(WardtreeError):
    """A statement that is not what it must be."""


@dataclass(frozen=True)
class Statement:
    """One declaration, not yet judged: ``check`` says whether a key signed it.

    ``text`` says the same as ``content`` in plain words, for whoever reads the file; it is signed with it.
    """

    kind: str
    by: str
    time: str
    content: Mapping[str, Any]
    text: str
    signature: bytes

    @classmethod
    def make(cls, identity: Identity, kind: str, content: Mapping[str, Any], now: datetime) -> Statement:
        """Sign ``content``, which has the fields of its kind."""
        time = format_time(now)
        text = in_words(kind, identity.name, time, content)
        body = _body(kind, identity.name, time, content, text)
        return cls.from_dict(body | {"signature": identity.sign(_DOMAIN, canonical(body)).hex()})

    @classmethod
    def from_dict(cls, value: object) -> Statement:
        """Raises StatementError, FormatError or another WardtreeError unless ``value`` has the form of one."""
        values = fields(value, "statement", _FIELDS | {"text": (str,)})
        if values["format"] != _FORMAT:
            raise StatementError(f"statement: format: expected {_FORMAT!r}, came {values['format']!r}")
        kind = values["kind"]
        if kind not in KINDS:
            raise StatementError(f"statement: kind: expected one of {', '.join(KINDS)}, came {kind!r}")
        content = fields(values["content"], kind, KINDS[kind])
        for name, length in _HEX.items():
            if name in content:
                unhex(content[name], length, f"{kind}: {name}")
        if kind == "revocation" and content["reason"] not in (KEYS_LOST, WITHDRAWN):
            raise StatementError(f"revocation: reason: expected {KEYS_LOST!r} or {WITHDRAWN!r}, came another")
        for holder in content["holders"] if kind == "recombination" else _holders(content):
            check_name(holder if isinstance(holder, str) else "")
        if hidden_letter(values["text"]):
            raise StatementError(f"{kind}: text: expected plain text")
        parse_time(values["time"])
        signature = unhex(values["signature"], SIGNATURE_BYTES, f"{kind}: signature")
        return cls(kind, check_name(values["by"]), values["time"], content, values["text"], signature)

    @classmethod
    def read(cls, path: Path) -> Statement:
        """The statement in a file. Raises WardtreeErrors that name the file."""
        data = read_bounded(path, MAX_STATEMENT)
        with naming(path):
            return cls.from_dict(parse(data, MAX_STATEMENT))

    def check(self, key: bytes) -> None:
        """Raises StatementError unless the Ed25519 key signed this."""
        if not verify(key, _DOMAIN, canonical(self._body()), self.signature):
            raise StatementError(f"{self.kind} by {self.by}: its signature is not of the key that the record has")

    def to_dict(self) -> dict[str, Any]:
        return self._body() | {"signature": self.signature.hex()}

    def to_json(self) -> bytes:
        return canonical(self.to_dict())

    @property
    def facts(self) -> str:
        """The content in words, whatever the text says."""
        return in_words(self.kind, self.by, self.time, self.content)

    def _body(self) -> dict[str, Any]:
        return _body(self.kind, self.by, self.time, self.content, self.text)


def in_words(kind: str, by: str, time: str, content: Mapping[str, Any]) -> str:
    """What a statement says, in sentences."""
    match kind:
        case "revocation":
            why = {
                KEYS_LOST: "others may have its secret keys, which count for nothing from now on",
                WITHDRAWN: "it no longer agrees",
            }[content["reason"]]
            return (
                f"{by} revokes its signature of the manifest {content['manifest']}: {why}. No node that knows of this "
                "runs under that manifest again; a new version needs no signature of this key."
            )
        case "split":
            names = [card["name"] for card in content["holders"]]
            return (
                f"{by} put the secret key of the public key {content['public_key']} into the custody of "
                f"{', '.join(names)}: any {content['needed']} of these {len(names)} can release it together "
                f"(share set {content['set']}), nobody can alone, {by} included."
            )
        case "recombination":
            return (
                f"{by} took the secret key of the public key {content['public_key']} out of custody, with the shares "
                f"that {', '.join(content['holders'])} released (set {content['set']}). It is under {by}'s passphrase."
            )
        case "share-destruction":
            return f"{by} destroyed its share of the set {content['set']} and keeps no copy of it."
    return _certificate(by, time, content)


def _certificate(by: str, time: str, content: Mapping[str, Any]) -> str:
    lines = [
        f"Certificate of destruction. On {time} {by} destroyed the secret key of the public key "
        f"{content['public_key']}: the wrapped key in its sealed file was overwritten first, so that nothing can "
        "decrypt the rest; then the whole file was overwritten in place and removed."
    ]
    ways = [
        f"`wardtree ceremony recombine` with {each['needed']} of the {len(each['holders'])} shares that "
        f"{', '.join(each['holders'])} still hold (set {each['set']})"
        for each in content["open_sets"]
    ]
    if ways:
        which = "One way to the secret key remains" if len(ways) == 1 else f"{len(ways)} ways to the secret key remain"
        lines.append(f"{which}: {'; or '.join(ways)}. It ends when the holders destroy their shares; each signs that.")
    else:
        lines.append("No set of shares is left from which it could be recombined.")
    copies = "that no copy of the sealed file or of a released share (a backup, a snapshot) is left"
    lines.append(f"{by} {'declares' if content['no_copies'] else 'does not declare'} {copies}.")
    return " ".join(lines)


def _holders(content: Mapping[str, Any]) -> list[object]:
    """The names in ``open_sets``, whose form is checked here."""
    names: list[object] = []
    for each in content.get("open_sets", []):
        checked = fields(each, "destruction: open_sets", {"holders": (list,), "needed": (int,), "set": (str,)})
        unhex(checked["set"], _HEX["set"], "destruction: open_sets: set")
        names += checked["holders"]
    return names


def _body(kind: str, by: str, time: str, content: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {"by": by, "content": dict(content), "format": _FORMAT, "kind": kind, "text": text, "time": time}
