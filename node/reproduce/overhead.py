"""The paper's formula for what encryption adds to a round, against rounds that were measured."""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from node.address import free_ports
from node.bench.institutions import federation_of
from node.channel import Channel
from node.pages import picture, table
from node.process import end_all, spawn
from node.reproduce import heap, ours, timings
from node.reproduce.approximate import OURS, SCHEMES, SETTINGS
from node.reproduce.output import Results, Row
from node.simulation import in_process
from node.tasks.base import Setup, Task
from node.tasks.synthetic import SyntheticTask

PARTIES = (4, 8, 16)
PARAMS = (3_591, 100_000)
QUICK_PARAMS = (3_591,)
CONSTANTS = ("encrypt_s", "add_s", "decrypt_s", "send_s")


def run(results: Results, rounds: int, params: Sequence[int], parties: Sequence[int] = PARTIES) -> None:
    """Measure the constants, then whole rounds, and write everything."""
    results.measure(list(_plan(rounds, params, parties)))


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(rounds: int, params: Sequence[int], parties: Sequence[int]) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for size in params:
        for scheme in SCHEMES:
            yield {"params": size, "scheme": scheme, "parties": 0}, partial(constants, size, scheme)
            for count in parties:
                key = {"params": size, "scheme": scheme, "parties": count}
                yield key, partial(whole_round, size, scheme, count, rounds)


def constants(params: int, scheme: str, repeats: int = 9) -> Row:
    """The formula's constants, each alone on this machine: wall seconds, medians."""
    cell = timings.cell(params, scheme, repeats)
    names = {"encrypt_s", "add_s", "decrypt_s", "bytes"}
    return {name: cell[name] for name in names} | {"send_s": in_process(_send, int(cell["bytes"]), repeats)}


def _send(size: int, repeats: int) -> float:
    """Seconds of one message of ``size`` bytes between two processes over ZeroMQ on this machine."""
    ours_, theirs = Channel.pair()
    (port,) = free_ports(1)
    child = spawn(signal.SIGKILL, _echo, ours_, theirs, port)
    theirs.close()
    try:
        with zmq.Context() as context, context.socket(zmq.PAIR) as end:
            end.setsockopt(zmq.RCVTIMEO, heap.PATIENCE_MS)
            end.bind(f"tcp://127.0.0.1:{port}")
            message, seconds = os.urandom(size), []
            for _ in range(repeats + 1):
                began = time.perf_counter()
                end.send(message)
                end.recv()
                seconds.append((time.perf_counter() - began) / 2)
            end.send(b"")
            return statistics.median(seconds[1:])
    finally:
        ours_.close()
        end_all({"echo": child})


def _echo(ours_: Channel, theirs: Channel, port: int) -> None:
    ours_.close()
    with zmq.Context() as context, context.socket(zmq.PAIR) as end:
        end.setsockopt(zmq.RCVTIMEO, heap.PATIENCE_MS)
        end.connect(f"tcp://127.0.0.1:{port}")
        while message := end.recv():
            end.send(message)


def whole_round(params: int, scheme: str, parties: int, rounds: int) -> Row:
    """Median seconds of a round without training, the first round left out, and its levels."""
    if scheme == OURS:
        seconds, levels = ours.timed(partial(federation_of, parties=parties, params=params, rounds=rounds + 1))
    else:
        done = heap.run(parties, partial(_task, params), SETTINGS[scheme], rounds + 1, rounds + 1)
        seconds, levels = done.seconds, heap.levels_of(parties)
    return {"levels": levels, "rounds": rounds, "round_s": statistics.median(seconds[1:])}


def _task(params: int, party: int) -> Task:
    return SyntheticTask(Setup(str(party), {"params": params, "scale": 0.05}, {}, 1, Path()))


def formula(row: Row, levels: int) -> float:
    """The paper's: every party on a machine of its own."""
    return float(row["encrypt_s"] + row["decrypt_s"] + (row["add_s"] + row["send_s"]) * levels)


def on_cores(row: Row, levels: int, parties: int, cores: int) -> float:
    """The same work on so few cores: all encryptions, additions and messages of a round share them."""
    work = parties * row["encrypt_s"] + (parties - 1) * (row["add_s"] + row["send_s"])
    return max(formula(row, levels), float(work / cores + row["decrypt_s"]))


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# The total overhead: the paper's formula against measured rounds

The paper says that encryption adds τ_tot = (τ_enc + τ_dec) + (τ_add + τ_com) · log₂ n to a round of n parties. Here
its constants are measured, each alone on this machine, and whole rounds without training beside: real processes and
sockets, from the root's start until every party has the new model, medians of {rounds} rounds.

- **plain** and the paper's CKKS: the paper's tree over ZeroMQ (`node/reproduce/heap.py`);
- **wardtree**: `wardtree local`: signatures, CURVE, ledgers on disk, a forked enclave a party and round.

The formula gives every party a machine of its own. All n share {cores} cores here, so a third column shares out the
same work: (n · τ_enc + (n − 1) · (τ_add + τ_com)) / {cores} + τ_dec, where that is more.

![Measured rounds, the formula, and the formula on these cores](overhead.svg)
"""

NOTES = """\
## What differs, and why

- These are wall times, and other programs ran on the machine meanwhile: single figures move by half from run to run.
- The formula counts the way up only: the new model's way down the tree, and what a process costs to be woken, are in
  the measured rounds. For plain sums they are all there is.
- A parent adds two children one after the other; the formula counts one addition a level.
- wardtree's rounds cost more than its encryption: fork, signatures and the ledger's fsync are most of a round of so
  small an update. Its zeros are encrypted ahead while a model trains; here nothing trains, so they are in the rounds
  as well, and not in τ_enc. Larger updates go up in segments and do not follow the formula: see [tree.md](tree.md).
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    rounds = max((row["rounds"] for row in results.rows if row["parties"]), default=0)
    parts = [INTRODUCTION.format(rounds=rounds, cores=os.cpu_count() or 1)]
    for params in sorted({row["params"] for row in results.rows}):
        parts.append(f"## {params:,} parameters\n\n{_constants(results, params)}\n{_rounds(results, params)}")
    parts += [NOTES, results.foot()]
    return "\n".join(parts)


def _constants(results: Results, params: int) -> str:
    rows = [row for name in SCHEMES if (row := results.find(params=params, scheme=name, parties=0))]
    head = ("constants, ms", "τ_enc", "τ_add", "τ_dec", "τ_com", "message, kB")
    body = [
        (row["scheme"], *(f"{1e3 * row[name]:.3f}" for name in CONSTANTS), f"{row['bytes'] / 1e3:.1f}") for row in rows
    ]
    return table(head, body)


def _rounds(results: Results, params: int) -> str:
    head = (
        "scheme",
        "parties",
        "levels",
        "measured, ms",
        "formula, ms",
        "on these cores, ms",
        "measured / on these cores",
    )
    body = [
        (
            row["scheme"],
            row["parties"],
            row["levels"],
            *(f"{1e3 * value:.1f}" for value in three),
            f"{three[0] / three[2]:.1f}",
        )
        for row, three in _predicted(results, params)
    ]
    return table(head, body)


def _predicted(results: Results, params: int) -> Iterator[tuple[Row, tuple[float, float, float]]]:
    """Each round with its time: measured, by the formula, by the formula on these cores."""
    cores = os.cpu_count() or 1
    for scheme in SCHEMES:
        constant = results.find(params=params, scheme=scheme, parties=0)
        for parties in sorted({row["parties"] for row in results.rows} - {0}):
            row = results.find(params=params, scheme=scheme, parties=parties)
            if row and constant:
                predicted = formula(constant, row["levels"]), on_cores(constant, row["levels"], parties, cores)
                yield row, (row["round_s"], *predicted)


def draw(results: Results, file: Path) -> None:
    """The picture: for each size, measured rounds as dots, the formula dashed, on these cores a line."""
    sizes = sorted({row["params"] for row in results.rows})
    with picture(file, (4.6 * max(len(sizes), 1), 3.8)) as figure:
        panels: Any = figure.subplots(1, max(len(sizes), 1), squeeze=False)[0]
        for axes, params in zip(panels, sizes, strict=False):
            for number, scheme in enumerate(SCHEMES):
                found = [
                    (row["parties"], three) for row, three in _predicted(results, params) if row["scheme"] == scheme
                ]
                if found:
                    places, colour = [parties for parties, _ in found], f"C{number}"
                    axes.plot(places, [three[0] for _, three in found], "o", color=colour, label=scheme)
                    axes.plot(places, [three[1] for _, three in found], "--", color=colour, alpha=0.5)
                    axes.plot(places, [three[2] for _, three in found], "-", color=colour)
            axes.set(title=f"{params:,} parameters", xlabel="parties", ylabel="seconds a round", yscale="log")
            axes.set_xticks(PARTIES)
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
