"""What one round costs on the sockets, all values or few of them, and what the common CKKS would need for the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from node.bench.common import make_update
from node.reproduce import ours
from node.reproduce.approximate import LARGE, make_contexts, make_scheme
from node.reproduce.output import Row
from node.simulation import Federation, in_process, simulated_parties
from node.study import parse_study

PARAMS = 66_955_010
"""DistilBERT's."""
PARTIES = 5
LEAST = 97.5
"""Percent that a sparse round is to save."""
DENSITY = 0.024
"""Below 1/40: the frames that open and close a round are the same for few values."""

COMMON = LARGE.name
SAMPLE, QUICK_SAMPLE = 64, 4
"""Ciphertexts of the common settings that are really made."""


@dataclass(frozen=True)
class Kind:
    """A way to send an update: its ``[compression]``, its ``value_bits``, and of how many rounds the mean is taken."""

    compression: Mapping[str, Any] = field(default_factory=dict)
    value_bits: int = 14
    rounds: int = 1


DENSE = "dense"
KINDS = {
    DENSE: Kind(),
    "cyclic": Kind({"mask": "cyclic", "density": DENSITY}),
    "random blocks of 64": Kind({"mask": "random", "density": DENSITY}),
    # The first mask of "top" is drawn, for want of a total: the second is its own.
    "top of total": Kind({"mask": "top", "density": DENSITY}, rounds=2),
    "energy, blocks of 64": Kind({"mask": "energy", "density": DENSITY, "block": 64}),
    "energy, blocks of 1,024": Kind({"mask": "energy", "density": DENSITY - 0.001, "block": 1024}),
    "dense, 7-bit values": Kind(value_bits=7),
    "cyclic, 7-bit values": Kind({"mask": "cyclic", "density": DENSITY}, value_bits=7),
}

STUDY = """\
[study]
name = "medhe-wire"
rounds = {rounds}
seed = 1
[task]
class = "synthetic"
[task.options]
params = {params}
[aggregation]
value_bits = {bits}
[deadlines]
round_seconds = 900.0
join_seconds = 600.0
[debug]
check_sums = true
"""


def cell(params: int, name: str) -> Row:
    """A real federation of ``PARTIES`` nodes on this machine, without training.

    Returns:
        Bytes of messages that the nodes count at their sockets, over all links and a round: ``up``, ``down``, and
        ``apex``, of them those of one party's update; ``values`` that a party sends; ``seconds`` of each round;
        ``peak_memory`` of all processes; ``exact``: each total is the sum of what was encrypted.
    """
    if name == COMMON:
        return in_process(_common, params, SAMPLE)  # type: ignore[no-any-return]
    kind = KINDS[name]
    outcome = ours.completed(partial(federation, params, kind))
    sent, parents, rounds = outcome.record.sent, outcome.tree.parent, kind.rounds
    assert outcome.peak
    up = {name: sent[name].get(parent, 0) for name, parent in parents.items()}  # who ends last has no parent any more
    return {
        "up": sum(up.values()) / rounds,
        "down": (sum(sum(peers.values()) for peers in sent.values()) - sum(up.values())) / rounds,
        "apex": up[outcome.tree.apex] / rounds,
        "seconds": [round(seconds, 3) for seconds in ours.seconds_of(outcome)],
        "peak_memory": outcome.peak.memory,
        "exact": outcome.record.sums_exact(),
    }


def federation(params: int, kind: Kind, out: Path) -> Federation:
    """The study of such a round."""
    text = study_text(params, kind)
    tables, key_holder = simulated_parties(PARTIES, {})
    return Federation(text, parse_study(text, "the study of the wire"), tables, key_holder, out)


def study_text(params: int, kind: Kind) -> str:
    """The study of such a round, in TOML."""
    return STUDY.format(rounds=kind.rounds, params=params, bits=kind.value_bits) + table_of(kind.compression)


def table_of(compression: Mapping[str, Any]) -> str:
    """``[compression]`` in TOML; nothing of nothing."""
    lines = [f"{key} = {json.dumps(value)}\n" for key, value in compression.items()]  # scalars: TOML writes them alike
    return "".join(["\n[compression]\n", *lines]) if lines else ""


def _common(params: int, sample: int) -> Row:
    """Real ciphertexts of the first values, as they are serialised; the rest are as many of the same size."""
    scheme = make_scheme(make_contexts(LARGE)[0])
    slots = LARGE.degree // 2
    count = -(-params // slots)
    values = make_update(slots * min(sample, count)).astype(np.float64)
    sizes = [len(scheme.protect(part)) for part in values.reshape(-1, slots)]
    return {
        "up": float(np.mean(sizes)) * count * (PARTIES - 1),
        "down": None,
        "apex": float(np.mean(sizes)) * count,
        "ciphertexts": count,
        "made": len(sizes),
        "smallest": min(sizes),
        "largest": max(sizes),
    }
