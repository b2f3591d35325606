"""Table III in the tree: record-level privacy of real hospitals, and what their own ledgers say was spent."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

from node.privacy.accountant import ORDERS, Accountant, Mechanism, Spent, as_opacus_reckons, prv_error
from node.privacy.budget import Budget
from node.reproduce import ours
from node.reproduce.framingham import FILES, read_patients, write_parties
from node.reproduce.output import Row, spread

ROUNDS, CLIP = 5, 1.0
STUDY = """\
[study]
name = "table3"
rounds = {rounds}
seed = {seed}
[task]
class = "node.tasks.heart_risk:HeartRiskTask"
[aggregation]
clip = 16.0
value_bits = 24
max_parties = 16
[privacy]
mode = "record"
epsilon = {epsilon}
delta = {delta}
clip = {clip}
"""


def tree_cell(budget: Budget, hospitals: int, repetitions: int) -> Row:
    """Table V's rounds with noise: each hospital takes a full-batch step of DP-SGD under an account of its own.

    Returns:
        As a cell of one place; ``ledgers``: of each hospital in each repetition the epsilon in the last line of its
        ledger that is of privacy, and what Opacus's accountant says of the history in that line.
    """
    train, test = read_patients(FILES["4,238 rows"])
    accuracies, ledgers, last = [], [], {}
    with tempfile.TemporaryDirectory(prefix="wardtree-table3-") as folder:
        files = write_parties(train, hospitals, Path(folder))
        data = {path.stem: {"csv": str(path), "party": str(number)} for number, path in enumerate(files, start=1)}
        for repetition in range(repetitions):
            study = STUDY.format(
                rounds=ROUNDS, seed=repetition + 1, epsilon=budget.epsilon, delta=budget.delta, clip=CLIP
            )
            done = ours.run(study, data, files[0].stem, ROUNDS)
            accuracies.append(100 * float(test.accuracy(done.models[-1])))
            for name, entries in sorted(done.spent.items()):
                last = entries[-1]
                history = Accountant.from_state(None, last["account"].encode()).history
                ledgers.append([name, last["epsilon"], by_opacus(history, "rdp", budget.delta)])
    mean, deviation = spread(accuracies)
    return {
        "repetitions": repetitions,
        "noise_multiplier": last["noise_multiplier"],
        "steps": last["steps"],
        "spent": max(spent for _, spent, _ in ledgers),
        "opacus": max(opacus for _, _, opacus in ledgers),
        "ledgers": ledgers,
        "mean": mean,
        "spread": deviation,
        "standard_error": deviation / math.sqrt(repetitions),
        "accuracies": accuracies,
        "train_rows": len(train.y),
        "majority": 100 * float(max(test.y.mean(), 1 - test.y.mean())),
    }


def by_opacus(history: tuple[Spent, ...], mechanism: Mechanism, delta: float) -> float:
    """Opacus's own accountant, stepped as it is by Opacus."""
    from opacus.accountants import create_accountant

    accountant = create_accountant(mechanism)
    for each in history:
        for _ in range(each.steps):
            accountant.step(noise_multiplier=each.noise_multiplier, sample_rate=each.sample_rate)
    options: dict[str, Any] = (
        {"alphas": list(ORDERS)} if mechanism == "rdp" else {"eps_error": prv_error(history, delta)}
    )
    with as_opacus_reckons():
        return float(accountant.get_epsilon(delta, **options))
