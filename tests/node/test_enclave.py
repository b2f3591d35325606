"""The real template and its enclaves: fresh randomness, honest errors, nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from keys import canaries
from keys.ckks import Opener, generate_keys
from keys.plan import Plan
from node import enclave as room
from node.channel import Channel, ChannelClosedError
from node.course import Terms
from node.enclave import EnclaveSettings, run_template
from node.process import reap, spawn
from node.protocol.messages import TRAIN
from node.rooms import Enclave, RoomError, Template, round_job
from node.sandbox import policy
from node.sandbox.enter import enter
from node.sandbox.machine import detect
from node.shared import SharedModel
from node.study import Study
from node.sumcheck import fingerprints
from node.tasks.loader import task_source
from node.update import Model

PLAN = Plan()
POSTURE = detect()
DRAWS, HALVES = 1, 3
GENERATORS = ("random", "numpy", "torch", "Opacus")
LENGTH = 16
CANARY_KEY = b"k" * 32
PATIENT = "4711"

TASK = '''
import random
import numpy as np
from node.tasks.base import Task


class Chance(Task):
    """Four draws of each generator, and four of Opacus's noise, as its update; other things in later rounds."""

    examples, parameters = 1, 16

    def __init__(self, setup):
        pass

    def initial(self):
        return np.zeros(16, np.float32)

    def train(self, model, round):
        if round.number < 3:
            import torch
            from opacus.optimizers.optimizer import _generate_noise
            noise = _generate_noise(1000.0, torch.zeros(4)).round().clamp(-8000, 8000).tolist()
            drawn = [random.randrange(8192) for _ in range(4)]
            return [*drawn, *np.random.randint(0, 8192, 4), *torch.randint(0, 8192, (4,)).tolist(), *noise]
        patient = 4711.0
        if round.number == 4:
            raise ValueError(f"patient {patient} is odd")
        if round.number == 5:
            return [patient] * 15 + [float("nan")]
        if round.number == 6:
            return [patient] * 17
        if round.number == 7:
            return [f"patient {patient}"] * 16
        if round.number == 8:
            raise SystemExit(f"patient {patient}")
        return np.full(16, 0.5)

    def evaluate(self, model, round):
        return {}
'''


@dataclass
class Node:
    """A real template's process, as the relay and the key room see it."""

    process: int
    template: Template
    jobs: socket.socket | None
    keyroom: Channel | None = None

    def hear(self) -> None:
        """Until the template says that the next enclave runs; that others ended it says in between."""
        while self.template.hear() is not None:
            pass

    def start(self, kind: str, **fields: Any) -> Enclave:
        enclave = self.template.start(kind, **fields)
        self.hear()
        if self.jobs and kind == "round":
            _, (descriptor,), _, _ = socket.recv_fds(self.jobs, 16, 1)
            self.keyroom = Channel(descriptor, None)
        return enclave

    def job(self, round_: int, check_seed: bytes | None = None, length: int = LENGTH) -> Enclave:
        shared = SharedModel(length)
        job = round_job(Model(round_ - 1, shared.parameters), Terms(length), round_, TRAIN, check_seed, CANARY_KEY)
        return self.start("round", model=shared.descriptor, **job)

    def integers(self, round_: int) -> NDArray[np.int32]:
        """What one enclave's integers are, as the key room is told them."""
        enclave = self.job(round_)
        assert self.keyroom
        assert enclave.channel.receive(60)["kind"] == "trained"
        message = self.keyroom.receive(60)
        assert (message["kind"], message["round"], message["segment"]) == ("own", round_, 0)
        enclave.end()
        return np.frombuffer(message["integers"], "<i4")

    def draws(self, round_: int) -> dict[str, tuple[int, ...]]:
        parts = self.integers(round_).reshape(4, 4).tolist()
        return {name: tuple(part) for name, part in zip(GENERATORS, parts, strict=True)}


def study_of(task: str, options: dict[str, Any]) -> Study:
    """At this clip one grid step is 1.0, so that whole numbers come through as they are."""
    tables = {"study": {"name": "chance", "rounds": 99, "seed": 1}, "task": {"class": task, "options": options}}
    return Study.model_validate({**tables, "aggregation": {"clip": float(PLAN.max_value)}})


@contextmanager
def running(home: Path, task: str = "chance:Chance", *, is_key_holder: bool = True, **options: Any) -> Iterator[Node]:
    settings = EnclaveSettings(
        party="north",
        study=study_of(task, options),
        data={},
        home=home,
        weights={"north": 1},
        plan=PLAN,
        is_key_holder=is_key_holder,
        posture=POSTURE,
    )
    (control, theirs), (jobs, their_jobs) = socket.socketpair(), socket.socketpair()

    def run() -> None:
        control.close()
        jobs.close()
        keep = [end.fileno() for end in (theirs, *([their_jobs] if is_key_holder else []))]
        enter(policy.template(home, task_source(task), ()), POSTURE, keep)
        run_template(theirs, their_jobs if is_key_holder else None, settings)

    process = spawn(signal.SIGKILL, run)
    theirs.close()
    their_jobs.close()
    try:
        yield Node(process, Template(control), jobs if is_key_holder else None)
        control.close()
        assert reap(process) == 0, "a template ends with its relay"
    except BaseException:
        os.kill(process, signal.SIGKILL)
        raise
    finally:
        control.close()
        jobs.close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "chance.py").write_text(TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def draws_of_three_enclaves(home: Path) -> list[dict[str, tuple[int, ...]]]:
    """Two rounds of one template, and the first round of another that was forked from the same parent."""
    import torch

    np.random.random(), torch.rand(1)  # the parent has generators to copy: both make theirs at the first use
    with ExitStack() as stack:
        one, other = (stack.enter_context(running(home)) for _ in range(2))
        return [one.draws(1), one.draws(2), other.draws(1)]


@pytest.mark.parametrize("reseeded", [True, False], ids=["as it is", "without reseed"])
def test_two_enclaves_of_one_template_never_draw_the_same_random_numbers(
    home: Path, monkeypatch: pytest.MonkeyPatch, reseeded: bool
) -> None:
    """And without ``reseed`` all of them would: that is what it is for. (Python reseeds its own at a fork.)"""
    if not reseeded:
        monkeypatch.setattr(room, "reseed", lambda: None)
    drawn = draws_of_three_enclaves(home)
    for generator in GENERATORS:
        different = 3 if reseeded or generator == "random" else 1
        assert len({each[generator] for each in drawn}) == different, generator


def test_stochastic_rounding_differs_and_reseeding_has_no_part_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """512 halves round up or down by the operating system's bits alone."""
    monkeypatch.setattr(room, "reseed", lambda: None)
    monkeypatch.setitem(room.WARM, "halves:Halves", ())
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "halves.py").write_text(TASK.replace("Chance", "Halves").replace("16", "512"))
    with ExitStack() as stack:
        one, other = (stack.enter_context(running(tmp_path, "halves:Halves")) for _ in range(2))
        rounded = [one.integers(HALVES), one.integers(HALVES), other.integers(HALVES)]
    assert all(set(each.tolist()) == {0, 1} for each in rounded)
    assert len({each.tobytes() for each in rounded}) == 3


BAD_TASKS = {
    4: "north: the task failed: ValueError at chance.py:27",
    5: "north: the task's train has values that are not finite",
    6: "north: the task's train should have shape (16,), came (17,)",
    7: "north: the task failed: ValueError at update.py:",
}


def test_a_task_that_goes_wrong_is_told_by_party_and_never_by_patient(
    home: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(room.WARM, "chance:Chance", ())
    with running(home) as node:
        for round_, text in BAD_TASKS.items():
            enclave = node.job(round_)
            message = enclave.channel.receive(60)
            assert message["kind"] == "error"
            assert message["text"].startswith(text)
            assert PATIENT not in message["text"]
            with pytest.raises(ChannelClosedError):
                enclave.channel.receive(60)
            enclave.end()
        enclave = node.job(8)
        with pytest.raises(ChannelClosedError):
            enclave.channel.receive(60)
        enclave.end()
        assert node.integers(HALVES).size == LENGTH, "the next round goes on"
    assert PATIENT not in "".join(capfd.readouterr())


def test_an_enclave_is_gone_after_its_job_or_when_it_is_ended(tmp_path: Path) -> None:
    (tmp_path / "public.key").write_bytes(generate_keys(PLAN)[0])
    with running(tmp_path, "synthetic", is_key_holder=False, params=LENGTH) as node:
        parent = psutil.Process(node.process)
        finished = node.job(1)
        assert finished.channel.receive(60)["kind"] == "trained"
        (child,) = parent.children()
        assert child.name() == "enclave north"
        assert finished.channel.receive(60)["kind"] == "segment"
        child.wait(10)
        finished.end()
        waiting = node.start("prepare")
        initial, prepared = waiting.channel.receive(60), waiting.channel.receive(60)
        assert (initial["kind"], initial["parameters"], len(initial["values"])) == ("initial", LENGTH, 4 * LENGTH)
        assert (prepared["kind"], prepared["examples"]) == ("prepared", 1)
        waiting.end()
        _until_childless(parent)


def test_an_enclave_whose_relay_forgets_it_ends_too(tmp_path: Path) -> None:
    """More ciphertext than a pipe holds: the enclave waits for its reader, which then is no more."""
    (tmp_path / "public.key").write_bytes(generate_keys(PLAN)[0])
    length = 2 * PLAN.values_per_segment
    with running(tmp_path, "synthetic", is_key_holder=False, params=length) as node:
        parent = psutil.Process(node.process)
        enclave = node.job(1, length=length)
        assert enclave.channel.receive(60)["kind"] == "trained"
        assert parent.children()
        enclave.channel.close()
        _until_childless(parent)


def _until_childless(parent: psutil.Process) -> None:
    deadline = time.monotonic() + 10
    while parent.children(recursive=True):
        assert time.monotonic() < deadline, "an enclave lives on"
        time.sleep(0.01)


def test_what_an_enclave_seals_is_what_it_reports_for_the_check_of_sums(tmp_path: Path) -> None:
    public, secret = generate_keys(PLAN)
    (tmp_path / "public.key").write_bytes(public)
    seed = b"r" * 32
    with running(tmp_path, "synthetic", is_key_holder=False, params=LENGTH, scale=100.0) as node:
        enclave = node.job(1, seed)
        trained, sealed = enclave.channel.receive(60), enclave.channel.receive(60)
        enclave.end()
        unasked = node.job(1)
        assert unasked.channel.receive(60)["fingerprints"] is None, "only where the check is asked for"
        unasked.end()
    marks = canaries.total([CANARY_KEY], PLAN, 0, 1)
    opened = Opener(PLAN, secret).open(sealed["ciphertexts"], LENGTH, 1, marks)
    assert opened.any()
    assert trained["fingerprints"] == fingerprints(seed, opened, PLAN.segments(LENGTH))


def test_a_template_that_ended_is_one_line() -> None:
    control, theirs = socket.socketpair()
    template = Template(control)
    template.start("prepare").end()
    theirs.close()
    for call in (template.hear, lambda: template.start("prepare")):
        with pytest.raises(RoomError, match="the template of the enclaves ended"):
            call()
    control.close()


def test_an_enclave_that_was_given_up_before_it_was_forked_is_ended_as_soon_as_it_is(tmp_path: Path) -> None:
    with running(tmp_path, "synthetic", is_key_holder=False, params=LENGTH) as node:
        node.template.start("prepare").end()
        node.hear()
        _until_childless(psutil.Process(node.process))
        assert node.start("prepare").channel.receive(60)["kind"] == "initial"
