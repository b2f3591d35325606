"""A node's status on a terminal: once (``wardtree status``), or live (``wardtree watch``)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from node.operate.status import PartyState, Report, StatusError, is_running, read_report
from node.settings import printable

LOOK_SECONDS = 0.25
ROUNDS_SHOWN = 5

_STANDING = {"here": ("●", "green"), "gone": ("✕", "bold red"), "awaited": ("○", "dim")}
_RUNNING = {"yes": ("running", "green"), "no": ("not running", "bold red"), "silent": ("silent", "bold yellow")}


def shown(report: Report) -> RenderableType:
    """All of it."""
    parts: list[RenderableType] = [_heading(report), _facts(report)]
    if report.round:
        parts.append(_progress(report))
    parts += [_tree(report), _rounds(report)]
    if report.stages:
        parts.append(_stages(report))
    parts += [Text(f"warning: {printable(each)}", "yellow") for each in report.warnings]
    if report.error:
        parts.append(Text(f"last error: {printable(report.error)}", "bold red"))
    return Group(*parts)


def follow(home: Path, console: Console) -> Report | None:
    """Show the status of a home's node live, until it ends; gives the last one.

    Raises:
        KeyboardInterrupt: whoever watches has seen enough.
    """
    last: Report | None = None
    with Live(console=console, auto_refresh=False) as live:
        for last in _reports(home, live):
            live.update(shown(last), refresh=True)
    return last


def _reports(home: Path, live: Live) -> Iterator[Report]:
    """One report a moment, while the node runs; a node that is only starting is waited for."""
    while True:
        running = is_running(home)  # asked before the status is read: what a node writes last is seen
        try:
            yield read_report(home)
        except StatusError as error:
            if not running:
                raise
            live.update(Text(str(error)), refresh=True)
        if not running:
            return
        time.sleep(LOOK_SECONDS)


def _heading(report: Report) -> Text:
    word, style = ("complete", "green") if _is_complete(report) else _RUNNING[report.running]
    return Text.assemble(
        (printable(report.party), "bold"), f" ({report.role}) · {printable(report.study)} · ", (word, style)
    )


def _is_complete(report: Report) -> bool:
    return report.state == "ended" and report.error is None


def _facts(report: Report) -> Table:
    table = Table.grid(padding=(0, 2))
    last = report.closed[-1] if report.closed else None
    left_out = f"{report.left_out_count}"
    if report.left_out:
        left_out += f" (last: {', '.join(map(str, report.left_out[-5:]))})"
    for name, value in {
        "round": f"{last.round if last else '–'} of {report.rounds} closed; {report.state}",
        "parent": report.parent or ("none: this is the key holder" if report.role == "key holder" else "none"),
        "children": ", ".join(report.children) or "none",
        "contributed last": f"{last.contributors}: {', '.join(report.contributors)}" if last else "–",
        "left out": left_out,
        "epsilon": "no privacy mode" if report.epsilon is None else f"{report.epsilon:.3g} of {report.budget}",
        "sandbox": report.posture,
        "last word": "none yet" if report.seconds_since_word is None else f"{report.seconds_since_word:.0f} s ago",
        "refused": f"{report.refused} messages or connections",
    }.items():
        table.add_row(Text(name, "dim"), Text(printable(value)))
    return table


def _progress(report: Report) -> Table:
    round_ = report.round
    assert round_ is not None
    table = Table.grid(padding=(0, 1))
    table.add_row(Text(f"round {round_.round}, {printable(round_.purpose)}", "bold"))
    for name in ("sealed", "merged", "sent", "opened", "applied"):
        done = getattr(round_, name)
        table.add_row(
            f"  {name}", ProgressBar(total=round_.segments, completed=done, width=40), f"{done}/{round_.segments}"
        )
    return table


def _tree(report: Report) -> Tree:
    """Everyone where they sit now; who is not here, where they would."""
    below: dict[str | None, list[PartyState]] = {}
    holder = next(party for party in report.parties if party.place is None)
    for party in report.parties:
        if party is not holder:
            below.setdefault(party.parent or party.place, []).append(party)

    def grow(party: PartyState, onto: Tree | None) -> Tree:
        mark, style = _STANDING[party.standing]
        own = " (this node)" if party.name == report.party else ""
        label = Text.assemble((f"{mark} {printable(party.name)}", style), own)
        if party.standing == "gone":
            label.append(f" gone since {time.strftime('%H:%M:%S', time.localtime(party.since))}")
        made = onto.add(label) if onto else Tree(label)
        for child in below.get(party.name, ()):
            grow(child, made)
        return made

    return grow(holder, None)


def _rounds(report: Report) -> Table:
    table = Table("closed round", "contributors", "seconds", "own update", box=box.SIMPLE_HEAD)
    for each in report.closed[-ROUNDS_SHOWN:]:
        seconds = "–" if each.seconds is None else f"{each.seconds:.2f}"
        table.add_row(str(each.round), str(each.contributors), seconds, "left out" if each.left_out else "in it")
    return table


def _stages(report: Report) -> Table:
    table = Table("stage", "times", "last s", "mean s", box=box.SIMPLE_HEAD)
    for name, stage in report.stages.items():
        table.add_row(printable(name), str(stage.count), f"{stage.last:.3f}", f"{stage.seconds / stage.count:.3f}")
    return table
