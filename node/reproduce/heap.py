"""The paper's own network, to compare with: a binary tree of processes over ZeroMQ, its root the key holder.

Each party waits for its children's whole ciphertexts, adds them to its own and sends the sum to its parent; the root
decrypts, and the new model goes down the same way. No signatures, no quorum, no key of a party's own, and of three
parties the root is handed two single ciphertexts: it is here for the sake of comparison, with public data.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import zmq
from numpy.typing import NDArray

from keys.errors import WardtreeError
from node.address import free_ports
from node.channel import Channel, ChannelClosedError
from node.process import end_all, spawn
from node.reproduce.approximate import Setting, make_contexts, make_scheme
from node.simulation import in_process
from node.tasks.base import Task, TrainingRound

MakeTask = Callable[[int], Task]
"""The task of party 0, 1, ...: called in that party's process."""

PATIENCE_MS = 300_000
"""A party that hears nothing for so long gives up."""


class HeapError(WardtreeError):
    """The paper's network did not come to its end."""


@dataclass(frozen=True)
class Run:
    """What a run gave.

    Attributes:
        models: shape (kept, P), float32: after every ``keep`` rounds.
        seconds: of each round, from the root's start until every party has the new model, training left out at the
            root.
        upload: bytes that a leaf sends.
    """

    models: NDArray[np.float32]
    seconds: list[float]
    upload: int


def levels_of(parties: int) -> int:
    """Links between the root and the deepest leaf of the heap."""
    return parties.bit_length() - 1


def run(parties: int, make_task: MakeTask, setting: Setting | None, rounds: int, keep: int) -> Run:
    """Run so many rounds with a process for each party.

    Args:
        setting: of approximate CKKS; None: no encryption.
        keep: a model is kept after every so many rounds.

    Raises:
        HeapError: a party's process ended before the end.
    """
    # In a process of its own: a context that is made before a fork deadlocks in the child.
    contexts = None if setting is None else tuple(in_process(make_contexts, setting))
    ports = free_ports(parties)
    ours, theirs = Channel.pair()
    children: dict[str, int] = {}
    try:
        for party in range(parties):
            children[str(party)] = spawn(
                signal.SIGKILL, _party, party, ports, make_task, contexts, rounds, keep, (ours, theirs)
            )
        theirs.close()
        answer = ours.receive()
        return Run(
            np.frombuffer(answer["models"], "<f4").reshape(answer["kept"], -1), answer["seconds"], answer["upload"]
        )
    except ChannelClosedError as error:
        raise HeapError("the paper's network ended without a result; see its message above") from error
    finally:
        ours.close()
        end_all(children)


def _party(
    party: int,
    ports: Sequence[int],
    make_task: MakeTask,
    contexts: tuple[bytes, bytes] | None,
    rounds: int,
    keep: int,
    channel: tuple[Channel, Channel],
) -> None:
    channel[0].close()
    if party:
        channel[1].close()
    task = make_task(party)
    scheme = make_scheme(contexts and contexts[party == 0])
    with ExitStack() as stack:
        context = stack.enter_context(zmq.Context())

        def link(party: int, connect: bool) -> zmq.Socket[bytes]:
            end = stack.enter_context(context.socket(zmq.PAIR))
            end.setsockopt(zmq.RCVTIMEO, PATIENCE_MS)
            address = f"tcp://127.0.0.1:{ports[party]}"
            end.connect(address) if connect else end.bind(address)
            return end

        up = link(party, True) if party else None
        down = [link(child, False) for child in (2 * party + 1, 2 * party + 2) if child < len(ports)]
        model, kept, seconds, upload = task.initial(), [], [], 0
        for number in range(1, rounds + 1):
            update = task.train(model, TrainingRound(number, rounds, None, 0)).astype(np.float64)
            began = time.perf_counter()
            own = scheme.protect(update)
            total = scheme.add([own, *(child.recv() for child in down)])
            if up:
                up.send(total)
                model = np.frombuffer(up.recv(), "<f4")
            else:
                mean = scheme.open(total)[: model.size] / len(ports)
                model = (model + mean).astype("<f4")
            for child in down:
                child.send(model.tobytes())
            for child in down:
                child.recv()  # all below have it
            if up:
                up.send(b"")
            seconds.append(time.perf_counter() - began)
            upload = len(own)
            if number % keep == 0:
                kept.append(model)
        if not party:
            channel[1].send("done", models=np.stack(kept).tobytes(), kept=len(kept), seconds=seconds, upload=upload)
