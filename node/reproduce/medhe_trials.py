"""How long is long enough: schedules of the top layer, compared on other images than those of its accuracies."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from node.pages import table
from node.reproduce import medhe
from node.reproduce.medhe import DENSE, HEAD, LAST_TENTH, SPARSE, TRIAL, TRIALS, TWICE
from node.reproduce.output import Results, Row, spread
from node.study import parse_study

ARMS = (DENSE, SPARSE)


def trials_page(results: Results) -> str:
    """That section of the page; nothing where nothing was tried."""
    found = {trial: rows for trial in TRIALS if (rows := _rows(results, trial))}
    if not found:
        return ""
    head = ("schedule", "seeds", "dense, %", "sparse, %", "sparse less dense", "last tenth: dense, sparse",
            "twice the rounds: dense, sparse")  # fmt: skip
    body: list[tuple[object, ...]] = []
    for trial, rows in found.items():
        means = [_accuracy(rows[arm]) for arm in ARMS]
        twice = _twice(found, trial)
        cells = [f"{mean:.2f} ± {spread(rows[arm]['accuracy'])[1]:.2f}" for mean, arm in zip(means, ARMS, strict=True)]
        body.append(
            (
                trial, len(rows[SPARSE]["seeds"]), *cells, f"{means[1] - means[0]:+.2f}",
                ", ".join(f"{last_tenth(rows[arm]):+.2f}" for arm in ARMS),
                ", ".join(f"{gain:+.2f}" for gain in twice) if twice else "–",
            )
        )  # fmt: skip
    enough = [trial for trial in found if _is_enough(found, trial)]
    verdict = f"By this, long enough: {'; '.join(enough)}." if enough else "**None was long enough by this.**"
    study = parse_study(medhe.study_text(medhe.ACCURACY, HEAD, medhe.LONG, SPARSE, medhe.FIRST_SEED), HEAD)
    return (
        f"## How long is long enough: {HEAD}\n\n"
        "The loss of a top layer is convex: where what is left out waits, and rounds are enough, dense and sparse come "
        "to the same place. How many are enough is asked here with other seeds and other images "
        f"({medhe.IMAGES:,} of them) than those of the accuracies below. A schedule counts as long enough where the "
        f"last tenth of its rounds brings neither way more than {LAST_TENTH:g} points, and twice the rounds no more "
        f"than {TWICE:g}, half of the margin: in the mean of the seeds.\n\n"
        f"{table(head, body)}\n{verdict} The accuracies below are of {study.rounds} rounds at the rate "
        f"{study.task.options['learning_rate']:g}.\n"
    )


def last_tenth(row: Row) -> float:
    """Points that the last tenth of the rounds brought, in the mean."""
    return float(np.mean([curve[-1] - curve[-2] for curve in row["curves"]]))


def _rows(results: Results, trial: str) -> dict[str, Row]:
    rows = {arm: results.find(part=TRIAL, set=HEAD, schedule=trial, arm=arm) for arm in ARMS}
    return {arm: row for arm, row in rows.items() if row} if all(rows.values()) else {}


def _accuracy(row: Row) -> float:
    return float(np.mean(row["accuracy"]))


def _twice(found: Mapping[str, Mapping[str, Row]], trial: str) -> list[float]:
    """What twice the rounds at the same rate bring each arm."""
    wanted = TRIALS[trial] | {"rounds": 2 * TRIALS[trial]["rounds"]}
    longer = next((name for name in found if TRIALS[name] == wanted), None)
    return [_accuracy(found[longer][arm]) - _accuracy(found[trial][arm]) for arm in ARMS] if longer else []


def _is_enough(found: Mapping[str, Mapping[str, Row]], trial: str) -> bool:
    twice = _twice(found, trial)
    return bool(twice) and max(twice) <= TWICE and max(map(last_tenth, found[trial].values())) <= LAST_TENTH
