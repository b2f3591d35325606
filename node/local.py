"""A whole federation on one machine: every hospital its own processes, its own folder, a real ceremony.

The ceremony is held file by file as people would (``node/simulation.py``), in a process of its own; the launcher,
which knows no secret, forks one supervisor per party, a few at a time, watches, and starts again who was killed.
Comparisons between hospitals exist here alone: nowhere else may one process read two hospitals' data.
"""

from __future__ import annotations

import math
import os
import resource
import secrets
import time
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from node.federation import check_size
from node.gauge import Gauge, Peak
from node.home import Options
from node.launcher import Launcher, Seat, import_rooms, was_ended_from_outside
from node.nursery import Nursery, start_nursery
from node.process import end_all
from node.record import Record
from node.simulation import Federation, LocalError, hold_ceremony, in_process, manifest_gaps, tree_of
from topology import Member, Tree, check_placeable

if TYPE_CHECKING:  # every command would import it
    from node.engine_ray import Place, RayEngine, RayLauncher

STARTING_AT_ONCE = 2 * (os.cpu_count() or 1)

FAREWELL_SECONDS = 8.0
"""How long the other nodes may take to end by themselves when one could not go on."""

MOST_RESTARTS = 20
"""Who is killed oftener than this stays dead."""


@dataclass
class Outcome:
    """How a local run ended.

    Attributes:
        codes: each node's exit code.
        seconds: of the whole run; of them ``ceremony_seconds`` until the manifest was signed and joined, and
            ``start_seconds`` more until every node had its data and its model.
        peak: the most memory and processes that the run took; None where it was not on this machine alone.
        places: with Ray, where each node ran.
    """

    record: Record
    tree: Tree
    codes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ceremony_seconds: float = 0.0
    start_seconds: float = 0.0
    peak: Peak | None = None
    places: Mapping[str, Place] = field(default_factory=dict)


def run_federation(
    federation: Federation, watch: Callable[[Record], None], page: int | None = None, engine: RayEngine | None = None
) -> Outcome:
    """Run the whole study.

    Args:
        watch: called as things happen.
        page: the port of the key holder's live page.
        engine: Ray's workers, which run the nodes instead of this machine; the caller closes it.

    Raises:
        WardtreeError: the federation could not be set up.
        KeyboardInterrupt: everything is ended first.
    """
    began = time.monotonic()
    helpers: dict[str, int] = {}
    launcher: Launcher | RayLauncher | None = None
    gauge: Gauge | None = None
    try:
        if engine is None:
            gauge = Gauge()
            helpers["gauge"] = gauge.process
        pages = {} if page is None else {federation.key_holder: page}
        if engine:
            launcher = engine.launcher(prepare_seats(federation, engine.endpoints))
        else:
            study = federation.study
            nursery, helpers["nursery"] = start_nursery(study.task.class_name, study.privacy.mode)
            launcher = prepare(federation, nursery=nursery, pages=pages)
        outcome = Outcome(Record(federation.names), tree_of(federation), places=engine.places if engine else {})
        outcome.ceremony_seconds = time.monotonic() - began
        starter = _Starter(launcher, outcome.tree, STARTING_AT_ONCE * (engine.workers if engine else 1))
        _follow(launcher, outcome, starter, watch)
        if engine:
            engine.collect(federation.out)
        outcome.seconds = time.monotonic() - began
        outcome.start_seconds = starter.all_ready_after
        outcome.peak = gauge.stop() if gauge else None
        return outcome
    finally:
        if launcher:
            launcher.end_all()
        end_all(helpers)


def prepare(
    federation: Federation,
    endpoints: Mapping[str, str] | None = None,
    networks: Mapping[str, str] | None = None,
    nursery: Nursery | None = None,
    pages: Mapping[str, int | None] | None = None,
) -> Launcher:
    """Hold the ceremony, in a process of its own, in a new or empty folder; gives what starts the nodes.

    Args:
        endpoints: as for :func:`hold_ceremony`.
        networks: the network namespace of each node.
        nursery: see :class:`Launcher`.
        pages: the nodes that keep a status file, and the port of each one's live page, None for none.

    Raises:
        WardtreeError: such a federation cannot be.
    """
    import_rooms(with_enclaves=nursery is None)
    return Launcher(prepare_seats(federation, endpoints, networks, pages), nursery)


def prepare_seats(
    federation: Federation,
    endpoints: Mapping[str, str] | None = None,
    networks: Mapping[str, str] | None = None,
    pages: Mapping[str, int | None] | None = None,
) -> dict[str, Seat]:
    """As :func:`prepare`; gives what each node is started with."""
    check_size(federation.study, len(federation.data))
    manifest_gaps(federation)  # now, with the error that it is
    check_placeable([Member(name) for name in federation.names], federation.key_holder)
    _allow_descriptors(len(federation.data))
    _make_out(federation.out)
    letters = {name: os.memfd_create("wardtree passphrase", os.MFD_CLOEXEC) for name in federation.names}
    in_process(_hold_apart, federation, endpoints, letters)
    rounds = federation.study.schedule.last + 1
    seeds = [secrets.token_bytes(32) for _ in range(rounds)] if federation.study.debug.check_sums else []
    models = {federation.key_holder: federation.out / "models"}  # one copy of each is enough to compare
    return {
        name: Seat(
            federation.home(name),
            letters[name],
            Options(
                tuple(seeds),
                models.get(name),
                federation.policy,
                insecure_development=True,
                status=name in (pages or {}),
                status_port=(pages or {}).get(name),
            ),
            (networks or {}).get(name),
        )
        for name in federation.names
    }


def _allow_descriptors(parties: int) -> None:
    """Four pipe ends a party are open here: let this process have as many as the system allows it.

    Raises:
        LocalError: that is too few.
    """
    needed = 4 * parties + 64
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise LocalError(f"{parties} parties need {needed} open files in this process, the limit is {most}: ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _hold_apart(federation: Federation, endpoints: Mapping[str, str] | None, letters: Mapping[str, int]) -> None:
    for name, passphrase in hold_ceremony(federation, endpoints).items():
        os.write(letters[name], passphrase.encode())


def _make_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalError(f"{out}: an empty or new folder was expected; nothing in it was touched")
    out.mkdir(parents=True, exist_ok=True)


class _Starter:
    """Starts the nodes a few at a time: hundreds that all start at once only wait for each other.

    From the top of the tree down, so that each finds its parent listening; the key holder last, because it
    waits for all of them no longer than the study says.
    """

    def __init__(self, launcher: Launcher | RayLauncher, tree: Tree, at_once: int) -> None:
        self._launcher, self._at_once = launcher, at_once
        self._waiting = sorted(tree.parent, key=tree.depth, reverse=True)
        self._waiting.insert(0, tree.key_holder)
        self._starting: set[str] = set()
        self._began = time.monotonic()
        self.all_ready_after = 0.0

    @property
    def is_done(self) -> bool:
        return not self._waiting

    def go_on(self, ready_or_ended: Set[str]) -> None:
        """Start as many more as may be starting at once."""
        if not self._waiting and not self._starting:
            return
        self._starting -= ready_or_ended
        while self._waiting and len(self._starting) < self._at_once:
            name = self._waiting.pop()
            self._starting.add(name)
            self._launcher.start(name)
        self.all_ready_after = time.monotonic() - self._began


def _follow(
    launcher: Launcher | RayLauncher, outcome: Outcome, starter: _Starter, watch: Callable[[Record], None]
) -> None:
    """Take every node's events until all have ended. Who was killed is started again; when one cannot go on, the
    others have a moment."""
    record, restarts = outcome.record, dict.fromkeys(outcome.record.parties, 0)
    deadline = math.inf
    while (launcher.running or not starter.is_done) and time.monotonic() < deadline:
        starter.go_on(record.ready | outcome.codes.keys())
        for event in launcher.listen(0.2):
            if event["kind"] != "ended":
                record.take(event)
                continue
            name, code = event["party"], event["code"]
            if was_ended_from_outside(code) and restarts[name] < MOST_RESTARTS:
                restarts[name] += 1
                record.warnings.append(f"{name}: was killed, and is started again")
                launcher.start(name)
            else:
                outcome.codes[name] = code
                if code:
                    deadline = min(deadline, time.monotonic() + FAREWELL_SECONDS)
        watch(record)
    for name in launcher.running:
        outcome.codes[name] = 1
