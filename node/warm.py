"""One warm process for all the nodes of a local run: what their training needs is imported once.

Every node's template is forked from it, so that they share the pages of torch and its like; supervisors,
relays and key rooms are not, and never have them. It knows no secret, and reads no data.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from node.enclave import run_template, warm_up
from node.home import Home, load_home
from node.process import name_process, spawn
from node.protocol.posture import parse_posture
from node.sandbox import policy
from node.sandbox.enter import enter
from node.supervisor import enclave_settings

_MAX_REQUEST = 8192


class Nursery:
    """What a supervisor asks for the template of its enclaves."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    def fork_template(self, home: Home, ends: Sequence[socket.socket]) -> None:
        """Have the template of a node forked, which enters its room first of all; ``ends`` are its sockets.

        It ends by itself when its relay does.
        """
        request = [home.posture.text.encode(), b"\0", os.fsencode(home.path)]
        socket.send_fds(self._requests, request, [end.fileno() for end in ends])


def start_nursery(task: str, besides: Sequence[str] = ()) -> tuple[Nursery, int]:
    """Fork the warm process; gives what supervisors need, and its process id. ``besides``: modules to import too."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = spawn(signal.SIGKILL, _run, theirs, ours, task, besides)
    theirs.close()
    return Nursery(ours), process


def _run(requests: socket.socket, other: socket.socket, task: str, besides: Sequence[str]) -> None:
    other.close()
    name_process("nursery")
    warm_up(task, besides)
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
