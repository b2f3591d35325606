"""The same round without the design: one process trains, seals and opens, wipes nothing, and lives on.

It keeps what such a process keeps for its next round: its task, the keys, the last message. Reads the CKKS plan,
the keys and where the data lie from standard input; says "done" after the round, and waits to be searched.
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import msgpack
import numpy as np

from keys import canaries
from keys.ckks import Opener, Sealer
from keys.plan import Plan
from node import update
from node.protocol.messages import TRAIN
from node.tasks.base import Setup, TrainingRound
from tests.node.wiping.planted import PlantedTask


class Node:
    """All rooms in one process."""

    def __init__(self, plan: Plan, public: bytes, secret: bytes, data: str) -> None:
        self.plan = plan
        self.length = len(Path(data).read_bytes()) // 8
        self.task = PlantedTask(Setup("x", {"length": self.length}, {"file": data}, 1, Path("/")))
        self.sealer, self.opener = Sealer(plan, public), Opener(plan, secret)
        self.message = b""

    def round(self, canary_key: bytes) -> int:
        """Round 1 of one party; gives how many values came out as they went in."""
        model = update.Model(0, np.zeros(self.length, np.float32))
        values = update.train(self.task, TRAIN, model, TrainingRound(1, 2, None, 0))
        integers = update.quantise(values, update.Grid(float(self.plan.max_value), self.plan), 1.0)
        same = 0
        for number, part in enumerate(self.plan.segments(integers.size)):
            self.message = integers[part].astype("<i4").tobytes()
            part_of_ours = np.frombuffer(self.message, "<i4").astype(np.int64)
            self.sealer.stock(self.plan.ciphertexts(part_of_ours.size))  # as sealers do: the message is added to zeros
            sealed = update.seal_segment(part_of_ours, number, self.sealer, canary_key)
            marks = canaries.digits(canary_key, self.plan, number, self.plan.ciphertexts(part_of_ours.size))
            same += int((self.opener.open(sealed, part_of_ours.size, 1, marks) == part_of_ours).sum())
        return same


def main() -> None:
    job = msgpack.unpackb(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    node = Node(Plan.from_dict(job["plan"]), job["public"], job["secret"], job["data"])
    same = node.round(job["canary_key"])
    gc.collect()
    print(f"done {same}", flush=True)
    sys.stdin.buffer.read()
    del node


if __name__ == "__main__":
    main()
