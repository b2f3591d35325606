"""``wardtree ledger``: the record of a study for those who answer for data, and its proof."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from keys.transcript import TRANSCRIPT, read_transcript
from keys.vault import naming
from node.audit.facts import Record
from node.audit.page import PROVES, PROVES_NOT
from node.audit.record import in_short, make_record, read_record, verify_record, write_record
from node.cli.common import Home, Json

app = typer.Typer(no_args_is_help=True, help="The record of a study for a data-protection officer, and its proof.")


@app.command(epilog="Examples: [bold]wardtree ledger report --home home --out record[/bold]; with the ledgers of other "
             "parties: [bold]wardtree ledger report --home home --with lund/ledger.jsonl --with umea/record.json --out "
             "record[/bold]")  # fmt: skip
def report(
    home: Home,
    out: Annotated[Path, typer.Option(help="The folder to write; its files must not exist.")],
    record: Annotated[
        Path | None, typer.Option("--transcript", help="The ceremony's transcript. [default: the home's copy]")
    ] = None,
    others: Annotated[
        list[Path] | None, typer.Option("--with", help="Another party's ledger.jsonl or record.json; may be repeated.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a record that can be filed: what was agreed, done, published, wiped and destroyed, and who learnt what.

    record.html is for reading and printing; record.json says the same, has the signed ledgers inside, and is
    described in docs/record.schema.json. Nothing secret is in either, nor anything of a patient.

    Exit code 0: written. 1: written, and the ledgers contradict each other; the record says where. 2: wrong input.
    """
    now = datetime.now(UTC)
    made = make_record(home, read_transcript(record or home / TRANSCRIPT, now), others or [], now)
    wrote = [str(path) for path in write_record(made, out)]
    if as_json:
        typer.echo(json.dumps({"wrote": wrote, **in_short(made)}))
    else:
        parties = ", ".join(made.ledgers)
        typer.echo(f"Made the record of {len(made.facts.rounds)} closed rounds from the ledgers of {parties}.")
        for path in wrote:
            typer.echo(f"  wrote {path}")
        _tell_differences(made)
        typer.echo(f"Next: whoever gets it runs `wardtree ledger verify {wrote[0]} --transcript transcript.jsonl`.")
    raise typer.Exit(1 if made.facts.differences else 0)


@app.command(epilog="Example: [bold]wardtree ledger verify record/record.json --transcript transcript.jsonl[/bold]")
def verify(
    file: Annotated[Path | None, typer.Argument(metavar="RECORD", help="A record.json.")] = None,
    record: Annotated[
        Path | None, typer.Option("--transcript", help="Any member's copy of the ceremony's transcript.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of records.")] = False,
    as_json: Json = False,
) -> None:
    """Check a record offline: the chain and every signature of its ledgers, and that all it says follows from them.

    Exit code 0: it holds. 1: it holds, and its ledgers contradict each other. 2: it does not hold.
    """
    if schema:
        typer.echo(json.dumps(Record.model_json_schema(), indent=2))
        return
    if file is None:
        raise typer.BadParameter("expected a record.json, came none", param_hint="RECORD")
    if record is None:
        raise typer.BadParameter("expected a member's copy of the transcript, came none", param_hint="--transcript")
    now = datetime.now(UTC)
    read = read_record(file)
    transcript = read_transcript(record, now)
    with naming(file):
        verify_record(read, transcript, now)
    if as_json:
        typer.echo(json.dumps(in_short(read)))
    else:
        _tell_proof(file, read)
    raise typer.Exit(1 if read.facts.differences else 0)


def _tell_proof(file: Path, record: Record) -> None:
    facts, console = record.facts, Console(highlight=False, soft_wrap=True)
    lines = sum(own.lines for own in facts.ledgers)
    parties = ", ".join(own.party for own in facts.ledgers)
    console.print(
        Text(f"{file}: holds. {lines} lines of the ledgers of {parties}, {len(facts.rounds)} rounds that the key "
             "holder closed, all chained and signed."), style="bold",
    )  # fmt: skip
    for title, sentences in (("Proven:", PROVES), ("Not proven:", PROVES_NOT)):
        console.print(Text(title, "bold"))
        for sentence in sentences:
            console.print(Text(f"  - {sentence}"))
    _tell_differences(record)


def _tell_differences(record: Record) -> None:
    for difference in record.facts.differences:
        typer.echo(f"CONTRADICTION: {difference}")
