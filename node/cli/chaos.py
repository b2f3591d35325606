"""``wardtree chaos``: real nodes on this machine, killed, stopped and cut off while they work."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from node.chaos import mesh as network
from node.chaos.run import Chaos
from node.chaos.schedule import draw
from node.chaos.verdict import Verdict, judge
from node.local import prepare
from node.record import Record
from node.simulation import Federation, simulated_parties, tree_of
from node.study import parse_study

STUDY = """\
[study]
name = "chaos"
rounds = {rounds}
seed = 1

[task]
class = "synthetic"

[task.options]
params = {params}
seconds = {seconds}

[aggregation]
segment_ciphertexts = 1

[deadlines]
round_seconds = 20.0
join_seconds = 60.0

[debug]
check_sums = true
"""


def chaos(
    parties: Annotated[int, typer.Option(help="How many nodes.", min=4)] = 15,
    rounds: Annotated[int, typer.Option(help="How many rounds.", min=4)] = 40,
    seed: Annotated[int, typer.Option(help="Draws what goes wrong, and when.", min=0)] = 1,
    params: Annotated[int, typer.Option(help="Parameters of the model: 8,000 fill a segment.", min=1)] = 20_000,
    links: Annotated[bool, typer.Option(help="Cut links as well, where there are root and network namespaces.")] = True,
    out: Annotated[Path | None, typer.Option(help="The run's folder, new or empty; default: a temporary one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON, and nothing else.")] = False,
) -> None:
    """Kill, stop, start again and cut off the real nodes of a tree on this machine, and see that nothing breaks.

    Whole nodes and single rooms of theirs get SIGKILL, nodes are stopped and go on, links are cut and mended. In
    the end every sum must be exact over its listed set, nothing opened twice or below the quorum, and every node
    that was not killed for good must have the same model.

    Exit code 1: something of that does not hold; it is named.

    Examples:

        wardtree chaos --parties 7 --rounds 10

        wardtree chaos --parties 15 --rounds 40 --seed 1 --json
    """
    text = STUDY.format(rounds=rounds, params=params, seconds=0.2)
    tables, key_holder = simulated_parties(parties, {})
    console = Console(stderr=True)
    with contextlib.ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wardtree-chaos-")))
        federation = Federation(text, parse_study(text, "the study of chaos"), tables, key_holder, folder / "run")
        verdict = _run(federation, seed, links, console, stack)
    if as_json:
        typer.echo(json.dumps(verdict.to_dict() | {"seed": seed}, indent=2, sort_keys=True))
    else:
        Console().print(_table(verdict))
    for violation in verdict.violations:
        console.print(f"broken: {violation}", style="bold red", highlight=False)
    raise typer.Exit(1 if verdict.violations else 0)


def _run(federation: Federation, seed: int, links: bool, console: Console, stack: contextlib.ExitStack) -> Verdict:
    why_not = network.why_not() if links else "not asked for"
    if why_not and links:
        console.print(f"links stay as they are: {why_not}", highlight=False)
    mesh = None if why_not else stack.enter_context(network.mesh(federation.names))
    launcher = prepare(federation, mesh.endpoints if mesh else None, mesh.spaces if mesh else None)
    stack.callback(launcher.end_all)
    tree = tree_of(federation)
    schedule = draw(federation.names, tree.key_holder, tree.apex, federation.study.rounds, seed, links=mesh is not None)
    columns = (TextColumn("rounds"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task("rounds", total=federation.study.rounds)

        def watch(record: Record) -> None:
            progress.update(bar, completed=max(record.current, 0))

        def tell(line: str) -> None:
            progress.console.print(line, highlight=False)

        happened = Chaos(federation, launcher, schedule, watch=watch, tell=tell, mesh=mesh).run()
    return judge(federation, happened)


def _table(verdict: Verdict) -> Table:
    table = Table(title=f"{verdict.parties} nodes, {verdict.rounds} rounds, {verdict.seconds:.0f} s", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows: list[tuple[str, Any]] = [
        ("processes killed", verdict.kills),
        ("nodes stopped and continued", verdict.stops),
        ("links cut and mended", verdict.cuts),
        ("nodes started again", verdict.restarts),
        ("rounds complete", verdict.rounds_complete),
        ("rounds partial", verdict.rounds_partial),
        ("rounds lost", verdict.rounds_lost),
        ("sums checked", verdict.sums_checked),
        ("sums wrong", verdict.wrong_sums),
        ("opened twice", verdict.double_openings),
        ("opened below the quorum", verdict.below_quorum),
        ("nodes that survived, on one model", f"{verdict.survivors} of {verdict.parties}"),
    ]
    for name, value in rows:
        table.add_row(name, str(value))
    return table
