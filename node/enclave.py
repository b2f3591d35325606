"""The enclave: the one room of a node that sees data, gradients and the update.

A warm *template* is forked from the supervisor before any secret or heavy import. It imports what training
needs, opens nothing, and forks one child per job; the child is the enclave. It reads its job from memory that the relay
hands over, answers on a pipe, and ends, so that the kernel takes its pages back.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import signal
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.random  # else each enclave would import it

from keys.ceremony import PUBLIC_KEY
from keys.ckks import Sealer
from keys.ckks import prepare as prepare_plan
from keys.errors import WardtreeError
from keys.plan import Plan
from node import update
from node.carry import join, seal, split, unseal
from node.channel import Channel, ChannelClosedError
from node.course import Regime, Terms
from node.evaluation import fields_of
from node.process import adopt_orphans, describe, name_process, see_end, spawn
from node.protocol.messages import ENERGIES, EVALUATE, IDLE, STATISTICS, TRAIN
from node.protocol.posture import Posture
from node.rooms import ANSWER, ENDED, STARTED
from node.sandbox import policy
from node.sandbox.enter import entered, narrow, silence
from node.sandbox.explain import Witness
from node.sealers import Sealers
from node.shared import read_only
from node.study import Study
from node.sumcheck import fingerprints
from node.tasks.base import Setup, Task, TrainingRound
from node.tasks.loader import BUILTIN, load_task
from node.telemetry import Stopwatch

if TYPE_CHECKING:
    from node.privacy.record import RecordLevel

WARM = {
    "image": ("torch", "torch._dynamo", "sklearn.metrics", "node.tasks.networks"),
    "segmentation": ("torch", "torch._dynamo", "node.tasks.networks", "node.tasks.unet"),
    "synthetic": (),
    "tabular": ("torch", "pandas", "sklearn.model_selection"),
    "node.tasks.heart_risk:HeartRiskTask": (),
    "flare": ("torch", "torch._dynamo", "pandas", "sklearn.model_selection"),
    "flower": ("torch", "torch._dynamo", "pandas", "sklearn.model_selection", "flwr.clientapp"),
    "node.tasks.image_experiment:ContinuedImageTask": ("torch", "torch._dynamo", "opacus", "node.tasks.networks"),
    "node.tasks.image_experiment:ImageExperimentTask": ("torch", "torch._dynamo", "node.tasks.networks"),
    "node.tasks.segmentation_experiment:SegmentationExperimentTask": (
        "torch",
        "torch._dynamo",
        "opacus",
        "node.tasks.networks",
        "node.tasks.unet",
    ),
}
WARM_FOR_OTHERS = ("torch", "torch._dynamo", "pandas")


WARM_FOR_RECORDS = ("torch._dynamo", "opacus", "node.privacy.record")

INITIAL_PIECE = 1 << 16
"""Values of the first model in one message to the relay."""

MAX_SEALERS = 4
"""Processes that seal for one enclave, at most."""

LEAST_CIPHERTEXTS = 16
"""Of an update of fewer the enclave has sealed half before another process has begun."""


@dataclass(frozen=True)
class EnclaveSettings:
    """What every enclave of a node needs to know; public, but for where the data lies."""

    party: str
    study: Study
    data: Mapping[str, Any]
    home: Path
    weights: Mapping[str, int]
    plan: Plan
    is_key_holder: bool
    posture: Posture
    quorum: int = 2

    @property
    def task(self) -> str:
        return self.study.task.class_name

    @property
    def share(self) -> float:
        """This party's public weight over the largest one."""
        return self.weights[self.party] / max(self.weights.values())

    @property
    def regime(self) -> Regime:
        return Regime.of(self.study, self.plan, self.quorum)


def reseed() -> None:
    """New randomness from the operating system for every generator that a fork would have copied.

    Children of one template otherwise draw the same numbers, in every round and at every hospital forked
    from it. Rounding and noise do not use these generators at all.
    """
    random.seed(os.urandom(32))
    np.random.seed(np.frombuffer(os.urandom(4 * 8), dtype=np.uint32))  # a task of the user's may use it
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)


# ---- the template ---------------------------------------------------------------------------------------


def run_template(control: socket.socket, keyroom: socket.socket | None, settings: EnclaveSettings) -> None:
    """Serve the relay: for each job a child; the job and a pipe come over ``control``. Ends with the relay.

    At the key holder each child also gets a pipe of its own to the key room: its integers go there and
    nowhere else.
    """
    name_process(f"template {settings.party}")
    adopt_orphans()
    warm_up(settings.task, settings.study.privacy.mode)
    with contextlib.suppress(WardtreeError, OSError):  # an enclave that needs the key will say what is wrong with it
        prepare_plan(settings.plan, None if settings.is_key_holder else (settings.home / PUBLIC_KEY).read_bytes())
    policy.before_forks()
    carry_key = os.urandom(32)
    while True:
        try:
            request, (*ends,), _, _ = socket.recv_fds(control, 16, 3)
        except ConnectionResetError:  # it ended with an answer of ours unread
            return
        if not request:
            return
        relay = Channel(*ends[:2])
        model = ends[2] if len(ends) == 3 else None
        to_keyroom: Channel | None = None
        if keyroom is not None and request == b"round":
            from_enclave, write = os.pipe()
            socket.send_fds(keyroom, [b"job"], [from_enclave])
            os.close(from_enclave)
            to_keyroom = Channel(None, write)
        child = spawn(signal.SIGKILL, _enter, control, keyroom, relay, to_keyroom, model, settings, carry_key)
        handle = os.pidfd_open(child)
        socket.send_fds(control, [ANSWER.pack(STARTED, 0)], [handle])
        os.close(handle)
        relay.close()
        if to_keyroom:
            to_keyroom.close()
        if model is not None:
            os.close(model)
        _, peak_memory = see_end(child)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the relay is gone: so are we, above
            control.sendmsg([ANSWER.pack(ENDED, peak_memory)])


def _enter(
    control: socket.socket,
    keyroom_socket: socket.socket | None,
    relay: Channel,
    keyroom: Channel | None,
    model: int | None,
    settings: EnclaveSettings,
    carry_key: bytes,
) -> None:
    control.close()
    if keyroom_socket:
        keyroom_socket.close()
    run_enclave(relay, keyroom, model, settings, carry_key)


def warm_up(task: str, privacy: str = "none") -> None:
    """Import what a task needs under a mode of privacy, before the fork of whoever works with it: nothing is read nor
    run."""
    with contextlib.suppress(ImportError):
        for module in (*WARM.get(task, WARM_FOR_OTHERS), *(WARM_FOR_RECORDS if privacy == "record" else ())):
            importlib.import_module(module)
    if task in BUILTIN:  # a hospital's own module is imported in the enclave only
        importlib.import_module(BUILTIN[task].partition(":")[0])


# ---- the enclave ----------------------------------------------------------------------------------------


def run_enclave(
    relay: Channel, keyroom: Channel | None, model: int | None, settings: EnclaveSettings, carry_key: bytes
) -> None:
    """One job, from its first message to the end of this process. ``model`` is :mod:`node.shared`'s descriptor."""
    name_process(f"enclave {settings.party}")
    reseed()
    witness = Witness(entered())
    sealers: Sealers | None = None
    try:
        job = relay.receive()
        if job.get("purpose") == IDLE:
            return
        pieces = [relay.receive()["piece"] for _ in range(job["carried"])]
        if model is not None:
            job["model"] = read_only(model)
        sealers = start_sealers(job, settings)  # before the task's libraries start threads here
        narrow(policy.enclave(), settings.posture)  # from here on no other process, and nothing is printed
        silence()
        witness.watch()
        study = settings.study
        task = load_task(
            settings.task, Setup(settings.party, study.task.options, settings.data, study.seed, settings.home)
        )
        if job["kind"] == "prepare":
            prepare(relay, task)
        else:
            contribute(relay, keyroom, task, job, unseal(carry_key, pieces), settings, sealers, carry_key)
    except ChannelClosedError:
        return  # the relay gave this round up
    except update.UpdateError as error:
        report(relay, f"{settings.party}: {error}")
    except WardtreeError as error:
        report(relay, f"{error}{witness.refusal(error)}")
    except Exception as error:
        # The message of a stranger's exception may quote data: it stays here.
        report(relay, f"{settings.party}: the task failed: {describe(error)}{witness.refusal(error)}")
    finally:
        if sealers:
            sealers.close()


def report(relay: Channel, text: str) -> None:
    with contextlib.suppress(ChannelClosedError):
        relay.send("error", text=text)


def prepare(relay: Channel, task: Task) -> None:
    """Load the data once, before any round, so that what is wrong with it is said at once."""
    spec = task.statistics_spec()
    initial = np.asarray(task.initial(), dtype="<f4")
    if initial.shape != (task.parameters,) or not np.isfinite(initial).all():
        raise update.UpdateError(f"initial() should give {task.parameters} finite values, came {initial.shape}")
    for start in range(0, initial.size, INITIAL_PIECE):
        piece = initial[start : start + INITIAL_PIECE].tobytes()
        relay.send("initial", parameters=initial.size, start=start, values=piece)
    relay.send(
        "prepared",
        statistics=[spec.length, spec.bound] if spec else None,
        evaluation=fields_of(task.evaluation_spec()),
        examples=task.examples,
    )


def contribute(
    relay: Channel,
    keyroom: Channel | None,
    task: Task,
    job: dict[str, Any],
    carried: bytes | None,
    settings: EnclaveSettings,
    sealers: Sealers | None,
    carry_key: bytes,
) -> None:
    """Train or count, quantise, and hand over: encrypted segments to the relay, or, at the key holder, integers to
    the key room."""
    watch = Stopwatch()
    model, study, purpose = model_from(job), settings.study, job["purpose"]
    trained = study.schedule.trained(job["round"]) + (purpose == ENERGIES)
    rate = study.optimisation.rates.rate(trained, study.rounds)
    of_task, residual = split(carried)
    private = private_training(job, settings)
    round_ = TrainingRound(trained, study.rounds, model.statistics, model.parties, rate, of_task, private)
    recipe = recipe_for(task, purpose, settings)
    terms = terms_for(task, job, recipe)
    waiting = waiting_for(task, job, residual, settings)
    integers = update.contribution(task, purpose, model, round_, recipe, settings.share, terms, waiting)
    seconds = watch.seconds
    if private:
        if not private.was_used:
            raise update.UpdateError("the task trained without round.private, and so without privacy")
        relay.send("spent", entry=private.entry(job["round"]))
    if purpose == TRAIN:
        for piece in seal(carry_key, join(task.carry(), waiting.to_bytes())):
            relay.send("carried", piece=piece)
    segments = settings.plan.segments(integers.size)
    check = None if job["check_seed"] is None else fingerprints(job["check_seed"], integers, segments)
    relay.send("trained", seconds=seconds, fingerprints=check)
    if keyroom is not None:
        for number, part in enumerate(segments):
            own = integers[part].astype("<i4").tobytes()
            keyroom.send("own", round=job["round"], segment=number, integers=own)
    else:
        watch = Stopwatch()
        if sealers:
            sealed = sealers.seal_segments(integers, job["canary_key"])
        else:
            sealer = Sealer(settings.plan, (settings.home / PUBLIC_KEY).read_bytes())
            sealed = update.seal_segments(integers, sealer, job["canary_key"])
        for number, ciphertexts in enumerate(sealed):
            relay.send("segment", segment=number, ciphertexts=ciphertexts, seconds=watch.seconds)
            watch = Stopwatch()
    update.wipe(integers)


def recipe_for(task: Task, purpose: str, settings: EnclaveSettings) -> update.Recipe:
    """The study's recipe, with what the task says of the sums of this round."""
    recipe = update.Recipe(settings.plan, settings.study.aggregation.clip, settings.weights, regime=settings.regime)
    if purpose == STATISTICS:
        return replace(recipe, statistics=task.statistics_spec())
    if purpose == EVALUATE:
        return replace(recipe, evaluation=settings.study.evaluation.layout(task.evaluation_spec(), settings.plan))
    return recipe


def terms_for(task: Task, job: dict[str, Any], recipe: update.Recipe) -> Terms:
    """What the relay found of this round, for the task's own lengths."""
    values = recipe.statistics.length if recipe.statistics else task.parameters
    return recipe.regime.told(job["purpose"], task.parameters, values, job)


def private_training(job: dict[str, Any], settings: EnclaveSettings) -> RecordLevel | None:
    """What the task must train with, where the study asks for record-level privacy."""
    if settings.study.privacy.mode != "record" or job["purpose"] != TRAIN:
        return None
    from node.privacy.record import RecordLevel

    return RecordLevel(settings.study.privacy, settings.study.rounds, job["account"].encode())


def waiting_for(task: Task, job: dict[str, Any], residual: bytes | None, settings: EnclaveSettings) -> update.Waiting:
    """What waits to be sent since earlier rounds, where the study has a mask and keeps what it leaves out."""
    compression = settings.study.compression
    if not (compression.is_sparse and compression.feedback):
        return update.Waiting()
    from node.compression.feedback import Feedback

    feedback = Feedback.from_bytes(residual, task.parameters) if residual else Feedback.start(task.parameters)
    return update.Waiting(feedback, job["applied"])


def start_sealers(job: dict[str, Any], settings: EnclaveSettings) -> Sealers | None:
    """Processes that make zeros while this one trains: where the update is large, and there are cores for it."""
    if job["kind"] != "round" or job["purpose"] != TRAIN or settings.is_key_holder:
        return None
    length = job["length"]
    threads = os.environ.get("OMP_NUM_THREADS", "")
    cores = int(threads) if threads.isdecimal() else len(os.sched_getaffinity(0))  # what one node may take of them
    spare = min(cores - 1, MAX_SEALERS)
    if settings.plan.ciphertexts(length) < LEAST_CIPHERTEXTS or spare < 1:
        return None
    return Sealers(
        settings.plan, (settings.home / PUBLIC_KEY).read_bytes(), length, settings.party, spare, settings.posture
    )


def model_from(job: dict[str, Any]) -> update.Model:
    """The global model of a job; its parameters are the relay's own, and cannot be written to."""
    statistics = job["statistics"]
    return update.Model(
        round=job["round"] - 1,
        parameters=job["model"],
        statistics=None if statistics is None else np.frombuffer(statistics, dtype="<f8").astype(np.float64),
        parties=job["parties"],
    )
