"""A whole federation on one machine: every hospital its own processes, its own folder, a real ceremony.

The launcher forks one supervisor per party while it is still small and knows no secret, holds the ceremony
(``node/simulation.py``), gives every supervisor its passphrase, a few at a time, and watches. Comparisons between
hospitals exist here alone: nowhere else may one process read two hospitals' data.
"""

from __future__ import annotations

import importlib
import os
import resource
import secrets
import selectors
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.federation import check_size
from node.gauge import Gauge, Peak
from node.home import Options
from node.process import end_all, reap, spawn
from node.record import Record
from node.simulation import Federation, LocalError, hold_ceremony, tree_of
from node.study import Study
from node.supervisor import run_node
from topology import Member, Tree, check_placeable

if TYPE_CHECKING:  # it brings what enclaves need
    from node.warm import Nursery

STARTING_AT_ONCE = 2 * (os.cpu_count() or 1)

FAREWELL_SECONDS = 8.0
"""How long the other nodes may take to end by themselves when one could not go on."""


@dataclass
class Outcome:
    """How a local run ended.

    Attributes:
        codes: each node's exit code.
        seconds: of the whole run; of them ``ceremony_seconds`` until the manifest was signed and joined, and
            ``start_seconds`` more until every node had its data and its model.
        peak: the most memory and processes that the run took.
    """

    record: Record
    tree: Tree
    codes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    ceremony_seconds: float = 0.0
    start_seconds: float = 0.0
    peak: Peak | None = None


def run_federation(federation: Federation, watch: Callable[[Record], None]) -> Outcome:
    """Run the whole study; ``watch`` is called as things happen.

    Raises:
        WardtreeError: the federation could not be set up.
        KeyboardInterrupt: everything is ended first.
    """
    began = time.monotonic()
    check_size(federation.study, len(federation.data))
    check_placeable([Member(name) for name in federation.names], federation.key_holder)
    _allow_descriptors(len(federation.data))
    _make_out(federation.out)
    children: dict[str, int] = {}
    helpers: dict[str, int] = {}
    try:
        gauge = Gauge()
        helpers["gauge"] = gauge.process
        _import_once()
        nursery = _nursery(federation.study, helpers)
        starts, telemetry = _fork_supervisors(federation, nursery, children)
        passphrases = hold_ceremony(federation)
        outcome = Outcome(Record(federation.names), tree_of(federation))
        outcome.ceremony_seconds = time.monotonic() - began
        starter = _Starter(federation, starts, passphrases, outcome.tree)
        _follow(telemetry, outcome, children, starter, watch)
        outcome.seconds = time.monotonic() - began
        outcome.start_seconds = starter.all_ready_after
        outcome.peak = gauge.stop()
        return outcome
    finally:
        end_all({**children, **helpers})


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


def _nursery(study: Study, helpers: dict[str, int]) -> Nursery | None:
    """A warm process for the templates of all nodes, where there is something heavy to share."""
    from node.enclave import is_heavy
    from node.warm import start_nursery

    if not is_heavy(study.task.class_name):
        return None
    nursery, helpers["nursery"] = start_nursery(study.task.class_name)
    return nursery


def _import_once() -> None:
    """Import what every room needs before forking them all: imports only, nothing is made, no torch."""
    for module in ("node.relay", "node.enclave", "node.keyroom", "node.tasks.synthetic"):
        importlib.import_module(module)


def _make_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalError(f"{out}: an empty or new folder was expected; nothing in it was touched")
    out.mkdir(parents=True, exist_ok=True)


def _fork_supervisors(
    federation: Federation, nursery: Nursery | None, children: dict[str, int]
) -> tuple[dict[str, Channel], dict[str, Channel]]:
    """One supervisor a party, waiting for its start; none holds another's pipes."""
    starts: dict[str, Channel] = {}
    telemetry: dict[str, Channel] = {}
    sys.stdout.flush()
    for name in federation.names:
        ours, theirs = Channel.pair()
        start, wait = Channel.pair()
        inherited = [ours, start, *starts.values(), *telemetry.values()]
        children[name] = spawn(
            signal.SIGKILL, _supervise, federation.home(name), federation.out, wait, theirs, nursery, inherited
        )
        wait.close()
        theirs.close()
        starts[name], telemetry[name] = start, ours
    return starts, telemetry


def _supervise(
    home: Path,
    out: Path,
    wait: Channel,
    telemetry: Channel,
    nursery: Nursery | None,
    inherited: list[Channel],
) -> None:
    for channel in inherited:
        channel.close()
    try:
        start = wait.receive()
    except ChannelClosedError:
        raise SystemExit(2) from None
    wait.close()
    options = Options(tuple(start["check_seeds"]), out / "models" if start["history"] else None)
    try:
        code = run_node(home, lambda: start["passphrase"], telemetry, options, nursery)
    except WardtreeError as error:
        telemetry.send("stopped", party=home.name, time=time.time(), error=str(error))
        code = 2
    raise SystemExit(code)


class _Starter:
    """Starts the nodes a few at a time: hundreds that all start at once only wait for each other.

    From the top of the tree down, so that each finds its parent listening; the key holder last, because it
    waits for all of them no longer than the study says.
    """

    def __init__(
        self, federation: Federation, starts: Mapping[str, Channel], passphrases: Mapping[str, str], tree: Tree
    ) -> None:
        self._federation, self._starts, self._passphrases = federation, starts, passphrases
        self._waiting = sorted(tree.parent, key=tree.depth, reverse=True)
        self._waiting.insert(0, federation.key_holder)
        self._starting: set[str] = set()
        rounds = federation.study.rounds + 1
        self._seeds = [secrets.token_bytes(32) for _ in range(rounds)] if federation.study.debug.check_sums else []
        self._began = time.monotonic()
        self.all_ready_after = 0.0

    def go_on(self, ready_or_ended: Set[str]) -> None:
        """Start as many more as may be starting at once."""
        if not self._waiting and not self._starting:
            return
        self._starting -= ready_or_ended
        while self._waiting and len(self._starting) < STARTING_AT_ONCE:
            name = self._waiting.pop()
            self._starting.add(name)
            keep = name == self._federation.key_holder  # one copy of each published model is enough to compare
            start = self._starts[name]
            start.send("start", passphrase=self._passphrases[name], check_seeds=self._seeds, history=keep)
            start.close()
        self.all_ready_after = time.monotonic() - self._began


def _follow(
    telemetry: Mapping[str, Channel],
    outcome: Outcome,
    children: dict[str, int],
    starter: _Starter,
    watch: Callable[[Record], None],
) -> None:
    """Take every node's events until all have ended. When one cannot go on, give the others a moment."""
    starter.go_on(set())
    record = outcome.record
    selector = selectors.DefaultSelector()
    for name, channel in telemetry.items():
        assert channel.read is not None
        selector.register(channel.read, selectors.EVENT_READ, (name, channel))
    deadline: float | None = None
    while selector.get_map():
        for key, _ in selector.select(0.2):
            name, channel = key.data
            for event in _drain(channel):
                if event is None:
                    selector.unregister(key.fd)
                    outcome.codes[name] = reap(children.pop(name))
                else:
                    record.take(event)
        starter.go_on(record.ready | outcome.codes.keys())
        watch(record)
        if deadline is None and any(outcome.codes.values()):
            deadline = time.monotonic() + FAREWELL_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for name in children:
                outcome.codes.setdefault(name, 1)
            return


def _drain(channel: Channel) -> Iterator[dict[str, Any] | None]:
    try:
        while (event := channel.poll()) is not None:
            yield event
    except ChannelClosedError:
        yield None
