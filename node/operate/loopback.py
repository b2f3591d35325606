"""A socket that only this machine can reach: the supervisor makes it, and the page process gets it."""

from __future__ import annotations

import socket

from keys.errors import WardtreeError

LOOPBACK = "127.0.0.1"
_BACKLOG = 16


class PageError(WardtreeError):
    """The live page cannot be served."""


def listen(port: int) -> socket.socket:
    """A socket on loopback that listens; 0 takes any free port.

    Raises:
        PageError: the port is in use, say.
    """
    made = socket.socket()
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((LOOPBACK, port))
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        raise PageError(f"live page: cannot listen on {LOOPBACK}:{port}: {error.strerror}") from error
    return made


def address(listening: socket.socket) -> str:
    """Where a browser finds it."""
    return f"http://{LOOPBACK}:{listening.getsockname()[1]}/"
