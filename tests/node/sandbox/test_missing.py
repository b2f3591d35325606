"""On a kernel that lacks a part of the sandbox no node starts, unless all parties signed that this part may lack."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from node.protocol.posture import REQUIRED
from node.sandbox.doctor import Report
from node.sandbox.kernel import EXIT_UNAVAILABLE
from node.sandbox.machine import REMEDIES
from tests.end_to_end.commands import OWN_GAPS, at_descriptor
from tests.node.homes import PASSPHRASE, make_federation

pytestmark = pytest.mark.confined

SEVERAL = ("landlock", "landlock-tcp")
"""What a kernel without Landlock lacks: its rules for ports as well."""


def without(part: str, *arguments: object, passphrase: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.node.sandbox.without", part, *map(str, arguments)]
    with at_descriptor(passphrase) as (read,):
        command += ["--passphrase-fd", str(read)] if passphrase else []
        return subprocess.run(
            command, capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL, pass_fds=[read]
        )


@pytest.mark.parametrize("part", ["landlock", "landlock, switched off", "seccomp"])
def test_a_node_refuses_names_the_feature_and_ends_with_69(tmp_path: Path, part: str) -> None:
    gap = part.split(",")[0]
    federation = make_federation(tmp_path, sandbox_gaps=OWN_GAPS)
    ended = without(part, "node", "--home", federation.path("bo"))
    assert ended.returncode == EXIT_UNAVAILABLE == 69, ended.stderr
    first = ended.stderr.splitlines()[0]
    assert first.startswith(f"wardtree: bo: sandbox gap '{gap}': {REQUIRED[gap]}. To close it: {REMEDIES[gap]}. Or ")
    assert "Traceback" not in ended.stderr
    assert not (federation.path("bo") / "ledger.jsonl").exists(), "no room was started"


@pytest.mark.parametrize(
    ("part", "why"),
    [
        ("landlock, refusing", "Landlock: the kernel refused the rules: Function not implemented"),
        ("landlock, pretending", "Landlock took the rules, but does not keep them; the node does not start"),
    ],
)
def test_no_room_goes_on_where_the_kernel_does_not_do_what_it_said(tmp_path: Path, part: str, why: str) -> None:
    federation = make_federation(tmp_path, sandbox_gaps=OWN_GAPS)
    ended = without(part, "node", "--home", federation.path("bo"), passphrase=PASSPHRASE)
    assert ended.returncode == 69, ended.stderr
    assert why in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (federation.path("bo") / "ledger.jsonl").read_bytes(), "no room came to its work"


@pytest.mark.parametrize("part", ["landlock", "seccomp"])
def test_so_does_a_local_run_which_leaves_nothing_behind(tmp_path: Path, part: str) -> None:
    options = ("--task", "synthetic", "--parties", 3, "--rounds", 1, "--out", tmp_path / "run")
    ended = without(part, "local", *options)
    assert ended.returncode == 69, ended.stderr
    assert f"this machine: sandbox gap '{part}'" in ended.stderr
    assert "--allow-gap" in ended.stderr
    assert not (tmp_path / "run").exists()


def test_a_gap_that_the_manifest_allows_by_name_is_reported_and_the_rest_holds(tmp_path: Path) -> None:
    allowed = [option for gap in SEVERAL for option in ("--allow-gap", gap)]
    options = ("--task", "synthetic", "--parties", 3, "--rounds", 1, "--out", tmp_path / "run", "--json")
    ended = without("landlock", "local", *options, *allowed)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert report["ok"]
    for posture in report["sandbox"].values():
        assert posture.startswith("required landlock=0 ")
        assert set(SEVERAL) <= set(posture.partition("gaps=")[2].split(","))
    assert any("'landlock'" in note for note in report["notes"])


def test_doctor_says_which_part_is_missing_and_what_closes_the_gap() -> None:
    ended = without("landlock", "doctor", "--json")
    assert ended.returncode == 69, ended.stderr
    report = Report.model_validate_json(ended.stdout)
    (check,) = [check for check in report.checks if check.name == "landlock"]
    assert (check.state, check.found, check.remedy) == ("gap", "none", REMEDIES["landlock"])
    assert not report.ok
