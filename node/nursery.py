"""One warm process for all the nodes of a local run: what their training needs is imported once.

Every node's template is forked from it, so that they share the pages of torch and its like; supervisors,
relays and key rooms are not, and never have them. It knows no secret, and reads no data. This is the side of
those who ask; ``node/warm.py`` is the process.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Sequence

from node.home import Home
from node.process import own_python, spawn


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


def start_nursery(task: str, privacy: str = "none") -> tuple[Nursery, int]:
    """Start the warm process; gives what supervisors need, and its process id.

    A Python of its own, not a fork: with what a command line imports every enclave would take a third longer to fork.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    process = spawn(signal.SIGKILL, _execute, theirs, task, privacy)
    theirs.close()
    return Nursery(ours), process


def _execute(requests: socket.socket, task: str, privacy: str) -> None:
    requests.set_inheritable(True)
    os.execv(sys.executable, own_python("node.warm", str(requests.fileno()), task, privacy))
