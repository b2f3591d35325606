"""docs/three-machines.md, typed by three administrators, from their keys to the record that is filed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest

from node.address import free_ports
from node.published import load_model
from tests.end_to_end.commands import FULL
from tests.end_to_end.walkthrough import ROOT, Page, walk

PAGE = ROOT / "docs" / "three-machines.md"
NAMES = ("uppsala", "lund", "umea")


@pytest.mark.skipif(not FULL, reason="thirty commands; the ceremony's own page is always typed: WARDTREE_FULL=1")
@pytest.mark.confined
@pytest.mark.timeout(900)  # thirty commands, of three people at the same time
def test_three_machines_from_nothing_to_the_record_by_the_page_alone(tmp_path: Path) -> None:
    ports = free_ports(len(NAMES))
    places = {f"ward.{name}.example:7100": f"127.0.0.1:{port}" for name, port in zip(NAMES, ports, strict=True)}
    text = PAGE.read_text(encoding="utf-8")
    walk(Page.parse(text), tmp_path, places | {"/opt/wardtree": str(ROOT)})
    models = [load_model(tmp_path / name / name / "model.npz") for name in NAMES]
    assert {model.round for model in models} == {3}, "two rounds of training and an evaluation"
    assert all(np.array_equal(model.parameters, models[0].parameters) for model in models)
    facts = json.loads((tmp_path / "lund" / "record" / "record.json").read_text())["facts"]
    assert [own["party"] for own in facts["ledgers"]] == sorted(NAMES)
    assert [act["kind"] for act in facts["acts"]] == ["destruction"]
    assert facts["differences"] == []
    assert not list((tmp_path / "uppsala" / "uppsala").glob("secret-key-*"))


def test_what_administrators_type_by_themselves_is_shell_and_names_what_is_there() -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, re.S)
    assert len(blocks) == 3
    for block in blocks:
        checked = subprocess.run(["bash", "-n"], input=block, text=True, capture_output=True)
        assert checked.returncode == 0, checked.stderr
        for path in re.findall(r"/opt/wardtree/((?:deploy|scripts)/[\w@.-]+)", block):
            assert (ROOT / path).exists()
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert (PAGE.parent / path).exists(), path
    unit = (ROOT / "deploy" / "wardtree-node@.service").read_text()
    assert "LoadCredentialEncrypted=wardtree-passphrase:/etc/wardtree/%i.cred" in unit
    assert "/etc/wardtree/lund.cred" in text
