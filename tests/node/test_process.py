"""Forked processes of a node."""

from __future__ import annotations

import gc
import os
import signal
import socket

from node.process import reap, spawn


def test_what_the_parent_forgot_closes_nothing_in_a_child() -> None:
    """A confined room closes all descriptors but its own by number; the parent's sockets are still objects then."""
    gc.disable()  # or it may be collected here, before the fork
    try:
        forgotten = socket.socket()
        number = forgotten.fileno()
        cycle = [forgotten]
        cycle.append(cycle)  # type: ignore[arg-type]
        del forgotten, cycle
        child = spawn(signal.SIGKILL, _reuse, number)
    finally:
        gc.enable()
    assert reap(child) == 0
    gc.collect()


def _reuse(number: int) -> None:
    os.close(number)
    assert os.dup2(2, number) == number
    gc.collect()
    os.fstat(number)  # an OSError if somebody closed it
