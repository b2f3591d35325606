"""Shaped links on one machine: a network namespace for each node, a veth pair for each edge of the tree.

Both ends of a pair have a token bucket (``tc tbf``), so each link is limited both ways, and a parent of two
has two links. Needs root, ``ip`` and ``tc`` (Debian: iproute2). A delay needs the kernel's netem.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from keys.errors import WardtreeError

BURST = "16kb"
"""What may pass at once: 13 ms at 10 Mbit/s."""

QUEUE = "200ms"
"""Packets that would wait longer before a link are lost, as in a router."""

PORT = 7100


class LinkError(WardtreeError):
    """The links cannot be made here."""


@dataclass(frozen=True)
class Shape:
    """What one link takes, each way: megabits per second, and milliseconds of delay (0: none is added)."""

    megabits: float
    delay_ms: float = 0.0


def why_not() -> str | None:
    """Why no shaped link can be made here; None when they can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "tc") if shutil.which(program) is None]
    if missing:
        return f"{' and '.join(missing)} not found (Debian: apt-get install iproute2)"
    try:
        with shaped({"probe": "other"}, Shape(10.0)):
            return None
    except LinkError as error:
        return str(error)


def has_delay() -> bool:
    """Whether the kernel has netem."""
    try:
        with shaped({"probe": "other"}, Shape(10.0, 1.0)):
            return True
    except LinkError:
        return False


def endpoints(names: Sequence[str]) -> dict[str, str]:
    """Where each node listens, whatever the tree: an address of its own on every link that it has."""
    return {name: f"{_address(number)}:{PORT}" for number, name in enumerate(names)}


@contextlib.contextmanager
def shaped(
    parent: Mapping[str, str], shape: Shape, addresses: Mapping[str, str] | None = None
) -> Iterator[Mapping[str, str]]:
    """The links of a tree; gives the namespace of every node, and takes all of it away at the end.

    Args:
        parent: every node but the root, and whom it dials.
        addresses: as :func:`endpoints` gave them for all names.

    Raises:
        LinkError: what ``ip`` or ``tc`` said.
    """
    names = sorted({*parent, *parent.values()})
    hosts = {name: (addresses or endpoints(names))[name].rpartition(":")[0] for name in names}
    spaces = {name: f"wardtree-{os.getpid()}-{number}" for number, name in enumerate(names)}
    made: list[str] = []
    try:
        for name in names:
            _run("ip", "netns", "add", spaces[name])
            made.append(spaces[name])
            _run("ip", "-n", spaces[name], "link", "set", "lo", "up")
        for number, (child, above) in enumerate(sorted(parent.items())):
            up, down = f"up{number}", f"down{number}"
            pair = ("type", "veth", "peer", down, "netns", spaces[above])
            _run("ip", "link", "add", up, "netns", spaces[child], *pair)
            for name, device, far in ((child, up, above), (above, down, child)):
                inside = ("ip", "-n", spaces[name])
                _run(*inside, "addr", "add", f"{hosts[name]}/32", "dev", device)
                _run(*inside, "link", "set", device, "up")
                _run(*inside, "route", "add", f"{hosts[far]}/32", "dev", device, "src", hosts[name])
                _limit(spaces[name], device, shape)
        yield spaces
    finally:
        for space in made:
            subprocess.run(("ip", "netns", "del", space), check=False, capture_output=True)


def _limit(space: str, device: str, shape: Shape) -> None:
    to = ("tc", "-n", space, "qdisc", "add", "dev", device)
    bucket = ("tbf", "rate", f"{shape.megabits}mbit", "burst", BURST, "latency", QUEUE)
    _run(*to, "root", "handle", "1:", *bucket)
    if shape.delay_ms:
        _run(*to, "parent", "1:1", "handle", "10:", "netem", "delay", f"{shape.delay_ms}ms")


def _address(number: int) -> str:
    return f"10.77.{number // 250}.{number % 250 + 1}"


def _run(*command: str) -> None:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise LinkError(f"{' '.join(command[:4])} …: {said[-1] if said else f'ended with {done.returncode}'}")
