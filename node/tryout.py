"""One hospital's task alone: the real enclave under the real sandbox, on the hospital's own data, and nobody else.

This process stands for the relay and the key room together: it forks a template, gives it one job after the other,
takes the integers that would be sealed, and applies them as if they were everyone's. Nothing leaves the machine.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from keys.errors import WardtreeError
from node import update
from node.carry import Carried
from node.channel import Channel, ChannelClosedError
from node.course import Regime, Terms
from node.enclave import EnclaveSettings, run_template
from node.evaluation import spec_from
from node.federation import plan_for
from node.process import reap, spawn
from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.protocol.posture import Minimum, Posture
from node.rooms import Enclave, Template, round_job
from node.sandbox import policy
from node.sandbox.enter import enter
from node.sandbox.machine import detect, require
from node.shared import SharedModel
from node.study import Study
from node.tasks.base import StatisticsSpec
from node.tasks.loader import task_source

PARTY = "here"


class TryoutError(WardtreeError):
    """The task could not do its part; the text is what its node would say."""


@dataclass(frozen=True)
class Step:
    """One round, as it went here: ``clipped`` is the share of the update's values that reached the clip."""

    purpose: str
    number: int
    seconds: float
    clipped: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Tryout:
    """What a trial showed. ``integers`` says how many of them a round of each purpose sends."""

    examples: int
    parameters: int
    posture: str
    integers: Mapping[str, int]
    steps: tuple[Step, ...]


def try_task(
    study: Study,
    data: Mapping[str, Any],
    readable: tuple[Path, ...],
    rounds: int,
    seconds: float,
    tell: Callable[[Step], None] = lambda step: None,
) -> Tryout:
    """Run the first ``rounds`` rounds of training, with an evaluation after each where the task has one.

    Args:
        readable: files of the hospital's that the enclave may read.
        seconds: how long any round may take.

    Raises:
        SandboxError: this machine cannot confine it.
        TryoutError: what is wrong with the task.
    """
    rounds = min(rounds, study.rounds)
    evaluation = study.evaluation.model_copy(update={"every": 1})
    heading = study.study.model_copy(update={"rounds": rounds})
    study = study.model_copy(update={"evaluation": evaluation, "study": heading})
    posture = detect("required")
    require(posture, Minimum(frozenset(posture.gaps & {"root"}), frozenset()), "this machine")
    with (
        tempfile.TemporaryDirectory(prefix="wardtree-try-") as folder,
        _template(study, data, readable, posture, Path(folder)) as rooms,
    ):
        return _Trial(study, rooms, seconds, tell).run(posture)


@dataclass
class _Rooms:
    template: Template
    jobs: socket.socket


@contextlib.contextmanager
def _template(
    study: Study, data: Mapping[str, Any], readable: tuple[Path, ...], posture: Posture, home: Path
) -> Iterator[_Rooms]:
    rules = study.aggregation
    settings = EnclaveSettings(PARTY, study, data, home, {PARTY: 1}, plan_for(study), True, posture, rules.min_hidden)
    (control, theirs), (jobs, their_jobs) = socket.socketpair(), socket.socketpair()
    source = task_source(study.task.class_name, study.task.options)

    def run() -> None:
        control.close()
        jobs.close()
        enter(policy.template(home, source, readable), posture, [theirs.fileno(), their_jobs.fileno()])
        run_template(theirs, their_jobs, settings)

    process = spawn(signal.SIGKILL, run)
    theirs.close()
    their_jobs.close()
    try:
        yield _Rooms(Template(control), jobs)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        reap(process)
        control.close()
        jobs.close()


class _Trial:
    def __init__(self, study: Study, rooms: _Rooms, seconds: float, tell: Callable[[Step], None]) -> None:
        self._study, self._rooms, self._seconds, self._tell = study, rooms, seconds, tell
        self._plan = plan_for(study)
        self._regime = Regime.of(study, self._plan, study.aggregation.min_hidden)
        self._recipe = update.Recipe(
            self._plan, study.aggregation.clip, {PARTY: 1}, study.optimisation.optimiser, regime=self._regime
        )
        self._shared = SharedModel(1)
        self._model = update.Model(-1, self._shared.parameters[:0])
        self._carried = Carried()
        self._steps: list[Step] = []

    def run(self, posture: Posture) -> Tryout:
        examples = self._prepare()
        lengths = {TRAIN: self._model.parameters.size}
        if self._study.schedule.energies:
            lengths[ENERGIES] = self._model.parameters.size
        if self._recipe.statistics:
            lengths[STATISTICS] = self._recipe.statistics.length
        if self._recipe.evaluation:
            lengths[EVALUATE] = self._recipe.evaluation.length
        schedule = self._study.schedule
        sent: dict[str, int] = {}
        for number in range(schedule.last + 1):
            if schedule.purpose(number) in lengths:
                purpose = schedule.purpose(number)
                terms = self._regime.terms(purpose, self._model, lengths[purpose], self._model.digest(bytes(32)))
                self._round(purpose, number, terms)
                sent[purpose] = max(terms.length, sent.get(purpose, 0))
        return Tryout(examples, self._model.parameters.size, posture.text, sent, tuple(self._steps))

    def _prepare(self) -> int:
        for message in self._messages(self._start("prepare"), "before the first round"):
            if message["kind"] == "initial":
                if not message["start"]:
                    self._shared = SharedModel(message["parameters"])
                    self._model = replace(self._model, parameters=self._shared.parameters)
                piece = np.frombuffer(message["values"], "<f4")
                self._model.parameters[message["start"] : message["start"] + piece.size] = piece
            else:
                break
        statistics = StatisticsSpec(*message["statistics"]) if message["statistics"] else None
        spec = spec_from(message["evaluation"])
        layout = self._study.evaluation.layout(spec, self._plan) if spec else None
        self._recipe = replace(self._recipe, statistics=statistics, evaluation=layout)
        moments = self._recipe.optimiser.begin(self._model.parameters.size)
        self._model = replace(self._model, moments=moments, course=self._regime.begin())
        return int(message["examples"])

    def _round(self, purpose: str, number: int, terms: Terms) -> None:
        began = time.monotonic()
        job = round_job(self._model, terms, number, purpose, None, bytes(32), self._carried.applied)
        enclave = self._start("round", model=self._shared.descriptor, carried=self._carried.pieces, **job)
        _, (descriptor,), _, _ = socket.recv_fds(self._rooms.jobs, 16, 1)
        keyroom = Channel(descriptor, None)
        trained = self._study.schedule.trained(number)
        for message in self._messages(enclave, f"{purpose}, round {trained}"):
            if message["kind"] == "trained":
                break
            self._carried.take(message["piece"])
        parts = [keyroom.receive(self._seconds)["integers"] for _ in self._plan.segments(terms.length)]
        keyroom.close()
        enclave.end()
        self._carried.settle(purpose == TRAIN, terms.length)
        seconds = time.monotonic() - began
        self._model = update.apply(self._model, number, purpose, parts, [PARTY], self._recipe, terms)
        clipped, figures = None, {}
        if purpose == TRAIN and not terms.arranged:  # of integers with noise nothing can be said
            integers = np.frombuffer(b"".join(parts), "<i4")
            clipped = float(np.mean(np.abs(integers) >= self._plan.max_value)) if integers.size else 0.0
        elif purpose == EVALUATE and self._recipe.evaluation:
            figures = dict(zip(self._recipe.evaluation.names, self._model.curve[-1, 1:].tolist(), strict=True))
        self._steps.append(Step(purpose, trained, seconds, clipped, figures))
        self._tell(self._steps[-1])

    def _start(self, kind: str, **fields: Any) -> Enclave:
        enclave = self._rooms.template.start(kind, **fields)
        while self._rooms.template.hear() is not None:
            pass  # that an earlier one has ended
        return enclave

    def _messages(self, enclave: Enclave, when: str) -> Iterator[dict[str, Any]]:
        """What the enclave says, in time; an error as an exception."""
        deadline = time.monotonic() + self._seconds
        while True:
            try:
                message = enclave.channel.receive(max(0.0, deadline - time.monotonic()))
            except ChannelClosedError:
                if time.monotonic() >= deadline:
                    raise TryoutError(f"{when}: the task is not done after {self._seconds:g} s (--seconds)") from None
                raise TryoutError(f"{when}: the task's process ended without a word") from None
            if message["kind"] == "error":
                raise TryoutError(f"{when}: {message['text']}")
            yield message
