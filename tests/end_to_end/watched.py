"""A federation of real nodes in the hands of a test: it waits for what they tell, and hurts them at that moment."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from node.gauge import descendants
from node.home import LEDGER, MODEL, load_home
from node.ledger import read_entries
from node.local import prepare
from node.published import load_model
from node.record import Record
from node.simulation import Federation, simulated_parties, tree_of
from node.study import parse_study
from tests.end_to_end.commands import FULL
from topology import quorum_met

STUDY = """\
[study]
name = "faults"
rounds = {rounds}
seed = 1
[task]
class = "synthetic"
[task.options]
params = 20000
seconds = {seconds}
[aggregation]
segment_ciphertexts = 1
[deadlines]
round_seconds = 25.0
join_seconds = {join_seconds}
[debug]
check_sums = true
"""
SEGMENTS = 3

by_hand = pytest.mark.skipif(not FULL, reason="by hand: WARDTREE_FULL=1")

Event = dict[str, Any]


class Watched:
    """Five nodes unless a test says otherwise; ``record`` has what they told."""

    def __init__(
        self,
        out: Path,
        parties: int = 5,
        rounds: int = 3,
        seconds: float = 0.4,
        join_seconds: float = 25.0,
        study: str | None = None,
        pages: bool = False,
    ) -> None:
        """``pages``: every node keeps its status, and serves its page."""
        text = study or STUDY.format(rounds=rounds, seconds=seconds, join_seconds=join_seconds)
        tables, key_holder = simulated_parties(parties, {})
        self.federation = Federation(text, parse_study(text, "test"), tables, key_holder, out / "run")
        self.names, self.key_holder, self.rounds = self.federation.names, key_holder, rounds
        self.everyone = frozenset(self.names)
        self.launcher = prepare(self.federation, pages=dict.fromkeys(self.names, 0) if pages else None)
        self.tree = tree_of(self.federation)
        self.record = Record(self.names)
        self.codes: dict[str, list[int]] = {name: [] for name in self.names}
        self.seen: list[Event] = []
        self._pending: Iterator[Event] = iter(())

    # ---- who is who ---------------------------------------------------------------------------------------

    @property
    def apex(self) -> str:
        return self.tree.apex

    @property
    def inner(self) -> str:
        """A child of the apex that has children."""
        return next(name for name in self.tree.children[self.apex] if self.tree.children[name])

    @property
    def leaf(self) -> str:
        return self.tree.children[self.inner][0]

    # ---- hear and hurt ------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        for name in names or self.names:
            self.launcher.start(name)

    def until(self, condition: Callable[[Event], object], seconds: float = 90.0) -> Event:
        """Listen until something is told for which this holds; what comes after it waits."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for event in self._pending:
                self._take(event)
                if condition(event):
                    return event
            self._pending = iter([*self.launcher.listen(0.1)])
        raise AssertionError(f"it was never told; the last that was: {self.seen[-5:]}")

    def until_told(self, name: str, kind: str, seconds: float = 90.0, **fields: object) -> Event:
        wanted = {"party": name, "kind": kind, **fields}
        return self.until(lambda event: wanted.items() <= event.items(), seconds)

    def _take(self, event: Event) -> None:
        self.seen.append(event)
        if event["kind"] == "ended":
            self.codes[event["party"]].append(event["code"])
        else:
            self.record.take(event)

    def kill(self, name: str) -> None:
        """SIGKILL for every process of a node."""
        self.launcher.signal(name, signal.SIGKILL)
        self.until_told(name, "ended")

    def kill_room(self, name: str, room: str) -> None:
        """SIGKILL for its processes of this name, as soon as there is one: one that is found may be of the job before,
        and just ending, so for a moment more."""
        deadline, killed = time.monotonic() + 10, False
        while time.monotonic() < deadline:
            for process in descendants(self.launcher.process(name)):
                with contextlib.suppress(OSError):
                    if Path(f"/proc/{process}/comm").read_text().startswith(room):
                        os.kill(process, signal.SIGKILL)
                        deadline, killed = deadline if killed else time.monotonic() + 0.3, True
        assert killed, f"{name} has no {room}"

    def finish(self, seconds: float = 120.0) -> None:
        """Until every node that runs has ended."""
        deadline = time.monotonic() + seconds
        while self.launcher.running:
            assert time.monotonic() < deadline, f"still running: {sorted(self.launcher.running)}"
            for event in self._pending:
                self._take(event)
            self._pending = iter([*self.launcher.listen(0.1)])
        for event in self._pending:
            self._take(event)

    # ---- what is on the disks -----------------------------------------------------------------------------

    def ledger(self, name: str, what: str) -> list[Event]:
        entries = (line["entry"] for line in read_entries(self.federation.home(name) / LEDGER))
        return [entry for entry in entries if entry["what"] == what]

    def openings(self) -> list[Event]:
        home = load_home(self.federation.home(self.key_holder), datetime.now(UTC))
        return [line["entry"] for line in read_entries(home.openings)]

    def closed(self) -> dict[int, tuple[frozenset[str], int]]:
        """Of every round that the key holder closed: who contributed, and how many segments."""
        entries = self.ledger(self.key_holder, "closed")
        return {entry["round"]: (frozenset(entry["contributors"]), entry["segments"]) for entry in entries}

    def check(self, *, without: frozenset[str] = frozenset()) -> None:
        """What must hold whatever happened; ``without``: who is dead."""
        openings = self.openings()
        assert {entry["what"] for entry in openings} == {"opening"}, "the key was never retired"
        places = [(entry["round"], entry["segment"]) for entry in openings]
        assert len(places) == len(set(places)), "one opening per round and segment"
        assert all(quorum_met(entry["listed"], 2) for entry in openings)
        assert self.record.sums_exact()
        assert all(round_.identical for round_ in self.record.rounds.values() if round_.states)
        survivors = sorted(self.everyone - without)
        assert {name: self.codes[name][-1] for name in survivors} == dict.fromkeys(survivors, 0), self.record.errors
        models = {load_model(self.federation.home(name) / MODEL).digest(b"") for name in survivors}
        assert len(models) == 1, "all who live have one model"


@contextlib.contextmanager
def watched(out: Path, **options: Any) -> Iterator[Watched]:
    """Nothing of it is left at the end."""
    nodes = Watched(out, **options)
    try:
        yield nodes
    finally:
        nodes.launcher.end_all()
