"""``wardtree study``: write and check study files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keys.vault import write_public
from node.simulation import template_text, templates
from node.study import check_options, new_study_text, read_study

app = typer.Typer(no_args_is_help=True, help="Write and check study files.")


@app.command(
    epilog="Examples: [bold]wardtree study new --out study.toml[/bold]; "
    "[bold]wardtree study new --template medhe --out study.toml[/bold]"
)
def new(
    out: Annotated[Path, typer.Option(help="The file to write; it must not exist.")],
    template: Annotated[
        str | None, typer.Option(help=f"Start from one of {', '.join(templates())}; default: a bare one, commented.")
    ] = None,
) -> None:
    """Write a commented study to start from: a bare one, or one of those that come with wardtree.

    Where a template has its parties' data too, as for a simulation, they are written beside it: OUT with .data.toml.
    """
    text, data = (new_study_text(), None) if template is None else template_text(template)
    write_public(out, text.encode())
    typer.echo(f"Wrote {out}. Edit it, then: wardtree study check {out}")
    if data is not None:
        beside = out.with_suffix(".data.toml")
        write_public(beside, data.encode())
        typer.echo(f"Wrote {beside}, its parties. On this machine: wardtree local --study {out} --data {beside}")


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
