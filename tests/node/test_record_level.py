"""Record-level privacy in one hospital: one account over all rounds, and nothing beyond its budget."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from node.privacy.budget import BudgetError
from node.privacy.record import RecordLevel
from node.privacy.settings import PrivacySettings
from node.study import StudyError, parse_study
from tests.node.homes import STUDY

SETTINGS = PrivacySettings(mode="record", epsilon=4.0, delta=1e-4, clip=1.0)
ROWS = 64


def trained(level: RecordLevel, seed: int = 0) -> torch.nn.Linear:
    random = np.random.default_rng(seed)
    x = torch.from_numpy(random.normal(size=(ROWS, 3)).astype(np.float32))
    module = torch.nn.Linear(3, 1)
    level.train(
        module, x, (x[:, :1] > 0).float(), binary_cross_entropy_with_logits,
        learning_rate=0.1, batch_size=16, epochs=1, weight_decay=0.01,
    )  # fmt: skip
    return module


def test_the_budget_lasts_for_all_rounds_over_restarts_and_for_no_more() -> None:
    state, epsilons, noise = b"", [], set()
    for number in (1, 2, 3):
        level = RecordLevel(SETTINGS, 3, state)
        assert not level.was_used
        trained(level)
        entry = level.entry(number)
        assert level.was_used
        assert (entry["unit"], entry["round"], entry["steps"]) == ("record", number, 4 * number)
        state = entry["account"].encode()
        epsilons.append(entry["epsilon"])
        noise.add(entry["noise_multiplier"])
    assert epsilons == sorted(epsilons)
    assert 3.9 < epsilons[-1] <= 4.0
    assert len(noise) == 1
    with pytest.raises(BudgetError):
        trained(RecordLevel(SETTINGS, 3, state))


def test_a_task_that_cannot_train_so_is_refused_before_anyone_signs() -> None:
    table = '[privacy]\nmode = "record"\nepsilon = 4.0\ndelta = 1e-4\nclip = 1.0\n'
    with pytest.raises(StudyError, match="privacy.mode: the task synthetic cannot train with"):
        parse_study(STUDY + table, "study")
