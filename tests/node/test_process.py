"""Forked processes of a node."""

from __future__ import annotations

import gc
import os
import signal
import socket

import pytest

from node.channel import Channel
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


def test_a_process_whose_other_end_is_gone_ends_without_a_word(capfd: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends the processes of a node in any order."""
    for write in (_to_a_channel, _to_a_socket):
        assert reap(spawn(signal.SIGKILL, write)) == 1
    assert capfd.readouterr().err == ""


def _to_a_channel() -> None:
    ours, theirs = Channel.pair()
    theirs.close()
    ours.send("word")


def _to_a_socket() -> None:
    ours, theirs = socket.socketpair()
    theirs.close()
    socket.send_fds(ours, [b"word"], [0])


def _reuse(number: int) -> None:
    os.close(number)
    assert os.dup2(2, number) == number
    gc.collect()
    os.fstat(number)  # an OSError if somebody closed it
