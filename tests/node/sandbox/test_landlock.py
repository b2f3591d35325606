"""Landlock on older kernels: of the newest version's rules only those are taken that the kernel knows."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from node.process import reap, spawn
from node.sandbox.landlock import PORTS_FROM, TRUNCATE_FROM, Reach, landlock_version, restrict

VERSIONS = range(1, landlock_version() + 1)
pytestmark = pytest.mark.skipif(not VERSIONS, reason="this kernel has no Landlock")


def refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except PermissionError:
        return True
    return False


@pytest.mark.parametrize("version", VERSIONS)
def test_of_every_version_the_rules_hold(tmp_path: Path, version: int) -> None:
    readable, writable, folder, outside = (tmp_path / name for name in ("read", "write", "folder", "outside"))
    for file in (readable, writable, outside):
        file.write_text("text")
    folder.mkdir()

    def look() -> None:
        restrict(Reach(read=(readable,), write=(writable,), replace=(folder,)), version)
        assert readable.read_text() == "text"
        assert refused(outside.read_text)
        assert refused(lambda: readable.write_text("other"))
        assert refused(lambda: os.truncate(outside, 0)) == (version >= TRUNCATE_FROM)
        assert refused(outside.unlink)
        assert refused(lambda: (tmp_path / "new").touch())
        assert not refused(lambda: writable.write_text("other"))
        (folder / "new").write_text("text")
        (folder / "new").rename(folder / "newer")
        (folder / "newer").unlink()
        assert refused(lambda: (folder / "link").symlink_to("/etc/passwd"))
        with socket.socket() as end:
            assert refused(lambda: end.bind(("127.0.0.1", 0))) == (version >= PORTS_FROM)
        raise SystemExit(0)

    assert reap(spawn(9, look)) == 0
