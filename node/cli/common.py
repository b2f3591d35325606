"""What the commands of the ceremony share: their usual options, and how they tell what they did."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony
from keys.ceremony import Step
from keys.plan import Plan
from keys.vault import naming

Home = Annotated[Path, typer.Option(help="The party's home folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
Out = Annotated[Path, typer.Option(help="The file to write; it must not exist.")]
Record = Annotated[Path, typer.Option("--transcript", help="The transcript, to which this step is added.")]
Days = Annotated[int, typer.Option(help="Days until the manifest expires.", min=1, max=3650)]
Threshold = Annotated[
    int | None,
    typer.Option(help="How many of this roster must sign the version after this one. [default: a majority]", min=1),
]


def now() -> datetime:
    return datetime.now(UTC)


def tell(step: Step, as_json: bool) -> None:
    """Print what a step did, what it wrote, and what comes next for whom."""
    wrote = [str(path) for path in step.wrote]
    if as_json:
        typer.echo(json.dumps({"did": step.did, "wrote": wrote, "next": step.next}))
    else:
        typer.echo(step.did)
        for path in wrote:
            typer.echo(f"  wrote {path}")
        typer.echo(f"Next: {step.next}")


def check_public_key(path: Path, plan: Plan) -> bytes:
    """The public key in a file, refused if it carries a secret key: before anyone signs or installs it."""
    from keys.ckks import Sealer

    data = ceremony.read_public_key(path)
    with naming(path):
        Sealer(plan, data)
    return data
