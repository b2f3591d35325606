"""The end report in the terminal."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from node.record import STAGES
from node.report import (
    FIGURES,
    LINKS,
    LISTED_NODES,
    MODELS,
    Report,
    best,
    evaluation_names,
    figure,
    human_bytes,
    machine,
    node_rows,
    privacy_lines,
    together,
    verdict,
)


def summary_table(report: Report) -> RenderableType:
    """The end report in the terminal: the models, the seconds, the bytes, and one verdict line."""
    parts: list[RenderableType] = []
    if "hospitals" in report["results"]:
        if len(report["results"]["hospitals"]) <= LISTED_NODES:
            parts.append(_own_patients(report["results"]))
        parts.append(_all_patients(report["results"]))
    if report["evaluations"]:
        parts.append(_evaluations(report))
    parts += [Text(line) for line in privacy_lines(report)]
    parts += [_seconds(report), _traffic(report), Text(machine(report))]
    parts += [Text(f"note: {note}") for note in report["notes"]]
    if report["dropped"]:
        refused = sum(each["count"] for each in report["dropped"])
        parts.append(Text(f"note: messages and handshakes refused: {refused}; report.json says which and why"))
    parts += [Text(f"debug mode was on: {text}", "yellow") for text in report["debug"]]
    parts.append(Text(verdict(report), "bold green" if report["ok"] else "bold red"))
    return Group(*parts)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if index and column not in ("role", "model") else "left")
    return table


def _own_patients(results: Report) -> Table:
    table = _table("Each hospital on its own held-out patients", "hospital, patients", "model", *FIGURES.values())
    for name, models in results["hospitals"].items():
        own = models["own_patients"]
        tops = [best([own[model].get(key) for model in MODELS]) for key in FIGURES]
        who = f"{name}, {own['local'].get('n', 0):.0f}"
        for line, (model, called) in enumerate(MODELS.items()):
            styles = ["bold" if top[line] else "" for top in tops]
            cells = [Text(figure(own[model].get(key)), style) for key, style in zip(FIGURES, styles, strict=True)]
            table.add_row(Text("" if line else who), Text(called), *cells, end_section=model == "pooled")
    return table


def _all_patients(results: Report) -> Table:
    table = _table("All hospitals' held-out patients together", "model", *FIGURES.values())
    for name, figures in together(results):
        table.add_row(Text(name), *(Text(figure(figures.get(key))) for key in FIGURES))
    return table


def _evaluations(report: Report) -> Table:
    names = evaluation_names(report)
    title = "The model on all held-out patients, from counts that were summed encrypted"
    table = _table(title, "after round", *(name.replace("_", " ") for name in names))
    for entry in report["evaluations"]:
        table.add_row(str(entry["trained"]), *(Text(figure(entry[name])) for name in names))
    return table


def _seconds(report: Report) -> Table:
    table = _table("Seconds per stage, all rounds", "node", "role", *STAGES)
    for name, role, seconds in node_rows(report, report["stages"]):
        cells = [f"{seconds[stage]:.2f}" if stage in seconds else "–" for stage in STAGES]
        table.add_row(Text(name), Text(role), *cells)
    return table


def _traffic(report: Report) -> Table:
    table = _table("Bytes over each node's links", "node", *(link.replace("_", " ") for link in LINKS))
    for name, role, links in node_rows(report, report["bytes"]):
        who = name if report["parties"] <= LISTED_NODES else f"{name} ({role})"
        table.add_row(Text(who), *(human_bytes(links.get(link, 0)) for link in LINKS))
    return table
