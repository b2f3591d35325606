"""The picture of ``scripts/reproduce medhe``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.pages import picture
from node.reproduce import medhe
from node.reproduce import medhe_wire as wire
from node.reproduce.medhe import DENSE, SCHEDULES, SETS
from node.reproduce.medhe_page import ablated_of, compared_of, pairs_of, sizes_of, wires_of
from node.reproduce.output import Results, spread


def draw(results: Results, file: Path) -> None:
    """The picture: bytes of a round by kind; differences with their intervals and the margin; ablations."""
    with picture(file, (12, 4.5)) as figure:
        panels: Any = figure.subplots(1, 3)
        _draw_bytes(results, panels[0])
        _draw_differences(results, panels[1])
        _draw_ablations(results, panels[2])


def _draw_bytes(results: Results, axes: Any) -> None:
    params = max(sizes_of(results), default=0)
    rows = wires_of(results, params)
    kinds = [kind for kind in (wire.COMMON, *wire.KINDS) if kind in rows]
    labels = ["common CKKS, dense" if kind == wire.COMMON else kind for kind in kinds]
    colours = ["#8a8a8a" if kind == wire.COMMON else "C0" for kind in kinds]
    axes.barh(labels, [rows[kind]["apex"] / 1e6 for kind in kinds], color=colours)
    if kinds:
        axes.set_xscale("log")
        axes.set_xlim(left=1)
    axes.invert_yaxis()
    axes.set(xlabel="MB of one party's update", title=f"{params:,} parameters")


def _draw_differences(results: Results, axes: Any) -> None:
    labels: list[str] = []
    for name, schedule, dense, sparse, count in pairs_of(results):
        if compared := compared_of(dense, sparse, count):
            wide = [[compared.difference - compared.low], [compared.high - compared.difference]]
            place = len(labels)
            axes.errorbar(
                [compared.difference], [place], xerr=wide, fmt="o", capsize=3, color=f"C{SCHEDULES.index(schedule)}"
            )
            labels.append(f"{name}, {dense['rounds']} rounds")
    axes.axvspan(-medhe.MARGIN, medhe.MARGIN, color="#8a8a8a", alpha=0.2)
    axes.axvline(0, color="#8a8a8a")
    axes.set_xscale("symlog", linthresh=2)
    marks = (-30, -10, -3, -1, 0, 1, 3)
    axes.set_xticks(marks, [f"{mark:+d}" if mark else "0" for mark in marks])
    axes.minorticks_off()
    axes.set(yticks=range(len(labels)), xlabel="sparse less dense, points (90 %)", title="accuracy")
    axes.set_yticklabels(labels)
    axes.invert_yaxis()


def _draw_ablations(results: Results, axes: Any) -> None:
    ablated = {name: found for name in SETS if (found := ablated_of(results, name))}
    measured = {arm for found in ablated.values() for arm, _, _ in found}
    every = [arm for arm in (DENSE, *medhe.ABLATIONS) if arm in measured]
    for number, (name, found) in enumerate(ablated.items()):
        means = [spread(row["accuracy"]) for _, row, _ in found]
        arms = [arm for arm, _, _ in found]
        places = [every.index(arm) + 0.2 * number for arm in arms]
        axes.errorbar(
            [mean for mean, _ in means], places, xerr=[each for _, each in means], fmt="o", capsize=2, label=name
        )
    axes.set(yticks=range(len(every)), xlabel="accuracy, %", title="ablations")
    axes.set_yticklabels(every)
    axes.invert_yaxis()
    if ablated:
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15))
