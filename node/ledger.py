"""An append-only record, one JSON line an entry, each line chained to the one before by its hash.

It remembers rounds, contributor sets, digests of ciphertexts and of published values: never an update, and
never a digest of a party's plaintext (a small one can be guessed). An entry is on the disk before
:meth:`Ledger.append` returns, so that what must happen at most once is known after any crash.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError

GENESIS = "0" * 64

Sign = Callable[[str, bytes], bytes]


class LedgerError(WardtreeError):
    """The ledger was changed, or cannot be written."""


class Ledger:
    """One file. ``sign`` signs each line's hash under the domain "ledger"; without it lines are only chained."""

    def __init__(self, path: Path, sign: Sign | None = None) -> None:
        """Read and check what is there; a last line without its end is taken away.

        Raises:
            LedgerError: the chain is broken, or the file cannot be opened.
        """
        self.path = path
        self._sign = sign
        self.entries: list[dict[str, Any]] = []
        self._head = GENESIS
        size = 0
        for entry in read_entries(path, sign):
            self.entries.append(entry["entry"])
            self._head = entry["hash"]
            size += len(_canonical(entry)) + 1
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be written: {error.strerror}") from error

    def append(self, **entry: Any) -> None:
        """Add one entry, durably.

        Raises:
            LedgerError: the disk is full, say; nothing that depends on the entry may happen then.
        """
        self._write(entry, durably=True)

    def note(self, **entry: Any) -> None:
        """Add one entry that a failure of power may take away again, up to the next that is durable: for details of
        what a durable entry before it says already.

        Raises:
            LedgerError: the disk is full, say.
        """
        self._write(entry, durably=False)

    def _write(self, entry: dict[str, Any], durably: bool) -> None:
        line = _line(entry, self._head, self._sign)
        data = _canonical(line) + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            if durably:
                os.fsync(self._descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):  # half a line would make the whole ledger unreadable
                os.ftruncate(self._descriptor, size)
            raise LedgerError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.entries.append(entry)
        self._head = line["hash"]

    def last_round(self, what: str) -> int:
        """The highest round with an entry of this kind, -1 when there is none."""
        return max((entry["round"] for entry in self.entries if entry["what"] == what), default=-1)

    def close(self) -> None:
        os.close(self._descriptor)


def read_entries(path: Path, sign: Sign | None = None) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, the chain checked, and with ``sign`` that each line's signature is ours (Ed25519
    gives equal signatures for equal messages). A last line without its end was cut short by a crash, before
    anything could depend on it: it does not count.

    Raises:
        LedgerError: names the line.
    """
    if not path.exists():
        return
    try:
        *lines, _ = path.read_bytes().split(b"\n")
    except OSError as error:
        raise LedgerError(f"{path}: cannot be read: {error.strerror}") from error
    yield from check_lines(lines, str(path), sign)


def check_lines(lines: Iterable[bytes], source: str, sign: Sign | None = None) -> Iterator[dict[str, Any]]:
    """As :func:`read_entries`, of lines that are at hand; ``source`` names them.

    Raises:
        LedgerError: names the line.
    """
    previous = GENESIS
    for number, raw in enumerate(lines, start=1):
        try:
            line = json.loads(raw)
            expected = _line(line["entry"], previous, sign)
            if not sign and "signature" in line:
                expected["signature"] = line["signature"]
            sound = raw == _canonical(expected)
        except (ValueError, KeyError, TypeError, RecursionError):
            sound = False
        if not sound:
            raise LedgerError(f"{source}: line {number} does not follow from the one before: the ledger was changed")
        previous = line["hash"]
        yield line


def _line(entry: Any, previous: str, sign: Sign | None) -> dict[str, Any]:
    digest = hashlib.sha256(_canonical({"entry": entry, "previous": previous}))
    line = {"entry": entry, "previous": previous, "hash": digest.hexdigest()}
    return line | {"signature": sign("ledger", digest.digest()).hex()} if sign else line


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def as_written(line: dict[str, Any]) -> bytes:
    """A line that was read, as it stands in the file, without its end."""
    return _canonical(line)
