"""``record.json``: made, read, and verified offline against a transcript.

Everything that it says follows from the ledgers inside it and the transcript, so anyone can make it again and compare.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from keys.manifest import format_time
from keys.transcript import Transcript
from keys.vault import read_bounded, write_all
from node.audit.derive import Line, RecordError, author, derive
from node.audit.facts import FORMAT, Facts, Record
from node.audit.page import render
from node.home import LEDGER
from node.ledger import check_lines

RECORD, PAGE = "record.json", "record.html"
MAX_FILE = 2**28  # bytes


def make_record(home: Path, transcript: Transcript, others: Iterable[Path], now: datetime) -> Record:
    """The record of what the node in ``home`` did, and of what the ledgers of ``others`` say.

    Args:
        others: each a party's ``ledger.jsonl``, or a ``record.json``, whose ledgers are taken.

    Raises:
        WardtreeError: names the file and the line; two ledgers of one party that contradict each other.
    """
    manifests = transcript.history.agreed
    ledgers: dict[str, list[Line]] = {}
    for path in (home / LEDGER, *others):
        for lines in _ledgers_in(path):
            name, _ = author(lines, str(path), manifests)
            ledgers[name] = _longer(name, ledgers.get(name, []), lines)
    facts = derive(transcript, ledgers)
    return Record(
        format="wardtree-record/1", made=format_time(now), transcript=transcript.head, ledgers=ledgers, facts=facts
    )


def write_record(record: Record, out: Path) -> tuple[Path, ...]:
    """Write it into the folder ``out``, as JSON and as a page; gives the files. Raises VaultError if one exists."""
    files = {
        RECORD: (json.dumps(record.model_dump(), indent=1, ensure_ascii=True) + "\n").encode(),
        PAGE: render(record).encode(),
    }
    return write_all(out, files)


def read_record(path: Path) -> Record:
    """A record whose fields have their types; nothing of it is verified. Raises RecordError."""
    try:
        return Record.model_validate_json(read_bounded(path, MAX_FILE))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise RecordError(
            f"{path}: expected a record ({FORMAT}), came something else{place and ' at '}{place}"
        ) from None


def verify_record(record: Record, transcript: Transcript, now: datetime) -> Facts:
    """Check a record's ledgers, and that all it says follows from them and from a transcript.

    Args:
        transcript: the one that it was made with, or one that continues it.

    Raises:
        RecordError, or another WardtreeError: what does not fit.
    """
    earlier = _until(transcript, record.transcript, now)
    again = derive(earlier, record.ledgers)
    said, follows = record.facts.model_dump(), again.model_dump()
    if wrong := [name for name, value in follows.items() if said[name] != value]:
        raise RecordError(f"says what does not follow from its ledgers and the transcript: {', '.join(wrong)}")
    return again


def _until(transcript: Transcript, head: str, now: datetime) -> Transcript:
    """The transcript up to the entry with this hash."""
    for count, entry in enumerate(transcript.entries, start=1):
        if entry.hash == head:
            return Transcript.parse(b"".join(each.line for each in transcript.entries[:count]), now)
    raise RecordError(f"was made with a transcript that ends in {head}: this one does not have that entry")


def _ledgers_in(path: Path) -> list[list[Line]]:
    data = read_bounded(path, MAX_FILE)
    if FORMAT.encode() in data[:200]:
        return list(read_record(path).ledgers.values())
    *lines, _ = data.split(b"\n")
    return [list(check_lines(lines, str(path)))]


def _longer(name: str, one: list[Line], other: list[Line]) -> list[Line]:
    """Of two copies of a ledger that which goes on from the other. Raises RecordError."""
    short, long = sorted((one, other), key=len)
    if long[: len(short)] != short:
        raise RecordError(
            f"ledger of {name}: two copies part from each other: one of them was put back or made up, though {name} "
            "signed both"
        )
    return long


def in_short(record: Record) -> Mapping[str, Any]:
    """In short, for a terminal or a script."""
    facts = record.facts
    return {
        "transcript": record.transcript,
        "ledgers": {own.party: {"lines": own.lines, "head": own.head} for own in facts.ledgers},
        "agreements": [each.manifest for each in facts.agreements],
        "rounds": len(facts.rounds),
        "differences": list(facts.differences),
    }
