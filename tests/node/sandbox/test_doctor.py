"""``wardtree doctor``: what it prints is what its documented schema says, and what this machine is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from node.protocol.posture import ADVISORY, REQUIRED, parse_posture
from node.sandbox.doctor import Report, examine
from node.sandbox.machine import REMEDIES, detect, facts
from tests.end_to_end.commands import OWN_GAPS, wardtree
from tests.node.homes import KEY_HOLDER, make_federation

SCHEMA = Path(__file__).parents[3] / "docs" / "doctor.schema.json"


def test_the_documented_schema_is_the_programs_own() -> None:
    printed = wardtree("doctor", "--schema")
    assert printed.returncode == 0, printed.stderr
    schema = json.loads(printed.stdout)
    assert schema == json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("policy", [None, "external", "off"])
def test_what_it_prints_is_as_the_schema_says(policy: str | None) -> None:
    ended = wardtree("doctor", "--json", *(["--sandbox", policy] if policy else []))
    printed = json.loads(ended.stdout)
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(printed, schema, cls=jsonschema.Draft202012Validator)
    assert ended.returncode == (0 if printed["ok"] else 69)
    spoilt = {**printed, "checks": [{**printed["checks"][0], "state": "fine"}]}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spoilt, schema, cls=jsonschema.Draft202012Validator)


@pytest.mark.confined
def test_of_a_home_it_enters_every_room_and_asks_the_manifest(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, sandbox_gaps=OWN_GAPS)
    ended = wardtree("doctor", "--home", federation.path(KEY_HOLDER), "--json")
    report = Report.model_validate_json(ended.stdout)
    assert ended.returncode == 0, ended.stdout
    assert [room.name for room in report.rooms] == ["supervisor", "relay", "enclave", "key room", "page"]
    for room in report.rooms:
        assert (room.confined, room.no_new_privileges, room.capabilities) == (True, True, "0")
        assert room.seccomp_filters is None or room.seccomp_filters >= 2 or room.name == "enclave"
    posture = parse_posture(report.posture)
    assert posture == detect()
    states = {check.name: check.state for check in report.checks}
    assert {name for name, state in states.items() if state != "good"} == posture.gaps
    assert all(states[gap] == "allowed gap" for gap in OWN_GAPS)


def test_without_a_home_the_strictest_manifest_counts() -> None:
    report = examine(None, None)
    assert report.ok == (not detect().gaps & REQUIRED.keys())
    assert all((check.state == "good") == (check.remedy is None) for check in report.checks)


def test_every_gap_has_a_meaning_and_a_remedy() -> None:
    assert REMEDIES.keys() == REQUIRED.keys() | ADVISORY.keys()
    looked_at = {fact.gap for policy in ("required", "bubblewrap", "external", "off") for fact in facts(policy)}
    assert looked_at == REMEDIES.keys()


def test_a_demand_of_the_study_makes_advice_a_gap(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, sandbox_gaps=OWN_GAPS)
    home = federation.home("bo")
    advised = sorted(detect().gaps & ADVISORY.keys())
    if not advised:
        pytest.skip("this machine has every advisory part as well")
    demanding = home.study.sandbox.model_copy(update={"demand": advised[:1]})
    home = replace(home, study=home.study.model_copy(update={"sandbox": demanding}))
    (check,) = [check for check in examine(home, None).checks if check.name == advised[0]]
    assert check.state == "gap"
