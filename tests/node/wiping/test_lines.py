"""The line of a round is written when nothing of it is left, and not before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from node.ledger import Ledger
from node.wiping import ENCLAVE, KEYROOM, PREPARE, Wiping


def lines(ledger: Ledger) -> list[dict[str, Any]]:
    return [{key: value for key, value in entry.items() if key != "time"} for entry in ledger.entries]


def test_it_waits_for_both_rooms_and_for_the_relay(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    wiping = Wiping(ledger)
    wiping.began(3, ENCLAVE)
    wiping.began(3, KEYROOM)
    wiping.held(3, 500)
    wiping.held(3, 50)
    wiping.dropped(3, 80)
    wiping.ended(KEYROOM, 7000)
    assert not ledger.entries
    assert wiping.waits
    wiping.ended(ENCLAVE, 9000)
    expected = {"what": "wiped", "round": 3, "ciphertext_bytes": 550, "total_bytes": 80}
    assert lines(ledger) == [{**expected, "enclave_bytes": 9000, "keyroom_bytes": 7000}]
    assert not wiping.waits


def test_a_round_that_was_tried_twice_has_one_line_when_the_second_enclave_is_gone_too(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    wiping = Wiping(ledger)
    for _ in range(2):
        wiping.began(3, ENCLAVE)
    wiping.dropped(3, 0)
    wiping.ended(ENCLAVE, 9000)
    assert not ledger.entries
    wiping.ended(ENCLAVE, 8000)
    assert [entry["enclave_bytes"] for entry in ledger.entries] == [9000]


def test_the_next_rounds_enclave_may_be_there_before_the_last_ones_end_is_known(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    wiping = Wiping(ledger)
    for round_ in (PREPARE, 1):
        wiping.began(round_, ENCLAVE)
        wiping.dropped(round_, round_ + 2)
    wiping.ended(ENCLAVE, 1000)
    assert [(entry["round"], entry["total_bytes"]) for entry in ledger.entries] == [(PREPARE, 1)]
    wiping.ended(ENCLAVE, 2000)
    assert [(entry["round"], entry["enclave_bytes"]) for entry in ledger.entries] == [(PREPARE, 1000), (1, 2000)]
