"""The life of one update, from ``train`` to ``wipe``, in the order in which it happens.

Each step is one function here, and says in which room it runs. The enclave is one process per round, the
key room exists at the key holder only, the relay is the one process with sockets; the round machines in
``node/protocol`` decide when each step is due, and the rooms (``enclave.py``, ``relay.py``,
``keyroom.py``) call it.

    enclave   train (or evaluate) -> mask: what waits is added, what is sent is taken
              -> quantise, or protect: clip, round, add a share of noise -> seal, segment by segment
    relay     merge: add what the children sent, pass it up
    key room  charge: what the total costs in privacy, before it is opened (``keyroom.py``)
    key room  open_total: decrypt the total, check it against the listed set, add the key holder's integers
    relay     publish: sign the total and send it down (``Total`` in ``node/protocol/messages.py``)
    relay     apply: every node, at the key holder's signed close
    all       wipe: the enclave's process ends, the relay forgets ciphertexts and staged totals
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from nacl.utils import randombytes_deterministic
from numpy.typing import NDArray

from keys import canaries, segments
from keys.errors import WardtreeError
from keys.packing import Integers
from keys.plan import Plan
from node.course import Course, Regime, Terms
from node.evaluation import Layout
from node.optimiser import Optimiser
from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.tasks.base import StatisticsSpec, Task, TrainingRound

if TYPE_CHECKING:  # the relay calls this module as well, and has no use for SEAL in its memory
    from keys.ckks import Opener, Sealer
    from node.compression.feedback import Feedback
    from node.compression.masks import Mask

_BLOCK = 1 << 16
"""Values quantised at a time: their arrays stay in the cache."""


class UpdateError(WardtreeError):
    """A task returned something that cannot be part of a total."""


@dataclass(frozen=True)
class Model:
    """What every party holds after a round, bit for bit the same.

    Attributes:
        round: the last round that was applied; -1 before the first.
        parameters: shape (P,), float32, the flat global model. Totals are applied to it where it lies.
        statistics: shape (S,), float64, the published sums; None before the statistics round.
        parties: how many parties' values ``statistics`` sums.
        moments: shape (M, P), float32, what the server's optimiser carries from round to round.
        curve: shape (E, 1 + F), float64: of each evaluation its round and its figures (:mod:`node.evaluation`).
        course: what privacy and compression carry from round to round.
    """

    round: int
    parameters: NDArray[np.float32]
    statistics: NDArray[np.float64] | None = None
    parties: int = 0
    moments: NDArray[np.float32] = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    curve: NDArray[np.float64] = field(default_factory=lambda: np.zeros((0, 0)))
    course: Course = field(default_factory=Course)

    def digest(self, manifest: bytes) -> bytes:
        """32 bytes that name this state under this manifest."""
        sha = hashlib.sha256(b"wardtree/state/3\0" + manifest)
        for count in (self.round, self.parties, len(self.moments), *self.curve.shape):
            sha.update(count.to_bytes(8, "big", signed=True))
        sha.update(b"none" if self.statistics is None else b"sums" + self.statistics.astype("<f8").tobytes())
        course = self.course.to_bytes()
        sha.update(b"\0curve\0" + self.curve.astype("<f8").tobytes())
        sha.update(b"\0course\0" + len(course).to_bytes(8, "big") + course + b"\0model\0")
        for array in (self.parameters, self.moments):
            sha.update(np.ascontiguousarray(array, dtype="<f4").data.cast("B") if array.size else b"")
        return sha.digest()


@dataclass(frozen=True)
class Grid:
    """How real values become integers: ``bound`` is reached at the plan's largest integer."""

    bound: float
    plan: Plan

    @property
    def step(self) -> float:
        return self.bound / self.plan.max_value


@dataclass(frozen=True)
class Recipe:
    """How published totals become the next model: public, from the signed manifest and the task's specs alone.

    ``clip`` bounds each value of an update (hospital-level privacy has a norm of its own); ``weights`` are the
    parties'; the specs are None where the task has none; ``regime`` is what privacy and compression ask for.
    """

    plan: Plan
    clip: float
    weights: Mapping[str, int]
    optimiser: Optimiser = field(default_factory=Optimiser)
    statistics: StatisticsSpec | None = None
    evaluation: Layout | None = None
    regime: Regime = field(default_factory=Regime)


# ---- 1. enclave: train ----------------------------------------------------------------------------------


def train(task: Task, purpose: str, model: Model, training: TrainingRound) -> NDArray[np.float64]:
    """Ask the task for this party's values: its statistics, or the update of its local training.

    Returns:
        Shape (S,) or (P,): finite values; of an ``energies`` round the update as well.

    Raises:
        UpdateError: the task gave another shape, or a value that is not finite.
    """
    if purpose == STATISTICS:
        spec = task.statistics_spec()
        expected = spec.length if spec else 0
        values = np.asarray(task.statistics(), dtype=np.float64)
    else:
        expected = task.parameters
        values = np.asarray(task.train(model.parameters.copy(), training), dtype=np.float64)
    if values.shape != (expected,):
        raise UpdateError(f"the task's {purpose} should have shape ({expected},), came {values.shape}")
    if not np.isfinite(values).all():
        raise UpdateError(f"the task's {purpose} has values that are not finite")
    return values


def contribution(
    task: Task,
    purpose: str,
    model: Model,
    training: TrainingRound,
    recipe: Recipe,
    share: float,
    terms: Terms,
    waiting: Waiting,
) -> Integers:
    """This party's integers in a round of any purpose: what it trained, or what it counted.

    Raises:
        UpdateError, EvaluationError: the task gave something that cannot be part of a total.
    """
    if purpose == EVALUATE:
        assert recipe.evaluation is not None
        return recipe.evaluation.count(task.evaluate(model.parameters.copy(), training))
    values = train(task, purpose, model, training)
    if purpose != STATISTICS:
        waiting.add_to(values)
    if purpose == ENERGIES:
        values = energies(values, recipe)
    elif purpose == TRAIN and terms.mask:
        values = waiting.part(values, terms.mask)
    if terms.arranged:
        integers = terms.arranged.protect(values, terms.clip)
    else:
        integers = quantise(values, grid_of(purpose, recipe), 1.0 if purpose == STATISTICS else share)
    wipe(values)
    return integers


# ---- 2. enclave: mask, then clip and quantise -----------------------------------------------------------


class Waiting:
    """What of a party's updates was not sent yet: it waits in the enclave, or sealed, until a mask has its place.

    Attributes:
        feedback: None: what is not sent is lost, or nothing is left out.
        applied: how many of the integers that it sent last were published and applied with this party in the set.
    """

    def __init__(self, feedback: Feedback | None = None, applied: int = 0) -> None:
        self.feedback, self.applied = feedback, applied

    def to_bytes(self) -> bytes | None:
        return self.feedback.to_bytes() if self.feedback else None

    def add_to(self, update: NDArray[np.float64]) -> None:
        """Add what waits, shape (P,), to an update where it lies."""
        if self.feedback:
            sent = self.feedback.sent.size if self.feedback.sent else 0
            self.feedback.add_to(update, min(self.applied, sent))

    def part(self, corrected: NDArray[np.float64], mask: Mask) -> NDArray[np.float64]:
        """Those that are sent of ``corrected``, shape (P,), which is wiped; the others wait."""
        if self.feedback:
            self.feedback = self.feedback.after(corrected, mask)
        sent: NDArray[np.float64] = mask.gather(corrected)  # type: ignore[assignment]
        wipe(corrected)
        return sent


def energies(update: NDArray[np.float64], recipe: Recipe) -> NDArray[np.float64]:
    """The norm of each block of an update, which is wiped: what chooses the mask that follows."""
    from node.compression.masks import block_norms

    norms = block_norms(update, recipe.regime.compression.block)
    wipe(update)
    return norms


def grid_of(purpose: str, recipe: Recipe) -> Grid:
    """The grid of a round without noise: of sums, of block norms, or of updates."""
    if purpose == STATISTICS:
        assert recipe.statistics is not None
        return Grid(recipe.statistics.bound, recipe.plan)
    if purpose == ENERGIES:
        return Grid(recipe.clip * math.sqrt(recipe.regime.compression.block), recipe.plan)
    return Grid(recipe.clip, recipe.plan)


def quantise(values: NDArray[np.float64], grid: Grid, share: float) -> Integers:
    """Clip to the bound, weight by ``share`` = w/W, and round to the grid without bias.

    Rounding is stochastic: ``floor(x/step + U)``, U uniform in [0, 1) with 32 bits of a generator that is
    cryptographic and seeded by the operating system, so that the expectation is x, to 2^-32 steps.

    Returns:
        Shape as ``values``; at most ``plan.max_value`` in absolute value.
    """
    integers = np.empty(values.size, np.int64)
    edge = grid.plan.max_value * share * 2.0**32
    for start in range(0, values.size, _BLOCK):
        block = slice(start, start + _BLOCK)
        with np.errstate(over="ignore"):  # what becomes infinite is clipped like all that is beyond the bound
            scaled = values[block] * (share / grid.step * 2.0**32)
        np.clip(scaled, -edge, edge, out=scaled)
        fixed = scaled.astype(np.int64)  # 32 bits behind the point
        # ChaCha20 from libsodium under a fresh seed of the operating system: five times faster than its device.
        fixed += np.frombuffer(randombytes_deterministic(4 * fixed.size, os.urandom(32)), dtype=np.uint32)
        np.right_shift(fixed, 32, out=integers[block])
    return integers


# ---- 3. enclave: pack and encrypt -----------------------------------------------------------------------


def seal_segments(integers: Integers, sealer: Sealer, canary_key: bytes) -> Iterator[bytes]:
    """Pack with this round's canaries and encrypt, one segment at a time, when the relay asks for it."""
    for number, segment in enumerate(sealer.plan.segments(integers.size)):
        yield seal_segment(integers[segment], number, sealer, canary_key)


def seal_segment(values: Integers, number: int, sealer: Sealer, canary_key: bytes) -> bytes:
    """One segment of :func:`seal_segments`; a large update has them sealed by ``node/sealers.py``."""
    marks = canaries.digits(canary_key, sealer.plan, number, sealer.plan.ciphertexts(values.size))
    return sealer.seal(values, marks)


# ---- 4. relay: add --------------------------------------------------------------------------------------


def merge(plan: Plan, parts: tuple[bytes, ...]) -> bytes:
    """Add one segment of our own and of our children's: the only thing that is ever sent up."""
    return segments.add(parts, plan)


# ---- 5. key room: open the total ------------------------------------------------------------------------


def open_total(
    opener: Opener, total: bytes, segment: int, canary_keys: Sequence[bytes], own: Integers | None, length: int
) -> bytes:
    """Decrypt one segment's total, check it against the listed set, add the key holder's own integers.

    Args:
        canary_keys: this round's key of every party of the listed set, the key holder's not among them.
        length: integers in this segment.

    Returns:
        The published form: ``length`` little-endian int32.

    Raises:
        OpeningFailed: a check failed; nothing is released.
    """
    marks = canaries.total(canary_keys, opener.plan, segment, opener.plan.ciphertexts(length))
    integers = opener.open(total, length, len(canary_keys), marks)
    if own is not None:
        integers = integers + own
    return integers.astype("<i4").tobytes()


# ---- 6. relay: apply ------------------------------------------------------------------------------------


def apply(
    model: Model,
    round_: int,
    purpose: str,
    staged: Sequence[bytes],
    contributors: Iterable[str],
    recipe: Recipe,
    terms: Terms | None = None,
) -> Model:
    """The next model, from the published integers alone: the same arithmetic, so the same bits, everywhere.

    The weighted mean divides by the public weights of the listed set: every update was scaled by w/W, so
    the sum of the updates is divided by the sum of w/W over the contributors.

    Args:
        staged: the published sums of the first segments, as little-endian int32.
        terms: of this round, from the state that it works on; None: all values are sent, without noise.

    Returns:
        The next model; its parameters and moments are the same arrays, changed segment by segment.
    """
    names = sorted(contributors)
    terms = terms or Terms(model.parameters.size)
    step = terms.step(grid_of(purpose, recipe).step)
    course = recipe.regime.after(model, terms, purpose, staged, len(names))
    model = replace(model, round=round_, course=course)
    if purpose == ENERGIES:
        return model
    if purpose == STATISTICS:
        total = np.frombuffer(b"".join(staged), dtype="<i4").astype(np.float64)
        return replace(model, statistics=total * step, parties=len(names))
    if purpose == EVALUATE:
        assert recipe.evaluation is not None
        counts = np.frombuffer(b"".join(staged), dtype="<i4").astype(np.int64)
        is_whole = counts.size == recipe.evaluation.length
        figures = recipe.evaluation.figures(counts) if is_whole else [math.nan] * len(recipe.evaluation.names)
        row = np.array([[float(round_), *figures]])
        return replace(model, curve=np.concatenate([model.curve, row]) if model.curve.size else row)
    heaviest = max(recipe.weights.values())
    factor = step / (sum(recipe.weights[name] for name in names) / heaviest)
    start = 0
    for integers in staged:
        mean = np.frombuffer(integers, dtype="<i4").astype(np.float64)[: terms.values - start]  # no clip bit
        part = slice(start, start + mean.size)
        mean *= factor
        _move(model, part, mean, recipe, terms)
        start += mean.size
    return model


def _move(model: Model, part: slice, mean: NDArray[np.float64], recipe: Recipe, terms: Terms) -> None:
    """Move the parameters that have the places ``part`` among those sent."""
    if terms.mask is None:
        recipe.optimiser.step(model.parameters[part], model.moments[:, part], mean)
        return
    places = terms.mask.indices[part]
    moved = model.parameters[places]
    recipe.optimiser.step(moved, model.moments, mean)  # an average: a study with a mask has no moments
    model.parameters[places] = moved


# ---- 7. everywhere: wipe --------------------------------------------------------------------------------


def wipe(*buffers: bytearray | NDArray[np.generic] | list[bytes]) -> int:
    """Overwrite arrays, drop byte strings; gives the number of bytes. An enclave's end does the rest.

    Python cannot overwrite ``bytes``: what holds plaintext is an array, or dies with its process.
    """
    wiped = 0
    for buffer in buffers:
        if isinstance(buffer, np.ndarray):
            wiped += buffer.nbytes
            if buffer.flags.writeable:
                buffer.fill(0)
        elif isinstance(buffer, bytearray):
            wiped += len(buffer)
            buffer[:] = bytes(len(buffer))
        else:
            wiped += sum(map(len, buffer))
            buffer.clear()
    return wiped
