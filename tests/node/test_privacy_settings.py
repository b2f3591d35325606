"""``[privacy]`` and ``[compression]``: what cannot keep its promise is refused, by the name of its key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from node.compression.settings import CompressionSettings
from node.privacy.settings import PrivacySettings, Surroundings, conflicts
from node.settings import Settings, problems

HOSPITAL = {"mode": "hospital", "epsilon": 2.0, "delta": 1e-5, "clip": 1.0}
ADAPTIVE = {"count_noise": 8.0, "lowest": 0.1, "highest": 10.0}
AROUND = Surroundings(weights="equal", rounds=10, value_bits=14, min_hidden=3)


def lines(model: type[Settings], table: dict[str, Any], under: str) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        model.model_validate(table)
    return problems(model, caught.value, under)


def test_what_a_study_may_say() -> None:
    assert not PrivacySettings().is_private
    for table in (
        {"mode": "none"},
        {"mode": "record", "epsilon": 6.0, "delta": 1.9e-4, "clip": 7.0},
        HOSPITAL,
        {**HOSPITAL, "adaptive": ADAPTIVE, "coalition": 2, "statistics": {"clip": 3.0, "noise_multiplier": 9.0}},
        {**HOSPITAL, "mechanism": "laplace", "clip_norm": "l1"},
        {**HOSPITAL, "mechanism": "k-norm"},
    ):
        assert PrivacySettings.model_validate(table).mode == table["mode"]
    assert not CompressionSettings().is_sparse
    for sparse in (
        {"mask": "random", "density": 0.025},
        {"mask": "top", "density": 0.025, "schedule": "moving", "alpha": 0.9, "warm_up": 4, "explore": 0.2},
        {"mask": "energy", "density": 0.01, "block": 1024, "feedback": False},
        {"mask": "cyclic", "density": 0.1},
    ):
        assert CompressionSettings.model_validate(sparse).is_sparse


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"mode": "local"}, 'privacy.mode: expected "none", "record" or "hospital", came "local"'),
        ({"epsilon": 1.0, "delta": 1e-5}, 'privacy: expected nothing else with mode = "none", came delta, epsilon'),
        ({"mode": "record", "epsilon": 1.0}, 'privacy: expected delta with mode = "record", came nothing; expected'),
        ({**HOSPITAL, "delta": 0.5}, "privacy.delta: expected a number between 0 and 0.1, came 0.5"),
        ({**HOSPITAL, "sigma": 1.0}, "privacy.sigma: unknown key; known here: mode"),
        ({**HOSPITAL, "mode": "record", "coalition": 2}, 'privacy: coalition is for mode = "hospital"'),
        ({**HOSPITAL, "mechanism": "laplace"}, "an L1 norm of sqrt(d) * clip, so what is really spent is sqrt(d)"),
        ({**HOSPITAL, "clip_norm": "l1"}, 'its noise is for clip_norm = "l2"'),
        ({**HOSPITAL, "mechanism": "k-norm", "adaptive": ADAPTIVE}, 'adaptive is for mechanism = "gaussian"'),
        ({**HOSPITAL, "adaptive": {**ADAPTIVE, "lowest": 20.0}}, "privacy.adaptive: expected lowest below highest"),
        ({**HOSPITAL, "clip": 11.0, "adaptive": ADAPTIVE}, "expected clip between adaptive.lowest and adaptive."),
        ({**HOSPITAL, "statistics": {"clip": 0.0}}, "privacy.statistics.clip: expected a number above 0"),
    ],
)  # fmt: skip
def test_privacy_that_is_none_is_refused(table: dict[str, Any], line: str) -> None:
    assert line in "\n".join(lines(PrivacySettings, table, "privacy"))


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ({"density": 0.1}, 'compression: expected nothing else with mask = "none", came density'),
        ({"mask": "top-k"}, 'compression.mask: expected "none", "cyclic", "random", "top" or "energy", came "top-k"'),
        ({"mask": "random"}, 'compression: expected density with mask = "random", came nothing'),
        ({"mask": "random", "density": 1.5}, "compression.density: expected a number between 0 and 1, came 1.5"),
        ({"mask": "random", "density": 0.1, "explore": 0.1}, 'explore goes with mask = "top"'),
        ({"mask": "cyclic", "density": 0.1, "block": 2}, "block goes with a mask of blocks"),
        ({"mask": "top", "density": 0.1, "explore": 0.0}, "would never be sent"),
        ({"mask": "random", "density": 0.1, "schedule": "moving"}, 'schedule = "moving" goes with mask = "top"'),
        ({"mask": "top", "density": 0.1, "alpha": 0.5}, 'alpha goes with schedule = "moving"'),
        (
            {"mask": "top", "density": 0.1, "schedule": "moving", "lowest": 0.2},
            "expected lowest <= density <= highest, came 0.2, 0.1 and 0.2",
        ),
    ],
)
def test_compression_that_makes_no_sense_is_refused(table: dict[str, Any], line: str) -> None:
    assert line in "\n".join(lines(CompressionSettings, table, "compression"))


@pytest.mark.parametrize(
    ("changes", "around", "line"),
    [
        ({}, {"weights": "examples"}, 'aggregation.weights: expected "equal" with privacy.mode = "hospital"'),
        ({}, {"metrics": True}, "evaluation: metrics of patients are published without noise"),
        ({}, {"statistics": True}, "expected it off or [privacy.statistics]"),
        ({}, {"data_masks": True}, 'compression.mask: "energy" publishes sums computed on data'),
        ({"coalition": 4}, {}, "privacy.coalition: a coalition of 1 to 3 was expected with min_hidden = 3, came 4"),
        ({"noise_multiplier": 1.0}, {}, "privacy.noise_multiplier: 10 rounds within epsilon 2 take at least 6.305"),
        ({"adaptive": ADAPTIVE}, {"value_bits": 10}, "aggregation.value_bits: expected at least 11"),
        ({"adaptive": {**ADAPTIVE, "count_noise": 1.0}}, {}, "privacy.adaptive.count_noise: count_noise above 3.1525"),
        ({"mode": "record"}, {"statistics": True}, "the statistics round is computed on data and not charged"),
        ({"mode": "record"}, {"metrics": True}, "evaluation: metrics of patients"),
        ({"mode": "record"}, {"data_masks": True}, "sums computed on data"),
    ],
)
def test_what_takes_the_promise_away_is_named_by_its_key(
    changes: dict[str, Any], around: dict[str, Any], line: str
) -> None:
    (found,) = conflicts(PrivacySettings.model_validate({**HOSPITAL, **changes}), replace(AROUND, **around))
    assert line in found


def test_what_goes_together_is_not_named() -> None:
    settings = PrivacySettings.model_validate(
        {**HOSPITAL, "adaptive": ADAPTIVE, "statistics": {"clip": 1.0, "noise_multiplier": 10.0}}
    )
    assert conflicts(settings, replace(AROUND, statistics=True)) == []
    record = PrivacySettings.model_validate({"mode": "record", "epsilon": 1.0, "delta": 1e-5, "clip": 1.0})
    assert conflicts(record, replace(AROUND, weights="examples")) == []
    everything = Surroundings("examples", 10, 4, 2, statistics=True, metrics=True, data_masks=True)
    assert conflicts(PrivacySettings(), everything) == []
    assert len(conflicts(PrivacySettings.model_validate(HOSPITAL), everything)) == 4
