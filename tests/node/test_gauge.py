"""What processes take of the machine, as it is told to whoever runs them."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from node import gauge
from node.gauge import Gauge, descendants, own_usage, peak_memory
from node.process import reap, spawn

MEGABYTE = 1 << 20


def test_a_peak_stays_when_the_memory_is_given_back() -> None:
    def take_and_give_back() -> None:
        before = peak_memory("self")
        block = bytearray(os.urandom(MEGABYTE)) * 200
        del block
        assert before + 150 * MEGABYTE < peak_memory(os.getpid()) == own_usage().peak_memory

    assert reap(spawn(signal.SIGKILL, take_and_give_back)) == 0


def test_descriptors_and_sockets_are_counted() -> None:
    before = own_usage()
    pair, pipe = socket.socketpair(), os.pipe()
    after = own_usage()
    assert (after.descriptors - before.descriptors, after.sockets - before.sockets) == (4, 2)
    for one in pair:
        one.close()
    for descriptor in pipe:
        os.close(descriptor)
    assert peak_memory(1 << 30) == 0, "of a process that is none"


def _hold(megabytes: int) -> None:
    block = bytearray(os.urandom(MEGABYTE)) * megabytes
    time.sleep(60 + len(block) * 0)


def _hold_below(megabytes: int) -> None:
    spawn(signal.SIGKILL, _hold, megabytes)
    time.sleep(60)


@pytest.mark.parametrize("how", ["pss", "available"])
def test_a_gauge_sees_what_lives_below_and_what_has_ended(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that another process of the family holds, two forks away; where it may not look, by what is left."""
    monkeypatch.setattr(gauge, "PATIENCE", 1)
    if how == "available":
        figures = gauge._bytes
        monkeypatch.setattr(
            gauge, "_bytes", lambda path, key: None if path.endswith("smaps_rollup") else figures(path, key)
        )
    watcher = Gauge()
    time.sleep(2 * gauge.LEAST_SECONDS)
    child = spawn(signal.SIGKILL, _hold_below, 500)
    deadline = time.monotonic() + 20
    while sum(map(peak_memory, descendants(child))) < 500 * MEGABYTE and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(4 * gauge.LEAST_SECONDS)
    os.kill(child, signal.SIGKILL)
    reap(child)
    peak = watcher.stop()
    assert peak.how == how
    assert peak.processes >= 4, "this one, the gauge, and two more"
    assert 0.1 < peak.processor_seconds < 60, "half a gigabyte from the generator takes about a second"
    if how == "pss":  # what the machine has left, others change too
        assert peak.memory > 450 * MEGABYTE
