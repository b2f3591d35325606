"""`wardtree node` again, with the same command: after a kill, and after a disk that was full."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from node.ledger import read_entries
from node.published import load_model
from tests.end_to_end.commands import wait_until
from tests.end_to_end.test_institutions import NAMES, make_homes
from tests.end_to_end.watched import by_hand, watched

pytestmark = pytest.mark.confined
PARAMS = 50_000
KEY_HOLDER = "uppsala"
STUDY = f"""\
[study]
name = "three that go on"
rounds = 4
seed = 1
[task]
class = "synthetic"
[task.options]
params = {PARAMS}
seconds = 0.5
[deadlines]
join_seconds = 60.0
round_seconds = 30.0
"""


class Nodes:
    """`wardtree node` for each home of a folder; what they say is in files beside the homes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, largest_file: int | None = None) -> None:
        read, write = os.pipe()
        os.write(write, name.encode() + b"\n")
        os.close(write)

        def limit() -> None:
            if largest_file is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, largest_file))

        command = [
            sys.executable,
            "-m",
            "node",
            "node",
            "--home",
            str(self.folder / name),
            "--passphrase-fd",
            str(read),
        ]
        with (self.folder / f"{name}.out").open("a") as out, (self.folder / f"{name}.err").open("a") as err:
            self.running[name] = subprocess.Popen(
                command, pass_fds=[read], stdout=out, stderr=err, stdin=subprocess.DEVNULL, preexec_fn=limit
            )
        os.close(read)

    def said(self, name: str, stream: str = "out") -> str:
        return (self.folder / f"{name}.{stream}").read_text()

    def kill_at(self, name: str, moment: str) -> None:
        wait_until(lambda: moment in self.said(name))
        self.running[name].send_signal(signal.SIGKILL)
        self.running[name].wait(10)

    def finish(self) -> None:
        for name, process in self.running.items():
            assert process.wait(120) == 0, f"{name}: {self.said(name)}{self.said(name, 'err')}"
        models = [load_model(self.folder / name / "model.npz").parameters for name in NAMES]
        assert all(np.array_equal(model, models[0]) for model in models)
        opened = next((self.folder / KEY_HOLDER).glob("openings-*.jsonl"))
        places = [(line["entry"]["round"], line["entry"]["segment"]) for line in read_entries(opened)]
        assert len(places) == len(set(places))


@contextlib.contextmanager
def started(folder: Path) -> Iterator[Nodes]:
    make_homes(folder, STUDY, key_holder=KEY_HOLDER)
    nodes = Nodes(folder)
    try:
        yield nodes
    finally:
        for process in nodes.running.values():
            process.kill()
            process.wait()


def test_a_node_goes_on_with_the_same_command(tmp_path: Path) -> None:
    """After SIGKILL for its supervisor, with which the rest of it dies; and after a file that could not grow.

    No file of the key holder may become longer than the model in memory: it cannot keep a total.
    """
    with started(tmp_path) as nodes:
        for name in NAMES:
            nodes.start(name, largest_file=4 * PARAMS + 100 if name == KEY_HOLDER else None)
        assert nodes.running[KEY_HOLDER].wait(60) == 2
        error = nodes.said(KEY_HOLDER, "err")
        assert error.count("\n") == 1
        assert "cannot be written: File too large" in error
        assert str(tmp_path / KEY_HOLDER) in error
        nodes.start(KEY_HOLDER)
        nodes.kill_at("lund", "round 2: opened")
        nodes.start("lund")
        nodes.finish()
        for name in NAMES:
            entries = [line["entry"]["what"] for line in read_entries(tmp_path / name / "ledger.jsonl")]
            assert entries.count("started") == 1 + (name in ("lund", KEY_HOLDER))
            assert nodes.said(name, "err") == (error if name == KEY_HOLDER else "")


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A folder on a disk of its own; what was in it is there."""
    beside = folder.with_name(f"{folder.name} as it was")
    shutil.move(folder, beside)
    folder.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "wardtree-test", str(folder))
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs root and the right to mount")
    try:
        shutil.copytree(beside, folder, dirs_exist_ok=True)
        yield
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


@by_hand
def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=4) as nodes:
        victim = nodes.inner
        home = nodes.federation.home(victim)
        with small_disk(home, 2):
            nodes.start()
            nodes.until_told(victim, "round", what="opened", round=2)
            with contextlib.suppress(OSError), (home / "other people's files").open("wb", buffering=0) as ballast:
                while ballast.write(bytes(4096)):
                    pass
            nodes.until_told(victim, "ended", code=2)
            assert nodes.record.errors[victim].startswith(str(home))
            assert nodes.record.errors[victim].endswith("cannot be written: No space left on device")
            (home / "other people's files").unlink()
            nodes.start(victim)
            nodes.finish()
            assert nodes.closed()[4][0] >= nodes.everyone - {victim}
            assert len(nodes.closed()) == 4, "the others went on"
            nodes.check()
