"""The ledger: what was written stays, and what was changed is found."""

from __future__ import annotations

import json
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from keys.identity import Identity, verify
from node.ledger import GENESIS, Ledger, LedgerError, read_entries

IDENTITY = Identity("ada", b"s" * 32, b"c" * 32, b"b" * 32)
KEY = IDENTITY.card(None, 0).signing_key


def written(path: Path, *, signed: bool = True) -> list[bytes]:
    """A ledger of four entries; gives its lines."""
    ledger = Ledger(path, IDENTITY.sign if signed else None)
    ledger.append(what="started", manifest="ab" * 32)
    ledger.append(what="opening", round=0, segment=0, listed=["ada", "bö"])
    ledger.append(what="opening", round=1, segment=0, listed=["ada"])
    ledger.append(what="closed", round=1, left_out=False)
    ledger.close()
    return path.read_bytes().splitlines(keepends=True)


def test_entries_survive_reopening_and_the_chain_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    ledger = Ledger(path, IDENTITY.sign)
    assert [entry["what"] for entry in ledger.entries] == ["started", "opening", "opening", "closed"]
    assert (ledger.last_round("opening"), ledger.last_round("retired")) == (1, -1)
    ledger.append(what="retired", round=2)
    ledger.close()
    lines = list(read_entries(path))
    assert lines[-1]["entry"] == {"what": "retired", "round": 2}
    assert [line["previous"] for line in lines] == [GENESIS, *(line["hash"] for line in lines[:-1])]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_entry_is_on_the_disk_before_append_returns(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path)
    for number in range(3):
        ledger.append(what="opening", round=number)
        assert [line["entry"]["round"] for line in read_entries(path)] == list(range(number + 1))
    ledger.close()


def test_every_line_is_signed_for_the_ledger_and_for_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    written(path)
    for line in read_entries(path):
        digest, signature = bytes.fromhex(line["hash"]), bytes.fromhex(line["signature"])
        assert verify(KEY, "ledger", digest, signature)
        assert not verify(KEY, "frame", digest, signature)


@pytest.mark.parametrize("signed", [True, False], ids=["signed", "chained only"])
def test_any_changed_byte_is_refused_by_the_number_of_its_line(tmp_path: Path, signed: bool) -> None:
    path = tmp_path / "ledger.jsonl"
    data = b"".join(written(path, signed=signed)[:2])
    for at in range(len(data) - 1):  # without its end the last line never was
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        number = data[:at].count(b"\n") + 1
        with pytest.raises(LedgerError, match=f"line {number} does not follow"):
            Ledger(path, IDENTITY.sign if signed else None)


FORGERIES = {
    "the first line removed": ([1, 2, 3], 1),
    "a middle line removed": ([0, 1, 3], 3),
    "two lines exchanged": ([0, 2, 1, 3], 2),
    "a line repeated": ([0, 1, 1, 2, 3], 3),
    "a line from elsewhere": ([0, 1, 2, 3, 0], 5),
}


@pytest.mark.parametrize(("order", "number"), FORGERIES.values(), ids=FORGERIES.keys())
def test_lines_removed_moved_or_repeated_are_refused(tmp_path: Path, order: list[int], number: int) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[index] for index in order))
    with pytest.raises(LedgerError, match=f"line {number} does not follow"):
        Ledger(path, IDENTITY.sign)


def test_a_whole_ledger_that_somebody_else_wrote_is_refused(tmp_path: Path) -> None:
    """Whoever can write the file but has no key cannot make up another past, however well it is chained."""
    path = tmp_path / "ledger.jsonl"
    stranger = Ledger(path, Identity("bo", b"t" * 32, b"c" * 32, b"b" * 32).sign)
    stranger.append(what="started", manifest="cd" * 32)
    stranger.close()
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path, IDENTITY.sign)
    written(path.with_name("unsigned"), signed=False)
    with pytest.raises(LedgerError, match="line 1"):
        Ledger(path.with_name("unsigned"), IDENTITY.sign)


def test_a_note_is_chained_like_any_entry_and_waits_for_the_next_durable_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), fsync(descriptor)))
    ledger = Ledger(tmp_path / "ledger.jsonl", IDENTITY.sign)
    ledger.append(what="opening", round=1, segment=0)
    ledger.note(what="opening", round=1, segment=1)
    assert len(synced) == 1
    ledger.append(what="closed", round=1)
    assert len(synced) == 2
    entries = Ledger(tmp_path / "ledger.jsonl", IDENTITY.sign).entries
    assert [(entry["what"], entry.get("segment")) for entry in entries] == [
        ("opening", 0),
        ("opening", 1),
        ("closed", None),
    ]


REWRITTEN = {
    "cut short before its end": lambda line: line[:-10] + b"\n",
    "with another line end": lambda line: line[:-1] + b"\r\n",
    "with spaces": lambda line: line.replace(b":", b": "),
    "with a field more": lambda line: line.replace(b'{"entry"', b'{"also":1,"entry"', 1),
    "as a list": lambda line: json.dumps([*json.loads(line)]).encode() + b"\n",
    "as bytes that are no text": lambda line: b"\xff" + line[1:],
    "with nothing in it": lambda line: b"\n",
}


@pytest.mark.parametrize("change", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_a_last_line_is_refused(tmp_path: Path, change: object) -> None:
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    assert callable(change)
    path.write_bytes(b"".join(lines[:-1]) + change(lines[-1]))
    with pytest.raises(LedgerError, match="line 4 does not follow"):
        Ledger(path, IDENTITY.sign)


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_line_that_a_crash_cut_short_never_was(tmp_path: Path, kept: int) -> None:
    """Its writer had not been told that it is there, so nothing depended on it."""
    path = tmp_path / "ledger.jsonl"
    lines = written(path)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:kept])
    assert len(list(read_entries(path))) == 3
    ledger = Ledger(path, IDENTITY.sign)
    assert path.read_bytes() == b"".join(lines[:-1])
    ledger.append(what="closed", round=1, left_out=False)
    ledger.close()
    assert path.read_bytes() == b"".join(lines)


@contextmanager
def files_at_most(size: int) -> Iterator[None]:
    """A disk that is full: the kernel writes up to ``size`` bytes of a file, then refuses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("room", [0, 30], ids=["no byte fits", "half a line fits"])
def test_what_cannot_be_written_is_an_error_and_is_not_remembered(tmp_path: Path, room: int) -> None:
    path = tmp_path / "ledger.jsonl"
    before = b"".join(written(path))
    ledger = Ledger(path, IDENTITY.sign)
    with files_at_most(len(before) + room), pytest.raises(LedgerError, match="cannot be written") as caught:
        ledger.append(what="opening", round=2)
    assert "\n" not in str(caught.value)
    assert ledger.last_round("opening") == 1
    assert path.read_bytes() == before, "half a line would make the whole ledger unreadable"
    ledger.append(what="opening", round=3)
    ledger.close()
    assert Ledger(path, IDENTITY.sign).last_round("opening") == 3


def test_a_ledger_that_cannot_be_opened_says_so(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for path in (tmp_path / "link", tmp_path / "missing" / "ledger.jsonl", tmp_path):
        with pytest.raises(LedgerError, match="cannot be") as caught:
            Ledger(path)
        assert str(path) in str(caught.value)
