"""deploy/: what can be known of containers and clusters where no engine runs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from node.cli import app
from node.home import load_home
from tests.end_to_end.commands import FULL, OWN_GAPS, wardtree
from topology import Member, Placement, Roster

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
NAMES = ("linkoping", "lund", "orebro", "umea", "uppsala")
KEY_HOLDER, DIAL_ONLY = "uppsala", "orebro"


def instructions() -> list[list[str]]:
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [[word.strip('",') for word in line.split()] for line in lines]


def test_the_image_is_pinned_runs_as_nobody_and_has_no_secret() -> None:
    steps = instructions()
    for words in steps:
        if words[0] == "FROM":
            assert re.fullmatch(r"docker\.io/library/python:3\.\d+\.\d+-slim-[a-z]+", words[1]), words
        if words[0] in ("COPY", "ADD") and not words[1].startswith("--from"):
            assert words[0] == "COPY"
            for source in words[1:-1]:
                assert source in (
                    "constraints.txt",
                    "pyproject.toml",
                    "README.md",
                    "LICENSE",
                    "topology",
                    "keys",
                    "node",
                )
                assert (ROOT / source).exists()
        assert not any(re.search(r"(?i)passw|secret=|token|\.sealed|\.cred", word) for word in words), words
    last = [words[0] for words in steps]
    user = steps[len(last) - 1 - last[::-1].index("USER")]
    assert user == ["USER", "10001:10001"]
    assert last[::-1].index("ENTRYPOINT") < last[::-1].index("USER"), "nothing runs before that as root"


def test_a_container_is_healthy_by_a_command_that_there_is() -> None:
    asked = " ".join(next(words for words in instructions() if words[0] == "HEALTHCHECK"))
    for command in (asked, *(" ".join(each["healthcheck"]["test"]) for each in COMPOSE["services"].values())):
        assert "wardtree status --home /var/lib/wardtree" in re.sub(r"[\[\]]", "", command)
    assert "--home" in wardtree("status", "--help").stdout


def test_every_institution_of_the_compose_file_is_walled() -> None:
    assert sorted(COMPOSE["services"]) == list(NAMES)
    for name, service in COMPOSE["services"].items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["user"] == "${WARDTREE_UID:-10001}:${WARDTREE_GID:-10001}"
        assert service["memswap_limit"] == service["mem_limit"], "no swap"
        assert not {"privileged", "ports", "network_mode", "pid", "ipc", "environment", "cap_add"} & service.keys()
        home, data = service["volumes"]
        assert home == f"${{TRIAL:-../trial}}/{name}/home:/var/lib/wardtree"
        assert data == f"${{TRIAL:-../trial}}/{name}/data:/data:ro"
        assert service["secrets"] == [{"source": name, "target": "wardtree-passphrase"}]
        assert COMPOSE["secrets"][name]["file"].endswith(f"/{name}/passphrase")
    assert all(network == {"internal": True} for network in COMPOSE["networks"].values())


def test_the_compose_file_has_the_links_that_the_tree_may_need_and_no_others() -> None:
    roster = Roster(tuple(Member(name, name != DIAL_ONLY) for name in NAMES), KEY_HOLDER)
    placements = [Placement(roster, bytes([seed]) * 32) for seed in range(64)]  # the ceremony draws one
    for name in NAMES:
        networks = COMPOSE["services"][name]["networks"]
        own = set() if name == DIAL_ONLY else {name}
        dialled = (
            set() if name == KEY_HOLDER else {other for placement in placements for other in placement.ladder(name)}
        )
        assert networks.keys() == own | dialled, name
        if own:
            assert networks[name] == {"aliases": [f"ward.{name}.example"]}


def _kubernetes() -> list[dict[str, Any]]:
    folder = DEPLOY / "kubernetes"
    if shutil.which("kubectl"):
        done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        text = done.stdout
    else:
        names = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
        text = "\n---\n".join((folder / name).read_text() for name in names)
    return [each for each in yaml.safe_load_all(text) if each]


def test_a_pod_is_walled_and_speaks_to_members_only() -> None:
    kinds = {each["kind"]: each["spec"] for each in _kubernetes()}
    assert sorted(kinds) == ["NetworkPolicy", "Service", "StatefulSet"]
    assert kinds["StatefulSet"]["replicas"] == 1
    pod = kinds["StatefulSet"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (node,) = pod["containers"]
    assert node["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
    }  # fmt: skip
    assert "env" not in node
    policy = kinds["NetworkPolicy"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    for rule in (*policy["ingress"], *policy["egress"]):
        assert {port["port"] for port in rule["ports"]} in ({7100}, {53})
        for peer in (*rule.get("from", []), *rule.get("to", [])):
            assert peer.get("ipBlock", {}).get("cidr", "/32").endswith("/32"), "one member's address, not a network"


def test_the_trials_ceremony_is_shell_and_says_how_it_is_used() -> None:
    script = DEPLOY / "compose-ceremony"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    done = subprocess.run([script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "usage:" in done.stderr
    text = script.read_text(encoding="utf-8")
    used = set(re.findall(r'(?m)^ *step (?:"\$name"|[a-z]+) ((?:identity )?[a-z]+) ', text)) | {"join"}
    assert used == {"identity new", "identity card", "key", "propose", "sign", "combine", "join"}
    for command in used:
        known: Any = typer.main.get_command(app)
        for word in ("ceremony", *command.split()):
            known = known.commands[word]
        called = re.search(rf"(?:step \S+|ceremony) {command} ((?:.*\\\n)*.*)", text)
        assert called
        options = {option for parameter in known.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", called[1])) <= options | {"--endpoint"}, command


@pytest.mark.skipif(not FULL, reason="thirty commands, each of which opens a sealed file")
def test_the_trials_ceremony_makes_five_homes(tmp_path: Path) -> None:
    gaps = [each for gap in OWN_GAPS for each in ("--allow-gap", gap)]
    environment = os.environ | {"EXAMPLES": "50", "WARDTREE": f"{sys.executable} -m node", "PYTHONPATH": str(ROOT)}
    study = ROOT / "docs" / "examples" / "readmission" / "study.toml"
    done = subprocess.run(
        [DEPLOY / "compose-ceremony", tmp_path / "trial", study, *gaps],
        env=environment, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        home = load_home(tmp_path / "trial" / name / "home", datetime.now(UTC))
        assert (home.name, home.manifest.key_holder) == (name, KEY_HOLDER)
        assert home.card.endpoint == (None if name == DIAL_ONLY else f"ward.{name}.example:7100")
        assert (tmp_path / "trial" / name / "passphrase").stat().st_mode & 0o077 == 0
