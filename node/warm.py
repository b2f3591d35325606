"""The warm process of a local run (``node/nursery.py``): it imports what a task needs, and forks templates."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from node.enclave import run_template, warm_up
from node.home import load_home
from node.process import end_process, name_process, spawn
from node.protocol.posture import parse_posture
from node.sandbox import policy
from node.sandbox.enter import enter
from node.supervisor import enclave_settings

_MAX_REQUEST = 8192


def main(requests: str, task: str, privacy: str) -> None:
    """The warm process; ``requests`` is the number of a descriptor."""
    end_process(_serve, socket.socket(fileno=int(requests)), task, privacy)


def _serve(requests: socket.socket, task: str, privacy: str) -> None:
    requests.set_inheritable(False)
    name_process("nursery")
    warm_up(task, privacy)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # templates end when they will: the kernel takes them away
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 2)
        if not request:
            return
        posture, _, path = request.partition(b"\0")
        spawn(signal.SIGKILL, _template, requests, Path(os.fsdecode(path)), posture.decode(), descriptors)
        for descriptor in descriptors:
            os.close(descriptor)


def _template(requests: socket.socket, path: Path, text: str, descriptors: list[int]) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    requests.close()
    posture = parse_posture(text)
    assert posture
    home = replace(load_home(path, datetime.now(UTC)), posture=posture)
    enter(policy.template(home.path, home.task_source, home.readable), posture, descriptors)
    control, *jobs = (socket.socket(fileno=descriptor) for descriptor in descriptors)
    run_template(control, jobs[0] if jobs else None, enclave_settings(home))
