"""The pictures of a local run's report, as inline SVG by matplotlib.

They are drawn in stand-in colours that become the page's own, so that they follow light and dark like the
text. The same report gives the same bytes. Sizes are in CSS pixels, made to be read on a telephone.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from node.record import STAGES
from node.report import APEX, KEY_HOLDER, LEAF, LISTED_NODES, Report, figure, roles

_INK, _SOFT, _PAPER = "#010101", "#010102", "#010103"
_SERIES = tuple(f"#01020{index}" for index, _ in enumerate(STAGES, 1))
_COLOURS = {
    _INK: "currentColor",
    _SOFT: "var(--soft)",
    _PAPER: "var(--paper)",
    **{stand_in: f"var(--series{index})" for index, stand_in in enumerate(_SERIES, 1)},
}
"""What matplotlib draws in, and what the style sheet has instead."""

_DRAWING = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _SOFT,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}

_DPI = 72
"""Of matplotlib's SVG, whatever else it is told."""

_LEAST_SPAN = 0.05
"""The axis of a curve covers at least this much AUC, or chance would look like a trend."""

_LONGEST = 15
"""Letters of a name that fit under a node of the tree; the tables have it whole."""


def _picture(name: str, alt: str, caption: str, size: tuple[float, float], draw: Callable[[Any], None]) -> str:
    """A figure with ``draw(axes)`` as inline SVG, ``size`` in CSS pixels; ``name`` keeps its ids apart."""
    import matplotlib.style
    from matplotlib.figure import Figure

    file = io.StringIO()
    with matplotlib.style.context(["default", {**_DRAWING, "svg.hashsalt": name}]):
        picture = Figure((size[0] / _DPI, size[1] / _DPI), layout="constrained")
        draw(picture.add_subplot())
        undated = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        picture.savefig(file, format="svg", transparent=True, metadata=undated)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, count=1)  # it would hold for the whole page
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # axes_1 and the like: every picture has them
    svg = re.sub(r"font-family: [^;]*; ?", "", svg)
    for stand_in, colour in _COLOURS.items():
        svg = svg.replace(stand_in, colour)
    drawing = svg[svg.index(">") + 1 :]
    return (
        f'<figure><div class="wide"><svg viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="img" '
        f'aria-label="{escape(alt)}" style="min-width:{0.8 * size[0]:.0f}px;max-width:{1.6 * size[0]:.0f}px">'
        f"{drawing}</div><figcaption>{escape(caption)}</figcaption></figure>"
    )


def learning_curves(curves: Mapping[str, Any]) -> str:
    """AUC by round of the federated, the pooled and the best local-only model; "" where there is none to draw."""
    if all(value is None for value in curves["federated"][1:]):
        return ""
    hospital = curves.get("best_local_hospital")
    lines = {
        "federated": (curves["federated"], "-", "o"),
        "pooled": (curves.get("pooled"), "--", "s"),
        f"best local only ({hospital})": (curves.get("best_local"), ":", "^"),
    }
    drawn = {label: (values[1:], line, marker) for label, (values, line, marker) in lines.items() if values}

    def draw(axes: Any) -> None:
        for colour, (label, (values, line, marker)) in zip(_SERIES, drawn.items(), strict=False):
            rounds = range(1, len(values) + 1)
            known = [math.nan if value is None else value for value in values]
            axes.plot(rounds, known, line, marker=marker, markersize=4, color=colour, label=label)
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:
            axes.set_ylim((low + high - _LEAST_SPAN) / 2, (low + high + _LEAST_SPAN) / 2)
        axes.set_xlabel("round")
        axes.set_ylabel("AUC")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color=_SOFT, alpha=0.3)
        axes.figure.legend(loc="outside lower left", fontsize=11)

    ends = ", ".join(f"{label} {figure(values[-1])}" for label, (values, *_) in drawn.items())
    return _picture(
        "curves",
        f"Learning curves, AUC by round on all held-out patients together. After the last round: {ends}.",
        "AUC on all held-out patients together, after each round. "
        f"The untrained model, with {figure(curves['federated'][0])}, is not drawn.",
        (370, 300),
        draw,
    )


def stage_bars(rows: Sequence[tuple[str, str, Mapping[str, float]]]) -> str:
    """Stacked bars of ``node.report.node_rows``: seconds per stage and node."""
    names = [who if role == LEAF and "mean" not in who else f"{who}\n{role}" for who, role, _ in rows]

    def draw(axes: Any) -> None:
        left = [0.0] * len(rows)
        for colour, stage in zip(_SERIES, STAGES, strict=True):
            widths = [stages.get(stage, 0.0) for _, _, stages in rows]
            axes.barh(range(len(rows)), widths, 0.6, left, color=colour, edgecolor=_PAPER, label=stage)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(rows)), names, fontsize=11)
        axes.invert_yaxis()
        axes.set_xlabel("seconds, all rounds")
        axes.figure.legend(loc="outside lower left", ncols=3, fontsize=11)

    sums = ", ".join(f"{who} ({role}) {sum(stages.values()):.2f} s" for who, role, stages in rows)
    return _picture(
        "stages",
        f"Bars of the seconds that each node spent in each stage. Altogether: {sums}.",
        "Seconds in each stage, over all rounds; waiting for others is not counted.",
        (370, 120 + 36 * len(rows)),
        draw,
    )


def tree_picture(report: Report) -> str:
    """The tree lying down: the key holder at the left, the leaves at the right."""
    parent: Mapping[str, str] = report["tree"]["parent"]
    role_of = {name: role for role, names in roles(report).items() for name in names}
    named = report["parties"] <= LISTED_NODES
    places = _places(report["tree"])
    depth = max(x for x, _ in places.values())
    rows = 1 + max(y for _, y in places.values())
    markers = {KEY_HOLDER: "s", APEX: "D"}

    def draw(axes: Any) -> None:
        for child, above in parent.items():
            (x, y), (to_x, to_y) = places[child], places[above]
            arrow = {"arrowstyle": "-|>", "color": _SOFT, "shrinkA": 7, "shrinkB": 7}
            axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
        for name, (x, y) in places.items():
            role = role_of[name]
            colour = {KEY_HOLDER: _SERIES[1], APEX: _SERIES[3]}.get(role, _SERIES[0])
            axes.plot([x], [y], markers.get(role, "o"), markersize=9 if named else 6, color=colour, clip_on=False)
            special = f"{role}\n" if role in markers else ""
            if named or special:
                label = special + (name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…")
                axes.annotate(label, (x, y), (0, -8), textcoords="offset points", ha="center", va="top", fontsize=11)
        axes.axvline(0.5, color=_INK, linestyle=":", linewidth=1)
        axes.set_xlim(-0.5, depth + 0.5)
        axes.set_ylim(rows - 0.3, -0.5)
        axes.axis("off")

    apex, holder = report["tree"]["apex"], report["tree"]["key_holder"]
    shown = [f"{child} to {above}" for child, above in sorted(parent.items())] if named else []
    alt = f"The tree of {report['parties']} parties: key holder {holder} outside it, {apex} at its top. "
    return _picture(
        "tree",
        alt + (f"Ciphertexts go from {', from '.join(shown)}." if shown else ""),
        "Arrows: ciphertexts going up. The secret key is left of the dotted line; only the apex's sums get there.",
        (max(370, 96 * (depth + 1)), max(150, (62 if named else 16) * rows + 30)),
        draw,
    )


def _places(tree: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """(depth, height) of every party: leaves one below the other, everyone else in the middle of its children."""
    children: dict[str, list[str]] = {}
    for child, above in sorted(tree["parent"].items()):
        children.setdefault(above, []).append(child)
    places: dict[str, tuple[float, float]] = {}
    rows = iter(range(len(tree["parent"]) + 1))

    def put(name: str, depth: int) -> float:
        below = [put(child, depth + 1) for child in children.get(name, ())]
        y = sum(below) / len(below) if below else float(next(rows))
        places[name] = (depth, y)
        return y

    put(tree["key_holder"], 0)
    return places
