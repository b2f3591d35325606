"""``report.html``: the report of a local run as one file that needs nothing else, not even a network.

The same report gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

from node.html import Bold, bullets, page, section, table, text
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
    return page(title, sections)


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
    listed = "".join(f"<div><dt>{escape(key)}</dt><dd>{text(value)}</dd></div>" for key, value in facts.items())
    debug = "".join(f'<p class="debug"><strong>A debug mode was on.</strong> {text(d)}</p>' for d in report["debug"])
    return (
        f"<header><p>wardtree, a run on one machine</p><h1>{text(report['study'])}</h1>"
        f'<p class="verdict {"ok" if report["ok"] else "bad"}">{text(verdict(report))}</p></header>'
        f"<dl>{listed}</dl>{debug}{bullets([*privacy_lines(report), *report['notes']])}"
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
    parts.append(table("All hospitals' held-out patients together", ["model", *FIGURES.values()], rows))
    rows = []
    for name, models in results["hospitals"].items():
        own = models["own_patients"]
        tops = [best([own[model].get(key) for model in MODELS]) for key in FIGURES]
        for line, (model, called) in enumerate(MODELS.items()):
            shown = [Bold(f) if top[line] else f for f, top in zip(_figures(own[model]), tops, strict=True)]
            rows.append([_patients(name, own["local"]), called, *shown])
    headers = ["hospital", "model", *FIGURES.values()]
    caption = "Each hospital on its own held-out patients"
    parts.append(table(caption, headers, rows, text_columns=2, group=len(MODELS)))
    return section("What federation was worth", parts)


def _patients(name: str, figures: Mapping[str, float]) -> str:
    known = [f"{figures['n']:.0f} patients"] if "n" in figures else []
    known += [f"{figures['prevalence']:.0%} ill"] if "prevalence" in figures else []
    return f"{name} ({', '.join(known)})" if known else name


def _tree(report: Report) -> str:
    saw = [
        f"<div><dt>{escape(role)}</dt><dd>{' '.join(map(text, sentences))}</dd></div>"
        for role, sentences in report["saw"].items()
    ]
    return section(
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
        parts.append(table("Seconds per stage, all rounds", ["node", "role", *STAGES], rows, text_columns=2))
    if links:
        rows = [[who, role, *(human_bytes(sent.get(link, 0)) for link in LINKS)] for who, role, sent in links]
        headers = ["node", "role", *(link.replace("_", " ") for link in LINKS)]
        parts.append(table("Bytes over each node's links, with all framing", headers, rows, text_columns=2))
    return section("Time and traffic", parts) if parts else ""


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
    return section("Rounds", [table("Every round that was closed", headers, rows, text_columns=4)]) if rows else ""


def _evaluations(report: Report) -> str:
    names = evaluation_names(report)
    rows = [[entry["trained"], *(figure(entry[name]) for name in names)] for entry in report["evaluations"]]
    meaning = (
        "<p>Counts of each hospital's held-out patients, added up encrypted like an update: only their sum was opened. "
        "The AUC is that of the summed histograms of scores, and at most its error away from the AUC of the scores.</p>"
    )
    headers = ["after round", *(name.replace("_", " ") for name in names)]
    shown = table("The model on all held-out patients, as all together counted", headers, rows)
    return section("Federated evaluation", [meaning, shown]) if rows else ""


def _trouble(report: Report) -> str:
    parts = []
    if report["errors"]:
        parts.append(table("Nodes that failed", ["node", "why"], report["errors"].items(), text_columns=2))
    if report["warnings"]:
        parts.append(f"<h3>Warnings</h3>{bullets(report['warnings'])}")
    if report["dropped"]:
        keys = ["who", "expected", "came", "count"]
        rows = [[each[key] for key in keys] for each in report["dropped"]]
        caption = "Messages and handshakes that a node refused, and did not act on"
        parts.append(table(caption, ["from", *keys[1:]], rows, text_columns=3))
    return section("Failures, warnings and refusals", parts) if parts else ""


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
    return section("What is not promised", [bullets(limits), more])


def _figures(figures: Mapping[str, float]) -> list[str]:
    return [figure(figures.get(key)) for key in FIGURES]
