"""Our own encryption on the bench: one party's update from floats to bytes, the sum, and back to floats.

It times the steps of ``node/update.py`` that a round takes, in their order, segment by segment, with real
canaries. What needs no data, the encryptions of zero that a node makes while its model trains, is timed
apart: "offline".
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keys import segments
from keys.canaries import KEY_BYTES
from keys.ckks import Opener, Sealer, generate_keys
from keys.errors import WardtreeError
from keys.packing import Integers
from keys.plan import Plan
from keys.planner import choose
from node import update
from node.bench.common import PLANNED_PARTIES, SPREAD, Clock, digest, make_update, peak_memory_mb
from node.protocol.messages import TRAIN

CLIP = 6 * SPREAD


class BenchError(WardtreeError):
    """A benchmark that cannot be run."""


@dataclass(frozen=True)
class Bench:
    """One federation's keys, and a round key of canaries for each party.

    In a node processes of the enclave make zeros while it trains, and seal with them; here one process does
    both, so that the times are those of one core.
    """

    plan: Plan
    sealer: Sealer
    opener: Opener
    canary_keys: tuple[bytes, ...]

    @classmethod
    def fresh(cls, plan: Plan, parties: int) -> Bench:
        public, secret = generate_keys(plan)
        keys = tuple(os.urandom(KEY_BYTES) for _ in range(parties))
        return cls(plan, Sealer(plan, public), Opener(plan, secret), keys)

    def protect(self, values: NDArray[np.float32], party: int, clock: Clock) -> tuple[Integers, Iterator[bytes]]:
        """A party's integers, and its segments when they are asked for: zeros first, as while a model trains."""
        with clock.time("protect_offline"):
            self.sealer.stock(self.plan.ciphertexts(values.size))
        with clock.time("protect_online"):
            integers = update.quantise(values.astype(np.float64), update.Grid(CLIP, self.plan), 1.0)
        return integers, self._seal(integers, party, clock)

    def _seal(self, integers: Integers, party: int, clock: Clock) -> Iterator[bytes]:
        sealed = update.seal_segments(integers, self.sealer, self.canary_keys[party])
        for _ in self.plan.segments(integers.size):
            with clock.time("protect_online"):
                ciphertexts = next(sealed)
            yield ciphertexts


def measure(
    params: int, parties: int, value_bits: int = 14, *, repeats: int = 5, max_parties: int = PLANNED_PARTIES
) -> dict[str, object]:
    """Time a round's encryption; medians over ``repeats`` runs after a warm-up.

    Args:
        params: parameters of the update.
        parties: how many parties' encrypted updates are summed and opened.
        value_bits: bits of one party's signed integer.
        repeats: timed runs, at least 1.
        max_parties: what the plan is made for; at least ``parties``.

    Returns:
        Seconds ``NAME_s`` of wall and ``NAME_cpu_s`` of processor time: ``protect_online`` and
        ``protect_offline`` of one party, ``add`` of all parties' updates from bytes to bytes, ``add_two`` of two
        updates in memory, ``open`` from the total's bytes to the next model's floats. ``peak_memory_mb`` is this
        process's, imports included, when one party has protected its update. ``exact``: every total was the
        sum of the integers, bit for bit.

    Raises:
        BenchError: too few parties, parameters or repeats.
        PlanError: no plan is exact for these.
    """
    for name, value in (("params", params), ("parties", parties), ("repeats", repeats)):
        if value < 1:
            raise BenchError(f"bench: {name} should be at least 1, came {value}")
    plan = choose(max(parties, max_parties), value_bits, params)
    bench = Bench.fresh(plan, parties)
    values = make_update(params)
    grid = update.Grid(CLIP, plan)
    clock = Clock()
    clock.runs.append({})
    for _ in bench.protect(values, 0, clock)[1]:
        pass  # a node keeps a window of segments, not the update
    peak = peak_memory_mb()
    clock.runs.clear()

    exact, error, upload_bytes = True, 0.0, 0
    for _ in clock.runs_after_warm_up(repeats):
        total = np.zeros(params, np.int64)
        uploads = []
        for party in range(parties):
            integers, sealed = bench.protect(values, party, clock)
            uploads.append(list(sealed))
            total += integers
        upload_bytes = sum(map(len, uploads[0]))
        staged = _add_and_open(bench, uploads, params, clock)
        with clock.time("open"):
            names = [str(party) for party in range(parties)]
            empty = update.Model(0, np.zeros(params, np.float32))
            weights = dict.fromkeys(names, 1)
            model = update.apply(empty, 1, TRAIN, staged, names, update.Recipe(plan, grid.bound, weights))
        exact &= bool(np.array_equal(np.frombuffer(b"".join(staged), "<i4"), total))
        error = max(error, float(np.abs(model.parameters - values).max()))
        sample = clock.runs[-1]
        for name in ("protect_online", "protect_offline"):
            sample[name] = sample[name] / parties
    return clock.medians() | {
        "params": params,
        "parties": parties,
        "value_bits": value_bits,
        "max_parties": plan.max_parties,
        "bytes_per_param": upload_bytes / params,
        "upload_bytes": upload_bytes,
        "exact": exact,
        "largest_error": error,
        "peak_memory_mb": peak,
        "core_share": clock.core_share,
        "repeats": repeats,
        "update_sha256": digest(values),
        "plan": plan.to_dict(),
    }


def _add_and_open(bench: Bench, uploads: list[list[bytes]], params: int, clock: Clock) -> list[bytes]:
    """Every party's segments, one after another, added and opened: the published totals."""
    prime = segments.data_prime(bench.plan)
    staged = []
    for number, segment in enumerate(bench.plan.segments(params)):
        parts = tuple(upload[number] for upload in uploads)
        with clock.time("add"):
            total = update.merge(bench.plan, parts)
        left, right = (segments.read_segment(part, bench.plan) for part in (parts[0], parts[-1]))
        with clock.time("add_two"):
            segments.add_words(left, right, prime)
        with clock.time("open"):
            length = segment.stop - segment.start
            staged.append(update.open_total(bench.opener, total, number, bench.canary_keys, None, length))
    return staged
