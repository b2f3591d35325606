"""``wardtree doctor``: what confines a node on this machine, and what is missing."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from node.cli.sandbox import check_policy
from node.home import load_home
from node.sandbox.doctor import Report, examine
from node.sandbox.kernel import EXIT_UNAVAILABLE

_STYLES = {"good": "green", "gap": "bold red", "allowed gap": "yellow", "advice": "yellow"}


def doctor(
    home: Annotated[Path | None, typer.Option(help="A node's home: its manifest says which gaps are allowed.")] = None,
    sandbox: Annotated[str | None, typer.Option(metavar="POLICY", help="Another policy than the home's.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of --json.")] = False,
) -> None:
    """Say what this machine offers to confine a node, what is in force, and what to do about each gap.

    Every room is really entered once, by a process that then ends. The JSON is described in
    docs/doctor.schema.json.

    Exit code 0: a node starts here. 69: it does not; the table says why.

    Examples:

        wardtree doctor

        wardtree doctor --home /srv/wardtree/uppsala --json
    """
    if schema:
        typer.echo(json.dumps(Report.model_json_schema(), indent=2))
        return
    report = examine(load_home(home, datetime.now(UTC)) if home else None, check_policy(sandbox))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(_shown(report))
    raise typer.Exit(0 if report.ok else EXIT_UNAVAILABLE)


def _shown(report: Report) -> Group:
    checks = _table(f"This machine: Linux {report.kernel}, {report.architecture}", "part", "", "found")
    for each in report.checks:
        checks.add_row(Text(each.name), Text(each.state, _STYLES[each.state]), Text(each.found))
    rooms = _table("Rooms, entered for this report", "room", "in force")
    for room in report.rooms:
        filters = "" if room.seccomp_filters is None else f", {room.seccomp_filters} filters of system calls"
        told = f"confined{filters}, capabilities {room.capabilities}"
        told = told if room.confined else f"not confined: {room.error}"
        rooms.add_row(Text(room.name), Text(told, "green" if room.confined else "bold red"))
    advice = [
        Text.assemble((f"{each.name}: ", _STYLES[each.state]), f"{each.meaning}. To close it: {each.remedy}.")
        for each in report.checks
        if each.remedy
    ]
    under = f"the manifest in {report.home}" if report.home else "a manifest that allows no gaps"
    verdict = f"A node {'starts' if report.ok else 'does not start'} here under {under}."
    return Group(
        checks,
        rooms,
        *advice,
        Text(f"\nposture: {report.posture}"),
        Text(verdict, "bold green" if report.ok else "bold red"),
    )


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    for column in columns:
        table.add_column(column)
    return table
