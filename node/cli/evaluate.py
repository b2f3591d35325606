"""``wardtree evaluate``: a published model on this hospital's own held-out patients."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from node.at_home import FINAL, OwnFigures, evaluate_at_home
from node.report import figure
from node.settings import printable

SECONDS = 600.0


def evaluate(
    home: Annotated[Path, typer.Option(help="The node's home folder.")],
    model: Annotated[
        str, typer.Option(help='"final", "best", a published model\'s file, or the folder of an exported model.')
    ] = FINAL,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long it may take.")] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """This hospital's own figures of a published model, on its own held-out patients.

    They are computed in an enclave, under the rules of the study's sandbox, and shown here: nothing is sent, nor
    written. Few patients tell a lot: whoever passes these figures on passes on something about those patients. It works
    without a passphrase, while the node runs and when the study is over. State that a task keeps at the hospital from
    round to round lives with the running node, and is not in these figures.

    Examples:

        wardtree evaluate --home /srv/wardtree/uppsala

        wardtree evaluate --home /srv/wardtree/uppsala --model best --json
    """
    result = evaluate_at_home(home, model, seconds)
    if as_json:
        known = {name: None if math.isnan(value) else value for name, value in result.figures.items()}
        typer.echo(json.dumps(asdict(result) | {"figures": known}, indent=2))
    else:
        title = f"{result.party}: the {result.model} model of {result.study}, after {result.trained} rounds of training"
        Console().print(Text(printable(title), "bold"), _shown(result))
        Console().print(Text(f"Sandbox: {result.posture}. These figures are this hospital's own: nothing was sent."))


def _shown(result: OwnFigures) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("on its own held-out patients")
    table.add_column("", justify="right")
    for name, value in result.figures.items():
        table.add_row(
            "patients" if name == "n" else name.replace("_", " "), f"{value:.0f}" if name == "n" else figure(value)
        )
    return table
