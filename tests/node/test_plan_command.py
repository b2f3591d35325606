"""``wardtree plan``: the planner's choice, as a table for people and as JSON for programs."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from keys.plan import Plan, PlanError
from node.cli import app
from node.cli.plan import parse_count
from node.federation import plan_for
from node.study import new_study_text, parse_study

EXAMPLE = ("plan", "--max-parties", "64", "--value-bits", "14", "--params", "11e6")


def test_the_table_says_what_it_costs_and_how_exact_it_is() -> None:
    result = CliRunner().invoke(app, EXAMPLE, env={"COLUMNS": "120"})
    assert result.exit_code == 0
    for part in (
        "64 parties, 14-bit values, 11,000,000 parameters, 128-bit security",
        "60 + 20 bits, of 109",
        "655,360",
        "2 of 20 bits",
        "8,187 values and 5 canaries in 61.4 kB",
        "7.51",
        "ciphertexts: 1,344; segments: 336",
        "82.6 MB up, 44.0 MB down, 126.6 MB in all",
        "0.0250 in the worst (3.0 x rms)",
        "10 sigma of the worst slot = 0.250, refused above 0.25",
        "below 2^-48",
        "0.18 of the data prime",
    ):
        assert part in result.output


def test_the_help_has_examples() -> None:
    result = CliRunner().invoke(app, ["plan", "--help"])
    assert "wardtree plan --max-parties 64 --value-bits 14 --params 11e6" in result.output


def test_json_carries_the_plan_as_the_manifest_has_it() -> None:
    result = CliRunner().invoke(app, [*EXAMPLE, "--security", "192", "--json"])
    told = json.loads(result.output)
    plan = Plan.from_dict(told["plan"])
    assert plan.security == 192
    assert told["parameters"] == 11_000_000
    assert told["bytes_up"] == plan.ciphertexts(11_000_000) * told["ciphertext_bytes"]
    assert told["bytes_down"] == 44_000_000
    assert told["failure_bits"] > 40


def test_what_cannot_be_exact_is_an_error_for_the_user() -> None:
    for option, value, reason in (
        ("--max-parties", "1", "at least 2 parties"),
        ("--value-bits", "25", "4 to 24 bits"),
        ("--security", "100", "not one of"),
        ("--params", "many", "such as 11e6"),
        ("--max-noise", "99999999999", "What fits"),
    ):
        result = CliRunner().invoke(app, [*EXAMPLE, option, value])
        assert isinstance(result.exception, PlanError), result.output
        assert reason in str(result.exception)


@pytest.mark.parametrize("text", ["11e6", "11000000", "11_000_000", "1.1e7", " 1.1E+7 ", "11000000.0"])
def test_counts_are_read_in_every_usual_notation(text: str) -> None:
    assert parse_count(text) == 11_000_000


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "1e10", "1e999999999", "1e-999999999", "nan", "inf", "0x10"])
def test_no_counts(text: str) -> None:
    with pytest.raises(PlanError, match="a whole number from 1 to 1000000000"):
        parse_count(text)


@given(st.text(max_size=30))
def test_any_text_is_a_count_or_a_plan_error(text: str) -> None:
    try:
        count = parse_count(text)
    except PlanError:
        return
    assert 1 <= count <= 10**9


def test_a_study_is_planned_for_updates_of_any_length() -> None:
    study = parse_study(new_study_text(), "study")
    assert plan_for(study) == Plan()
    wide = parse_study(new_study_text().replace("max_parties = 64", "max_parties = 1024"), "study")
    assert (plan_for(wide).max_parties, plan_for(wide).digit_bits) == (1024, 24)
