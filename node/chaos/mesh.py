"""A network that can be cut: a namespace for each node, all of them on one bridge. Needs root and ``ip``."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence

from keys.errors import WardtreeError

PORT = 7100


class MeshError(WardtreeError):
    """The network cannot be made or cut here."""


def why_not() -> str | None:
    """Why no such network can be made here; None when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "ip not found (Debian: apt-get install iproute2)"
    try:
        with mesh(("probe", "other")):
            return None
    except MeshError as error:
        return str(error)


class Mesh:
    """The namespaces of all nodes, and where each listens."""

    def __init__(self, names: Sequence[str]) -> None:
        self._bridge = f"wardtree-{os.getpid()}"
        self._cuts: Counter[tuple[str, ...]] = Counter()
        self._numbers = {name: number for number, name in enumerate(names)}
        self.spaces = {name: f"{self._bridge}-{number}" for name, number in self._numbers.items()}
        self.endpoints = {name: f"{self._address(name)}:{PORT}" for name in names}

    def _address(self, name: str) -> str:
        number = self._numbers[name]
        return f"10.78.{number // 250}.{number % 250 + 1}"

    def make(self) -> None:
        """Make them all; whatever was made goes with :meth:`end`."""
        _run("ip", "netns", "add", self._bridge)
        _run("ip", "-n", self._bridge, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self._bridge, "link", "set", "bridge", "up")
        for name, number in self._numbers.items():
            space, port = self.spaces[name], f"port{number}"
            _run("ip", "netns", "add", space)
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "link", "add", "wire", "netns", space, "type", "veth", "peer", port, "netns", self._bridge)
            _run("ip", "-n", self._bridge, "link", "set", port, "master", "bridge", "up")
            _run("ip", "-n", space, "addr", "add", f"{self._address(name)}/16", "dev", "wire")
            _run("ip", "-n", space, "link", "set", "wire", "up")

    def end(self) -> None:
        for space in (*self.spaces.values(), self._bridge):
            subprocess.run(("ip", "netns", "del", space), check=False, capture_output=True)

    def cut(self, *ends: str) -> None:
        """Let two nodes lose each other, or one node all others. Nobody is told: what is sent is lost."""
        self._cuts[ends] += 1
        if self._cuts[ends] == 1:
            self._set(ends, is_cut=True)

    def mend(self, *ends: str) -> None:
        """Undo one :meth:`cut`."""
        self._cuts[ends] -= 1
        if self._cuts[ends] == 0:
            self._set(ends, is_cut=False)

    def _set(self, ends: tuple[str, ...], is_cut: bool) -> None:
        if len(ends) == 1:
            port = f"port{self._numbers[ends[0]]}"
            _run("ip", "-n", self._bridge, "link", "set", port, "down" if is_cut else "up")
            return
        for here, there in (ends, ends[::-1]):  # each throws away what it would send to the other
            change = "add" if is_cut else "del"
            _run("ip", "-n", self.spaces[here], "route", change, "blackhole", f"{self._address(there)}/32")


@contextlib.contextmanager
def mesh(names: Sequence[str]) -> Iterator[Mesh]:
    """The network of these nodes; all of it is taken away at the end.

    Raises:
        MeshError: what ``ip`` said.
    """
    made = Mesh(names)
    try:
        made.make()
        yield made
    finally:
        made.end()


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise MeshError(f"{' '.join(command)}: {said[-1] if said else f'ended with {done.returncode}'}")
