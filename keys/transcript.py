"""The transcript: everything that was agreed, by whom and when, in one file that anyone can verify offline.

Each line is one entry in canonical JSON. It carries the hash of the line before and the signature of whoever
wrote it; what somebody else did (signed a manifest, destroyed a share) is inside with that person's own
signature. So no line can be changed, removed, added or moved but at the end. That lines are missing at the
end shows beside any other copy: every home keeps one, and takes none that does not continue it. A manifest's
expiry bounds how long a transcript that is held back can pass for the newest.

    proposal    the body of a manifest, put to its members
    signature   one member's over the proposal, as a member of it or of the version before
    agreement   all signatures that the proposal needs are there: it is in force
    statement   a revocation, a split, a recombination, a destruction (``keys/statement.py``)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.errors import WardtreeError
from keys.history import APPROVAL, MEMBER, History
from keys.identity import SIGNATURE_BYTES, Identity, check_name, verify
from keys.manifest import CLOCK_SKEW, MAX_MANIFEST, Manifest, Signed, check_time, format_time, parse_time
from keys.statement import Statement
from keys.vault import naming, read_bounded, write_public

TRANSCRIPT = "transcript.jsonl"  # in a home
MAX_TRANSCRIPT = 64 * 2**20  # bytes
GENESIS = "0" * 64

_DOMAIN = "transcript"
_FORMAT = "wardtree-transcript/1"
_ENTRY = {
    "by": (str,),
    "content": (dict,),
    "format": (str,),
    "number": (int,),
    "previous": (str,),
    "signature": (str,),
    "time": (str,),
    "what": (str,),
}
_CONTENT: Mapping[str, Mapping[str, tuple[type, ...]]] = {
    "proposal": {"manifest": (dict,)},
    "signature": {"name": (str,), "role": (str,), "signature": (str,)},
    "agreement": {"manifest": (str,)},
    "statement": {"statement": (dict,)},
}

Act = tuple[str, Mapping[str, Any]]
"""What an entry is about, and its content."""


class TranscriptError(WardtreeError):
    """A transcript that does not hold together, or does not continue the one that is known."""


@dataclass(frozen=True)
class Entry:
    """One line."""

    number: int
    previous: str
    time: str
    by: str
    what: str
    content: Mapping[str, Any]
    signature: bytes
    line: bytes

    @property
    def hash(self) -> str:
        return digest(self.line).hex()


@dataclass(frozen=True)
class Transcript:
    """A transcript that has verified: its entries, and what follows from them."""

    entries: tuple[Entry, ...]
    history: History

    @property
    def head(self) -> str:
        """The hash of the last line, which stands for all of them."""
        return self.entries[-1].hash if self.entries else GENESIS

    @classmethod
    def parse(cls, data: bytes, now: datetime) -> Transcript:
        """Verify every line. Whether the manifest in force has expired is for ``check_fresh``.

        Raises:
            TranscriptError: names the entry; other WardtreeErrors likewise.
        """
        entries: list[Entry] = []
        history = History()
        for number, line in enumerate(data.splitlines(keepends=True), start=1):
            if not line.endswith(b"\n"):
                raise TranscriptError(f"transcript: cut short in entry {number}")
            try:
                entry = _parse_entry(line, number, entries[-1] if entries else None, now)
                _take(history, entry)
            except WardtreeError as error:
                raise TranscriptError(f"transcript: entry {number}: {error}") from error
            entries.append(entry)
            history.heads.add(entry.hash)
        return cls(tuple(entries), history)

    def to_bytes(self) -> bytes:
        return b"".join(entry.line for entry in self.entries)

    def extended(self, identity: Identity, acts: Iterable[Act], now: datetime) -> Transcript:
        """This transcript with new entries that ``identity`` writes. Raises as ``parse`` does, if they do not fit."""
        data, head, number = self.to_bytes(), self.head, len(self.entries)
        for number, (what, content) in enumerate(acts, start=len(self.entries) + 1):
            body = _body(number, head, format_time(now), identity.name, what, content)
            line = canonical(body | {"signature": identity.sign(_DOMAIN, canonical(body)).hex()}) + b"\n"
            data, head = data + line, digest(line).hex()
        return Transcript.parse(data, now)

    def check_continues(self, known: Transcript) -> None:
        """Raises TranscriptError unless all of ``known`` is the beginning of this."""
        for old, new in zip(known.entries, self.entries, strict=False):
            if old.line != new.line:
                raise TranscriptError(
                    f"transcript: parts from the one that is known here at entry {new.number}: there are two, "
                    "and one of them was not shown to everybody"
                )
        if len(self.entries) < len(known.entries):
            raise TranscriptError(
                f"transcript: rolled back or cut short: it ends at entry {len(self.entries)}, "
                f"the one that is known here goes on to entry {len(known.entries)}"
            )

    def check_fresh(self, now: datetime) -> None:
        """Raises unless a manifest is in force at ``now``, or its secret key was destroyed, which is for ever."""
        manifest = self.history.in_force
        if manifest is None:
            raise TranscriptError("transcript: ends before any manifest was agreed")
        if manifest.public_key_digest not in self.history.destroyed:
            check_time(manifest, now)


# ---- files ----------------------------------------------------------------------------------------------


def read_transcript(path: Path, now: datetime) -> Transcript:
    """The transcript in a file. Raises WardtreeErrors that name the file."""
    data = read_bounded(path, MAX_TRANSCRIPT)
    with naming(path):
        return Transcript.parse(data, now)


def read_home(home: Path, now: datetime) -> Transcript | None:
    """The transcript that ``home`` keeps, None if it has none yet."""
    path = home / TRANSCRIPT
    return read_transcript(path, now) if path.exists() else None


def record(path: Path, identity: Identity, acts: Iterable[Act], now: datetime, home: Path) -> Transcript:
    """Add entries to the transcript in ``path`` (a new one if there is none), which must continue that of ``home``.

    Raises:
        TranscriptError: it does not, or the entries do not fit; nothing is written then.
    """
    current = read_transcript(path, now) if path.exists() else Transcript((), History())
    if known := read_home(home, now):
        with naming(path):
            current.check_continues(known)
    longer = current.extended(identity, acts, now)
    write_public(path, longer.to_bytes(), replace=True)
    return longer


def keep(home: Path, path: Path, now: datetime) -> Transcript:
    """Take the transcript in ``path`` into ``home``, in place of the shorter one that is there.

    Raises:
        TranscriptError: it does not continue the one in ``home``.
    """
    transcript = read_transcript(path, now)
    if known := read_home(home, now):
        with naming(path):
            transcript.check_continues(known)
    write_public(home / TRANSCRIPT, transcript.to_bytes(), replace=True)
    return transcript


# ---- the acts of a ceremony -----------------------------------------------------------------------------


def proposed(manifest: Manifest) -> Act:
    return "proposal", {"manifest": manifest.to_dict()}


def agreed(signed: Signed) -> list[Act]:
    """Every signature, and that they are all."""
    given = [(MEMBER, *item) for item in sorted(signed.signatures.items())]
    given += [(APPROVAL, *item) for item in sorted(signed.approvals.items())]
    acts: list[Act] = [
        ("signature", {"name": name, "role": role, "signature": signature.hex()}) for role, name, signature in given
    ]
    return [*acts, ("agreement", {"manifest": signed.manifest.digest})]


def stated(statement: Statement) -> Act:
    return "statement", {"statement": statement.to_dict()}


# ---- in plain words -------------------------------------------------------------------------------------


def story(transcript: Transcript) -> Iterator[str]:
    """What happened, a line for each entry."""
    proposal = "?"
    for entry in transcript.entries:
        content = entry.content
        match entry.what:
            case "proposal":
                manifest = content["manifest"]
                proposal = f"version {manifest['version']}"
                names = ", ".join(card["name"] for card in manifest["cards"])
                told = f"{entry.by} proposed {proposal} for {names}; {manifest['key_holder']} holds the secret key"
            case "signature":
                before = " as a member of the version before" if content["role"] == APPROVAL else ""
                told = f"{content['name']} signed {proposal}{before}"
            case "agreement":
                told = f"{proposal} is agreed: manifest {content['manifest']}"
            case _:
                told = Statement.from_dict(content["statement"]).facts
        yield f"{entry.number:>3}  {entry.time}  {told}"


def summary(transcript: Transcript) -> Iterator[str]:
    """What is in force at the end of it."""
    history, manifest = transcript.history, transcript.history.in_force
    if manifest is None:
        yield "No manifest is in force yet."
    else:
        yield (
            f"In force: version {manifest.version}, signed by all of {', '.join(manifest.names)}, "
            f"valid until {manifest.expires}."
        )
        if history.revoked:
            yield f"But no node may follow it: revoked by {', '.join(sorted(history.revoked))}."
    if history.pending:
        yield f"Proposed, and not agreed: version {history.pending.version}."
    for public_key, statement in history.destroyed.items():
        left = ways_left(history, public_key)
        yield f"The secret key of {public_key} was destroyed by {statement.by} on {statement.time}: {left}."
    number = len(transcript.entries)
    yield f"It ends with entry {number}, whose digest stands for all of it: compare it with another party's copy."
    yield f"  {transcript.head}"


def ways_left(history: History, public_key: str) -> str:
    """How a secret key that was destroyed could still be had."""
    ways = [f"{each['needed']} shares of {', '.join(each['holders'])}" for each in history.open_sets(public_key)]
    if not ways:
        return "no way to it is left"
    count = "one way to it is left" if len(ways) == 1 else f"{len(ways)} ways to it are left"
    return f"{count}: recombining {'; or '.join(ways)}"


# ---- one entry ------------------------------------------------------------------------------------------


def _parse_entry(line: bytes, number: int, before: Entry | None, now: datetime) -> Entry:
    values = fields(parse(line, 2 * MAX_MANIFEST), "entry", _ENTRY)
    if canonical(values) + b"\n" != line:
        raise TranscriptError("expected canonical JSON on one line, came another spelling")
    if values["format"] != _FORMAT:
        raise TranscriptError(f"format: expected {_FORMAT!r}, came {values['format']!r}")
    previous = before.hash if before else GENESIS
    if values["previous"] != previous or values["number"] != number:
        raise TranscriptError("does not follow from the one before: entries were removed, moved or changed")
    if values["what"] not in _CONTENT:
        raise TranscriptError(f"what: expected one of {', '.join(_CONTENT)}, came {values['what']!r}")
    content = fields(values["content"], values["what"], _CONTENT[values["what"]])
    moment = parse_time(values["time"])
    if before and moment < parse_time(before.time) - CLOCK_SKEW:
        raise TranscriptError(f"written at {values['time']}, before the entry before it")
    if moment > now + CLOCK_SKEW:
        raise TranscriptError(f"written at {values['time']}, now is {format_time(now)}")
    signature = unhex(values["signature"], SIGNATURE_BYTES, "signature")
    by = check_name(values["by"])
    return Entry(number, previous, values["time"], by, values["what"], content, signature, line)


def _take(history: History, entry: Entry) -> None:
    """Check who wrote the entry, and let its act take effect."""
    content, keys = entry.content, history.keys_of(entry.by)
    if entry.what == "proposal":
        manifest = Manifest.from_dict(content["manifest"])
        if history.in_force is None:  # nobody is known yet: the proposal says who is
            keys = [manifest.card(entry.by).signing_key]
        _check_writer(entry, keys)
        history.propose(manifest)
        return
    _check_writer(entry, keys)
    match entry.what:
        case "signature":
            signature = unhex(content["signature"], SIGNATURE_BYTES, "signature")
            history.sign(check_name(content["name"]), content["role"], signature)
        case "agreement":
            history.agree(content["manifest"])
        case "statement":
            history.state(Statement.from_dict(content["statement"]))


def _check_writer(entry: Entry, keys: Iterable[bytes]) -> None:
    if not any(verify(key, _DOMAIN, _signed_part(entry), entry.signature) for key in keys):
        raise TranscriptError(f"not signed by {entry.by}, or {entry.by} has no part in this federation")


def _signed_part(entry: Entry) -> bytes:
    return canonical(_body(entry.number, entry.previous, entry.time, entry.by, entry.what, entry.content))


def _body(number: int, previous: str, time: str, by: str, what: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "by": by,
        "content": dict(content),
        "format": _FORMAT,
        "number": number,
        "previous": previous,
        "time": time,
        "what": what,
    }
