"""Who was started by sudo, and does not need it, goes on as the user who called it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can leave root behind")

ROOT = Path(__file__).parents[3]
CALLER = 65534
CODE = """
import json, os, sys
from collections.abc import Iterator
from pathlib import Path
from node.sandbox.root import leave_root
left = leave_root(Path(sys.argv[1]))
print(json.dumps([left, *os.getresuid(), *os.getresgid(), *os.getgroups()]))
"""


def python_for_all() -> str:
    """A Python, new enough, that any user may read; this one may lie in root's home."""
    for python in (sys.executable, "/usr/bin/python3"):
        check = [python, "-c", "import sys, keyword; sys.exit(sys.version_info < (3, 11))"]
        try:
            ended = subprocess.run(check, user=CALLER, group=CALLER, extra_groups=[], capture_output=True, cwd="/")
        except OSError:
            continue
        if ended.returncode == 0 and os.stat(ROOT).st_mode & 0o005 == 0o005:
            return python
    pytest.skip("an ordinary user can read no Python 3.11 here, or not this folder")


def leave(folder: Path, **environment: str) -> list[int]:
    python = python_for_all()
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **environment}
    ended = subprocess.run([python, "-c", CODE, str(folder)], env=variables, capture_output=True, text=True, cwd="/")
    assert ended.returncode == 0, ended.stderr
    result: list[int] = json.loads(ended.stdout)
    return result


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where anybody may look, which is not so of pytest's own folders."""
    made = Path(f"/tmp/wardtree-root-{os.getpid()}")
    made.mkdir(mode=0o755)
    yield made
    made.rmdir()


def test_it_becomes_the_caller_for_good(folder: Path) -> None:
    os.chown(folder, CALLER, CALLER)
    left, *ids = leave(folder / "run", SUDO_UID=str(CALLER), SUDO_GID=str(CALLER))
    assert left
    assert set(ids) == {CALLER}


@pytest.mark.parametrize("caller", [{}, {"SUDO_UID": "0"}, {"SUDO_UID": "nobody"}, {"SUDO_UID": str(CALLER)}])
def test_it_stays_where_nobody_called_or_the_caller_could_not_write(folder: Path, caller: dict[str, str]) -> None:
    left, *ids = leave(folder / "run", **caller)
    assert not left
    assert ids[:6] == [0] * 6
