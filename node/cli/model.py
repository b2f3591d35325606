"""``wardtree model``: take the trained model out of a federation, with the proof of what it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keys.transcript import read_transcript
from node.cli.common import Home, Json
from node.exported import ExportError, export_model, verify_export

app = typer.Typer(no_args_is_help=True, help="Export a trained model with its card, and check an exported one.")
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The folder of an exported model.")]


@app.command(epilog="Example: [bold]wardtree model export --home uppsala --out model[/bold]")
def export(
    home: Home,
    out: Annotated[Path, typer.Option(help="The folder to write; its files must not exist.")],
    as_json: Json = False,
) -> None:
    """Write the model that was published last as safetensors, with a card that anyone can check."""
    wrote = [str(path) for path in export_model(home, out)]
    exported = verify_export(out)
    if as_json:
        typer.echo(json.dumps({"wrote": wrote, "state": exported.card["state"]}))
        return
    typer.echo(f"Exported round {exported.model.round} of {exported.card['study']}, state {exported.card['state']}")
    for path in wrote:
        typer.echo(f"  wrote {path}")
    typer.echo(f"Next: whoever gets the folder runs `wardtree model verify {out}`.")


@app.command(epilog="Examples: [bold]wardtree model verify model[/bold]; [bold]wardtree model verify model "
             "--transcript transcript.jsonl[/bold]")  # fmt: skip
def verify(
    folder: Folder,
    record: Annotated[
        Path | None, typer.Option("--transcript", help="The transcript of the ceremony: is the manifest one of it?")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check offline that weights and card are what the federation closed."""
    exported = verify_export(folder)
    card = exported.card
    if record:
        agreed = {
            entry.content["manifest"]
            for entry in read_transcript(record, datetime.now(UTC)).entries
            if entry.what == "agreement"
        }
        if card["manifest"] not in agreed:
            raise ExportError(f"{folder}: its manifest {card['manifest']} is not one that {record} says was agreed")
    if as_json:
        names = ("study", "task", "parameters", "rounds", "members", "key_holder", "manifest", "state", "privacy")
        typer.echo(json.dumps({name: card[name] for name in names}))
        return
    typer.echo(
        f"{folder}: the state after round {card['rounds']} of {card['study']}, as {card['key_holder']} signed it; "
        f"{len(card['closes'])} signed closes lead to it"
    )
    typer.echo(f"  agreed by {', '.join(card['members'])}, in manifest {card['manifest']}")
    if not record:
        typer.echo("  Whether this manifest is theirs: compare its digest with any member's, or give --transcript.")
