"""What processes take of the machine: memory, descriptors, processor time. From the kernel's tables, Linux only."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from node.channel import Channel, ChannelClosedError
from node.process import name_process, reap, spawn

LEAST_SECONDS = 0.25
_TICKS = os.sysconf("SC_CLK_TCK")
PATIENCE = 20
"""Between two looks at the memory of all processes the gauge sleeps so many times as long as one took."""
MOST_SECONDS = 2.0
"""Between two looks at their processor time, which takes little."""


@dataclass(frozen=True)
class Usage:
    """What one process took.

    Attributes:
        memory: bytes resident now (VmRSS), shared pages included.
        peak_memory: the most that it ever had resident (VmHWM).
        descriptors: open now, sockets among them.
        sockets: open now.
    """

    memory: int
    peak_memory: int
    descriptors: int
    sockets: int


def own_usage() -> Usage:
    """Of this process."""
    links = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            links.append(os.readlink(f"/proc/self/fd/{entry}"))
        except OSError:
            continue  # the descriptor of the listing itself
    memory = _bytes("/proc/self/status", "VmRSS:") or 0
    return Usage(memory, peak_memory("self"), len(links), sum(link.startswith("socket:") for link in links))


def peak_memory(process: int | str) -> int:
    """The most bytes that a process ever had resident, 0 when it is gone.

    Anybody may read it, of a process that cannot be dumped or traced too.
    """
    return _bytes(f"/proc/{process}/status", "VmHWM:") or 0


def descendants(process: int) -> Iterator[int]:
    """All processes below one."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return  # it is gone
    for child in map(int, children):
        yield child
        yield from descendants(child)


# ---- a whole tree of processes ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Peak:
    """The most that a process and all below it took at any one time that was looked at.

    Attributes:
        memory: bytes.
        processes: how many there were at most.
        how: "pss": the processes' own pages and their shares of common ones; "available": by how much the
            memory that the machine had left fell, where other users' processes may not be looked into.
        processor_seconds: of all below it, while they were looked at: what a process took after the last look, and
            nobody waited for, is missing.
    """

    memory: int
    processes: int
    how: str
    processor_seconds: float = 0.0


class Gauge:
    """A process that looks at its parent, and at all that lives below it, now and then."""

    def __init__(self) -> None:
        self._channel, theirs = Channel.pair()
        self.process = spawn(signal.SIGKILL, _watch, theirs, self._channel, os.getpid())
        theirs.close()

    def stop(self) -> Peak:
        """The peak until now, and the end of the gauge."""
        self._channel.send("stop")
        peak = Peak(**self._channel.receive()["peak"])
        self._channel.close()
        reap(self.process)
        return peak


def _watch(channel: Channel, other: Channel, root: int) -> None:
    other.close()
    name_process("gauge")
    os.nice(5)
    poller = select.poll()
    assert channel.read is not None
    poller.register(channel.read, select.POLLIN)
    before, memory, processes, how, due = _available(), 0, 0, "pss", 0.0
    spent_before, spent = _spent([root]), 0
    while True:
        all_of_them = [root, *descendants(root)]
        spent = max(spent, _spent(all_of_them))
        if (began := time.monotonic()) < due:
            if poller.poll(1000 * max(LEAST_SECONDS, min(due - began, MOST_SECONDS))):
                break
            continue
        shares = [_bytes(f"/proc/{each}/smaps_rollup", "Pss:") for each in all_of_them]
        if how == "pss" and None in shares:
            how, memory = "available", 0
        taken = sum(share or 0 for share in shares) if how == "pss" else before - _available()
        memory, processes = max(memory, taken), max(processes, len(all_of_them))
        due = time.monotonic() + max(LEAST_SECONDS, PATIENCE * (time.monotonic() - began))
    try:
        channel.receive()
        channel.send("peak", peak=asdict(Peak(memory, processes, how, (spent - spent_before) / _TICKS)))
    except ChannelClosedError:
        return


def _spent(processes: Iterable[int]) -> int:
    """Ticks of processor time that they took, and those of their children that ended and were waited for."""
    ticks = 0
    for process in processes:
        with contextlib.suppress(OSError):  # it is gone: whoever waited for it has its time
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()  # from the third on
            ticks += sum(map(int, fields[11:15]))
    return ticks


def _available() -> int:
    return _bytes("/proc/meminfo", "MemAvailable:") or 0


def _bytes(path: str, key: str) -> int | None:
    """A figure that the kernel gives in kB; 0 where there is none any more, None where it may not be read."""
    try:
        text = Path(path).read_text()
    except PermissionError:
        return None
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(key)), 0)
