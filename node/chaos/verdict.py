"""What must hold after any faults, judged from the ledgers on the disks, the models, and the nodes' sum checks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.chaos.run import Happened
from node.chaos.schedule import KILLS, LINKS, STOP
from node.home import MODEL, Home, load_home
from node.ledger import read_entries
from node.published import load_model
from node.record import Record
from node.simulation import Federation
from node.sumcheck import MODULUS
from topology import quorum_met

Entries = list[dict[str, Any]]


@dataclass
class Verdict:
    """Counts, and a line for every invariant that was broken.

    Attributes:
        faults: how many of each kind hit; ``kills`` of nodes and rooms, ``stops``, and ``cuts`` of links in sum.
        wrong_sums: opened segments whose published total is not the sum over the listed set, of ``sums_checked``,
            those that at least one node applied.
        double_openings: segments that were opened again, or over another set than their round's first.
        below_quorum: openings in which somebody would not be hidden.
        rounds_lost: opened by the key holder and never closed; ``rounds_complete``: closed, with everyone and
            everything; ``rounds_partial``: closed with less.
        survivors: nodes that were not killed for good: all of them must end with one model.
    """

    parties: int
    rounds: int
    seconds: float
    kills: int
    stops: int
    cuts: int
    restarts: int
    faults: dict[str, int]
    sums_checked: int = 0
    wrong_sums: int = 0
    double_openings: int = 0
    below_quorum: int = 0
    rounds_lost: int = 0
    rounds_complete: int = 0
    rounds_partial: int = 0
    survivors: int = 0
    violations: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain data; "ok" when nothing was broken."""
        return {**asdict(self), "ok": not self.violations}


def judge(federation: Federation, happened: Happened) -> Verdict:
    """Look at what a run left behind."""
    home = load_home(federation.home(federation.key_holder), datetime.now(UTC))
    verdict = Verdict(
        parties=len(federation.names),
        rounds=federation.study.rounds,
        seconds=happened.seconds,
        kills=sum(happened.faults[kind] for kind in KILLS),
        stops=happened.faults[STOP],
        cuts=sum(happened.faults[kind] for kind in LINKS),
        restarts=happened.restarts,
        faults=dict(happened.faults),
    )
    openings = [entry for entry in _entries(home.openings) if entry["what"] == "opening"]
    _judge_openings(verdict, openings, home)
    _judge_sums(verdict, openings, happened.record)
    _judge_rounds(verdict, _entries(home.ledger), home)
    _judge_ends(verdict, federation, happened)
    for what in ("wrong_sums", "double_openings", "below_quorum"):
        if getattr(verdict, what):
            verdict.violations.append(f"{what.replace('_', ' ')}: {getattr(verdict, what)}")
    return verdict


def _entries(file: Path) -> Entries:
    return [line["entry"] for line in read_entries(file)]


def _judge_openings(verdict: Verdict, openings: Entries, home: Home) -> None:
    sets: dict[int, list[str]] = {}
    seen = set()
    for entry in openings:
        place = entry["round"], entry["segment"]
        first = sets.setdefault(entry["round"], entry["listed"])
        verdict.double_openings += place in seen or entry["listed"] != first
        verdict.below_quorum += not quorum_met(entry["listed"], home.manifest.min_hidden)
        seen.add(place)


def _judge_sums(verdict: Verdict, openings: Entries, record: Record) -> None:
    """Every segment that was opened and applied by somebody, against what the enclaves of its listed set sealed."""
    for entry in openings:
        told = record.rounds[entry["round"]]
        totals = {total[entry["segment"]] for total in told.totals.values() if entry["segment"] < len(total)}
        if not totals:
            continue  # the key holder was killed before it could publish it
        verdict.sums_checked += 1
        sealed = [told.fingerprints.get(name, ())[entry["segment"] :][:1] for name in entry["listed"]]
        known = all(sealed)
        verdict.wrong_sums += not known or totals != {sum(value for (value,) in sealed) % MODULUS}


def _judge_rounds(verdict: Verdict, ledger: Entries, home: Home) -> None:
    tried = {entry["round"] for entry in ledger if entry["what"] == "training"}
    closed = {entry["round"]: entry for entry in ledger if entry["what"] == "closed"}
    segments = home.rules.segments(home.study.task.options["params"])
    whole = [e for e in closed.values() if len(e["contributors"]) == verdict.parties and e["segments"] == segments]
    verdict.rounds_complete = len(whole)
    verdict.rounds_partial = len(closed) - len(whole)
    verdict.rounds_lost = len(tried - closed.keys())


def _judge_ends(verdict: Verdict, federation: Federation, happened: Happened) -> None:
    survivors = [name for name in federation.names if name not in happened.dead]
    verdict.survivors = len(survivors)
    digests = set()
    for name in survivors:
        code = happened.codes.get(name)
        if code != 0:
            why = happened.record.errors.get(name, "it said nothing")
            verdict.violations.append(f"{name} did not end" if code is None else f"{name} ended with {code}: {why}")
            continue
        try:
            home = load_home(federation.home(name), datetime.now(UTC))
            digests.add(load_model(home.path / MODEL).digest(home.digest))
        except WardtreeError as error:
            verdict.violations.append(str(error))
    if len(digests) > 1:
        verdict.violations.append(f"the survivors ended with {len(digests)} models")
    different = _rounds_that_differ(happened.record)
    if different:
        verdict.violations.append(f"rounds after which models differed: {', '.join(map(str, different))}")


def _rounds_that_differ(record: Record) -> Iterable[int]:
    return [number for number, round_ in sorted(record.rounds.items()) if len(set(round_.states.values())) > 1]
