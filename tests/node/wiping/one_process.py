"""The same round without the design: one process trains, seals and opens, wipes nothing, and lives on.

Reads the CKKS plan, the keys and where the data lie from standard input; says "done" when nothing of it is needed
any more, and waits to be searched.
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
from node.tasks.base import Setup
from tests.node.wiping.planted import PlantedTask


def one_round(plan: Plan, public: bytes, secret: bytes, canary_key: bytes, data: str) -> int:
    """Round 1 of one party; gives how many values came out as they went in."""
    length = len(Path(data).read_bytes()) // 8
    task = PlantedTask(Setup("x", {"length": length}, {"file": data}, 1, Path("/")))
    values = update.train(task, TRAIN, update.Model(0, np.zeros(length, np.float32)), 2)
    integers = update.quantise(values, update.Grid(float(plan.max_value), plan), 1.0)
    sealer, opener = Sealer(plan, public), Opener(plan, secret)
    same = 0
    for number, part in enumerate(plan.segments(integers.size)):
        size = part.stop - part.start
        sealed = update.seal_segment(integers[part], number, sealer, canary_key)
        marks = canaries.digits(canary_key, plan, number, plan.ciphertexts(size))
        same += int((opener.open(sealed, size, 1, marks) == integers[part]).sum())
    return same


def main() -> None:
    job = msgpack.unpackb(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))
    same = one_round(Plan.from_dict(job["plan"]), job["public"], job["secret"], job["canary_key"], job["data"])
    gc.collect()
    print(f"done {same}", flush=True)
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
