"""A transcript holds together or is refused; what it says follows from the acts alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys import transcript as files
from keys.canonical import canonical, digest
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import DOMAIN, ManifestError, Signed
from keys.shares import share_digest
from keys.statement import Statement, StatementError
from keys.transcript import Transcript, TranscriptError, agreed, proposed, stated, story, summary
from tests.keys.test_succession import NOW, OLD, manifest

FIRST = manifest(OLD.values())
SIGNED = Signed(FIRST, {name: each.sign(DOMAIN, FIRST.body_bytes) for name, each in OLD.items()}, {})
SECOND = manifest(OLD.values(), version=2, previous=FIRST.digest, public_key_digest="ab" * 32)
SECOND_SIGNED = Signed(SECOND, {name: each.sign(DOMAIN, SECOND.body_bytes) for name, each in OLD.items()}, {})
OFFICERS = tuple(Identity.create(name) for name in ("anna", "bill", "cleo"))
SET = "0123456789abcdef"
SHARES = [share_digest(SET, index, bytes([index] * 32)) for index in (1, 2, 3)]
EMPTY = Transcript.parse(b"", NOW)
WHOLE = EMPTY.extended(OLD["ada"], [proposed(FIRST), *agreed(SIGNED)], NOW)
LINES = WHOLE.to_bytes().splitlines(keepends=True)


def statement(who: Identity, kind: str, **content: Any) -> Statement:
    return Statement.make(who, kind, content, NOW)


def split(who: Identity = OLD["ada"], **change: Any) -> Statement:
    content = {
        "public_key": FIRST.public_key_digest,
        "set": SET,
        "needed": 2,
        "holders": [each.card(None, 0).to_dict() for each in OFFICERS],
        "shares": SHARES,
    }
    return statement(who, "split", **(content | change))


def destruction(who: Identity = OLD["ada"], at: Transcript = WHOLE, **change: Any) -> Statement:
    sets = at.history.open_sets(FIRST.public_key_digest)
    content = {"public_key": FIRST.public_key_digest, "transcript": at.head, "open_sets": sets, "no_copies": True}
    return statement(who, "destruction", **(content | change))


def share_gone(index: int, who: Identity | None = None, **change: Any) -> Statement:
    return statement(who or OFFICERS[index], "share-destruction", **({"set": SET, "share": SHARES[index]} | change))


def with_statements(*statements: Statement, writer: Identity = OLD["ada"], at: Transcript = WHOLE) -> Transcript:
    return at.extended(writer, map(stated, statements), NOW)


def test_what_is_in_force_follows_from_the_entries() -> None:
    assert [entry.what for entry in WHOLE.entries] == ["proposal", *["signature"] * 5, "agreement"]
    assert WHOLE.history.in_force == FIRST
    WHOLE.check_fresh(NOW)
    assert Transcript.parse(WHOLE.to_bytes(), NOW) == WHOLE
    both = WHOLE.extended(OLD["eve"], [proposed(SECOND), *agreed(SECOND_SIGNED)], NOW)
    assert both.history.in_force == SECOND
    both.check_continues(WHOLE)
    text = "\n".join([*story(both), *summary(both)])
    assert "eve proposed version 2 for ada, bo, cy, di, eve; ada holds the secret key" in text
    assert "In force: version 2, signed by all of ada, bo, cy, di, eve, valid until" in text
    assert both.head in text


def test_the_bytes_of_an_entry_are_pinned() -> None:
    entry = json.loads(LINES[6])
    signature = entry.pop("signature")
    assert canonical(entry) == (
        b'{"by":"ada","content":{"manifest":"%s"},"format":"wardtree-transcript/1","number":7,"previous":"%s",'
        b'"time":"2026-11-21T12:00:00Z","what":"agreement"}' % (FIRST.digest.encode(), digest(LINES[5]).hex().encode())
    )
    assert OLD["ada"].sign("transcript", canonical(entry)).hex() == signature
    assert WHOLE.head == digest(LINES[6]).hex()


def changed(number: int, **fields: Any) -> bytes:
    """The transcript with fields of one entry changed, the rest as it was."""
    entry = json.loads(LINES[number - 1]) | fields
    return b"".join([*LINES[: number - 1], canonical(entry) + b"\n", *LINES[number:]])


def signed_anew(number: int, who: Identity, **fields: Any) -> bytes:
    """The transcript up to an entry that is changed and truly signed by ``who``."""
    entry = json.loads(LINES[number - 1]) | fields
    del entry["signature"]
    entry["signature"] = who.sign("transcript", canonical(entry)).hex()
    return b"".join([*LINES[: number - 1], canonical(entry) + b"\n"])


STRANGER = Identity.create("mallory")
BAD: dict[str, tuple[bytes, str]] = {
    "an entry removed": (b"".join(LINES[:2] + LINES[3:]), "entry 3: does not follow from the one before"),
    "the first removed": (b"".join(LINES[1:]), "entry 1: does not follow from the one before"),
    "two exchanged": (b"".join([LINES[0], LINES[2], LINES[1], *LINES[3:]]), "entry 2: does not follow"),
    "one twice": (b"".join([*LINES[:3], LINES[2], *LINES[3:]]), "entry 4: does not follow"),
    "cut short in a line": (b"".join(LINES)[:-20], "cut short in entry 7"),
    "cut short by the line's end": (b"".join(LINES)[:-1], "cut short in entry 7"),
    "another spelling": (LINES[0].replace(b'","', b'", "', 1), "entry 1: expected canonical JSON"),
    "no JSON": (b"hello\n", "entry 1: expected JSON"),
    "a text changed": (changed(1, time="2026-11-21T12:00:01Z"), "entry 1: not signed by ada"),
    "a signature of another entry": (
        changed(2, signature=json.loads(LINES[2])["signature"]), "entry 2: not signed by ada"
    ),
    "in another's name": (changed(2, by="bo"), "entry 2: not signed by bo"),
    "by a stranger": (signed_anew(2, STRANGER, by="mallory"), "entry 2: not signed by mallory, or mallory has no part"),
    "a stranger's as a member's": (signed_anew(2, STRANGER), "entry 2: not signed by ada"),
    "first entry by a stranger": (signed_anew(1, STRANGER, by="mallory"), "'mallory' is not a member"),
    "another format": (signed_anew(1, OLD["ada"], format="wardtree-transcript/2"), "came 'wardtree-transcript/2'"),
    "an unknown act": (signed_anew(1, OLD["ada"], what="party"), "what: expected one of proposal, signature"),
    "a field too many": (signed_anew(1, OLD["ada"], note="x"), "unknown field 'note'"),
    "written before": (signed_anew(2, OLD["ada"], time="2026-11-21T11:40:00Z"), "before the entry before it"),
    "written in the future": (signed_anew(2, OLD["ada"], time="2026-11-22T12:00:00Z"), "now is 2026-11-21"),
    "agreed too early": (
        b"".join(LINES[:5])
        + EMPTY.to_bytes()
        + signed_anew(6, OLD["ada"], what="agreement", content={"manifest": FIRST.digest})[len(b"".join(LINES[:5])) :],
        "entry 6: manifest: signature missing: eve",
    ),
}  # fmt: skip


@pytest.mark.parametrize("row", BAD)
def test_what_does_not_hold_together_is_refused(row: str) -> None:
    data, refusal = BAD[row]
    with pytest.raises(TranscriptError) as caught:
        Transcript.parse(data, NOW)
    assert refusal in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_byte_can_be_changed(data: st.DataObject) -> None:
    changed_bytes = bytearray(WHOLE.to_bytes())
    place = data.draw(st.integers(0, len(changed_bytes) - 1))
    changed_bytes[place] ^= data.draw(st.integers(1, 255))
    with pytest.raises(TranscriptError):
        Transcript.parse(bytes(changed_bytes), NOW)


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_empty(garbage: bytes) -> None:
    if not garbage:
        return
    with pytest.raises(TranscriptError):
        Transcript.parse(garbage, NOW)


# ---- rolled back, cut at the end, expired ---------------------------------------------------------------


def test_a_transcript_that_is_cut_between_entries_shows_beside_the_one_that_is_known() -> None:
    shorter = Transcript.parse(b"".join(LINES[:5]), NOW)
    with pytest.raises(TranscriptError, match="rolled back or cut short: it ends at entry 5, the one .* entry 7"):
        shorter.check_continues(WHOLE)
    with pytest.raises(TranscriptError, match="ends before any manifest was agreed"):
        shorter.check_fresh(NOW)
    other = shorter.extended(OLD["bo"], [proposed(FIRST)], NOW)
    with pytest.raises(TranscriptError, match="parts from the one that is known here at entry 6"):
        other.check_continues(WHOLE)


def test_an_expired_transcript_is_not_fresh_unless_its_key_is_gone_for_ever() -> None:
    later = NOW + timedelta(days=60)
    with pytest.raises(ManifestError, match="expired 2026-12-21"):
        Transcript.parse(WHOLE.to_bytes(), later).check_fresh(later)
    with_statements(destruction()).check_fresh(later)


def test_files_are_replaced_by_longer_ones_only(tmp_path: Path) -> None:
    path, home = tmp_path / "transcript.jsonl", tmp_path / "home"
    home.mkdir()
    files.record(path, OLD["ada"], [proposed(FIRST), *agreed(SIGNED)], NOW, home)
    files.keep(home, path, NOW)
    files.record(path, OLD["bo"], [proposed(SECOND)], NOW, home)
    assert len(files.keep(home, path, NOW).entries) == 8
    path.write_bytes(WHOLE.to_bytes())
    before = (home / files.TRANSCRIPT).read_bytes()
    for step in (
        lambda: files.keep(home, path, NOW),
        lambda: files.record(path, OLD["cy"], [proposed(SECOND)], NOW, home),
    ):
        with pytest.raises(TranscriptError, match=r"transcript\.jsonl: transcript: (rolled back|parts from)"):
            step()
    assert (home / files.TRANSCRIPT).read_bytes() == before
    assert path.read_bytes() == WHOLE.to_bytes()


# ---- statements -----------------------------------------------------------------------------------------


SPLIT = with_statements(split())
GONE = with_statements(share_gone(0), at=SPLIT)
REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "a split by who is not the key holder": (lambda: with_statements(split(OLD["bo"])), "this secret key is ada's"),
    "a split signed by another": (
        lambda: with_statements(Statement(**{**vars(split()), "signature": split(OLD["bo"]).signature})),
        "its signature is not of the key that the record has",
    ),
    "a split of a key that nobody knows": (lambda: with_statements(split(public_key="ff" * 32)), "no manifest in this"),
    "a set twice": (lambda: with_statements(split(), at=SPLIT), "exists already"),
    "one holder is enough": (lambda: with_statements(split(needed=1)), "expected 2 to 3 of the holders, came 1"),
    "more needed than there are": (lambda: with_statements(split(needed=4)), "expected 2 to 3 of the holders, came 4"),
    "a share too few": (lambda: with_statements(split(shares=SHARES[:2])), "one share for each"),
    "a holder twice": (
        lambda: with_statements(split(holders=[OFFICERS[0].card(None, 0).to_dict()] * 3)),
        "one share for each of some holders of different names",
    ),
    "a recombination of nothing": (
        lambda: with_statements(
            statement(OLD["ada"], "recombination", public_key=FIRST.public_key_digest, set=SET, holders=["anna"])
        ),
        "no share set",
    ),
    "a recombination with who holds nothing": (
        lambda: with_statements(
            statement(OLD["ada"], "recombination", public_key=FIRST.public_key_digest, set=SET, holders=["bo"]),
            at=SPLIT,
        ),
        "'bo' holds no share",
    ),
    "a certificate by who is not the key holder": (
        lambda: with_statements(destruction(OLD["bo"])), "this secret key is ada's"
    ),
    "a certificate that hides a set": (
        lambda: with_statements(destruction(at=SPLIT, open_sets=[]), at=SPLIT), "does not tell of the shares"
    ),
    "a certificate that hides a holder": (
        lambda: with_statements(
            destruction(at=SPLIT, open_sets=[{"holders": ["anna", "bill"], "needed": 2, "set": SET}]), at=SPLIT
        ),
        "does not tell of the shares",
    ),
    "a certificate of another record": (
        lambda: with_statements(destruction(transcript="ee" * 32)), "refers to an entry that is not in this record"
    ),
    "a split after the end": (
        lambda: with_statements(split(), at=with_statements(destruction())), "or its secret key does not any more"
    ),
    "another's share destroyed": (
        lambda: with_statements(share_gone(0, OFFICERS[1]), at=SPLIT), "of another share than it holds"
    ),
    "a share of who holds none": (lambda: with_statements(share_gone(0, OLD["bo"]), at=SPLIT), "'bo' holds no share"),
    "an impostor's share": (
        lambda: with_statements(share_gone(0, Identity.create("anna")), at=SPLIT), "its signature is not of the key"
    ),
    "a revocation of what is not in force": (
        lambda: with_statements(statement(OLD["bo"], "revocation", manifest="dd" * 32, reason="withdrawn")),
        "of another manifest than the one in force",
    ),
    "a revocation by a stranger": (
        lambda: with_statements(statement(STRANGER, "revocation", manifest=FIRST.digest, reason="withdrawn")),
        "'mallory' is not a member",
    ),
    "an entry under a lost key": (
        lambda: with_statements(split(), writer=OLD["bo"], at=REVOKED), "not signed by bo, or bo has no part"
    ),
}  # fmt: skip
REVOKED = with_statements(statement(OLD["bo"], "revocation", manifest=FIRST.digest, reason="keys-lost"))


@pytest.mark.parametrize("row", REFUSED)
def test_a_statement_that_does_not_fit_is_refused(row: str) -> None:
    act, refusal = REFUSED[row]
    with pytest.raises(WardtreeError) as caught:
        act()
    assert refusal in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_certificate_names_the_ways_that_are_left_until_none_is() -> None:
    key = FIRST.public_key_digest
    assert SPLIT.history.open_sets(key) == [{"holders": ["anna", "bill", "cleo"], "needed": 2, "set": SET}]
    assert (
        "One way to the secret key remains: `wardtree ceremony recombine` with 2 of the 3" in destruction(at=SPLIT).text
    )
    assert "with 2 of the 2 shares that bill, cleo still hold" in destruction(at=GONE).text
    end = with_statements(destruction(at=GONE), at=GONE)
    assert "one way to it is left: recombining 2 shares of bill, cleo" in "\n".join(summary(end))
    end = with_statements(share_gone(1), at=end)
    assert end.history.open_sets(key) == []
    assert "no way to it is left" in "\n".join(summary(end))
    assert "No set of shares is left" in destruction(at=with_statements(share_gone(1), at=GONE)).text


def test_a_share_holder_writes_in_its_own_name_and_in_no_members() -> None:
    assert with_statements(share_gone(1), writer=OFFICERS[1], at=SPLIT).entries[-1].by == "bill"
    double = Identity.create("bo")
    cards = [each.card(None, 0).to_dict() for each in (*OFFICERS[:2], double)]
    at = with_statements(split(holders=cards))
    with pytest.raises(TranscriptError, match="not signed by bo"):
        with_statements(share_gone(0), writer=double, at=at)


def test_a_revocation_holds_until_the_next_version() -> None:
    assert "no node may follow it: revoked by bo" in "\n".join(summary(REVOKED))
    others = [each for name, each in OLD.items() if name != "bo"]
    second = manifest(others, version=2, previous=FIRST.digest)
    signed = Signed(second, {each.name: each.sign(DOMAIN, second.body_bytes) for each in others}, {})
    after = REVOKED.extended(OLD["ada"], [proposed(second), *agreed(signed)], NOW)
    assert (after.history.in_force, after.history.revoked) == (second, {})
    assert OLD["bo"].card(None, 0).signing_key in after.history.lost


def test_a_text_that_says_something_else_does_not_change_the_facts() -> None:
    body = split().to_dict() | {"text": "nothing happened"}
    del body["signature"]
    told = Statement.from_dict(body | {"signature": OLD["ada"].sign("statement", canonical(body)).hex()})
    told.check(OLD["ada"].card(None, 0).signing_key)
    assert told.text != told.facts
    assert "into the custody of anna, bill, cleo" in "\n".join(story(with_statements(told)))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "party"}, "kind: expected one of"),
        ({"format": "wardtree-statement/2"}, "came 'wardtree-statement/2'"),
        ({"text": "a\x1b[2J"}, "expected plain text"),
        ({"time": "now"}, "expected a time"),
        ({"by": "Ada"}, "name: expected"),
        ({"content": {}}, "missing field"),
    ],
)
def test_a_statement_of_another_form_is_refused(change: dict[str, object], why: str) -> None:
    with pytest.raises(WardtreeError, match=why):
        Statement.from_dict(split().to_dict() | change)


def test_a_statement_is_of_one_key() -> None:
    with pytest.raises(StatementError, match="not of the key that the record has"):
        split().check(OLD["bo"].card(None, 0).signing_key)
