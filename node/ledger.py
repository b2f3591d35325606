"""An append-only record, one JSON line an entry, each line chained to the one before by its hash.

It remembers rounds, contributor sets, digests of ciphertexts and of published values: never an update, and
never a digest of a party's plaintext (a small one can be guessed). An entry is on the disk before
:meth:`Ledger.append` returns, so that what must happen at most once is known after any crash.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError

GENESIS = "0" * 64


class LedgerError(WardtreeError):
    """The ledger was changed, or cannot be written."""


class Ledger:
    """One file. ``sign`` signs each line's hash under the domain "ledger"; without it lines are only chained."""

    def __init__(self, path: Path, sign: Callable[[str, bytes], bytes] | None = None) -> None:
        """Read and check what is there.

        Raises:
            LedgerError: the chain is broken, or the file cannot be opened.
        """
        self.path = path
        self._sign = sign
        self.entries: list[dict[str, Any]] = []
        self._head = GENESIS
        for entry in read_entries(path):
            self.entries.append(entry["entry"])
            self._head = entry["hash"]
        try:
            self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise LedgerError(f"{path}: cannot be written: {error.strerror}") from error

    def append(self, **entry: Any) -> None:
        """Add one entry, durably.

        Raises:
            LedgerError: the disk is full, say; nothing that depends on the entry may happen then.
        """
        body = _canonical({"entry": entry, "previous": self._head})
        digest = hashlib.sha256(body).hexdigest()
        line: dict[str, Any] = {"entry": entry, "previous": self._head, "hash": digest}
        if self._sign:
            line["signature"] = self._sign("ledger", bytes.fromhex(digest)).hex()
        data = _canonical(line) + b"\n"
        try:
            if os.write(self._descriptor, data) != len(data):
                raise OSError(28, "the disk is full")
            os.fsync(self._descriptor)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be written: {error.strerror}") from error
        self.entries.append(entry)
        self._head = digest

    def last_round(self, what: str) -> int:
        """The highest round with an entry of this kind, -1 when there is none."""
        return max((entry["round"] for entry in self.entries if entry["what"] == what), default=-1)

    def close(self) -> None:
        os.close(self._descriptor)


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a ledger, the chain checked. A last line that was cut short by a crash is an error too:
    whoever runs the node must look at it.

    Raises:
        LedgerError: names the line.
    """
    if not path.exists():
        return
    previous = GENESIS
    for number, raw in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            line = json.loads(raw)
            body = _canonical({"entry": line["entry"], "previous": line["previous"]})
            sound = line["previous"] == previous and line["hash"] == hashlib.sha256(body).hexdigest()
        except (ValueError, KeyError, TypeError):
            sound = False
        if not sound:
            raise LedgerError(f"{path}: line {number} does not follow from the one before: the ledger was changed")
        previous = line["hash"]
        yield line


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
