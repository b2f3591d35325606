"""From signed ledgers and the transcript to the facts of a record. Pure: no files, no clock.

What is taken from where: who agreed on what, from the transcript; what was published, from the key holder's signed
closes, which every ledger quotes; what a party did itself, from its own ledger, which is its word.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from keys.errors import WardtreeError
from keys.identity import verify
from keys.manifest import Manifest
from keys.statement import Statement
from keys.transcript import Transcript
from node.audit.facts import (
    Act,
    Agreement,
    Facts,
    Member,
    Own,
    Round,
    Signature,
    Spent,
    Start,
    Wiped,
)
from node.audit.learnt import learnt_by
from node.exported import ExportError, signed_close
from node.ledger import as_written, check_lines
from node.protocol.messages import Close
from node.study import Study

Line = dict[str, Any]


class RecordError(WardtreeError):
    """A ledger or a record that does not fit, or cannot be made."""


@dataclass(frozen=True)
class _Entry:
    """An entry of a ledger, under the manifest with which the node ran then."""

    manifest: Manifest
    values: Mapping[str, Any]

    @property
    def place(self) -> tuple[int, int]:
        return self.manifest.version, self.values["round"]


def author(lines: Sequence[Line], source: str, manifests: Sequence[Manifest]) -> tuple[str, str]:
    """Who wrote a ledger: the one member, and its key in hex, whose signature stands under every line.

    Raises:
        LedgerError, RecordError: lines were changed or removed, or are of nobody in these manifests.
    """
    sound = list(check_lines(map(as_written, lines), source))
    if not sound:
        raise RecordError(f"{source}: no entry yet: no node has run from there")
    members = sorted({item for manifest in manifests for item in manifest.signing_keys.items()})
    found = next((member for member in members if _signed(sound[0], member[1])), None)
    if found is None:
        raise RecordError(f"{source}: line 1 is not signed by any member of the federation in this transcript")
    name, key = found
    for number, line in enumerate(sound, start=1):
        if not _signed(line, key):
            raise RecordError(f"{source}: line {number} is not signed by {name}, as line 1 is")
    return name, key.hex()


def _signed(line: Line, key: bytes) -> bool:
    try:
        return verify(key, "ledger", bytes.fromhex(line["hash"]), bytes.fromhex(line["signature"]))
    except (KeyError, TypeError, ValueError):
        return False


def derive(transcript: Transcript, ledgers: Mapping[str, Sequence[Line]]) -> Facts:
    """The facts of the ledgers (lines of each party that has one), which are checked on the way.

    Raises:
        RecordError or another WardtreeError: names the ledger and the line.
    """
    manifests = transcript.history.agreed
    entries: dict[str, list[_Entry]] = {}
    keys: dict[str, str] = {}
    for name, lines in sorted(ledgers.items()):
        source = f"ledger of {name}"
        found, keys[name] = author(lines, source, manifests)
        if found != name:
            raise RecordError(f"{source}: is signed by {found}")
        entries[name] = list(_under(lines, source, manifests))
    ran = {entry.manifest.version for each in entries.values() for entry in each}
    studies = {manifest.version: _study(manifest) for manifest in manifests if manifest.version in ran}
    closes = {name: [_close(entry, name) for entry in each if _is(entry, "closed")] for name, each in entries.items()}
    try:
        owns = tuple(
            _own(name, keys[name], ledgers[name], each, studies, [close.place for close, _ in closes[name]])
            for name, each in entries.items()
        )
        rounds = tuple(_rounds(closes, entries, studies))
        differences = tuple(_differences(closes, entries))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RecordError(f"a ledger has an entry that this version does not know: {type(error).__name__}") from None
    agreements = tuple(_agreements(transcript, studies))
    acts = tuple(_acts(transcript))
    return Facts(
        agreements=agreements,
        acts=acts,
        rounds=rounds,
        ledgers=owns,
        learnt=learnt_by(agreements, rounds, owns),
        differences=differences,
    )


# ---- from the transcript ----------------------------------------------------------------------------------


def _agreements(transcript: Transcript, studies: Mapping[int, Study]) -> Iterator[Agreement]:
    proposal: tuple[str, str, Manifest] | None = None
    signatures: list[Signature] = []
    for entry in transcript.entries:
        if entry.what == "proposal":
            proposal, signatures = (entry.by, entry.time, Manifest.from_dict(entry.content["manifest"])), []
        elif entry.what == "signature":
            content = entry.content
            signatures.append(Signature(name=content["name"], role=content["role"], entered=entry.time))
        elif entry.what == "agreement" and proposal and proposal[2].version in studies:
            yield _agreement(*proposal, studies[proposal[2].version], signatures, entry.time)


def _agreement(
    by: str, time: str, manifest: Manifest, study: Study, signatures: Iterable[Signature], agreed: str
) -> Agreement:
    members = tuple(
        Member(
            name=card.name,
            words=" ".join(card.fingerprint),
            weight=manifest.weights[card.name],
            listens=card.endpoint is not None,
        )
        for card in manifest.cards
    )
    return Agreement(
        version=manifest.version,
        manifest=manifest.digest,
        federation=manifest.federation,
        study=study.name,
        study_toml=manifest.study,
        task=study.task.class_name,
        task_options=json.dumps(study.task.options, ensure_ascii=False, default=str),
        task_digest=manifest.task_digest,
        rounds_planned=study.rounds,
        privacy_mode=str(study.privacy.mode),
        key_holder=manifest.key_holder,
        members=members,
        min_hidden=manifest.quorum,
        sandbox_gaps=manifest.sandbox_gaps,
        debug=manifest.debug,
        public_key=manifest.public_key_digest,
        proposed_by=by,
        proposed=time,
        signatures=tuple(signatures),
        agreed=agreed,
        expires=manifest.expires,
    )


def _acts(transcript: Transcript) -> Iterator[Act]:
    for entry in transcript.entries:
        if entry.what == "statement":
            statement = Statement.from_dict(entry.content["statement"])
            yield Act(kind=statement.kind, by=statement.by, time=statement.time, text=statement.facts)


def _study(manifest: Manifest) -> Study:
    """The study as it was signed; its task's options were checked then, and its module is not imported."""
    try:
        return Study.model_validate(tomllib.loads(manifest.study))
    except (tomllib.TOMLDecodeError, ValidationError):
        raise RecordError(
            f"manifest version {manifest.version}: its study is of another version of wardtree; use the one that ran it"
        ) from None


# ---- from one ledger --------------------------------------------------------------------------------------


def _under(lines: Sequence[Line], source: str, manifests: Iterable[Manifest]) -> Iterator[_Entry]:
    known = {manifest.digest: manifest for manifest in manifests}
    manifest: Manifest | None = None
    for number, line in enumerate(lines, start=1):
        entry = line["entry"]
        if not isinstance(entry, dict) or not isinstance(entry.get("what"), str):
            raise RecordError(f"{source}: line {number}: expected an entry that says what it is")
        if entry["what"] == "started":
            manifest = known.get(str(entry.get("manifest")))
            if manifest is None:
                raise RecordError(
                    f"{source}: line {number}: started under a manifest that was not agreed in this transcript"
                )
        if manifest is None:
            raise RecordError(f"{source}: line {number}: expected that the node started first")
        yield _Entry(manifest, entry)


def _is(entry: _Entry, *kinds: str) -> bool:
    return entry.values["what"] in kinds


@dataclass(frozen=True)
class _Closed:
    """A close of the key holder's, under its manifest."""

    manifest: Manifest
    close: Close

    @property
    def place(self) -> tuple[int, int]:
        return self.manifest.version, self.close.round


def _close(entry: _Entry, name: str) -> tuple[_Closed, int]:
    """The key holder's close that an entry quotes, and when the entry was written. Raises WardtreeError."""
    values = entry.values
    try:
        close = signed_close(entry.manifest, values["frame"])
        says = (values["round"], values["contributors"], values["segments"], values["state"], values["left_out"])
        means = (close.round, sorted(close.contributors), close.segments, close.state.hex())
        if says != (*means, name not in close.contributors):
            raise RecordError(f"ledger of {name}: round {close.round}: its entry is not what the key holder signed")
        return _Closed(entry.manifest, close), int(values["time"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise RecordError(f"ledger of {name}: a closed round without the key holder's signed word") from None
    except ExportError as error:
        raise RecordError(f"ledger of {name}: {error}") from None


def _own(
    name: str,
    key: str,
    lines: Sequence[Line],
    entries: Sequence[_Entry],
    studies: Mapping[int, Study],
    closed: Iterable[tuple[int, int]],
) -> Own:
    starts = [entry for entry in entries if _is(entry, "started")]
    worked = [entry.place for entry in entries if _is(entry, "training")]
    wiped = tuple(_wiped(entry) for entry in entries if _is(entry, "wiped"))
    has_privacy = any(str(studies[each.manifest.version].privacy.mode) != "none" for each in starts)
    spent = tuple(_spent(entry) for entry in entries if _is(entry, "privacy"))
    gone = {(each.version, each.round) for each in wiped}
    kinds = Counter(studies[version].schedule.purpose(number) for version, number in set(worked))
    return Own(
        party=name,
        key=key,
        lines=len(lines),
        head=lines[-1]["hash"],
        began=starts[0].values["time"],
        starts=tuple(
            Start(version=each.manifest.version, time=each.values["time"], posture=each.values["posture"])
            for each in starts
        ),
        took_part=dict(sorted(kinds.items())),
        closed=len(set(closed)),
        wiped=wiped,
        not_wiped=tuple(sorted(set(worked) - gone)),
        skipped=sum(_is(entry, "skipped") for entry in entries),
        openings=len({entry.place for entry in entries if _is(entry, "opening")}),
        privacy=spent if spent or has_privacy else None,
    )


def _wiped(entry: _Entry) -> Wiped:
    values = entry.values
    return Wiped(
        version=entry.manifest.version,
        round=values["round"],
        time=values["time"],
        ciphertext_bytes=values["ciphertext_bytes"],
        total_bytes=values["total_bytes"],
        enclave_bytes=values.get("enclave_bytes"),
        keyroom_bytes=values.get("keyroom_bytes"),
    )


def _spent(entry: _Entry) -> Spent:
    values = entry.values
    spent = {name: values.get(name) for name in ("epsilon", "delta")}
    return Spent(version=entry.manifest.version, unit=values["unit"], round=values["round"], **spent)


# ---- all ledgers together ---------------------------------------------------------------------------------


def _rounds(
    closes: Mapping[str, Sequence[tuple[_Closed, int]]],
    entries: Mapping[str, Sequence[_Entry]],
    studies: Mapping[int, Study],
) -> Iterator[Round]:
    """Every close once, in order."""
    wiped = [entry for each in entries.values() for entry in each if _is(entry, "wiped")]
    published: dict[tuple[int, int], int] = {}
    for entry in wiped:
        published[entry.place] = max(published.get(entry.place, 0), entry.values["total_bytes"])
    seen: dict[tuple[int, int, bytes, bytes], tuple[_Closed, int, list[str]]] = {}
    for name, each in closes.items():
        for closed, time in each:
            mark = (*closed.place, closed.close.base, closed.close.state)
            names = seen.setdefault(mark, (closed, time, []))[2]
            if name not in names:
                names.append(name)
    for (version, number, _, _), (closed, time, names) in sorted(seen.items(), key=lambda item: item[0]):
        size = published.get((version, number), 0)
        yield Round(
            version=version,
            round=number,
            purpose=studies[version].schedule.purpose(number),
            contributors=tuple(sorted(closed.close.contributors)),
            left_out=tuple(sorted(set(closed.manifest.names) - closed.close.contributors)),
            segments=closed.close.segments,
            integers=size // 4 or None,
            state=closed.close.state.hex(),
            closed=time,
            known_to=tuple(names),
        )


def _differences(
    closes: Mapping[str, Sequence[tuple[_Closed, int]]], entries: Mapping[str, Sequence[_Entry]]
) -> Iterator[str]:
    """What cannot be, if everybody tells the truth."""
    told: dict[tuple[int, int], dict[Close, list[str]]] = {}
    for name, each in closes.items():
        for closed, _ in each:
            told.setdefault(closed.place, {}).setdefault(closed.close, []).append(name)
    for (version, number), versions in sorted(told.items()):
        for (one, first), (other, second) in itertools.combinations(versions.items(), 2):
            what = "sets" if one.contributors != other.contributors else "models"
            yield (
                f"round {number} of version {version}: the key holder signed two closes with different {what}: one is "
                f"in the ledger of {', '.join(sorted(set(first)))}, one in that of {', '.join(sorted(set(second)))}"
            )
    for name, own in entries.items():
        worked = {entry.place for entry in own if _is(entry, "training")}
        for place, versions in sorted(told.items()):
            if place not in worked and any(name in close.contributors for close in versions):
                yield (
                    f"round {place[1]} of version {place[0]}: the key holder lists {name} among its contributors, and "
                    f"{name}'s own ledger does not say that it worked in it"
                )
