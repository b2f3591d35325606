"""What processes take of the machine: memory, descriptors. Read from the kernel's tables, Linux only."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What one process took.

    Attributes:
        peak_memory: the most bytes that it ever had resident (VmHWM), shared pages included.
        descriptors: open now, sockets among them.
        sockets: open now.
    """

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
    return Usage(peak_memory("self"), len(links), sum(link.startswith("socket:") for link in links))


def peak_memory(process: int | str) -> int:
    """The most bytes that a process ever had resident, 0 when it is gone.

    Anybody may read it, of a process that cannot be dumped or traced too.
    """
    return _kilobytes(f"/proc/{process}/status", "VmHWM:")


def _kilobytes(path: str, key: str) -> int:
    try:
        text = Path(path).read_text()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in text.splitlines() if line.startswith(key)), 0)
