"""A federation of real nodes: a ceremony, a home each, ``wardtree node`` for each of them, and what they say.

Nothing is shared between them but the machine, its kernel, and the links that they are given.
"""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.gauge import peak_memory
from node.simulation import Federation, simulated_parties
from node.study import parse_study

ROOT = Path(__file__).parents[2]
SAMPLE_SECONDS = 0.05

STUDY = """\
[study]
name = "tree"
rounds = {rounds}
seed = 1
[task]
class = "synthetic"
[task.options]
params = {params}
seconds = {seconds}
[aggregation]
max_parties = {max_parties}
tree = "{tree}"
{segment}
[deadlines]
round_seconds = 600.0
join_seconds = 120.0
"""


class InstitutionsError(WardtreeError):
    """A federation did not come to its end."""


@dataclass
class Said:
    """What the nodes told, and what they took.

    Attributes:
        events: of all nodes, in the order in which they were heard; ``time`` is the machine's clock at the node.
        peaks: the most bytes that a process of each party and room had resident; empty unless asked for.
    """

    events: list[dict[str, Any]] = field(default_factory=list)
    peaks: dict[str, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))

    def times(self, kind: str, round_: int, **fields: object) -> dict[str, float]:
        """When each party told of this in this round."""
        wanted = {"kind": kind, "round": round_, **fields}
        return {event["party"]: event["time"] for event in self.events if wanted.items() <= event.items()}


def federation_of(
    out: Path,
    parties: int,
    params: int,
    *,
    rounds: int,
    tree: str = "balanced",
    segment_ciphertexts: int | None = None,
    seconds: float = 0.0,
) -> Federation:
    """A synthetic study of this size, as every party would sign it."""
    segment = "" if segment_ciphertexts is None else f"segment_ciphertexts = {segment_ciphertexts}"
    text = STUDY.format(
        rounds=rounds, params=params, seconds=seconds, max_parties=max(64, parties), tree=tree, segment=segment
    )
    tables, key_holder = simulated_parties(parties, {})
    return Federation(text, parse_study(text, "the study of the benchmark"), tables, key_holder, out)


def run_nodes(
    federation: Federation,
    passphrases: Mapping[str, str],
    timeout: float,
    *,
    before: Mapping[str, Sequence[str]] | None = None,
    memory: bool = False,
) -> Said:
    """Start ``wardtree node`` for every home, and listen until all have ended.

    Args:
        before: for each party what stands before its command, ``ip netns exec NAME`` say.
        memory: watch how much memory each process takes; this costs some percent of a core.

    Raises:
        InstitutionsError: a node failed, or not all of them ended within ``timeout`` seconds.
    """
    processes: dict[str, subprocess.Popen[bytes]] = {}
    selector = selectors.DefaultSelector()
    said, open_lines = Said(), dict.fromkeys(federation.names, b"")
    deadline = time.monotonic() + timeout
    try:
        for name in federation.names:
            processes[name] = _start(federation.home(name), passphrases[name], (before or {}).get(name, ()))
            output = processes[name].stdout
            assert output is not None
            os.set_blocking(output.fileno(), False)
            selector.register(output, selectors.EVENT_READ, name)
        while selector.get_map():
            if time.monotonic() > deadline:
                raise InstitutionsError(f"{len(selector.get_map())} nodes did not end within {timeout:.0f} s")
            for key, _ in selector.select(SAMPLE_SECONDS if memory else 1.0):
                if not _take(key.fd, key.data, open_lines, said):
                    selector.unregister(key.fileobj)
                    _ended(key.data, processes[key.data].wait(10), said)
            if memory:
                for name, process in processes.items():
                    _watch(process.pid, said.peaks[name])
        return said
    finally:
        selector.close()
        for process in processes.values():
            process.kill()
            process.wait()


def _ended(name: str, code: int, said: Said) -> None:
    """Raises InstitutionsError unless the node came to its end."""
    reasons = [event["error"] for event in said.events if event["party"] == name and event["kind"] == "stopped"]
    if code:
        raise InstitutionsError(f"{name} failed: {reasons[0] if reasons else 'see its message above'}")


def _start(home: Path, passphrase: str, before: Sequence[str]) -> subprocess.Popen[bytes]:
    read, write = os.pipe()
    os.write(write, passphrase.encode() + b"\n")
    os.close(write)
    program = [sys.executable, "-m", "node", "node", "--home", str(home), "--json", "--passphrase-fd", str(read)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        return subprocess.Popen(
            [*before, *program], pass_fds=[read], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, env=environment
        )
    finally:
        os.close(read)


def _take(output: int, name: str, open_lines: dict[str, bytes], said: Said) -> bool:
    """Read what a node said; False when it will say nothing more."""
    data = os.read(output, 1 << 20)
    *lines, open_lines[name] = (open_lines[name] + data).split(b"\n")
    said.events += [json.loads(line) for line in lines]
    return bool(data)


def _watch(process: int, peaks: dict[str, int]) -> None:
    """Note the peaks of a process and of all below it, under the first word of their names: their rooms."""
    try:
        name = Path(f"/proc/{process}/comm").read_text().strip()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return  # it is gone
    room = name if name == "keyroom child" else name.split()[0]
    peaks[room] = max(peaks.get(room, 0), peak_memory(process))
    for child in children:
        _watch(int(child), peaks)
