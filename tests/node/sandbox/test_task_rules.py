"""What a task tries and may not: refused by the kernel, and told by rule, with place and without a word of data."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from node.sandbox.explain import RULES, Witness
from node.sandbox.landlock import Reach
from tests.node.sandbox.kernel import needs_landlock
from tests.node.test_enclave import running

TASK = '''
import ctypes, mmap, multiprocessing, os, pathlib, socket, subprocess, sys, tempfile, threading
import urllib.request
import numpy as np
from node.tasks.base import Task

OTHERS = pathlib.Path(__file__).parents[1] / "others"


def handled():
    """A library that tries, and then says something else."""
    try:
        socket.create_connection(("127.0.0.1", 9))
    except OSError:
        raise RuntimeError("patient 4711")


ATTEMPTS = {
    "open a socket": lambda: socket.socket(),
    "open a unix socket": lambda: socket.socket(socket.AF_UNIX),
    "ask for an address": lambda: socket.getaddrinfo("example.org", 80),
    "read a web page": lambda: urllib.request.urlopen("http://127.0.0.1:9"),
    "handle it": handled,
    "write beside itself": lambda: (OTHERS / "4711.txt").write_text("4711"),
    "overwrite data": lambda: pathlib.Path(np.__file__).open("r+b"),
    "make a temporary file": lambda: tempfile.NamedTemporaryFile(),
    "make a folder": lambda: os.mkdir("/tmp/4711"),
    "remove a file": lambda: os.remove(OTHERS / "patients.csv"),
    "change permissions": lambda: os.chmod(OTHERS / "patients.csv", 0o644),
    "make a link": lambda: os.symlink("/etc", "/tmp/4711"),
    "start a program": lambda: subprocess.run(["true"]),
    "start a shell": lambda: subprocess.check_output("id", shell=True),
    "fork": os.fork,
    "use a worker": lambda: multiprocessing.get_context("fork").Process(target=int).start(),
    "read another folder": lambda: (OTHERS / "patients.csv").read_text(),
    "list another folder": lambda: os.listdir(OTHERS),
    "read the password file": lambda: open("/etc/passwd").read(),
    "read its parent's memory": lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
}


class Curious(Task):
    examples, parameters = 1, 1

    def __init__(self, setup):
        pass

    def initial(self):
        return np.zeros(1, np.float32)

    def train(self, model, round):
        self.attempt = list(ATTEMPTS.values())[round.number - 1]()
        return np.zeros(1)

    def evaluate(self, model, round):
        return {}
'''

EXPECTED = (
    *[("network", "OSError|URLError|gaierror|PermissionError|RuntimeError")] * 5,
    *[("writing", "PermissionError")] * 7,
    *[("processes", "PermissionError")] * 4,
    *[("reading", "PermissionError")] * 4,
)


@needs_landlock
def test_each_attempt_of_a_task_is_refused_and_told_by_its_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "curious.py").write_text(TASK)
    (tmp_path / "others").mkdir()
    (tmp_path / "others" / "patients.csv").write_text("name\n4711\n")
    monkeypatch.syspath_prepend(str(tmp_path / "tasks"))
    monkeypatch.setattr("node.enclave.WARM_FOR_OTHERS", ())
    with running(tmp_path, "curious:Curious") as node:
        for number, (rule, error) in enumerate(EXPECTED, start=1):
            enclave = node.job(number, length=1)
            text = enclave.channel.receive(60).get("text", "it was let through")
            told = re.escape(f"; refused by the sandbox: {RULES[rule]}")
            expected = rf"north: the task failed: ({error}) at curious.py:\d+{told}"
            assert re.fullmatch(expected, text), (number, text)
            enclave.end()
    assert "4711" not in "".join(capfd.readouterr())
    assert sorted(path.name for path in (tmp_path / "others").iterdir()) == ["patients.csv"]


def test_an_error_of_a_file_that_may_be_read_is_not_the_sandboxs(tmp_path: Path) -> None:
    """Its own permissions, say: the rule would send people the wrong way. Nor is one where nothing is confined."""
    secret = str(tmp_path / "sealed.csv")
    witness = Witness(Reach(read=(tmp_path,)))
    witness._hear("open", (secret, "r", os.O_RDONLY))
    assert witness.rule(PermissionError(13, "Permission denied", secret)) is None
    assert witness.rule(ValueError("no matter of the operating system")) is None
    assert witness.rule(FileNotFoundError(2, "No such file", "/etc/nothing")) is None
    assert Witness(None).rule(PermissionError(1, "Operation not permitted")) is None
    witness._hear("open", (secret, "w", os.O_WRONLY | os.O_CREAT))
    assert witness.rule(PermissionError(13, "Permission denied", secret)) == RULES["writing"]
    assert witness.rule(PermissionError(1, "Operation not permitted")) == RULES["other"]
