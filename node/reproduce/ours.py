"""Our own network for the experiments: a real ceremony, real nodes, and the models that they published."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from node.ledger import read_entries
from node.local import Outcome, run_federation
from node.protocol.posture import NO_GAPS
from node.published import load_model
from node.sandbox.machine import detect
from node.simulation import Federation
from node.study import parse_study


class OursError(WardtreeError):
    """A federation of the experiment did not come to its end."""


@dataclass(frozen=True)
class Run:
    """What a federation gave.

    Attributes:
        models: shape (kept, P), float32: after every ``keep`` rounds.
        seconds: of each round, from its opening until the last node has applied it.
        upload: bytes of one party's update, the share of what it sent upward.
        processor_seconds: of all processes of all parties, from the ceremony to the end.
        spent: with privacy, of each party the lines of its own ledger that say so.
        exact: the study has ``check_sums``, and each total is the sum of what the parties encrypted, to the last bit.
        statistics: the published sums of a task that has them.
    """

    models: NDArray[np.float32]
    seconds: list[float]
    upload: float
    spent: Mapping[str, list[dict[str, Any]]]
    exact: bool
    processor_seconds: float
    statistics: NDArray[np.float64] | None = None

    @property
    def epsilon(self) -> float | None:
        """The most that was spent of any party, or of all together under hospital-level privacy; None without."""
        return max((entry["epsilon"] for entries in self.spent.values() for entry in entries), default=None)


def run(study: str, data: Mapping[str, Mapping[str, Any]], key_holder: str, keep: int) -> Run:
    """Run a study on this machine, each party in processes of its own.

    Raises:
        OursError: a node failed, or the models are not all the same.
    """
    parsed = parse_study(study, "the study of the experiment")
    with tempfile.TemporaryDirectory(prefix="wardtree-reproduce-") as folder:
        federation = Federation(study, parsed, data, key_holder, Path(folder) / "run")
        outcome = _complete(federation)
        models = [load_model(path) for path in sorted((federation.out / "models").glob("round-*.npz"))]
        trained = [model.parameters for model in models if model.round >= 0]
        seconds = seconds_of(outcome)
        sent = outcome.record.traffic[outcome.tree.apex]["to_parent"] / len(seconds)
        exact = parsed.debug.check_sums and outcome.record.sums_exact()
        processor = outcome.peak.processor_seconds if outcome.peak else 0.0
        spent = {name: _spent(federation.home(name)) for name in federation.names}
        return Run(np.stack(trained[keep - 1 :: keep]), seconds, sent, spent, exact, processor, models[-1].statistics)


def timed(make: Callable[[Path], Federation]) -> tuple[list[float], int]:
    """Run the federation that ``make`` gives for a folder: seconds of each round, and links to the deepest leaf.

    Raises:
        OursError: as :func:`run`.
    """
    outcome = completed(make)
    return seconds_of(outcome), outcome.tree.height(outcome.tree.key_holder)


def completed(make: Callable[[Path], Federation]) -> Outcome:
    """As :func:`timed`: all that the federation told, of which no file is left. Of a study without statistics."""
    with tempfile.TemporaryDirectory(prefix="wardtree-reproduce-") as folder:
        federation = make(Path(folder) / "run")
        outcome = _complete(federation)
    held, asked = len(outcome.record.rounds), federation.study.schedule.last
    if held != asked:
        raise OursError(f"{federation.study.name}: {asked} rounds were expected, {held} came to their end")
    return outcome


def _complete(federation: Federation) -> Outcome:
    # Public data: what this machine's kernel cannot confine is allowed, by name.
    gaps = NO_GAPS.refused(detect(federation.policy))
    outcome = run_federation(replace(federation, allowed_gaps=gaps), lambda record: None)
    record, name = outcome.record, federation.study.name
    if any(outcome.codes.values()) or not record.models_identical:
        raise OursError(f"{name}: {dict(record.errors) or 'the models differ'}")
    everyone = len(federation.names)
    lost = [number for number, each in sorted(record.rounds.items()) if len(each.contributors) < everyone]
    if lost:
        raise OursError(f"{name}: {len(lost)} rounds without somebody's update, the first of them {lost[0]}")
    return outcome


def _spent(home: Path) -> list[dict[str, Any]]:
    entries = (line["entry"] for line in read_entries(home / "ledger.jsonl"))
    return [entry for entry in entries if entry["what"] == "privacy"]


def seconds_of(outcome: Outcome) -> list[float]:
    """Of each round, from its opening until the last node has applied it."""
    return [outcome.record.seconds(number) for number in sorted(outcome.record.rounds)]
