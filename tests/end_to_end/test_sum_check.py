"""The debug check proves something only if it notices: one integer changed in one node must be seen."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from keys.ckks import Sealer
from node import report as reports
from node import update
from node.cli.local import SYNTHETIC
from node.local import Outcome, run_federation
from node.sandbox.kernel import prctl
from node.simulation import Federation, simulated_parties
from node.study import parse_study
from tests.end_to_end.watched import watched

pytestmark = pytest.mark.confined


def federation(out: Path) -> Federation:
    text = SYNTHETIC.format(params=20_000, max_parties=64)
    parties, key_holder = simulated_parties(4, {})
    return Federation(text, parse_study(text, "study"), parties, key_holder, out)


def test_the_check_holds_without_a_fault(tmp_path: Path) -> None:
    fed = federation(tmp_path / "run")
    outcome = run_federation(fed, lambda record: None)
    assert reports.build(fed, outcome, {})["sums_exact"] is True


def own_name() -> str:
    """This process's, as ``ps`` shows it; an enclave cannot read it from /proc."""
    name = ctypes.create_string_buffer(16)
    prctl(16, ctypes.addressof(name))  # PR_GET_NAME
    return name.value.decode()


def test_one_changed_integer_in_one_node_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of this federation is forked from this one, so a patch here is in all of them."""
    honest = update.seal_segments

    def tampering(integers: np.ndarray[tuple[int], np.dtype[np.int64]], sealer: Sealer, *rest: Any) -> Iterator[bytes]:
        changed = integers.copy()
        if own_name() == "enclave party-02"[:15]:
            changed[12_345] += 1 if changed[12_345] < 0 else -1
        return honest(changed, sealer, *rest)

    monkeypatch.setattr(update, "seal_segments", tampering)
    with watched(tmp_path, study=SYNTHETIC.format(params=20_000, max_parties=64), parties=4) as nodes:
        nodes.start()
        nodes.finish()
        codes = {name: own[-1] for name, own in nodes.codes.items()}
        report = reports.build(nodes.federation, Outcome(nodes.record, nodes.tree, codes), {})
        assert nodes.record.models_identical, "everyone has the same wrong model"
    assert set(codes.values()) == {0}
    assert report["sums_exact"] is False
    assert report["ok"] is False, "so the program's exit code is 1"
