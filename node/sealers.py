"""Processes of the enclave that encrypt: they make encryptions of zero while it trains, and seal when it has.

Three quarters of what protecting an update costs is the sampling inside an encryption, which needs no data. So
processes beside the enclave do it on the other cores, before there is anything to encrypt; then they get the
integers of one segment after another, and add them to their zeros. Each zero is used once, in the process
that made it: used twice it would give away the difference of two updates. They are forked by the enclave,
hold nothing but the plan and the public key until it hands them integers, and die with the round.
"""

from __future__ import annotations

import select
import signal
from collections.abc import Iterator

import numpy as np

from keys.ckks import Sealer
from keys.packing import Integers
from keys.plan import Plan
from node import update
from node.channel import Channel, ChannelClosedError
from node.process import name_process, reap, spawn
from node.protocol.posture import Posture
from node.sandbox import policy
from node.sandbox.enter import narrow

STOCK_CIPHERTEXTS = 2048
"""At most so many zeros wait in one process: 134 MB at N=4096."""


class Sealers:
    """The enclave's line to the processes that encrypt for it."""

    def __init__(self, plan: Plan, public_key: bytes, length: int, party: str, workers: int, posture: Posture) -> None:
        """Fork ``workers`` processes, which start at once to make zeros for ``length`` integers."""
        self._plan = plan
        segments = plan.segments(length)
        sizes = [plan.ciphertexts(segment.stop - segment.start) for segment in segments]
        self._lines: list[Channel] = []
        self._processes: list[int] = []
        for worker in range(min(workers, len(segments))):
            ours, theirs = Channel.pair()
            inherited = [ours, *self._lines]
            zeros = min(sum(sizes[worker::workers]), STOCK_CIPHERTEXTS)
            work = (theirs, inherited, plan, public_key, zeros, party, posture)
            self._processes.append(spawn(signal.SIGKILL, _work, *work))
            theirs.close()
            self._lines.append(ours)

    def seal_segments(self, integers: Integers, canary_key: bytes) -> Iterator[bytes]:
        """As :func:`node.update.seal_segments`, one segment a process at a time, in order."""
        segments = self._plan.segments(integers.size)
        lanes = len(self._lines)

        def hand_over(number: int) -> None:
            if number < len(segments):
                values = integers[segments[number]].astype("<i4").tobytes()
                self._lines[number % lanes].send("seal", values=values, segment=number, canary_key=canary_key)

        for number in range(lanes):
            hand_over(number)
        for number in range(len(segments)):
            sealed: bytes = self._lines[number % lanes].receive()["ciphertexts"]
            hand_over(number + lanes)  # only now: its process writes no more, so nobody waits for each other
            yield sealed

    def close(self) -> None:
        """End the processes; their memory goes back to the kernel."""
        for line in self._lines:
            line.close()
        for process in self._processes:
            reap(process)


def _work(
    channel: Channel,
    inherited: list[Channel],
    plan: Plan,
    public_key: bytes,
    zeros: int,
    party: str,
    posture: Posture,
) -> None:
    for line in inherited:
        line.close()
    narrow(policy.sealer(), posture)
    name_process(f"sealer {party}")
    sealer = Sealer(plan, public_key)
    poller = select.poll()
    assert channel.read is not None
    poller.register(channel.read, select.POLLIN)
    try:
        while True:
            if zeros and not poller.poll(0):
                sealer.stock(1)
                zeros -= 1
                continue
            job = channel.receive()
            zeros = 0  # from here on the update waits: a short stock is made up one by one, as needed
            values = np.frombuffer(job["values"], dtype="<i4").astype(np.int64)
            ciphertexts = update.seal_segment(values, job["segment"], sealer, job["canary_key"])
            update.wipe(values)
            channel.send("sealed", ciphertexts=ciphertexts)
    except ChannelClosedError:
        return
