"""``report.html``: the report of a local run as one file that needs nothing else, not even a network.

The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.record import STAGES
from node.report import (
    FIGURES,
    LINKS,
    MODELS,
    Report,
    best,
    evaluation_names,
    figure,
    human_bytes,
    node_rows,
    privacy_lines,
    together,
    verdict,
)
from node.report_pictures import learning_curves, stage_bars, tree_picture

_UNITS = {
    "hospital": "Epsilon compares with a run in which one hospital's updates were all zero; two runs that differ by a "
    "patient are two such steps apart. It counts the noise that the quorum guarantees.",
    "record": "Epsilon is about one patient of the hospital that it is given for; a patient of two hospitals has spent "
    "at both.",
}

PURPOSES = {STATISTICS: "statistics", TRAIN: "training", EVALUATE: "evaluation", ENERGIES: "norms of blocks"}


def render(report: Report) -> str:
    """The page for what ``node.report.build`` gave; all of the report's text is escaped."""
    sections = [
        _summary(report),
        _models(report),
        _evaluations(report),
        _tree(report),
        _cost(report),
        _rounds(report),
        _trouble(report),
        _promises(report),
    ]
    title = f"wardtree: {report['study']}"
    return _PAGE.format(title=escape(title), style=_STYLE, body="\n".join(filter(None, sections)))


# ---- sections -------------------------------------------------------------------------------------------


def _summary(report: Report) -> str:
    exact = {True: "yes, every one", False: "NO", None: "not checked"}[report["sums_exact"]]
    facts = {
        "parties": report["parties"],
        "rounds": f"{report['rounds']} of {report['rounds_asked']}",
        "parameters": f"{report['parameters']:,}",
        "key holder": report["key_holder"],
        "models identical": "yes" if report["models_identical"] else "NO",
        "sums exact": exact,
        "task": report["task"],
        "seed": report["seed"],
        "seconds": f"{report['seconds']:.1f}",
        "wardtree": report["wardtree"],
    }
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts.items())
    debug = "".join(f'<p class="debug"><strong>A debug mode was on.</strong> {_text(d)}</p>' for d in report["debug"])
    return (
        f"<header><p>wardtree, a run on one machine</p><h1>{_text(report['study'])}</h1>"
        f'<p class="verdict {"ok" if report["ok"] else "bad"}">{_text(verdict(report))}</p></header>'
        f"<dl>{listed}</dl>{debug}{_list([*privacy_lines(report), *report['notes']])}"
    )


def _models(report: Report) -> str:
    results = report["results"]
    if "hospitals" not in results:
        return ""
    parts = [
        "<p><strong>Local only</strong>: a hospital trains on its own patients. <strong>Federated</strong>: what "
        "this run made; nobody saw another's patients or updates. <strong>Pooled</strong>: trained on all "
        "patients in one place, which is never allowed in life: it is here to show what federation costs. "
        "The best of three is in bold.</p>"
    ]
    if results.get("curves"):
        parts.append(learning_curves(results["curves"]))
    rows = [[name, *(_figures(figures))] for name, figures in together(results)]
    parts.append(_table("All hospitals' held-out patients together", ["model", *FIGURES.values()], rows))
    rows = []
    for name, models in results["hospitals"].items():
        own = models["own_patients"]
        tops = [best([own[model].get(key) for model in MODELS]) for key in FIGURES]
        for line, (model, called) in enumerate(MODELS.items()):
            shown = [_Bold(f) if top[line] else f for f, top in zip(_figures(own[model]), tops, strict=True)]
            rows.append([_patients(name, own["local"]), called, *shown])
    headers = ["hospital", "model", *FIGURES.values()]
    caption = "Each hospital on its own held-out patients"
    parts.append(_table(caption, headers, rows, text_columns=2, group=len(MODELS)))
    return _section("What federation was worth", parts)


def _patients(name: str, figures: Mapping[str, float]) -> str:
    known = [f"{figures['n']:.0f} patients"] if "n" in figures else []
    known += [f"{figures['prevalence']:.0%} ill"] if "prevalence" in figures else []
    return f"{name} ({', '.join(known)})" if known else name


def _tree(report: Report) -> str:
    saw = [
        f"<div><dt>{escape(role)}</dt><dd>{' '.join(map(_text, sentences))}</dd></div>"
        for role, sentences in report["saw"].items()
    ]
    return _section(
        "The tree, and what each role saw",
        [
            "<p>Encrypted updates are added on their way up. The key holder stands outside the tree and has one "
            "neighbour, the apex: all that reaches it is the sum over the others.</p>",
            tree_picture(report),
            "<p>Counted from every node's log of the ciphertexts that reached it:</p>",
            f'<dl class="saw">{"".join(saw)}</dl>',
        ],
    )


def _cost(report: Report) -> str:
    seconds = node_rows(report, report["stages"])
    links = node_rows(report, report["bytes"])
    parts = []
    if any(stages for _, _, stages in seconds):
        parts.append(stage_bars(seconds))
        rows = [
            [who, role, *(f"{stages[stage]:.3f}" if stage in stages else "–" for stage in STAGES)]
            for who, role, stages in seconds
        ]
        parts.append(_table("Seconds per stage, all rounds", ["node", "role", *STAGES], rows, text_columns=2))
    if links:
        rows = [[who, role, *(human_bytes(sent.get(link, 0)) for link in LINKS)] for who, role, sent in links]
        headers = ["node", "role", *(link.replace("_", " ") for link in LINKS)]
        parts.append(_table("Bytes over each node's links, with all framing", headers, rows, text_columns=2))
    return _section("Time and traffic", parts) if parts else ""


def _rounds(report: Report) -> str:
    everyone = report["parties"]
    rows = [
        [
            entry["round"],
            PURPOSES[entry["purpose"]],
            f"all {everyone}" if not entry["left_out"] else ", ".join(entry["contributors"]),
            ", ".join(entry["left_out"]) or "nobody",
            entry["segments"],
            f"{entry['seconds']:.2f}",
        ]
        for entry in report["rounds_detail"]
    ]
    headers = ["round", "purpose", "contributors", "left out", "segments", "seconds"]
    return _section("Rounds", [_table("Every round that was closed", headers, rows, text_columns=4)]) if rows else ""


def _evaluations(report: Report) -> str:
    names = evaluation_names(report)
    rows = [[entry["trained"], *(figure(entry[name]) for name in names)] for entry in report["evaluations"]]
    text = (
        "<p>Counts of each hospital's held-out patients, added up encrypted like an update: only their sum was opened. "
        "The AUC is that of the summed histograms of scores, and at most its error away from the AUC of the scores.</p>"
    )
    headers = ["after round", *(name.replace("_", " ") for name in names)]
    table = _table("The model on all held-out patients, as all together counted", headers, rows)
    return _section("Federated evaluation", [text, table]) if rows else ""


def _trouble(report: Report) -> str:
    parts = []
    if report["errors"]:
        parts.append(_table("Nodes that failed", ["node", "why"], report["errors"].items(), text_columns=2))
    if report["warnings"]:
        parts.append(f"<h3>Warnings</h3>{_list(report['warnings'])}")
    if report["dropped"]:
        keys = ["who", "expected", "came", "count"]
        rows = [[each[key] for key in keys] for each in report["dropped"]]
        caption = "Messages and handshakes that a node refused, and did not act on"
        parts.append(_table(caption, ["from", *keys[1:]], rows, text_columns=3))
    return _section("Failures, warnings and refusals", parts) if parts else ""


def _promises(report: Report) -> str:
    limits = [
        "The key holder is trusted to follow the protocol. Together with the parent of a leaf it can open that "
        "leaf's update; a key holder that cheats is outside what this protects from.",
        "What a hospital's own administrator, its snapshots or its swap space can see is that hospital's affair.",
        "This run had every hospital's data on one machine, in order to compare. A real federation never does.",
    ]
    if unit := _UNITS.get(report["privacy"]):
        limits.insert(1, unit)
    else:
        limits.insert(
            1,
            "No noise was added (privacy mode none): the sums and the final model are exact, and can say "
            "something about the patients they were learnt from.",
        )
    more = "<p>The whole list is in the README, under what is and is not promised.</p>"
    return _section("What is not promised", [_list(limits), more])


# ---- pieces of a page -----------------------------------------------------------------------------------


class _Bold(str):
    """A cell in bold."""


def _text(value: object) -> str:
    return escape(str(value))


def _figures(figures: Mapping[str, float]) -> list[str]:
    return [figure(figures.get(key)) for key in FIGURES]


def _section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _list(items: Iterable[str]) -> str:
    listed = "".join(f"<li>{_text(item)}</li>" for item in items)
    return f"<ul>{listed}</ul>" if listed else ""


def _table(
    caption: str,
    headers: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    text_columns: int = 1,
    group: int = 1,
) -> str:
    """A table whose first cells are row headers, each over ``group`` rows; columns after the text hold numbers."""
    head = "".join(f'<th scope="col"{_align(i, text_columns)}>{_text(name)}</th>' for i, name in enumerate(headers))
    body = []
    for index, row in enumerate(rows):
        first = f'<th scope="row" rowspan="{group}">{_text(row[0])}</th>' if index % group == 0 else ""
        cells = "".join(_cell(cell, _align(i, text_columns)) for i, cell in enumerate(row[1:], 1))
        body.append(f"<tr{' class=first' if first else ''}>{first}{cells}</tr>")
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table>'
        f"<caption>{_text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _align(column: int, text_columns: int) -> str:
    return "" if column < text_columns else ' class="number"'


def _cell(value: object, align: str) -> str:
    return f"<td{align}>{f'<b>{_text(value)}</b>' if isinstance(value, _Bold) else _text(value)}</td>"


# ---- the page -------------------------------------------------------------------------------------------

_STYLE = """\
:root { color-scheme: light dark; --paper: #ffffff; --ink: #1b2126; --soft: #66717b; --line: #d7dce0;
  --tint: #f3f6f8; --good: #17693c; --bad: #b3261e; --series1: #2667a8; --series2: #c46a00; --series3: #1c8465; 
  --series4: #a0407f; --series5: #7a7f87; }
@media (prefers-color-scheme: dark) { :root { --paper: #14181b; --ink: #e4e8eb; --soft: #98a3ac; --line: #353d43;
  --tint: #1e2428; --good: #6fd39b; --bad: #ff9c92; --series1: #71ace8; --series2: #f0a94d; --series3: #55c7a2;
  --series4: #e08ac0; --series5: #a9b0b8; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.25rem 1rem 3rem; max-width: 60rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
header p { margin: 0; color: var(--soft); }
h1 { margin: 0 0 .5rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); font-size: 1.25rem; }
h3, caption { margin: 1rem 0 .25rem; font-size: 1rem; font-weight: 600; text-align: left; }
header .verdict { padding: .6rem .8rem; border-left: .3rem solid; background: var(--tint); font-weight: 600; }
.verdict.ok { color: var(--good); }
.verdict.bad { color: var(--bad); }
.debug { padding: .6rem .8rem; border: 1px solid var(--series2); font-size: .9rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); gap: .5rem 1rem; margin: 1rem 0; }
dl.saw { grid-template-columns: 1fr; }
dt { color: var(--soft); font-size: .85rem; }
dd { margin: 0; }
ul { padding-left: 1.2rem; }
li { margin: .3rem 0; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; font-weight: 400; }
thead th { color: var(--soft); border-bottom: 1px solid var(--soft); }
tr.first > * { border-top: 1px solid var(--line); }
th[scope="row"] { min-width: 6.5rem; }
td.number { white-space: nowrap; }
.number { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .85rem; max-width: 36rem; }
svg { display: block; width: 100%; height: auto; }
svg text { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; }
"""

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
