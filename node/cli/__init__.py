"""The command line: ``wardtree``. Thin: it reads arguments, calls, prints, and turns errors into exit codes.

Exit codes: 0 done; 1 the study failed, or a result is not what it must be; 2 wrong input: a message of one
line says who, what was expected, what came; 69 this machine lacks a part of the sandbox that is asked for; 70 a
bug of ours; 75 a process of this node was killed, and it goes on when it is started again; 130 interrupted.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from keys.errors import WardtreeError
from node.cli import (
    bench,
    ceremony,
    chaos,
    doctor,
    features,
    local,
    model,
    network,
    node,
    operate,
    plan,
    score,
    study,
    task,
)
from node.process import ENDED_FROM_OUTSIDE
from node.sandbox.kernel import EXIT_UNAVAILABLE, SandboxError
from node.supervisor import EndedFromOutsideError
from topology import TopologyError

app = typer.Typer(
    name="wardtree",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    help="Hospitals train one model together; nobody sees another's data or another's model update.",
    epilog="Start with [bold]wardtree local[/bold]: four hospitals on this machine, on real data.",
)
app.command("doctor")(doctor.doctor)
app.command("features")(features.features)
app.command("local")(local.local)
app.command("node")(node.node)
app.command("plan")(plan.plan)
app.command("check-network")(network.check_network)
app.command("status")(operate.status)
app.command("watch")(operate.watch)
app.command("chaos")(chaos.chaos)
app.add_typer(bench.app, name="bench")
app.add_typer(ceremony.app, name="ceremony")
app.add_typer(model.app, name="model")
app.add_typer(score.app, name="score")
app.add_typer(study.app, name="study")
app.add_typer(task.app, name="task")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"wardtree {version('wardtree')}")
        raise typer.Exit


def _code(error: Exception) -> int:
    """The exit code for what a user can cause."""
    if isinstance(error, SandboxError):
        return EXIT_UNAVAILABLE
    return ENDED_FROM_OUTSIDE if isinstance(error, EndedFromOutsideError) else 2


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the program; an interruption is the caller's to report."""
    try:
        app()
    except (WardtreeError, TopologyError) as error:
        for line in str(error).splitlines():
            print(f"wardtree: {line}", file=sys.stderr)
        sys.exit(_code(error))
    except BrokenPipeError:
        sys.exit(1)
