"""``wardtree study``: write and check study files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keys.vault import write_public
from node.study import check_options, new_study_text, read_study

app = typer.Typer(no_args_is_help=True, help="Write and check study files.")


@app.command(epilog="Example: [bold]wardtree study new --out study.toml[/bold]")
def new(out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")]) -> None:
    """Write a commented study to start from."""
    write_public(out, new_study_text().encode())
    typer.echo(f"Wrote {out}. Edit it, then: wardtree study check {out}")


@app.command(epilog="Example: [bold]wardtree study check study.toml[/bold]")
def check(
    file: Annotated[Path, typer.Argument(help="The study.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the checked study as JSON.")] = False,
) -> None:
    """Check a study, its task's options included; name every key that is wrong."""
    study = read_study(file)
    check_options(study, str(file))
    if as_json:
        typer.echo(json.dumps(study.model_dump(by_alias=True), indent=2))
    else:
        typer.echo(f"{file}: {study.name}, {study.rounds} rounds of {study.task.class_name}: sound")
