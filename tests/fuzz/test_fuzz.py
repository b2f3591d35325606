"""Every place where bytes of others are read takes whatever comes. By hand, for long: ``python -m tests.fuzz.run``."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.commands import FULL
from tests.fuzz.targets import TARGETS, Target

MUTANTS = 100_000 if FULL else 1_500
GUIDED = {"decoder": 1_000_000, "link": 1_000_000} if FULL else {"decoder": 4_000, "link": 4_000}


def mutated(data: bytes, draw: random.Random) -> bytes:
    """A seed after a few changes: bits, bytes, a piece cut out, doubled or brought in."""
    changed = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at, size = draw.randrange(len(changed) + 1), draw.choice((1, 2, 4, 30))
        match draw.randrange(5):
            case 0 if at < len(changed):
                changed[at] ^= 1 << draw.randrange(8)
            case 1 if at < len(changed):
                changed[at] = draw.choice((0, 1, 0x7F, 0x80, 0xC0, 0xDD, 0xFF))
            case 2:
                del changed[at : at + size]
            case 3:
                changed[at:at] = changed[at : at + size]
            case _:
                changed[at:at] = draw.randbytes(size)
    return bytes(changed)


@pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())
def test_seeds_and_their_mutants_are_handled(target: Target) -> None:
    """Without coverage to guide it: what a run of ``scripts/test`` can afford."""
    draw, seeds = random.Random(1), list(target.seeds())
    for seed in seeds:
        target.run(seed)
    for _ in range(MUTANTS):
        target.run(mutated(draw.choice(seeds), draw)[: target.longest])


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
@pytest.mark.parametrize("name", GUIDED)
def test_guided_by_coverage(name: str, tmp_path: Path) -> None:
    options = (f"-runs={GUIDED[name]}", "-seed=1", f"-artifact_prefix={tmp_path}/")
    command = (sys.executable, "-m", "tests.fuzz.run", name, *options)
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert f"Done {GUIDED[name]} runs" in run.stderr
