"""What a local run showed: one plain dict, ``report.json``, and what is said of it in words.

Pure but for :func:`write`. Comparisons between hospitals exist in a local run alone, so this is no part of
what a hospital's own node does.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from keys.manifest import TWO_PARTIES
from node.protocol.messages import EVALUATE, TRAIN
from node.protocol.posture import allowed_gaps
from node.protocol.schedule import Schedule
from node.record import Record
from topology import Tree

if TYPE_CHECKING:
    from node.local import Outcome
    from node.simulation import Federation

FIGURES = {"accuracy": "accuracy", "auc": "AUC", "balanced_accuracy": "balanced accuracy"}
"""The figures of a model that are shown, in order, and what they are called."""

MODELS = {"local": "local only", "federated": "federated", "pooled": "pooled"}

KEY_HOLDER, APEX, INNER_NODE, LEAF = "key holder", "apex", "inner node", "leaf"

LINKS = ("to_parent", "from_parent", "to_children", "from_children")

LISTED_NODES = 16
"""Up to so many nodes are shown one by one; of more, each role's mean."""

Report = Mapping[str, Any]


# ---- building -------------------------------------------------------------------------------------------


def build(federation: Federation, outcome: Outcome, comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Everything a local run showed, JSON-able.

    Args:
        federation: what was run.
        outcome: how it ended; a run that failed half-way is reported as far as it got.
        comparison: what ``node.compare.compare`` gave, or {}.

    Returns:
        "ok" (every node ended with 0, all models are identical, no sum was wrong); "rounds" completed and
        "rounds_asked" (training rounds); "privacy_spent": by whom, with each round's epsilon; "sums_exact", None when
        the debug check was off; "rounds_detail" and "stages" in seconds; "evaluations" by all together; "bytes" per
        party and link; "saw": what each role
        received, in sentences with counts; "results": the comparison; and what the run was (study, parties, tree, ...).
    """
    study, record, tree = federation.study, outcome.record, outcome.tree
    checked = study.debug.check_sums
    errors = _errors(outcome)
    rounds = _rounds(record, tree, study.schedule)
    evaluations = _evaluations(record, study.schedule)
    spent = _spent(record)
    stopped = study.evaluation.stop_after > 0 and rounds and rounds[-1]["purpose"] == EVALUATE
    stopped = stopped or any(each["unit"] == "hospital" and each["spent"] for each in spent.values())
    trained = sum(entry["purpose"] == TRAIN for entry in rounds)
    identical, exact = record.models_identical, record.sums_exact() if checked else None
    report: dict[str, Any] = {
        "wardtree": _version(),
        "study": study.name,
        "task": study.task.class_name,
        "seed": study.seed,
        "privacy": study.privacy.mode,
        "privacy_spent": spent,
        "parties": len(record.parties),
        "parameters": record.parameters,
        "rounds": trained,
        "rounds_asked": study.rounds,
        "key_holder": tree.key_holder,
        "ok": not errors and identical and exact is not False and (trained == study.rounds or stopped),
        "models_identical": identical,
        "sums_exact": exact,
        "debug": [_DEBUG[name] for name in study.debug.names],
        "errors": errors,
        "warnings": list(record.warnings),
        "dropped": _dropped(record),
        "tree": {"key_holder": tree.key_holder, "apex": tree.apex, "parent": dict(tree.parent)},
        "rounds_detail": rounds,
        "evaluations": evaluations,
        "stages": {name: dict(record.stages.get(name, {})) for name in record.parties},
        "usage": {name: dict(record.usage[name]) for name in record.parties if name in record.usage},
        "bytes": {name: dict(record.traffic[name]) for name in record.parties if name in record.traffic},
        "saw": _saw(record, tree, rounds),
        "results": comparison,
        "notes": [*comparison.get("notes", ()), *_small_sets(rounds), *allowed_gaps(record.postures)],
        "sandbox": dict(sorted(record.postures.items())),
        "seconds": outcome.seconds,
        "seconds_before": {"ceremony": outcome.ceremony_seconds, "start": outcome.start_seconds},
        "peak": asdict(outcome.peak) if outcome.peak else None,
        "places": {name: asdict(place) for name, place in sorted(outcome.places.items())},
    }
    plain: dict[str, Any] = _plain(report)
    return plain


_CHECK_SUMS = (
    "check-sums: each enclave reported <r, q> mod 2^61-1 of its integers q, for a random r that the launcher drew "
    "for each round, and the launcher compared the sum with <r, total>. Such a figure says something about an "
    "update: this mode exists in local runs and tests only, and only where the manifest allows it by name."
)

_TWO_PARTIES = (
    "two-parties: an experiment with public data. Of two parties each learns the other's update by subtraction, so "
    "nobody is hidden from anybody."
)
_DEBUG = {"check-sums": _CHECK_SUMS, TWO_PARTIES: _TWO_PARTIES}


def _version() -> str:
    try:
        return version("wardtree")
    except PackageNotFoundError:
        return "not installed"


def _errors(outcome: Outcome) -> dict[str, str]:
    """Why each node that failed did; a node that said nothing has at least its exit code."""
    errors = dict(outcome.record.errors)
    for name in outcome.record.parties:
        code = outcome.codes.get(name)
        if code != 0:
            errors.setdefault(name, "it did not end" if code is None else f"it ended with exit code {code}")
    return dict(sorted(errors.items()))


def _evaluations(record: Record, schedule: Schedule) -> list[dict[str, Any]]:
    """What all together found of the model, and after how many rounds of training."""
    rounds = sorted(record.evaluations.items())
    return [{"trained": schedule.trained(number), **figures} for number, figures in rounds]


def _spent(record: Record) -> dict[str, dict[str, Any]]:
    """What was spent of a privacy budget in the end, and after each round: by all hospitals together, or by each."""
    return {
        who: {
            **told[max(told)],
            "rounds": [{"round": number, "epsilon": told[number]["epsilon"]} for number in sorted(told)],
        }
        for who, told in sorted(record.privacy.items())
    }


def privacy_lines(report: Report) -> list[str]:
    """What was spent, in words, a line each."""
    return [
        f"privacy, {who}: epsilon {each['epsilon']:.3g} of {each['budget']:g} at delta {each['delta']:g}, unit: "
        f"{each['unit']}" + (f"; the budget is spent after round {each['round']}" if each["spent"] else "")
        for who, each in report["privacy_spent"].items()
    ]


def evaluation_names(report: Report) -> list[str]:
    """The figures that evaluations have, in their order."""
    return [name for name in next(iter(report["evaluations"]), {}) if name != "trained"]


def _rounds(record: Record, tree: Tree, schedule: Schedule) -> list[dict[str, Any]]:
    """The rounds that the key holder closed, in order."""
    opened: dict[int, set[int]] = {}
    for ciphertext in record.ciphertexts.get(tree.key_holder, ()):
        opened.setdefault(ciphertext["round"], set()).add(ciphertext["segment"])
    return [
        {
            "round": number,
            "purpose": schedule.purpose(number),
            "trained": schedule.trained(number),
            "contributors": sorted(round_.contributors),
            "left_out": sorted(set(record.parties) - set(round_.contributors)),
            "seconds": max(round_.seconds.values()),
            "segments": len(opened.get(number, ())),
        }
        for number, round_ in sorted(record.rounds.items())
        if tree.key_holder in round_.states
    ]


def _dropped(record: Record) -> list[dict[str, Any]]:
    """Messages and handshakes that were refused, each kind once, with how often it came."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for each in record.dropped:
        counts[each["who"], each["expected"], each["came"]] += each["times"]
    return [
        {"who": who, "expected": expected, "came": came, "count": count}
        for (who, expected, came), count in sorted(counts.items())
    ]


def _small_sets(rounds: Iterable[Mapping[str, Any]]) -> list[str]:
    threes = [str(entry["round"]) for entry in rounds if len(entry["contributors"]) == 3]
    if not threes:
        return []
    which = "round " + threes[0] if len(threes) == 1 else f"rounds {', '.join(threes)}"
    return [
        f"Three parties contributed to {which}: each of them learns the sum of the two others' updates, "
        "by subtracting its own from the total."
    ]


def _plain(value: Any) -> Any:
    """The same in what JSON has; a figure that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):  # numpy's scalars, from a task of the user's own
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---- what each role saw ---------------------------------------------------------------------------------


def roles(report: Report) -> dict[str, list[str]]:
    """The parties of each role; every party has exactly one."""
    tree = report["tree"]
    return _by_role(tree["key_holder"], tree["apex"], tree["parent"])


def _by_role(key_holder: str, apex: str, parent: Mapping[str, str]) -> dict[str, list[str]]:
    below = sorted(parent.keys() - {apex})
    parents = set(parent.values())
    return {
        KEY_HOLDER: [key_holder],
        APEX: [apex],
        INNER_NODE: [name for name in below if name in parents],
        LEAF: [name for name in below if name not in parents],
    }


def _saw(record: Record, tree: Tree, rounds: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """For each role, what reached it, counted from the nodes' inbound logs."""
    saw = {KEY_HOLDER: _key_holder_saw(record, tree)}
    for role, names in _by_role(tree.key_holder, tree.apex, tree.parent).items():
        if role != KEY_HOLDER and names:
            saw[role] = _adder_saw(names, record)
    totals = sum(entry["segments"] for entry in rounds)
    saw["everyone"] = [
        f"Every party received {_count(totals, 'total')} that the key holder published, each the sum over all "
        "that contributed to its round, and the sets of contributors."
    ]
    return saw


def _key_holder_saw(record: Record, tree: Tree) -> list[str]:
    log = record.ciphertexts.get(tree.key_holder, [])
    sums = [each for each in log if each["peer"] == tree.apex and len(each["contributors"]) > 1]
    places = len({(each["round"], each["segment"]) for each in sums})
    received = f"{tree.key_holder} received {_count(len(sums), 'aggregate')}"
    if sums:
        received += f", {'one per segment and round' if places == len(sums) else f'for {places} segments'}"
        received += f", each over {_span(sums)}"
    rest = len(log) - len(sums)
    received += f"; {rest or 'no'} other ciphertext{'s' if rest > 1 else ''}."
    holds = "these sums are" if not rest else "these sums and those others are"
    return [received, f"It holds the secret key: {holds} all that it could ever decrypt."]


def _adder_saw(names: list[str], record: Record) -> list[str]:
    """What one who adds ciphertexts up received; of several, all of them together."""
    log = [each for name in names for each in record.ciphertexts.get(name, ())]
    who = names[0] if len(names) == 1 else f"{len(names)} nodes"
    if 1 < len(names) <= LISTED_NODES:
        who += f" ({', '.join(names)})"
    if not log:
        return [f"{who} received no ciphertext."]
    alone = sum(len(each["contributors"]) == 1 for each in log)
    sums = [each for each in log if len(each["contributors"]) > 1]
    if not sums:
        kinds = "each of a single party"
    elif not alone:
        kinds = f"each a sum over {_span(sums)}"
    else:
        kinds = f"{alone} of a single party and {_count(len(sums), 'sum')} over {_span(sums)}"
    holds = "It holds" if len(names) == 1 else "They hold"
    return [
        f"{who} received {_count(len(log), 'ciphertext')} from below: {kinds}.",
        f"{holds} no secret key and could decrypt none of them.",
    ]


def _span(log: Iterable[Mapping[str, Any]]) -> str:
    sizes = sorted({len(each["contributors"]) for each in log})
    return f"{sizes[0]} parties" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} parties"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


# ---- files ----------------------------------------------------------------------------------------------


def write(out: Path, report: Report) -> None:
    """Write ``report.json`` and ``report.html`` into the folder ``out``."""
    from node.report_html import render  # matplotlib comes with it

    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    (out / "report.json").write_text(text + "\n", encoding="utf-8")
    (out / "report.html").write_text(render(report), encoding="utf-8")


# ---- in words -------------------------------------------------------------------------------------------


def verdict(report: Report) -> str:
    """The run in one line."""
    parts = [
        f"{report['rounds']} of {report['rounds_asked']} rounds",
        f"{report['parties']} parties",
        "all models identical" if report["models_identical"] else "MODELS NOT IDENTICAL",
    ]
    if report["sums_exact"] is not None:
        parts.append("every sum exact" if report["sums_exact"] else "SUMS NOT EXACT")
    if report["errors"]:
        parts.append(f"{_count(len(report['errors']), 'node')} failed")
    return f"{'OK' if report['ok'] else 'FAILED'}: {', '.join(parts)}, {report['seconds']:.1f} s"


def machine(report: Report) -> str:
    """What the run took of the machine, in one line."""
    before, peak, usage = report["seconds_before"], report["peak"], report["usage"].values()
    parts = [f"ceremony {before['ceremony']:.1f} s", f"starting {report['parties']} nodes {before['start']:.1f} s"]
    if peak:
        how = "" if peak["how"] == "pss" else ", by what the machine had left"
        parts.append(f"peak memory {human_bytes(peak['memory'])} in {peak['processes']} processes{how}")
    if usage:
        most = {key: max(each[key] for each in usage) for key in ("peak_memory", "descriptors", "sockets")}
        parts.append(
            f"a relay at most {human_bytes(most['peak_memory'])}, {most['descriptors']} descriptors, "
            f"{most['sockets']} sockets"
        )
    return "machine: " + "; ".join(parts)


def human_bytes(count: float) -> str:
    """A number of bytes with a decimal unit: ``726.1 kB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def figure(value: float | None) -> str:
    """A figure of a model, with three decimals."""
    return "–" if value is None else f"{value:.3f}"


def node_rows(report: Report, table: Mapping[str, Mapping[str, float]]) -> list[tuple[str, str, dict[str, float]]]:
    """(who, role, figures) for each node; where there are too many, for each role the mean of its nodes."""
    rows = []
    for role, names in roles(report).items():
        known = [name for name in names if name in table]
        if report["parties"] <= LISTED_NODES:
            rows += [(name, role, dict(table[name])) for name in known]
        elif known:
            keys = {key for name in known for key in table[name]}
            mean = {key: sum(table[name].get(key, 0) for name in known) / len(known) for key in keys}
            rows.append((known[0] if len(known) == 1 else f"mean of {len(known)}", role, mean))
    return rows


def best(figures: Sequence[float | None]) -> list[bool]:
    """Which of some models' figures is the largest, as shown."""
    shown = [figure(value) for value in figures]
    top = max((text for text, value in zip(shown, figures, strict=True) if value is not None), default="")
    return [text == top for text in shown]


def together(results: Report) -> list[tuple[str, Mapping[str, float]]]:
    """(model, figures) on everyone's held-out patients together; the local-only models from the best AUC down."""
    local = [(f"{name}, local only", models["all_patients"]["local"]) for name, models in results["hospitals"].items()]
    local.sort(key=lambda each: -(each[1].get("auc") or 0.0))
    return [
        ("federated", results["together"]["federated"]),
        ("pooled (never allowed in life)", results["together"]["pooled"]),
        *local[:LISTED_NODES],
    ]
