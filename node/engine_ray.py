"""A simulation over a Ray cluster: each Ray worker runs the nodes of its share of the parties.

    wardtree local -- pipes -- driver -- Ray -- actor 0 -- pipes -- keeper 0 -- its nodes
                                          +---- actor 1 -- pipes -- keeper 1 -- its nodes

Ray's processes have threads, and a fork of one would inherit their locks. So Ray's driver is a program beside
``wardtree local``, which forks; and beside each actor there is a keeper, a Python of its own, which starts nodes
with the launcher of every local run. All speak in questions and answers, in plain values; the driver and the
actors only pass them on. A keeper is told when the run ends, so that it ends its nodes and removes its folder: Ray
itself would kill it.

Homes and passphrases travel through Ray, which only a simulation may do. A passphrase goes with the question
that starts its node, to the one worker that runs it, and no file is made of it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.home import Options
from node.launcher import Launcher, Seat, import_rooms, read_passphrase
from node.nursery import start_nursery
from node.process import allow_descriptors, describe, end_all, name_process, own_python
from node.sandbox.kernel import conceal
from node.simulation import LocalError, free_endpoints
from node.study import Study

FAREWELL_SECONDS = 30.0
"""How long Ray may take to end what it started."""

Question = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a node ran: the number of its Ray worker, the address of that machine, and the keeper's process there."""

    worker: int
    address: str
    keeper: int


def shares(names: Sequence[str], workers: int) -> list[tuple[str, ...]]:
    """Which parties each worker runs: one after the other, so that no two workers differ by more than one."""
    return [tuple(names[worker::workers]) for worker in range(workers)]


class RayEngine:
    """The workers, as ``wardtree local`` sees them. Whoever has it calls :meth:`close`.

    Attributes:
        places: where each party's node is run.
    """

    def __init__(self, names: Sequence[str], study: Study, workers: int | None = None) -> None:
        """Start or join the cluster, and reserve an address on its worker for every party.

        Args:
            names: the parties.
            study: what its task needs is imported by each worker once for all its nodes.
            workers: how many; None: one for each machine of the cluster.

        Raises:
            LocalError: there is no Ray, or it did not start.
        """
        if importlib.util.find_spec("ray") is None:
            raise LocalError('--engine ray: expected the package ray (the extra "ray"), came none')
        # Ctrl-C is for this process, which tells the others; what Ray prints is not the report.
        self._driver, self._process = _beside("drive", str(workers or 0), stdout=2, start_new_session=True)
        try:
            self.workers = min(self._answer()["workers"], len(names))
            self._names = shares(names, self.workers)
            needs = {"task": study.task.class_name, "privacy": study.privacy.mode}
            opened = self._ask_all([{"kind": "open", "parties": list(own), **needs} for own in self._names])
        except BaseException:
            self.close()
            raise
        self.endpoints: dict[str, str] = {}
        self.places: dict[str, Place] = {}
        for worker, (own, answer) in enumerate(zip(self._names, opened, strict=True)):
            self.endpoints.update(answer["endpoints"])
            self.places.update(dict.fromkeys(own, Place(worker, answer["address"], answer["keeper"])))

    def launcher(self, seats: Mapping[str, Seat]) -> RayLauncher:
        """Send every worker the homes of its parties.

        Raises:
            LocalError: a worker is gone, or could not take them.
        """
        for name, seat in seats.items():
            options = seat.options
            seeds, keeps = list(options.check_seeds), options.history is not None
            home = {"archive": _packed(seat.home.parent, [name]), "seeds": seeds, "keeps": keeps}
            self.ask(name, "home", **home, policy=options.policy)
        return RayLauncher(self, seats)

    def ask(self, party: str, kind: str, **fields: Any) -> Question:
        """Ask the worker of a party about that party.

        Raises:
            LocalError: it is gone, or refuses.
        """
        questions: list[Question | None] = [None] * self.workers
        worker = self.places[party].worker
        questions[worker] = {"kind": kind, "party": party, **fields}
        return self._ask_all(questions)[worker]

    def listen(self, seconds: float) -> list[dict[str, Any]]:
        """What all nodes tell within this time."""
        answers = self._ask_all([{"kind": "listen", "seconds": seconds}] * self.workers)
        return [event for answer in answers for event in answer["events"]]

    def collect(self, out: Path) -> None:
        """Bring the homes, as they are now, and the models that the key holder kept into the run's folder.

        Raises:
            LocalError: a worker is gone.
        """
        for name in self.places:
            _unpack(self.ask(name, "collect")["archive"], out, "homes", "models")

    def _ask_all(self, questions: Sequence[Question | None]) -> list[Question]:
        self._driver.send("ask", questions=list(questions))
        answers: list[Question] = self._answer()["answers"]
        for worker, answer in enumerate(answers):
            if answer and answer["kind"] == "refused":
                raise LocalError(f"Ray worker {worker}: {answer['text']}")
        return answers

    def _answer(self) -> Question:
        try:
            answer = self._driver.receive()
        except ChannelClosedError as error:
            raise LocalError("--engine ray: Ray's driver ended; see its message above") from error
        if answer["kind"] == "refused":
            raise LocalError(f"--engine ray: {answer['text']}")
        return answer

    def close(self) -> None:
        """End the workers, all their nodes, and the cluster if it was started for this run."""
        self._driver.close()
        try:
            self._process.wait(FAREWELL_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RayLauncher:
    """Starts nodes and hears them, as :class:`node.launcher.Launcher` does, each on its worker."""

    def __init__(self, engine: RayEngine, seats: Mapping[str, Seat]) -> None:
        self._engine, self._seats = engine, seats
        self._running: set[str] = set()

    @property
    def running(self) -> frozenset[str]:
        return frozenset(self._running)

    def start(self, name: str) -> None:
        """Start a node that does not run, for the first time or again."""
        self._engine.ask(name, "start", passphrase=read_passphrase(self._seats[name].passphrase))
        self._running.add(name)

    def listen(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What the nodes tell within this time; the last of each is "ended" with its exit code."""
        for event in self._engine.listen(seconds):
            if event["kind"] == "ended":
                self._running.discard(event["party"])
            yield event

    def end_all(self) -> None:
        """Forget the passphrases; the engine, closed, ends the nodes."""
        for seat in self._seats.values():
            os.close(seat.passphrase)


def _beside(role: str, *arguments: str, **how: Any) -> tuple[Channel, subprocess.Popen[bytes]]:
    """Start a Python of its own that runs ``role`` of this module; gives the channel to it."""
    ours, theirs = Channel.pair()
    command = own_python("node.engine_ray", role, *map(str, theirs.descriptors), *arguments)
    process = subprocess.Popen(command, pass_fds=theirs.descriptors, stdin=subprocess.DEVNULL, **how)
    theirs.close()
    return ours, process


def main(role: str, read: str, write: str, *arguments: str) -> None:
    """One of the programs that this module starts; ``read`` and ``write`` are numbers of descriptors."""
    channel = Channel(int(read), int(write))
    for descriptor in channel.descriptors:
        os.set_inheritable(descriptor, False)
    with contextlib.suppress(ChannelClosedError, KeyboardInterrupt):  # the other side ended: so does this one
        if role == "drive":
            _drive(channel, int(arguments[0]))
        else:
            _keep(channel, int(arguments[0]), arguments[1])


# ---- in Ray's processes -----------------------------------------------------------------------------------


def _drive(channel: Channel, wanted: int) -> None:
    """Ray's driver: one actor a worker, spread over the cluster's machines in turn; passes questions on."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers of every run
    ray = importlib.import_module("ray")
    affinity = importlib.import_module("ray.util.scheduling_strategies").NodeAffinitySchedulingStrategy
    actors: list[Any] = []
    try:
        ray.init(include_dashboard=False, logging_level="WARNING")
        machines = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        actor = ray.remote(num_cpus=0)(RayWorker)  # nodes share what cores there are, as in every local run
        actors = [
            actor.options(scheduling_strategy=affinity(machines[number % len(machines)], soft=False)).remote(number)
            for number in range(wanted or len(machines))
        ]
        channel.send("ready", workers=len(actors))
        while True:
            questions = channel.receive()["questions"]
            waiting = {number: actors[number].ask.remote(each) for number, each in enumerate(questions) if each}
            answers = [ray.get(waiting[number]) if number in waiting else None for number in range(len(questions))]
            channel.send("answers", answers=answers)
    except ChannelClosedError:
        raise
    except Exception as error:  # Ray's own, of many kinds, each with pages of text
        channel.send("refused", text=f"Ray could not go on: {describe(error)}: {str(error).strip().splitlines()[0]}")
    finally:
        with contextlib.suppress(Exception):  # before Ray kills them: they have folders to remove
            ray.get([each.ask.remote({"kind": "end"}) for each in actors], timeout=FAREWELL_SECONDS / 2)
        ray.shutdown()


class RayWorker:
    """The actor: passes on what it is asked."""

    def __init__(self, number: int) -> None:
        ray = importlib.import_module("ray")
        self._channel, self._keeper = _beside("keep", str(number), ray.util.get_node_ip_address())

    def ask(self, question: Question) -> Question:
        """The keeper's answer."""
        try:
            self._channel.send(**question)
            return self._channel.receive()
        except ChannelClosedError:
            return {"kind": "refused", "text": "its keeper ended; see its message above"}


# ---- the keeper -------------------------------------------------------------------------------------------


def _keep(channel: Channel, number: int, address: str) -> None:
    name_process(f"keeper {number}")
    conceal()
    allow_descriptors()
    os.umask(0o077)
    root = Path(tempfile.mkdtemp(prefix="wardtree-"))
    keeper = Keeper(root, address)
    try:
        while True:
            question = channel.receive()
            try:
                answer = getattr(keeper, f"on_{question.pop('kind')}")(**question)
                channel.send("answer", **(answer or {}))
            except (WardtreeError, OSError) as error:
                channel.send("refused", text=str(error))
    finally:
        keeper.on_end()


class Keeper:
    """Runs the nodes of one worker. Each ``on_`` method answers the question of its name."""

    def __init__(self, root: Path, address: str) -> None:
        self._root, self._address = root, address
        self._seats: dict[str, Seat] = {}
        self._helpers: dict[str, int] = {}
        self._launcher = Launcher(self._seats)

    def on_open(self, parties: Sequence[str], task: str, privacy: str) -> dict[str, Any]:
        """Where the nodes will listen: the addresses are signed before there is a home."""
        import_rooms()
        nursery, self._helpers["nursery"] = start_nursery(task, privacy)
        self._launcher = Launcher(self._seats, nursery)
        return {
            "endpoints": free_endpoints(parties, self._address),
            "address": self._address,
            "keeper": os.getpid(),
        }

    def on_home(self, party: str, archive: bytes, seeds: Sequence[bytes], keeps: bool, policy: str | None) -> None:
        _unpack(archive, self._root / "homes", party)
        history = self._root / "models" if keeps else None
        options = Options(tuple(seeds), history, policy, insecure_development=True)
        letter = os.memfd_create("wardtree passphrase", os.MFD_CLOEXEC)
        self._seats[party] = Seat(self._root / "homes" / party, letter, options)

    def on_start(self, party: str, passphrase: str) -> None:
        os.pwrite(self._seats[party].passphrase, passphrase.encode(), 0)
        self._launcher.start(party)

    def on_listen(self, seconds: float) -> dict[str, Any]:
        if not self._launcher.running:  # the others must not wait for who has nothing to tell
            return {"events": []}
        return {"events": list(self._launcher.listen(seconds))}

    def on_collect(self, party: str) -> dict[str, Any]:
        while party in self._launcher.running:  # it had its time
            self._launcher.signal(party, signal.SIGKILL)
            list(self._launcher.listen(1))
        history = self._seats[party].options.history
        return {"archive": _packed(self._root, [f"homes/{party}", *(["models"] if history else [])])}

    def on_end(self) -> None:
        """End the nodes and remove the folder; again, do nothing."""
        self._launcher.end_all()
        end_all(self._helpers)
        self._seats.clear()
        self._helpers.clear()
        shutil.rmtree(self._root, ignore_errors=True)


def _packed(root: Path, names: Sequence[str]) -> bytes:
    """Folders below ``root``, as a tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name in names:
            archive.add(root / name, arcname=name)
    return buffer.getvalue()


def _unpack(archive: bytes, into: Path, *expected: str) -> None:
    """Unpack into a folder what lies in the ``expected`` ones of the archive; links that lead outside are refused."""
    into.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        members = [each for each in packed.getmembers() if each.name.partition("/")[0] in expected]
        try:
            packed.extractall(into, members, filter="data")
        except tarfile.FilterError as error:
            raise LocalError(f"{into}: {error}") from error
