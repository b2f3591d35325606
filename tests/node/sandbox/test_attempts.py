"""Whoever took over a room gets nowhere: every attempt, in every room, and outside, where it works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.node.sandbox.attempts import ATTEMPTS
from tests.node.sandbox.kernel import needs_landlock
from tests.node.sandbox.prove import OUTSIDE, WENT_THROUGH
from tests.node.sandbox.scene import ROOMS


@needs_landlock
def test_every_attempt_from_inside_the_rooms_is_refused_and_works_outside(tmp_path: Path) -> None:
    """In a small process, of which each attempt is a fork: as an ordinary user, and as root too where root tests."""
    command = [sys.executable, "-m", "tests.node.sandbox.prove", "--json", "--out", str(tmp_path / "page.md")]
    ended = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    runs, page = json.loads(ended.stdout), (tmp_path / "page.md").read_text()
    assert len(runs) == (2 if os.geteuid() == 0 else 1)
    for title, results in runs.items():
        assert len(results) == (1 + len(ROOMS)) * len(ATTEMPTS)
        wrong = [each for each in results if not each["as_it_must"]]
        missing = [each for each in wrong if each["where"] == OUTSIDE and "ENOSYS" in each["outcome"]]
        assert wrong == missing, "but for what is not in this kernel at all"
        assert page.count("WRONG") == 0 or missing
        assert f"## {title}\n\n{len(ATTEMPTS)} attempts; outside " in page
        assert sum(each["outcome"] == WENT_THROUGH for each in results if each["where"] == OUTSIDE) >= 30
