"""``wardtree task``: begin a task of one's own, and try it at one hospital alone."""

from __future__ import annotations

import importlib.resources
import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from keys.vault import write_public
from node.evaluation import EXAMPLES
from node.home import read_settings, readable_files
from node.protocol.messages import EVALUATE
from node.report import figure
from node.study import Study, check_options, read_study
from node.tryout import Step, Tryout, try_task

app = typer.Typer(no_args_is_help=True, help="Begin a task of your own, and try it at one hospital alone.")

KINDS = {"tabular": "TabularTask", "network": "NetworkTask"}
SECONDS = 600.0

_STUDY = """\
[study]
name = "{name}"
rounds = 10
seed = 1

[task]
class = "{module}:{cls}"

[aggregation]
clip = 1.0             # each value of an update is clipped to [-clip, clip]; `wardtree task try` says how many are

[evaluation]
every = 5              # all together evaluate the model after every fifth round, and after the last
"""


@app.command(epilog="Example: [bold]wardtree task new stay_task.py --kind tabular[/bold]")
def new(
    file: Annotated[Path, typer.Argument(help="The Python file to write, such as stay_task.py; it must not exist.")],
    kind: Annotated[str, typer.Option(help="tabular (scikit-learn, a CSV) or network (torch, images).")] = "tabular",
) -> None:
    """Write a task to start from, and beside it a study that uses it."""
    if kind not in KINDS:
        raise typer.BadParameter(f"--kind: expected {' or '.join(KINDS)}; came {kind!r}")
    if not re.fullmatch(r"[a-z_][a-z0-9_]*\.py", file.name):
        raise typer.BadParameter(f"expected a file name such as stay_task.py, came {file.name!r}")
    cls = "".join(word.capitalize() for word in file.stem.split("_"))
    source = (importlib.resources.files("node.tasks.examples") / f"{kind}.py").read_text(encoding="utf-8")
    study = file.with_suffix(".toml")
    write_public(file, source.replace(KINDS[kind], cls).encode())
    write_public(study, _STUDY.format(name=file.stem.replace("_", "-"), module=file.stem, cls=cls).encode())
    typer.echo(
        f"Wrote {file} and {study}. Edit them, then try the task on this hospital's data, whose place a file says:"
    )
    typer.echo(f"    wardtree task try {study} --data node.toml")


@app.command(
    name="try",
    epilog="Example: [bold]wardtree task try stay_task.toml --data node.toml[/bold], "
    "where node.toml has the table [data] that the hospital's node will have.",
)
def try_(
    study: Annotated[Path, typer.Argument(help="The study that names the task.")],
    data: Annotated[Path | None, typer.Option(help="A TOML file with this hospital's [data], as node.toml.")] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of training.")] = 3,
    seconds: Annotated[float, typer.Option(min=1.0, help="How long a round may take.")] = SECONDS,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
) -> None:
    """Run a task for one hospital alone, in the real enclave under the real sandbox, on its own data.

    Nothing leaves this machine. It shows what each round takes, how many values of the update are clipped, what would
    be sent, and this hospital's own figures. A module of your own must be installed, or on PYTHONPATH, or here.

    Exit code 0: the task did its part. 2: it did not; the message says in which round, and why.
    """
    checked = read_study(study)
    check_options(checked, str(study))
    settings = read_settings(data) if data else {}
    place = (data or study).resolve().parent
    files = readable_files([settings.get("data", {}), settings.get("sandbox", {}).get("read", [])], place)
    console = Console(stderr=True)
    shown = _shown_data(settings.get("data", {}), place)
    result = try_task(checked, shown, files, rounds, seconds, lambda step: _tell(console, step))
    if as_json:
        typer.echo(json.dumps(asdict(result), indent=2))
    else:
        Console().print(_shown(checked, result))


def _tell(console: Console, step: Step) -> None:
    console.print(Text(f"{step.purpose}, round {step.number}: {step.seconds:.2f} s"), style="dim")


def _shown(study: Study, result: Tryout) -> Group:
    rounds = _table(
        f"{study.task.class_name}: {result.examples} examples, {result.parameters:,} parameters",
        "", "round", "integers", "seconds", "at the clip",
    )  # fmt: skip
    for step in result.steps:
        clipped = "" if step.clipped is None else f"{100 * step.clipped:.1f} %"
        count = f"{result.integers[step.purpose]:,}"
        rounds.add_row(step.purpose, str(step.number), count, f"{step.seconds:.2f}", clipped)
    evaluated = [step for step in result.steps if step.purpose == EVALUATE]
    parts: list[RenderableType] = [rounds]
    if evaluated:
        own = _table("This hospital's own figures, which stay here", "after", *(f"round {e.number}" for e in evaluated))
        for name in evaluated[0].figures:
            values = [step.figures[name] for step in evaluated]
            cells = [f"{value:.0f}" if name == EXAMPLES else figure(value) for value in values]
            own.add_row(name.replace("_", " "), *cells)
        parts.append(own)
    text = "In a federation each round sends so many integers, encrypted; only sums over all hospitals are opened."
    return Group(*parts, Text(f"Sandbox: {result.posture}. {text}"))


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _shown_data(data: dict[str, Any], place: Path) -> dict[str, Any]:
    """The table as an enclave in another folder can use it: paths from the file's own folder made absolute."""
    return {
        key: str((place / value).resolve()) if isinstance(value, str) and (place / value).exists() else value
        for key, value in data.items()
    }
