"""The service unit: what systemd itself thinks of it, and that it agrees with the program."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from node.process import ENDED_FROM_OUTSIDE
from node.sandbox.kernel import EXIT_UNAVAILABLE

UNIT = Path(__file__).parents[1] / "deploy" / "wardtree-node@.service"
MOST_EXPOSED = 1.5
"""On systemd's scale from 0 to 10, where a service without any such setting has 9.6."""


def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text(encoding="utf-8").splitlines():
        key, separator, value = line.partition("=")
        if separator and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
def test_systemd_finds_little_exposed() -> None:
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={round(10 * MOST_EXPOSED)}", str(UNIT)]
    ended = subprocess.run(command, capture_output=True, text=True)
    if "unrecognized option" in ended.stderr:
        pytest.skip("this systemd-analyze is older than 250 and reads no unit offline")
    assert ended.returncode == 0, ended.stdout[-2000:] + ended.stderr


def test_it_starts_a_node_that_was_killed_again_and_no_node_that_would_fail_again() -> None:
    unit = settings()
    assert unit["Restart"] == ["on-failure"]
    never = set(map(int, unit["RestartPreventExitStatus"][0].split()))
    assert never == {1, 2, EXIT_UNAVAILABLE}
    assert ENDED_FROM_OUTSIDE not in never


def test_nothing_that_the_rooms_need_is_taken_away() -> None:
    """torch maps memory that is written and run; libzmq ends the process where netlink is refused otherwise."""
    unit = settings()
    assert unit.get("MemoryDenyWriteExecute", ["no"]) == ["no"]
    assert "AF_NETLINK" in unit["RestrictAddressFamilies"][0].split()
    assert "@sandbox" in unit["SystemCallFilter"][0].split(), "landlock_* and seccomp"
    assert unit["LoadCredentialEncrypted"][0].startswith("wardtree-passphrase:")
