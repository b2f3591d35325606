"""What a node forgets of each round, and when: a line of its signed ledger.

A round's line is written when the relay has dropped its ciphertexts and totals, and the processes that saw
plaintext, the enclave with its sealers and the key room's child, have ended: their pages are the kernel's again.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field

from node.ledger import Ledger

PREPARE = -1
"""Stands for the time before the first round, when an enclave reads the data once."""

ENCLAVE, KEYROOM = "enclave", "keyroom"


@dataclass
class _Traces:
    """What is left of one round, in bytes."""

    ciphertexts: int = 0
    totals: int | None = None
    rooms: dict[str, int] = field(default_factory=dict)


class Wiping:
    """Follows every round until nothing of it is left, then says so in the ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._traces: dict[int, _Traces] = {}
        self._running: dict[str, deque[int]] = {ENCLAVE: deque(), KEYROOM: deque()}

    @property
    def waits(self) -> bool:
        """Whether a process that was told to end has not ended yet."""
        return any(self._running.values())

    def began(self, round_: int, room: str) -> None:
        """A process that will see plaintext is being forked."""
        self._of(round_)
        self._running[room].append(round_)

    def ended(self, room: str, peak_memory: int) -> None:
        """The oldest such process is no more; so much memory it held at most."""
        if self._running[room]:
            round_ = self._running[room].popleft()
            rooms = self._of(round_).rooms
            rooms[room] = max(peak_memory, rooms.get(room, 0))
            self._write_if_gone(round_)

    def held(self, round_: int, ciphertexts: int) -> None:
        """So many bytes of ciphertext came by."""
        self._of(round_).ciphertexts += ciphertexts

    def dropped(self, round_: int, totals: int) -> None:
        """The relay holds nothing of the round any more; so many bytes of totals were staged."""
        if round_ in self._traces:
            self._of(round_).totals = totals
            self._write_if_gone(round_)

    def _of(self, round_: int) -> _Traces:
        return self._traces.setdefault(round_, _Traces())

    def _write_if_gone(self, round_: int) -> None:
        traces = self._traces[round_]
        if traces.totals is not None and not any(round_ in running for running in self._running.values()):
            del self._traces[round_]
            rooms = {f"{room}_bytes": peak for room, peak in traces.rooms.items()}
            self._ledger.note(
                what="wiped",
                round=round_,
                ciphertext_bytes=traces.ciphertexts,
                total_bytes=traces.totals,
                **rooms,
                time=int(time.time()),
            )
