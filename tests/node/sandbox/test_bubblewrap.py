"""bubblewrap where there is no Landlock: a node works in a view of its own files, if its manifest lets that be."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from node.sandbox.bubblewrap import _TRY, view
from tests.end_to_end.commands import OWN_GAPS, at_descriptor
from tests.node.homes import PASSPHRASE, Federation, make_federation
from tests.node.sandbox.test_missing import without

BWRAP = shutil.which("bwrap") or ""
WORKS = bool(BWRAP) and subprocess.run([BWRAP, *_TRY], capture_output=True).returncode == 0
pytestmark = [
    pytest.mark.confined,
    pytest.mark.skipif(not WORKS, reason="no bubblewrap here, or this machine has no user namespaces for it"),
]
GAPS = [*OWN_GAPS, "landlock-tcp", "shared-files"]
NODE = [sys.executable, "-m", "tests.node.sandbox.without", "landlock", "node", "--sandbox", "bubblewrap", "--json"]


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return make_federation(tmp_path, sandbox_gaps=GAPS)


def test_the_view_has_the_home_python_and_nothing_else(federation: Federation) -> None:
    home = federation.home("bo")
    look = """
import json, os, sys
def tried(act):
    try:
        return act() is not None
    except OSError as error:
        return type(error).__name__
home, other = sys.argv[1:]
print(json.dumps([sorted(os.listdir("/")), tried(lambda: os.listdir(other)), tried(lambda: open("/etc/shadow").read()),
    tried(lambda: open(f"{home}/made", "w")), tried(lambda: open(os.__file__, "a"))]))
"""
    command = [BWRAP, *view(home), sys.executable, "-c", look, str(home.path), str(federation.path("cy"))]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    root, *tried = json.loads(ended.stdout)
    assert tried == ["FileNotFoundError", "FileNotFoundError", True, "OSError"]
    assert not {"home", "srv", "var", "boot"} & set(root) - {home.path.parts[1], Path(sys.prefix).parts[1]}


@contextmanager
def started(home: Path) -> Iterator[subprocess.Popen[str]]:
    with (
        at_descriptor(PASSPHRASE) as (read,),
        subprocess.Popen(
            [*NODE, "--home", str(home), "--passphrase-fd", str(read)],
            pass_fds=[read], stdout=subprocess.PIPE, text=True,
        ) as process,
    ):  # fmt: skip
        try:
            yield process
        finally:
            process.kill()


def test_a_node_comes_up_in_it_and_says_so(federation: Federation) -> None:
    with started(federation.path("bo")) as node:
        assert node.stdout
        events = []
        for line in node.stdout:
            events.append(json.loads(line))
            if events[-1]["kind"] in ("ready", "stopped"):
                break
    (posture,) = [event["text"] for event in events if event["kind"] == "posture"]
    assert posture.startswith("bubblewrap landlock=0 gaps=")
    assert set(GAPS) <= set(posture.partition("gaps=")[2].split(","))
    assert events[-1]["kind"] == "ready", "its enclave has read the data, its relay has its keys"


def test_without_a_manifest_that_allows_it_the_node_refuses(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, sandbox_gaps=OWN_GAPS)
    ended = without("landlock", "node", "--home", federation.path("bo"), "--sandbox", "bubblewrap")
    assert ended.returncode == 69
    assert "bo: sandbox gap 'shared-files'" in ended.stderr
