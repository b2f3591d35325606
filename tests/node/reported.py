"""What a run without faults tells, for the tests of its report: real records of an invented federation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from node import report as reports
from node.local import Outcome
from node.record import Record
from node.simulation import Federation
from node.study import parse_study
from node.sumcheck import MODULUS
from topology import Member, Roster, place

KEY_HOLDER = "party-01"
SEGMENTS = 2


def federation(parties: int = 4, rounds: int = 3, *, checked: bool = True, name: str = "a study") -> Federation:
    text = (
        f'[study]\nname = "{name}"\nrounds = {rounds}\nseed = 1\n[task]\nclass = "synthetic"\n'
        f"[task.options]\nparams = 20\n[debug]\ncheck_sums = {str(checked).lower()}\n"
    )
    data: dict[str, dict[str, Any]] = {f"party-{number:02}": {} for number in range(1, parties + 1)}
    return Federation(text, parse_study(text, "test"), data, KEY_HOLDER, Path("nowhere"))


def run(of: Federation, *, absent: Mapping[int, str] | None = None, statistics: bool = True) -> Outcome:
    """What the nodes of a run without faults tell; ``absent[r]`` contributes nothing to round r."""
    tree = place(Roster(tuple(map(Member, of.names)), of.key_holder), of.names, bytes(32))
    record = Record(of.names)

    def tell(party: str, kind: str, **fields: Any) -> None:
        record.take({"party": party, "kind": kind, "time": 0.0, **fields})

    for party in of.names:
        tell(party, "ready", parameters=20, examples=5)
    for number in range(0 if statistics else 1, of.study.rounds + 1):
        names = [party for party in of.names if party != (absent or {}).get(number)]
        for party in names:
            tell(party, "stage", round=number, stage="train", seconds=0.5)
            tell(party, "fingerprints", round=number, values=[MODULUS - 1] * SEGMENTS)
        for child, parent in tree.parent.items():
            below = sorted(tree.subtree(child) & set(names))
            for segment in range(SEGMENTS if below else 0):
                log = {"peer": child, "contributors": below, "bytes": 1000}
                tell(parent, "ciphertext", round=number, segment=segment, **log)
        total = [(MODULUS - 1) * len(names) % MODULUS] * SEGMENTS
        for party in of.names:
            tell(party, "total", round=number, values=total)
            tell(party, "applied", round=number, state=f"{number:064}", seconds=0.75, contributors=names)
    for party in of.names:
        links = {tree.parent.get(party, "child"): 2_500_000}
        tell(party, "traffic", sent=links, received={}, parent=tree.parent.get(party))
        tell(party, "stopped", error=None, state="0" * 64)
    return Outcome(record, tree, dict.fromkeys(of.names, 0), 12.5)


def figures(n: int, accuracy: float, auc: float | None) -> dict[str, float]:
    known = {"n": float(n), "prevalence": 0.25, "accuracy": accuracy, "balanced_accuracy": accuracy - 0.1}
    return known if auc is None else {**known, "auc": auc}


def comparison(of: Federation) -> dict[str, Any]:
    """Like ``node.compare.compare``: the last hospital's own patients are of one class."""
    hospitals = {
        party: {
            "own_patients": {
                "local": figures(30, 0.811, None if party == of.names[-1] else 0.911),
                "federated": figures(30, 0.822, None if party == of.names[-1] else 0.922),
                "pooled": figures(30, 0.822, None if party == of.names[-1] else 0.933),
            },
            "all_patients": {"local": figures(120, 0.7 + index / 100, 0.6 + index / 100)},
        }
        for index, party in enumerate(of.names)
    }
    rounds = of.study.rounds
    curve = [0.5] + [0.85 + number / 100 for number in range(rounds)]
    return {
        "hospitals": hospitals,
        "together": {"federated": figures(120, 0.844, 0.877), "pooled": figures(120, 0.855, 0.888)},
        "curves": {
            "federated": curve,
            "pooled": curve,
            "best_local": [None, *curve[1:]],
            "best_local_hospital": of.names[-1],
        },
        "notes": ["One split only."],
    }


def built(of: Federation, outcome: Outcome | None = None, compared: bool = False) -> dict[str, Any]:
    return reports.build(of, outcome or run(of), comparison(of) if compared else {})
