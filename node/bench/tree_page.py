"""The page and the picture of the tree's measurements, from the figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from keys.planner import choose
from node.bench.tree_law import PAPER, PIPELINE, Fit, Law, fit, levels_of
from node.pages import picture, table

Report = Mapping[str, Any]
Row = Mapping[str, Any]

MODEL_AND_TOTAL = 8
"""Bytes per parameter that any relay holds: the model and the staged total."""

INNER_RELAY = "relay of the inner node"
PREDICTED = (1_000, 10_000)
PREDICTED_PARAMS = (1_000_000, 11_511_784)
VALUE_BITS = 14

INTRODUCTION = """\
# What a round costs in the tree

Made by `scripts/bench_tree`; the figures are in [tree.json](tree.json). Machine: {machine}. All nodes run on it, so a
federation of a hundred shares these cores: on as many machines the same work is spread out. While nothing of ours
ran, other work took {busy} of the cores before a measurement.

![Round time against nodes and depth, memory, and the two laws](tree.svg)
"""

LOOPBACK = """\
## Loopback: round time and bytes against the number of nodes

`wardtree local` with the synthetic task: real processes, real sockets, no training; no sum check. A round lasts from
the key holder's opening until the last node has applied the total. Medians of the rounds after the first. Bytes: all
messages of all nodes in a round, the joining and the end of the study shared out. Memory: {how}.

"""

LINKS = """\
## Shaped links: round time against depth

`wardtree node` for each institution, from a real ceremony, each in a network namespace of its own. One veth pair an
edge of the tree, a token bucket on either end: each link takes so much each way, and a parent of two has two links.
{delay}

"Ready before the clock starts": trainings sleep {sleep:.0f} s, while zeros are encrypted, as they are while a model
trains. The clock runs from the first enclave that has its integers, none of them encrypted yet, until the last node
has applied the closed round. So encrypting the update is inside these times, the total's way back down too.

*Whole* is the same program with a plan whose segment is the whole update: each level receives all of it before it
adds and sends.

"""

MEMORY = """\
## Memory: the peak of each room against the number of parameters

`wardtree node`, {parties} parties, two rounds, loopback. VmHWM as the kernel kept it: the most that a process had
resident, shared pages and imports included. Every relay holds the model and the staged total, 4 bytes a parameter
each; the last columns are without these.

"""

LAW = """\
## The law

Fitted to the streamed rounds of the table above, relative errors, least squares: with s segments and l links from the
deepest leaf to the key holder,

- the pipeline's, tau_first + l · tau_segment + (s − 1) · tau_slowest;
- the paper's, (tau_enc + tau_dec) + (tau_add + tau_com) · l, in proportion to the update (l is log2 n in a complete
  tree).

"""

PREDICTION = """\
**Predicted, not measured:** a round in a complete tree of so many institutions on links like these, a core or more for
each of them; their plans hold larger sums, so their updates have more segments. Streamed by the pipeline's law, whole
by the paper's, each fitted to its own rounds. What grows with the number of institutions at the key holder alone (their
canaries, their names in a set) is not in it.

"""


def write_page(report: Report) -> str:
    """The page in Markdown, from what was measured."""
    rows = [row for part in ("loopback", "links", "memory") for row in report.get(part, ())]
    busy = sorted(row["busy_before"] for row in rows) or [0.0]
    parts = [INTRODUCTION.format(machine=report.get("machine", ""), busy=f"{busy[0]:.0%} to {busy[-1]:.0%}")]
    if checks := _checks(report):
        parts.append("## What was promised\n\n" + table(("", "measured", "at most", ""), checks))
    if loopback := report.get("loopback"):
        how = sorted({row["peak_how"] for row in loopback})
        parts.append(LOOPBACK.format(how=" or ".join(_HOW[each] for each in how)) + _loopback(loopback))
    if links := report.get("links"):
        slow = any(row["delay_ms"] for row in links)
        delay = "Some have a delay of 10 ms as well." if slow else "No delay was added: this kernel has no netem."
        parts.append(LINKS.format(delay=delay, sleep=report["sleep_s"]) + _links(links))
    elif report.get("links_skipped"):
        parts.append(f"## Shaped links\n\nNot measured: {report['links_skipped']}.\n")
    if memory := report.get("memory"):
        parts.append(MEMORY.format(parties=memory[0]["parties"]) + _memory(memory))
    if links and (laws := _laws(links)):
        parts.append(LAW + laws)
        parts.append(PREDICTION + _predictions(links))
    return "\n".join(parts)


_HOW = {
    "pss": "pages of all processes, common ones counted once (PSS)",
    "available": "by how much the memory that the machine had left fell",
}


def _find(rows: Sequence[Row], **wanted: object) -> Row | None:
    return next((row for row in rows if wanted.items() <= row.items()), None)


# ---- tables -----------------------------------------------------------------------------------------------


def _checks(report: Report) -> list[tuple[str, str, str, str]]:
    """Each promise, what was measured, and whether it was kept."""
    checks: list[tuple[str, float, float, str]] = []
    links, loopback = report.get("links", ()), report.get("loopback", ())
    case = {"megabits": 10.0, "params": 1_000_000, "delay_ms": 0.0, "tree": "chain"}
    reference, chain, whole = (
        _find(links, parties=parties, whole=way, **case) for parties, way in ((4, False), (12, False), (12, True))
    )
    if chain and reference:
        what = "10 Mbit/s, 1,000,000 parameters, five inner nodes in a chain: round time over the reference's"
        checks.append((what, chain["seconds"] / reference["seconds"], 1.5, ""))
    if chain and whole:
        checks.append(("the same, over whole-update forwarding's", chain["seconds"] / whole["seconds"], 1 / 2.5, ""))
    small, large = (_find(report.get("memory", ()), params=params) for params in (1_000_000, 10_000_000))
    if small and large and INNER_RELAY in small["peaks"]:
        nets = [_net(row, INNER_RELAY) for row in (small, large)]
        checks.append(
            ("inner node's relay, 10 M over 1 M parameters, model and total not counted", nets[1] / nets[0], 1.2, "")
        )
        checks.append(("the same at 10 M parameters", nets[1] / 1e6, 100, " MB"))
    for parties, limit in ((4, 0.15), (64, 1.5)):
        if row := _find(loopback, parties=parties, params=3_591):
            checks.append(
                (f"3,591 parameters, {parties} nodes, a round without training", row["median_s"], limit, " s")
            )
    return [
        (what, f"{value:.3g}{unit}", f"{limit:.3g}{unit}", "kept" if value <= limit else "**not kept**")
        for what, value, limit, unit in checks
    ]


Column = tuple[str, Callable[[Row], object]]

_LOOPBACK: tuple[Column, ...] = (
    ("parameters", lambda row: f"{row['params']:,}"),
    ("nodes", lambda row: row["parties"]),
    ("levels", lambda row: row["levels"]),
    ("round, s", lambda row: f"{row['median_s']:.3f}"),
    ("slowest, s", lambda row: f"{max(row['rounds_s']):.3f}"),
    ("first, s", lambda row: f"{row['first_s']:.3f}"),
    ("MB a round", lambda row: f"{row['bytes_per_round'] / 1e6:.2f}"),
    ("peak MB", lambda row: f"{row['peak_memory'] / 1e6:.0f}"),
    ("processes", lambda row: row["processes"]),
    ("start, s", lambda row: f"{row['ceremony_s'] + row['start_s']:.1f}"),
)

_LINKS: tuple[Column, ...] = (
    ("Mbit/s", lambda row: f"{row['megabits']:g}"),
    ("delay, ms", lambda row: f"{row['delay_ms']:g}"),
    ("tree", lambda row: row["tree"]),
    ("nodes", lambda row: row["parties"]),
    ("links to the deepest leaf", lambda row: row["levels"]),
    ("parameters", lambda row: f"{row['params']:,}"),
    ("segments", lambda row: row["segments"]),
    ("round, s", lambda row: f"{row['seconds']:.2f}"),
    ("whole: round, s", lambda row: f"{row['whole_s']:.2f}" if row["whole_s"] else "–"),
    ("whole / segments", lambda row: f"{row['whole_s'] / row['seconds']:.1f}" if row["whole_s"] else "–"),
)


def _columns(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    return table([head for head, _ in columns], [[cell(row) for _, cell in columns] for row in rows])


def _loopback(rows: Sequence[Row]) -> str:
    rows = sorted(rows, key=lambda row: (row["params"], row["parties"]))
    return _columns(_LOOPBACK, rows) + "\nStart: the ceremony of all parties, and starting all nodes.\n"


def _links(rows: Sequence[Row]) -> str:
    order = ("megabits", "delay_ms", "tree", "params", "levels")
    case = ("tree", "parties", "params", "megabits", "delay_ms")
    streamed = []
    for row in sorted(rows, key=lambda row: [row[key] for key in order]):
        if not row["whole"]:
            whole = _find(rows, whole=True, **{key: row[key] for key in case})
            streamed.append({**row, "whole_s": whole and whole["seconds"]})
    return _columns(_LINKS, streamed)


def _net(row: Row, room: str) -> int:
    """Bytes without the model and the staged total, which every relay holds."""
    peak, params = int(row["peaks"][room]), int(row["params"])
    return peak - MODEL_AND_TOTAL * params


def _memory(rows: Sequence[Row]) -> str:
    rows = sorted(rows, key=lambda row: row["params"])
    sizes = [f"{row['params']:,}" for row in rows]
    rooms = sorted({room for row in rows for room in row["peaks"]})
    head = ("MB", *sizes, *(f"{size}, without" for size in sizes))
    body = []
    for room in rooms:
        peaks = [f"{row['peaks'][room] / 1e6:.0f}" if room in row["peaks"] else "–" for row in rows]
        nets = [
            f"{_net(row, room) / 1e6:.0f}" if room in row["peaks"] and room.startswith("relay") else "" for row in rows
        ]
        body.append((room, *peaks, *nets))
    return table(head, body)


# ---- the laws ---------------------------------------------------------------------------------------------


def _samples(rows: Sequence[Row], megabits: float, whole: bool) -> list[tuple[int, int, float]]:
    """Of one rate; a whole update counts as many segments as it would have."""
    chosen = [row for row in rows if (row["megabits"], row["whole"], row["delay_ms"]) == (megabits, whole, 0.0)]
    plan = choose(64, VALUE_BITS)
    return [(row["levels"], len(plan.segments(row["params"])), row["seconds"]) for row in chosen]


def _fits(rows: Sequence[Row]) -> dict[tuple[float, bool, str], Fit]:
    """By rate, whether whole, and the law's name; none where there are too few rounds."""
    fits = {}
    for megabits in sorted({row["megabits"] for row in rows}):
        for whole, laws in ((False, (PIPELINE, PAPER)), (True, (PAPER,))):
            samples = _samples(rows, megabits, whole)
            for law in laws:
                if len(samples) > len(law.constants):
                    fits[megabits, whole, law.name] = fit(law, samples)
    return fits


def _laws(rows: Sequence[Row]) -> str:
    head = ("Mbit/s", "rounds of", "law", "constants, s", "typical error", "fitted to")
    body = []
    for (megabits, whole, _), found in _fits(rows).items():
        constants = ", ".join(
            f"{name} {value:.3f}" for name, value in zip(found.law.constants, found.seconds, strict=True)
        )
        kind = "whole updates" if whole else "segments"
        body.append((f"{megabits:g}", kind, found.law.name, constants, f"{found.error:.1%}", f"{found.samples} runs"))
    return table(head, body) if body else ""


def _predictions(rows: Sequence[Row]) -> str:
    fits = _fits(rows)
    head = ("Mbit/s", "parameters", "institutions", "levels", "segments", "streamed, s", "whole, s")
    body = []
    for megabits in sorted({key[0] for key in fits}):
        streamed, whole = fits.get((megabits, False, PIPELINE.name)), fits.get((megabits, True, PAPER.name))
        for params in PREDICTED_PARAMS:
            for parties in PREDICTED:
                size = (levels_of(parties), len(choose(parties, VALUE_BITS).segments(params)))
                body.append(
                    (
                        f"{megabits:g}",
                        f"{params:,}",
                        f"{parties:,}",
                        *size,
                        f"{streamed.predict(*size):.0f}" if streamed else "–",
                        f"{whole.predict(*size):.0f}" if whole else "–",
                    )
                )
    return table(head, body)


# ---- the picture ------------------------------------------------------------------------------------------

OURS, WHOLE, GREY = "#2f6db3", "#e0973a", "#8a8a8a"


def draw(report: Report, file: Path) -> None:
    """The picture, SVG, of what was measured: four panels."""
    with picture(file, (10, 7.5)) as figure:
        (first, second), (third, fourth) = figure.subplots(2, 2)
        _draw_loopback(first, report.get("loopback", ()))
        _draw_depth(second, report.get("links", ()))
        _draw_memory(third, report.get("memory", ()))
        _draw_laws(fourth, report.get("links", ()))
        for axes in (first, second, third, fourth):
            if axes.get_legend_handles_labels()[0]:
                axes.legend(frameon=False, fontsize=9)


def _draw_loopback(axes: Any, rows: Sequence[Row]) -> None:
    for params, colour in zip(sorted({row["params"] for row in rows}), (OURS, WHOLE, GREY), strict=False):
        mine = sorted((row["parties"], row["median_s"]) for row in rows if row["params"] == params)
        axes.plot(*zip(*mine, strict=True), marker="o", color=colour, label=f"{params:,} parameters")
    axes.set(title="One machine, loopback", xlabel="nodes", ylabel="seconds a round", xscale="log", yscale="log")


def _slowest(rows: Sequence[Row]) -> list[Row]:
    """The rounds on the slowest links, without delay."""
    rate = min((row["megabits"] for row in rows), default=0.0)
    return [row for row in rows if row["megabits"] == rate and not row["delay_ms"]]


def _draw_depth(axes: Any, rows: Sequence[Row]) -> None:
    rows = _slowest(rows)
    most = max((row["params"] for row in rows), default=0)
    for whole, colour, label in ((True, WHOLE, "whole updates"), (False, OURS, "segments")):
        shown = [row for row in rows if row["whole"] == whole and row["params"] == most]
        for tree, style, marker in (("chain", "-", "o"), ("balanced", "", "s")):
            mine = sorted((row["levels"], row["seconds"]) for row in shown if row["tree"] == tree)
            if mine:
                axes.plot(
                    *zip(*mine, strict=True), linestyle=style, marker=marker, color=colour, label=f"{label}, {tree}"
                )
    rate = f"{rows[0]['megabits']:g} Mbit/s, {most:,} parameters" if rows else "not measured"
    axes.set(
        title=f"Shaped links: {rate}", xlabel="links from the deepest leaf to the key holder", ylabel="seconds a round"
    )
    axes.set_ylim(bottom=0)


def _draw_memory(axes: Any, rows: Sequence[Row]) -> None:
    for room, colour in ((INNER_RELAY, OURS), ("relay of the leaf", GREY), ("enclave", WHOLE)):
        mine = sorted((row["params"], row["peaks"][room]) for row in rows if room in row["peaks"])
        if mine:
            axes.plot([x for x, _ in mine], [y / 1e6 for _, y in mine], marker="o", color=colour, label=room)
        if mine and room == INNER_RELAY:
            nets = [(y - MODEL_AND_TOTAL * x) / 1e6 for x, y in mine]
            axes.plot([x for x, _ in mine], nets, "--", color=colour, label="without model and total")
    axes.set(title="Peak memory", xlabel="parameters", ylabel="MB", xscale="log")
    axes.set_ylim(bottom=0)


def _draw_laws(axes: Any, rows: Sequence[Row]) -> None:
    rows = _slowest(rows)
    fits = _fits(rows)
    laws: tuple[tuple[Law, str], ...] = ((PIPELINE, OURS), (PAPER, WHOLE))
    for law, colour in laws:
        for (megabits, whole, name), found in fits.items():
            if whole or name != law.name:
                continue
            samples = _samples(rows, megabits, False)
            predicted = [found.predict(levels, segments) for levels, segments, _ in samples]
            axes.plot([seconds for _, _, seconds in samples], predicted, "o", color=colour, label=f"the {name}'s law")
            most = 1.1 * max(max(predicted), max(seconds for _, _, seconds in samples))
            axes.plot([0, most], [0, most], color=GREY, linewidth=0.8)
    axes.set(title="The laws, fitted to rounds of segments", xlabel="measured, s", ylabel="by the law, s")
