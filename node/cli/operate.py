"""``wardtree status`` and ``wardtree watch``: what a node of this machine does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from node.operate.screen import follow, shown
from node.operate.status import Report, read_report

Home = Annotated[Path | None, typer.Option(help="The node's home folder.")]


def status(
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of --json.")] = False,
) -> None:
    """Say what a node does: its round, parent and children, who is here, what went wrong last.

    The running node keeps a small file for this. The JSON is described in docs/status.schema.json.

    Exit code 0: the node runs, or its study is complete. 1: it does not run, is silent, or ended with an error. 2: no
    node has run from this home.

    Examples:

        wardtree status --home /srv/wardtree/uppsala

        wardtree status --home /srv/wardtree/uppsala --json
    """
    if schema:
        typer.echo(json.dumps(Report.model_json_schema(), indent=2))
        return
    report = read_report(_given(home))
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(shown(report))
    raise typer.Exit(0 if report.is_well else 1)


def watch(home: Home = None) -> None:
    """Show what a node does, live, until it ends or Ctrl-C is pressed. The node does not notice.

    Exit code: as `wardtree status` has it.

    Examples:

        wardtree watch --home /srv/wardtree/uppsala
    """
    try:
        last = follow(_given(home), Console())
    except KeyboardInterrupt:
        raise typer.Exit from None
    raise typer.Exit(0 if last and last.is_well else 1)


def _given(home: Path | None) -> Path:
    if home is None:
        raise typer.BadParameter("expected a node's home folder, came none", param_hint="--home")
    return home
