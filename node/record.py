"""What a local run showed: telemetry events in, one plain dict out. Pure, but for what it is told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from node.sumcheck import MODULUS

STAGES = ("train", "protect", "merge", "open", "apply")


@dataclass
class RoundRecord:
    """One round as the nodes told it."""

    contributors: list[str] = field(default_factory=list)
    states: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    fingerprints: dict[str, list[int]] = field(default_factory=dict)
    totals: dict[str, list[int]] = field(default_factory=dict)
    ended: float = 0.0

    @property
    def identical(self) -> bool:
        return len(set(self.states.values())) == 1

    def exact(self) -> bool:
        """Whether what every node applied is what the contributors' enclaves sealed, mod 2^61 - 1: all
        segments, or the first few."""
        if not self.contributors or not set(self.contributors) <= self.fingerprints.keys():
            return False
        sealed = zip(*(self.fingerprints[name] for name in self.contributors), strict=True)
        expected = [sum(values) % MODULUS for values in sealed]
        checked = self.states.keys() <= self.totals.keys()
        return checked and all(total and total == expected[: len(total)] for total in self.totals.values())


@dataclass
class Record:
    """A run in the making; ``take`` every event of every node."""

    parties: tuple[str, ...]
    evaluations: dict[int, dict[str, float]] = field(default_factory=dict)
    rounds: dict[int, RoundRecord] = field(default_factory=lambda: defaultdict(RoundRecord))
    stages: dict[str, dict[str, float]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(float)))
    traffic: dict[str, dict[str, int]] = field(default_factory=dict)
    sent: dict[str, dict[str, int]] = field(default_factory=dict)
    ciphertexts: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    usage: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    final: dict[str, str] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    ready: set[str] = field(default_factory=set)
    status: dict[str, str] = field(default_factory=dict)
    postures: dict[str, str] = field(default_factory=dict)
    privacy: dict[str, dict[int, dict[str, Any]]] = field(default_factory=lambda: defaultdict(dict))
    parameters: int = 0
    current: int = -1
    opened: dict[int, float] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        party = event["party"]
        match event:
            case {"kind": "posture", "text": text}:
                self.postures[party] = text
            case {"kind": "ready"}:
                self.errors.pop(party, None)  # of a life before this one
                self.parameters = event["parameters"]
                self.ready.add(party)
                self.status[party] = "ready"
            case {"kind": "round", "what": "opened", "round": number}:
                self.current = max(self.current, number)
                self.opened[number] = min(self.opened.get(number, event["time"]), event["time"])
                self.status[party] = f"round {number}: training"
            case {"kind": "round", "what": what, "round": number, "contributors": names}:
                if what not in ("closed", "joined"):
                    self.warnings.append(f"{party}: round {number}: {what} {', '.join(names)}".rstrip())
            case {"kind": "stage", "stage": stage, "seconds": seconds}:
                self.stages[party][stage] += seconds
                self.status[party] = f"round {event['round']}: {stage}"
            case {"kind": "fingerprints", "round": number, "values": values}:
                self.rounds[number].fingerprints[party] = values
            case {"kind": "total", "round": number, "values": values}:
                self.rounds[number].totals[party] = values
            case {"kind": "applied", "round": number, "state": state, "seconds": seconds, "contributors": names}:
                self.rounds[number].states[party] = state
                self.rounds[number].seconds[party] = seconds
                self.rounds[number].contributors = names
                self.rounds[number].ended = max(self.rounds[number].ended, event["time"])
                self.status[party] = f"round {number}: done"
            case {"kind": "evaluated", "round": number, "figures": figures}:
                self.evaluations[number] = figures  # the same at every node, or their states differ
            case {"kind": "privacy", "unit": unit, "round": number}:
                told = {key: event[key] for key in ("unit", "round", "epsilon", "delta", "budget", "spent")}
                self.privacy["everyone" if unit == "hospital" else party][number] = told
            case {"kind": "ciphertext"}:
                keys = ("peer", "round", "segment", "contributors", "bytes")
                self.ciphertexts[party].append({key: event[key] for key in keys})
            case {"kind": "traffic", "sent": sent, "received": received, "parent": parent}:
                self.traffic[party], self.sent[party] = _up_and_down(sent, received, parent), dict(sent)
            case {"kind": "usage", "when": "ended", "peak_memory": peak, "descriptors": open_, "sockets": sockets}:
                self.usage[party] = {"peak_memory": peak, "descriptors": open_, "sockets": sockets}
            case {"kind": "dropped", "who": who, "expected": expected, "came": came}:
                times = event.get("times", 1)
                self.dropped.append({"node": party, "who": who, "expected": expected, "came": came, "times": times})
            case {"kind": "warning", "text": text}:
                self.warnings.append(f"{party}: {text}")
            case {"kind": "stopped", "error": error}:
                self.status[party] = "failed" if error else "finished"
                if error:
                    self.errors[party] = error
                else:
                    self.final[party] = event["state"]

    @property
    def models_identical(self) -> bool:
        """Every node ended with the same model, and had the same one after every round."""
        ended = len(self.final) == len(self.parties) and len(set(self.final.values())) == 1
        return ended and all(round_.identical for round_ in self.rounds.values())

    def seconds(self, round_: int) -> float:
        """From the key holder's opening of a round until the last node has applied it."""
        return self.rounds[round_].ended - self.opened[round_]

    def sums_exact(self) -> bool:
        closed = [round_ for round_ in self.rounds.values() if round_.states]
        return bool(closed) and all(round_.exact() for round_ in closed)


def _up_and_down(sent: Mapping[str, int], received: Mapping[str, int], parent: str | None) -> dict[str, int]:
    """Bytes over the link to the parent, and over the links to the children together."""
    up = parent or ""
    return {
        "to_parent": sent.get(up, 0),
        "from_parent": received.get(up, 0),
        "to_children": sum(count for peer, count in sent.items() if peer != up),
        "from_children": sum(count for peer, count in received.items() if peer != up),
    }
