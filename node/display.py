"""A local run while it runs: a table that lives on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS
from node.protocol.schedule import Schedule
from node.record import Record
from node.report import APEX, INNER_NODE, KEY_HOLDER, LEAF, LISTED_NODES, human_bytes

REFRESH_SECONDS = 1 / 8
"""No oftener than this, however fast events come: drawing must not slow the nodes down."""

_STYLES = {"failed": "bold red", "finished": "green"}

_NOW = {
    "train": "encrypting",
    "protect": "adding",
    "merge": "waiting for the total",
    "open": "checking the total",
    "apply": "applied",
}
"""A node tells of a stage when it ends; this is what it does then."""

TOLD = ("accuracy", "auc", "log_loss")
"""The figures of an evaluation that its line ends with, where it has them."""


class LiveView:
    """Shows a run on stderr, so that stdout is for results.

    with LiveView(study.schedule) as view:
        run_federation(federation, view.update)

    Args:
        schedule: of the study: which rounds there are.
        console: where to; stderr if None.
    """

    def __init__(self, schedule: Schedule, console: Console | None = None) -> None:
        self._schedule = schedule
        self._console = console or Console(stderr=True)
        self._live: Live | None = None
        self._drawn = 0.0
        self._last: Record | None = None
        self._told_rounds: set[int] = set()
        self._told_warnings = 0

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Nodes are forked while this is on: no thread, and their streams stay what they are.
            self._live = Live(console=self._console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._last is not None:
            self._tell_warnings(self._last)
        if self._live is not None:
            if self._last is not None:
                self._live.update(self._render(self._last))
            self._live.stop()
        elif self._last is not None:
            self._tell_rounds(self._last, ended=True)

    def update(self, record: Record) -> None:
        """Show what is new; cheap when called often."""
        self._last = record
        self._tell_warnings(record)
        if self._live is None:
            self._tell_rounds(record, ended=False)
        elif time.monotonic() - self._drawn >= REFRESH_SECONDS:
            self._drawn = time.monotonic()
            self._live.update(self._render(record), refresh=True)

    # ---- plain lines ------------------------------------------------------------------------------------

    def _tell_warnings(self, record: Record) -> None:
        for warning in record.warnings[self._told_warnings :]:
            self._console.print(Text(f"warning: {warning}", "yellow"), soft_wrap=True)
        self._told_warnings = len(record.warnings)

    def _tell_rounds(self, record: Record, *, ended: bool) -> None:
        """A line for each round that every node still alive has applied; at the end for any that one has."""
        alive = len(record.parties) - len(record.errors)
        for number, round_ in sorted(record.rounds.items()):
            applied = len(round_.states)
            if number in self._told_rounds or not applied or (applied < alive and not ended):
                continue
            self._told_rounds.add(number)
            figures = record.evaluations.get(number, {})
            told = "".join(f", {name} {value:.3f}" for name, value in figures.items() if name in TOLD)
            self._console.print(
                f"{self._what(number)} closed: {len(round_.contributors)} of {len(record.parties)} contributed, "
                f"{max(round_.seconds.values()):.2f} s{told}",
                highlight=False,
                soft_wrap=True,
            )

    def _what(self, number: int) -> str:
        trained = f"round {self._schedule.trained(number)} of {self._schedule.training}"
        purpose = self._schedule.purpose(number)
        told = {STATISTICS: "statistics", EVALUATE: f"evaluation after {trained}", ENERGIES: f"norms after {trained}"}
        return told.get(purpose, trained)

    # ---- the table --------------------------------------------------------------------------------------

    def _render(self, record: Record) -> RenderableType:
        closed = sum(1 for number, round_ in record.rounds.items() if number > 0 and round_.states)
        last = self._schedule.last
        progress = Table.grid(padding=(0, 1))
        progress.add_row(Text("rounds"), ProgressBar(total=last, completed=closed, width=40), f"{closed}/{last}")
        nodes = _node_table(record) if len(record.parties) <= LISTED_NODES else _state_table(record)
        return Group(nodes, progress)


def _node_table(record: Record) -> Table:
    table = Table("node", "role", "round", "stage", "ciphertext in", "state", box=box.SIMPLE_HEAD)
    table.columns[2].justify = table.columns[4].justify = "right"
    roles = _roles(record)
    for name in record.parties:
        number, stage, state = _doing(record.status.get(name, ""))
        received = sum(each["bytes"] for each in record.ciphertexts.get(name, ()))
        table.add_row(
            Text(name),
            roles.get(name, ""),
            number,
            Text(stage),
            human_bytes(received) if received else "–",
            Text(state, _STYLES.get(state, "")),
        )
    return table


def _state_table(record: Record) -> Table:
    """How many nodes are in each state; a row for each would not fit."""
    states = Counter(record.status.get(name, "") for name in record.parties)
    table = Table("nodes", "round", "stage", "state", box=box.SIMPLE_HEAD)
    for status, count in sorted(states.items()):
        number, stage, state = _doing(status)
        table.add_row(str(count), number, Text(stage), Text(state, _STYLES.get(state, "")))
    return table


def _doing(status: str) -> tuple[str, str, str]:
    """(round, stage, state) of what a record says of a node: ``round 3: train``, ``ready``, ``failed``, ..."""
    if not status.startswith("round "):
        return "", "", status or "starting"
    number, stage = status.removeprefix("round ").split(": ", 1)
    return number, _NOW.get(stage, stage), "running"


def _roles(record: Record) -> dict[str, str]:
    """Who sits where, as far as the ciphertexts tell: only the key holder sends none to anyone."""
    parent = {each["peer"]: name for name, log in record.ciphertexts.items() for each in log}
    silent = set(record.parties) - parent.keys()
    if len(silent) != 1:
        return {}  # somebody's first ciphertext is still to come
    inner = set(parent.values())
    roles = {name: INNER_NODE if name in inner else LEAF for name in record.parties}
    apexes = {name: APEX for name, above in parent.items() if above in silent}
    return roles | apexes | dict.fromkeys(silent, KEY_HOLDER)
