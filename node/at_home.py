"""A published model on this hospital's own held-out patients: figures for the hospital itself, which stay there.

They are computed in an enclave as in a round, under the same rules, but forked from the command that shows them: a
node's relay, which talks to others, has no way to ask its enclaves for a hospital's own figures.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from keys import ceremony
from keys.errors import WardtreeError
from keys.manifest import Manifest
from node.channel import Channel, ChannelClosedError
from node.continuation import published_model
from node.enclave import reseed
from node.evaluation import own_figures
from node.exported import verify_export
from node.home import BEST, RELAY, SETTINGS, read_settings, readable_files
from node.process import describe, name_process, reap, spawn
from node.protocol.posture import Minimum
from node.published import load_model
from node.sandbox import policy
from node.sandbox.enter import enter, entered, narrow, silence
from node.sandbox.explain import Witness
from node.sandbox.kernel import EXIT_UNAVAILABLE, SandboxError
from node.sandbox.machine import detect, require
from node.study import Study, parse_study
from node.tasks.base import Setup, TaskError, TrainingRound
from node.tasks.loader import load_task, task_digest, task_source
from node.update import Model

FINAL, BEST_MODEL = "final", "best"


class AtHomeError(WardtreeError):
    """The model cannot be tried on this hospital's data; says why."""


@dataclass(frozen=True)
class OwnFigures:
    """What a model does here. ``trained`` counts its rounds of training; ``figures`` as :func:`own_figures` gives."""

    party: str
    study: str
    model: str
    trained: int
    posture: str
    figures: Mapping[str, float]


def evaluate_at_home(home: Path, which: str, seconds: float) -> OwnFigures:
    """Evaluate a model on the held-out patients of a home's hospital.

    Nothing of it needs the key, a network or another party: it works when the study is over, too.

    Args:
        home: a home that has joined.
        which: "final", "best", a published model's file, or the folder of an exported model.
        seconds: how long it may take.

    Raises:
        SandboxError: this machine cannot confine it as the manifest asks.
        WardtreeError: there is no such model, or what is wrong with the task or the data.
    """
    manifest = ceremony.read_installed(home)
    if manifest is None:
        raise AtHomeError(f"{home}: has joined no manifest yet (`wardtree ceremony join`)")
    party = ceremony.read_card(home / ceremony.CARD).name
    study = parse_study(manifest.study, "the study in the manifest")
    if task_digest(study.task.class_name, study.task.options) != manifest.task_digest:
        raise AtHomeError(f"task {study.task.class_name}: its code here is not the code that all parties signed")
    model = _model(home, manifest, which)
    settings = read_settings(home / SETTINGS)
    data, sandbox = settings.get("data", {}), settings.get("sandbox", {})
    posture = detect(sandbox.get("policy", "required"))
    require(posture, Minimum(frozenset(manifest.sandbox_gaps), frozenset(study.sandbox.demand)), party)
    ours, theirs = Channel.pair()

    def work() -> None:
        ours.close()
        readable = readable_files([data, sandbox.get("read", [])], home)
        source = task_source(study.task.class_name, study.task.options)
        enter(policy.template(home, source, readable), posture, theirs.descriptors)
        name_process(f"enclave {party}")
        reseed()
        narrow(policy.enclave(), posture)
        silence()
        _answer(theirs, study, Setup(party, study.task.options, data, study.seed, home), model)

    child = spawn(signal.SIGKILL, work)
    theirs.close()
    try:
        answer = ours.receive(seconds)
    except ChannelClosedError as error:
        raise _ended(party, child, seconds) from error
    finally:
        ours.close()
    reap(child)
    if answer["kind"] == "error":
        raise AtHomeError(answer["text"])
    trained = study.schedule.trained(model.round)
    return OwnFigures(party, study.name, which, trained, posture.text, answer["figures"])


def _answer(channel: Channel, study: Study, setup: Setup, model: Model) -> None:
    """In the enclave: load, evaluate, say the figures, or what went wrong without any word of the data."""
    witness = Witness(entered())
    witness.watch()
    try:
        task = load_task(study.task.class_name, setup)
        if task.parameters != model.parameters.size:
            raise TaskError(f"expected a model of {task.parameters} parameters, came {model.parameters.size}")
        trained = study.schedule.trained(model.round)
        round_ = TrainingRound(trained, study.rounds, model.statistics, model.parties)
        figures = own_figures(task.evaluate(model.parameters.copy(), round_))
    except Exception as error:
        # A stranger's exception may quote data: of those only the type is said.
        text = str(error) if isinstance(error, WardtreeError) else f"the task failed: {describe(error)}"
        told = text.removeprefix(f"{setup.party}: ") + witness.refusal(error)
        channel.send("error", text=f"{setup.party}: {told}")
    else:
        channel.send("figures", figures={name: float(value) for name, value in figures.items()})


def _model(home: Path, manifest: Manifest, which: str) -> Model:
    if which == FINAL:
        if model := published_model(home, manifest):
            return model
        raise AtHomeError(f"{home}: no model was published here yet")
    if which == BEST_MODEL:
        path = home / RELAY / BEST
        if not path.exists():
            raise AtHomeError(
                f"{path}: there is no best model here: the study has no [evaluation], or this node was away then"
            )
        return load_model(path)
    path = Path(which)
    return verify_export(path).model if path.is_dir() else load_model(path)


def _ended(party: str, child: int, seconds: float) -> WardtreeError:
    """Why the enclave said nothing."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    if reap(child) == EXIT_UNAVAILABLE:
        return SandboxError(f"{party}: this machine does not confine the enclave; see its message above")
    return AtHomeError(f"{party}: the task's process ended without a word, or was not done after {seconds:g} s")
