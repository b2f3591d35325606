"""Encryptions of zero, made while the enclave trains.

They need no data and are two thirds of what protecting an update costs, so processes beside the enclave make
them on the other cores. They are forked by the enclave itself, give every zero away once, and die with the
enclave. A zero used twice would give away the difference of two updates.
"""

from __future__ import annotations

import select
import signal
from collections import deque

from keys.ckks import Sealer
from keys.plan import Plan
from node.channel import Channel, ChannelClosedError
from node.process import name_process, reap, spawn

STOCK_CIPHERTEXTS = 2048
"""At most so many wait in one process: 134 MB at N=4096."""


class Mint:
    """The enclave's line to the processes that make its zeros."""

    def __init__(self, plan: Plan, public_key: bytes, ciphertexts: int, party: str, workers: int = 1) -> None:
        """Fork ``workers`` processes, which start at once to make zeros for ``ciphertexts`` ciphertexts."""
        full, rest = divmod(ciphertexts, plan.segment_ciphertexts)
        batches = [plan.segment_ciphertexts] * full + [rest] * bool(rest)
        self._lines: list[Channel] = []
        self._processes: list[int] = []
        for worker in range(min(workers, len(batches))):
            ours, theirs = Channel.pair()
            inherited = [ours, *self._lines]
            share = batches[worker::workers]
            self._processes.append(spawn(signal.SIGKILL, _run, theirs, inherited, plan, public_key, share, party))
            theirs.close()
            self._lines.append(ours)
        self._turn = 0

    def supply(self, sealer: Sealer) -> None:
        """Give the sealer the next segment's zeros, if they are made; else it makes its own."""
        line = self._lines[self._turn % len(self._lines)]
        self._turn += 1
        try:
            line.send("want")
            zeros = line.receive()["zeros"]
        except ChannelClosedError:
            return
        if zeros:
            sealer.take_zeros(zeros)

    def close(self) -> None:
        """End the processes; what they still hold goes back to the kernel."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            reap(process)


def _run(
    channel: Channel, inherited: list[Channel], plan: Plan, public_key: bytes, batches: list[int], party: str
) -> None:
    for line in inherited:
        line.close()
    name_process(f"mint {party}")
    sealer = Sealer(plan, public_key)
    todo, made = deque(batches), deque[bytes]()
    poller = select.poll()
    assert channel.read is not None
    poller.register(channel.read, select.POLLIN)
    try:
        while True:
            room = len(made) * plan.segment_ciphertexts < STOCK_CIPHERTEXTS
            if todo and room and not poller.poll(0):
                sealer.stock(todo.popleft())
                made.append(sealer.give_zeros())
            else:
                channel.receive()
                channel.send("zeros", zeros=made.popleft() if made else b"")
    except ChannelClosedError:
        return
