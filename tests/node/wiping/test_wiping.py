"""After a round nothing of it is left in any process of a node, nor on a disk; and the scanner is not blind."""

from __future__ import annotations

import os
import subprocess
import sys
from subprocess import PIPE

import numpy as np
import pytest

from tests.end_to_end.commands import FULL
from tests.node.wiping.prove import ALONE, SECRET, prove, table
from tests.node.wiping.scan import WINDOWS, Windows, count, memory_of


def test_the_scanner_counts_whole_and_partly_overwritten_copies_at_any_address() -> None:
    generator = np.random.default_rng(1)
    thing = generator.integers(1000, 8191, 100_000).astype("<f8").tobytes()
    windows = Windows.of({"thing": thing, "other": generator.bytes(len(thing))})
    half = bytes(len(thing) // 2) + thing[len(thing) // 2 :]
    assert count([thing, b"xyz" + thing + bytes(9)], windows) == {"thing": 2 * WINDOWS, "other": 0}
    assert abs(count([half], windows)["thing"] - WINDOWS / 2) <= 1
    assert count([bytes(1 << 20), generator.bytes(1 << 20)], windows) == {"thing": 0, "other": 0}


HOLDER = """
import sys, numpy as np
array = np.random.default_rng(2).integers(1000, 8191, 1 << 16).astype("<f8")
print("held", flush=True)
sys.stdin.readline()
array[:] = 0
print("overwritten", flush=True)
sys.stdin.readline()
"""


def test_the_scanner_finds_what_another_process_holds_and_not_what_it_overwrote() -> None:
    windows = Windows.of({"array": np.random.default_rng(2).integers(1000, 8191, 1 << 16).astype("<f8").tobytes()})
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        found = {}
        for _ in range(2):
            said = process.stdout.readline().strip()
            found[said] = count(memory_of(process.pid), windows)["array"]
            process.stdin.write("\n")
            process.stdin.flush()
    assert found == {"held": WINDOWS, "overwritten": 0}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root reads the memory of processes that cannot be traced")
def test_after_a_round_no_copy_is_left_outside_the_key_room() -> None:
    proof = prove() if FULL else prove(50_000, "tests.node.wiping.light_node")
    assert not proof.wrong(), table(proof)
    assert {"supervisor", "relay", "template", "enclave of round 2", "key room"} <= proof.found.keys()
    assert proof.processes["relay"] == 4
    assert proof.found[ALONE][SECRET] > 0
