"""The nodes of a federation on one machine: each started in its own processes, heard, and started again.

What a service manager does for one institution, this does for all of a simulation. Passphrases lie in
descriptors that the launcher never reads itself, so that no node inherits another's.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import selectors
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.channel import Channel, ChannelClosedError
from node.home import Options
from node.nursery import Nursery
from node.process import ENDED_FROM_OUTSIDE, end_all, enter_network, reap, spawn, uninterrupted
from node.supervisor import EndedFromOutsideError, run_node

MAX_PASSPHRASE = 4096


@dataclass(frozen=True)
class Seat:
    """What one node is started with, each time.

    Attributes:
        home: its folder.
        passphrase: a descriptor of a file with its passphrase.
        network: the name of the network namespace that it lives in; None: this process's own.
    """

    home: Path
    passphrase: int
    options: Options
    network: str | None = None


@dataclass(frozen=True)
class Life:
    """One run of a node: its supervisor, which leads a process group of its own, and what it tells."""

    process: int
    channel: Channel


class Launcher:
    """Starts nodes and hears them; whoever has it ends them with :meth:`end_all`."""

    def __init__(self, seats: Mapping[str, Seat], nursery: Nursery | None = None) -> None:
        """``nursery``: a warm process that forks the templates of all nodes."""
        self._seats, self._nursery = seats, nursery
        self._lives: dict[str, Life] = {}
        self._selector = selectors.DefaultSelector()

    @property
    def running(self) -> frozenset[str]:
        return frozenset(self._lives)

    def process(self, name: str) -> int:
        """The supervisor of a running node."""
        return self._lives[name].process

    def start(self, name: str) -> None:
        """Start a node that does not run, for the first time or again."""
        assert name not in self._lives
        ours, theirs = Channel.pair()
        ours.reads_ahead = True
        sys.stdout.flush()
        child = spawn(signal.SIGKILL, self._live, name, ours, theirs)
        theirs.close()
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(child, child)  # whoever comes first: a signal to the group must not miss it
        self._lives[name] = Life(child, ours)
        assert ours.read is not None
        self._selector.register(ours.read, selectors.EVENT_READ, name)

    def _live(self, name: str, ours: Channel, theirs: Channel) -> None:
        """In the new process: forget what is the others', then be the node's supervisor."""
        os.setpgid(0, 0)
        ours.close()
        self._selector.close()
        for life in self._lives.values():
            life.channel.close()
        for other in self._seats.keys() - {name}:
            os.close(self._seats[other].passphrase)
        seat = self._seats[name]
        if seat.network:
            enter_network(seat.network)
        try:
            code = run_node(seat.home, lambda: read_passphrase(seat.passphrase), theirs, seat.options, self._nursery)
        except WardtreeError as error:
            theirs.send("stopped", party=name, time=time.time(), error=str(error))
            code = ENDED_FROM_OUTSIDE if isinstance(error, EndedFromOutsideError) else 2
        raise SystemExit(code)

    def listen(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What the nodes tell within this time, in order; the last of each is "ended" with its exit code."""
        for key, _ in self._selector.select(seconds):
            name = key.data
            try:
                while (event := self._lives[name].channel.poll()) is not None:
                    yield event
            except ChannelClosedError:
                life = self._forget(name)
                yield {"kind": "ended", "party": name, "time": time.time(), "code": reap(life.process)}

    def _forget(self, name: str) -> Life:
        life = self._lives.pop(name)
        assert life.channel.read is not None
        self._selector.unregister(life.channel.read)
        life.channel.close()
        return life

    def signal(self, name: str, number: signal.Signals) -> None:
        """Send a signal to every process of a running node."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._lives[name].process, number)

    def end_all(self) -> None:
        """Kill what still runs; every process of a node dies with its supervisor."""
        processes = {name: self._forget(name).process for name in self.running}
        self._selector.close()
        for seat in self._seats.values():
            os.close(seat.passphrase)
        end_all(processes)


def was_ended_from_outside(code: int) -> bool:
    """Whether a node that ended so would go on when it is started again."""
    return code < 0 or code == ENDED_FROM_OUTSIDE


def import_rooms(with_enclaves: bool = False) -> None:
    """Import what rooms need before forking them all: imports only, nothing is made, no torch. ``with_enclaves``: where
    templates are forked from here too, and not from a nursery."""
    with uninterrupted():
        for module in ("node.relay", "node.keyroom", *(("node.enclave",) if with_enclaves else ())):
            importlib.import_module(module)


def read_passphrase(descriptor: int) -> str:
    """What a seat's descriptor holds."""
    return os.pread(descriptor, MAX_PASSPHRASE, 0).decode()
