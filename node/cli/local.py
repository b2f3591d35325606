"""``wardtree local``: a whole federation on this machine."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from node import report as reports
from node.cli.sandbox import AllowGap
from node.display import LiveView
from node.local import Outcome, run_federation
from node.report_terminal import summary_table
from node.sandbox.root import leave_root
from node.simulation import STUDIES, Federation, LocalError, in_process, read_parties, simulated_parties
from node.study import parse_study

HEART = STUDIES / "heart.toml"
HEART_DATA = STUDIES / "heart.data.toml"
SYNTHETIC = """\
[study]
name = "synthetic"
rounds = 3
seed = 1

[task]
class = "synthetic"

[task.options]
params = {params}

[aggregation]
max_parties = {max_parties}

[debug]
check_sums = true
"""


class Engine(StrEnum):
    HERE = "here"
    RAY = "ray"


def local(
    study: Annotated[Path | None, typer.Option(help="A study; default: heart disease in four hospitals.")] = None,
    data: Annotated[Path | None, typer.Option(help="A TOML file with one table per party: its data.")] = None,
    parties: Annotated[int | None, typer.Option(help="How many parties.", min=1)] = None,
    rounds: Annotated[int | None, typer.Option(help="Training rounds, instead of the study's.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="The seed, instead of the study's.", min=0)] = None,
    task: Annotated[str | None, typer.Option(help='"synthetic": no data, no torch, for load and scale.')] = None,
    params: Annotated[int, typer.Option(help="Parameters of the synthetic task.", min=1)] = 10_000,
    out: Annotated[Path | None, typer.Option(help="The run's folder, new or empty; default: runs/NAME-DATE.")] = None,
    allow_gap: AllowGap = None,
    insecure_development: Annotated[
        bool, typer.Option("--insecure-development", help="No sandbox at all: for work on wardtree itself.")
    ] = False,
    page: Annotated[
        int | None,
        typer.Option(help="Serve the key holder's live page on this port, to this machine only.", min=1, max=65_535),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="Who runs the nodes: this machine, or the workers of a Ray cluster.")
    ] = Engine.HERE,
    workers: Annotated[
        int | None, typer.Option(help="With Ray: how many workers; default: one for each machine of it.", min=1)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, and nothing else.")] = False,
) -> None:
    """Run a whole tree of hospitals on this machine: real processes, real sockets, a real key ceremony.

    Each party has its own folder and its own processes. The report compares what each hospital could do
    alone with the federation, and with data pooled in one place, which is never allowed in life.

    With `--engine ray` the nodes of a simulation are spread over a Ray cluster: the one that runs or that
    RAY_ADDRESS names, else one on this machine. It needs the extra `ray`; what a party's data table names must lie
    at the same place on every machine.

    Exit code 0: the study is complete, all models are identical and, where checked, all sums exact. 69: this
    machine lacks a part of the sandbox; `wardtree doctor` says which.

    Examples:

        wardtree local

        wardtree local --parties 7 --rounds 3 --task synthetic --params 200000 --json

        wardtree local --study my-study.toml --data my-hospitals.toml --out runs/first

        wardtree local --parties 7 --rounds 100 --task synthetic --page 8080

        wardtree local --parties 2000 --task synthetic --engine ray

        wardtree local --parties 24 --task synthetic --engine ray --workers 2
    """
    if engine is Engine.HERE and workers is not None:
        raise LocalError("--workers: expected with --engine ray, came without")
    if engine is Engine.RAY and page is not None:
        raise LocalError(
            "--page: a page is served to its own machine only, and Ray chooses it; leave one of the two out"
        )
    text, source = _study_text(study, task, params, parties)
    text = _override(text, "rounds", rounds, source)
    text = _override(text, "seed", seed, source)
    checked = parse_study(text, source)
    tables, key_holder = _parties(checked.task.class_name, study, data, parties)
    folder = (out or _default_out(checked.name)).resolve()
    leave_root(folder)
    policy = "off" if insecure_development else "required"
    federation = Federation(text, checked, tables, key_holder, folder, tuple(allow_gap or ()), policy)
    if len(tables) > (os.cpu_count() or 1) // 2:
        # Many nodes share few cores: threads inside each of them only get in each other's way.
        for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            os.environ.setdefault(variable, "1")
    console = Console(stderr=as_json)
    if page is not None:
        typer.echo(f"Live page of {key_holder}, once it runs: http://127.0.0.1:{page}/", err=True)
    with contextlib.ExitStack() as until_the_end:
        ray = None
        if engine is Engine.RAY:
            from node.engine_ray import RayEngine

            ray = RayEngine(federation.names, checked, workers)
            until_the_end.callback(ray.close)
        view = until_the_end.enter_context(LiveView(checked.schedule))
        outcome = run_federation(federation, view.update, page, ray)
    result = reports.build(federation, outcome, _comparison(federation, outcome))
    reports.write(federation.out, result)
    for name, error in result["errors"].items():
        typer.echo(f"wardtree: {name}: {error}", err=True)
    if as_json:
        typer.echo(json.dumps(result, indent=2, sort_keys=True))
    else:
        console.print(summary_table(result))
        console.print(f"Report: {federation.out / 'report.html'} and report.json")
    raise typer.Exit(0 if result["ok"] else 1)


def _default_out(name: str) -> Path:
    """A folder for this run, named by its study and the time."""
    return Path("runs") / f"{re.sub(r'[^a-z0-9]+', '-', name.lower())}-{time.strftime('%Y%m%d-%H%M%S')}"


def _study_text(study: Path | None, task: str | None, params: int, parties: int | None) -> tuple[str, str]:
    if study and task:
        raise LocalError("--study and --task: expected one of the two; a study names its task itself")
    if task not in (None, "synthetic"):
        raise LocalError(f'--task: expected "synthetic", came {task!r}; other tasks need a study')
    if task:
        return SYNTHETIC.format(params=params, max_parties=max(64, parties or 0)), "the synthetic study"
    path = study or HEART
    try:
        return path.read_text(encoding="utf-8"), str(path)
    except OSError as error:
        raise LocalError(f"{path}: expected a study file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise LocalError(f"{path}: expected a study file in UTF-8, came other bytes") from error


def _override(text: str, key: str, value: int | None, source: str) -> str:
    """The study with another value of a key of ``[study]``: what runs is what everyone signs."""
    if value is None:
        return text
    changed, count = re.subn(rf"(?m)^({key}\s*=\s*)[^#\n]*?(\s*(?:#.*)?)$", rf"\g<1>{value}\g<2>", text)
    if count != 1:
        raise LocalError(f"--{key}: expected one line `{key} = …` in {source}, came {count}")
    return changed


def _parties(
    task: str, study: Path | None, data: Path | None, parties: int | None
) -> tuple[dict[str, dict[str, Any]], str]:
    """Who takes part, with which data: the file's tables, or simulated parties that share what there is."""
    path = data or (HEART_DATA if study is None and task != "synthetic" else None)
    if path is None:
        if parties is None:
            raise LocalError("--parties or --data: expected one of the two, to know who takes part")
        return simulated_parties(parties, {})
    tables, key_holder = read_parties(path)
    if parties in (None, len(tables)):
        return tables, key_holder
    if data:
        raise LocalError(f"--parties {parties}: {data} has {len(tables)} parties; leave one of the two out")
    return simulated_parties(parties or 0, {"csv": tables[key_holder]["csv"]})


def _comparison(federation: Federation, outcome: Outcome) -> dict[str, Any]:
    if not outcome.record.models_identical:
        return {}
    result = in_process(_compare, federation)
    assert isinstance(result, dict)
    return result


def _compare(federation: Federation) -> dict[str, Any]:
    """Runs in a process of its own: it reads every hospital's data, which only a simulation may."""
    from node.compare import compare
    from node.protocol.messages import TRAIN
    from node.published import load_model

    models = [load_model(path) for path in sorted((federation.out / "models").glob("round-*.npz"))]
    purpose = federation.study.schedule.purpose
    first = 0 if models[-1].statistics is not None else -1  # what training began with
    trained = [model for model in models if model.round == first or purpose(model.round) == TRAIN]
    homes = {name: federation.home(name) for name in federation.names}
    parameters = [model.parameters for model in trained]
    return compare(federation.study, federation.data, homes, parameters, trained[-1].statistics)
