"""How a study's rounds follow from each other under ``[privacy]`` and ``[compression]``.

Which values a round sends, to what norm they are clipped, what noise is added, and what all of it has cost so far:
a pure function of the signed study and of what was published, and so the same at every party.

regime = Regime.of(study, plan, quorum, manifest)
terms = regime.terms(TRAIN, model, base)                        # before a round, at every node
course = regime.after(model, terms, TRAIN, staged, parties)     # when its total is published
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from keys.plan import Plan
from node.compression.settings import CompressionSettings
from node.privacy.settings import PrivacySettings
from node.protocol.messages import ENERGIES, STATISTICS, TRAIN
from node.protocol.schedule import Schedule

if TYPE_CHECKING:  # a study with neither does not wait for these
    from node.compression.masks import Mask
    from node.compression.rounds import Published
    from node.privacy.account import HospitalAccount
    from node.privacy.arrange import Arranged
    from node.privacy.hospital import Release
    from node.study import Study
    from node.update import Model

Integers = NDArray[np.int64]

_HEAD = struct.Struct("<dqqqqqdq")
"""Clip, bytes of the account, blocks; length and size of the last mask, parties, alpha and level of the threshold."""
_ENTRY = 256
"""Bytes of one kind of release in an account's state, at most."""


@dataclass(frozen=True, eq=False)
class Course:
    """What is carried from round to round. All of it was published.

    Attributes:
        clip: the norm of the next update, where it moves; 0: the study's.
        account: the state of the :class:`HospitalAccount` of all rounds so far; empty without hospital-level privacy.
        norms: sums of block norms, from which the next mask is made; of no length, if none were published.
        sent: the last mask and total, where the next mask follows from them.
    """

    clip: float = 0.0
    account: bytes = b""
    norms: Integers = field(default_factory=lambda: np.zeros(0, np.int64))
    sent: Published | None = None

    def to_bytes(self) -> bytes:
        """For a digest, a file or a neighbour; empty for a course of which nothing is used."""
        sent = self.sent
        if not (self.clip or self.account or self.norms.size or sent):
            return b""
        threshold = sent.threshold if sent else None
        level = -1 if threshold is None or threshold.level is None else threshold.level
        sizes = (sent.mask.length, sent.mask.size, sent.parties) if sent else (0, 0, 0)
        alpha = threshold.alpha if threshold else 0.0
        head = _HEAD.pack(self.clip, len(self.account), self.norms.size, *sizes, alpha, level)
        last = sent.mask.to_bytes() + sent.total.astype("<i4").tobytes() if sent else b""
        return head + self.account + self.norms.astype("<i8").tobytes() + last

    @classmethod
    def from_bytes(cls, data: bytes) -> Course:
        """The inverse of :meth:`to_bytes`.

        Raises:
            ValueError: these bytes are no course.
        """
        if not data:
            return cls()
        if len(data) < _HEAD.size:
            raise ValueError
        clip, account, blocks, length, size, parties, alpha, level = _HEAD.unpack_from(data)
        counts = (account, blocks, length, size, parties)
        ends = np.cumsum([_HEAD.size, account, 8 * blocks, -(-length // 8), 4 * size], dtype=object)
        if min(counts) < 0 or ends[-1] != len(data) or not 0 <= clip < np.inf:
            raise ValueError
        parts = [data[begin:end] for begin, end in pairwise(ends)]
        norms = np.frombuffer(parts[1], "<i8").astype(np.int64)
        return cls(clip, parts[0], norms, _sent(length, parties, alpha, level, parts[2], parts[3]) if length else None)


def _sent(length: int, parties: int, alpha: float, level: int, mask: bytes, total: bytes) -> Published:
    from node.compression.density import MovingThreshold
    from node.compression.masks import Mask, MaskError
    from node.compression.rounds import Published

    try:
        sent = Mask.from_bytes(length, mask)
    except MaskError as error:
        raise ValueError from error
    integers = np.frombuffer(total, "<i4").astype(np.int64)
    if sent.size != integers.size or parties < 1:
        raise ValueError
    return Published(sent, integers, parties, MovingThreshold(alpha, None if level < 0 else level) if alpha else None)


@dataclass(frozen=True, eq=False)
class Terms:
    """Of one round.

    Attributes:
        values: how many a party sends.
        mask: which they are; None: all.
        arranged: how they are protected; None: no noise is added.
        clip: the norm, where it moves.
    """

    values: int
    mask: Mask | None = None
    arranged: Arranged | None = None
    clip: float | None = None

    @property
    def length(self) -> int:
        """Integers of a party: its values, and perhaps a clip bit."""
        return self.arranged.length if self.arranged else self.values

    @property
    def releases(self) -> tuple[Release, ...]:
        return self.arranged.releases if self.arranged else ()

    def step(self, otherwise: float) -> float:
        """What an integer of the total stands for; ``otherwise`` without noise."""
        return self.arranged.step(self.clip) if self.arranged else otherwise

    def job(self) -> dict[str, Any]:
        """For the enclave, which makes them again with :meth:`Regime.told`."""
        return {"length": self.length, "mask": self.mask.to_bytes() if self.mask else None, "clip": self.clip}


@dataclass(frozen=True)
class Regime:
    """What the signed study says of it; the defaults ask for nothing. ``quorum``: in how many others each party is
    hidden."""

    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    compression: CompressionSettings = field(default_factory=CompressionSettings)
    plan: Plan = field(default_factory=Plan)
    schedule: Schedule = field(default_factory=lambda: Schedule(1))
    quorum: int = 2
    manifest: bytes = bytes(32)

    @classmethod
    def of(cls, study: Study, plan: Plan, quorum: int, manifest: bytes = bytes(32)) -> Regime:
        return cls(study.privacy, study.compression, plan, study.schedule, quorum, manifest)

    @property
    def adds_noise(self) -> bool:
        """Whether what is published is protected, and charged, by hospital."""
        return self.privacy.mode == "hospital"

    def begin(self) -> Course:
        """Before the first round."""
        return Course(clip=self.privacy.clip or 0.0) if self.adds_noise and self.privacy.adaptive else Course()

    # ---- before a round ---------------------------------------------------------------------------------

    def terms(self, purpose: str, model: Model, values: int, base: bytes) -> Terms:
        """Of the next round on ``model``, whatever its number: a round that failed is held again.

        Args:
            values: that a party has for a round of this purpose.
            base: the state's digest.
        """
        if purpose == ENERGIES:
            return Terms(self.blocks(values))
        if purpose not in (TRAIN, STATISTICS):
            return Terms(values)
        mask = self._mask(model, base) if purpose == TRAIN and self.compression.is_sparse else None
        return self._terms(purpose, mask, mask.size if mask else values, model.course.clip or None)

    def told(self, purpose: str, model: int, values: int, job: Mapping[str, Any]) -> Terms:
        """In the enclave: the terms that the relay found. ``model``: parameters; ``values``: as for :meth:`terms`."""
        if purpose not in (TRAIN, STATISTICS):
            return Terms(values)
        if job["mask"] is None:
            return self._terms(purpose, None, values, job["clip"])
        from node.compression.masks import Mask

        mask = Mask.from_bytes(model, job["mask"])
        return self._terms(purpose, mask, mask.size, job["clip"])

    def _terms(self, purpose: str, mask: Mask | None, values: int, clip: float | None) -> Terms:
        return Terms(values, mask, self.arranged(purpose, values), clip if purpose == TRAIN else None)

    def arranged(self, purpose: str, values: int) -> Arranged | None:
        """How so many values are protected; None: there is nothing that noise is added to."""
        charged = purpose == TRAIN or (purpose == STATISTICS and self.privacy.statistics is not None)
        if not (self.adds_noise and charged and values > 0):
            return None
        return _arranged(self.privacy, self.plan, values, self.schedule.training, self.quorum, purpose)

    def of_length(self, purpose: str, length: int) -> Arranged | None:
        """As :meth:`arranged`, of the integers that a party sends."""
        has_bit = purpose == TRAIN and self.privacy.adaptive is not None
        return self.arranged(purpose, length - has_bit)

    def blocks(self, parameters: int) -> int:
        """How many norms an update of so many values has."""
        return -(-parameters // self.compression.block) if self.schedule.energies else 0

    def _mask(self, model: Model, base: bytes) -> Mask:
        from node.compression import masks
        from node.compression.rounds import mask_for

        trained, length, course = self.schedule.trained(model.round), model.parameters.size, model.course
        seed = masks.public_seed(self.manifest, model.round + 1, base)
        if self.compression.mask == "energy" and not course.norms.size:  # the round that sums them failed
            count = self.compression.schedule_of_density.count(length, trained)
            return masks.random_blocks(length, count, self.compression.block, seed)
        return mask_for(self.compression, length, trained, seed, course.sent, course.norms)

    # ---- when a round's total is published --------------------------------------------------------------

    def after(self, model: Model, terms: Terms, purpose: str, staged: Sequence[bytes], parties: int) -> Course:
        """The course behind a round of which these segments were opened. What was not, counts as zero."""
        course = model.course
        if purpose == ENERGIES:
            return replace(course, norms=_padded(staged, terms.length))
        if terms.releases:
            account = self.account(course)
            account.charge(*terms.releases)
            course = replace(course, account=account.state())
        if purpose != TRAIN:
            return course
        if terms.arranged and terms.clip and sum(map(len, staged)) == 4 * terms.length:
            bits = int(np.frombuffer(staged[-1], "<i4")[-1])
            course = replace(course, clip=terms.arranged.next_clip(terms.clip, bits, parties))
        if terms.mask and self.compression.mask == "top":
            from node.compression.rounds import after

            total = _padded(staged, terms.length)[: terms.values]
            sent = after(self.compression, terms.mask, total, parties, model.parameters.size, course.sent)
            course = replace(course, sent=sent)
        return course

    # ---- what it costs ----------------------------------------------------------------------------------

    def account(self, course: Course) -> HospitalAccount:
        """What is spent. Hospital-level privacy only."""
        from node.privacy.account import HospitalAccount
        from node.privacy.arrange import budget

        limits = budget(self.privacy)
        return HospitalAccount.from_state(limits, course.account) if course.account else HospitalAccount(limits)

    def is_spent(self, course: Course, terms: Terms) -> bool:
        """Whether the next training would pass the budget."""
        if not terms.releases:
            return False
        account = self.account(course)
        return account.after(*terms.releases) > account.budget.epsilon

    # ---- bounds -----------------------------------------------------------------------------------------

    def largest_course(self, parameters: int) -> int:
        """Bytes of a course, at most."""
        mask = -(-parameters // 8) + 4 * parameters if self.compression.mask == "top" else 0
        account = _ENTRY * (2 * self.schedule.training + 2) if self.adds_noise else 0
        return _HEAD.size + account + 8 * self.blocks(parameters) + mask

    def lacking(self, purpose: str, values: int) -> str | None:
        """Why the key, which was made before anyone knew this task, has no room for its noise; None: it has."""
        arranged = self.arranged(purpose, values)
        parties = 2 if self.quorum == 1 else self.plan.max_parties
        if arranged is None or arranged.room(parties) <= self.plan.max_noise:
            return None
        return f"privacy.values: expected at least {values}, as many as a {purpose} round of this task sums"


@lru_cache(maxsize=4)
def _arranged(
    privacy: PrivacySettings, plan: Plan, values: int, rounds: int, quorum: int, purpose: str
) -> Arranged | None:
    from node.privacy.arrange import arrange, arrange_statistics

    if purpose == STATISTICS:
        return arrange_statistics(privacy, plan, values, quorum)
    return arrange(privacy, plan, values, rounds, quorum)


def _padded(staged: Sequence[bytes], length: int) -> Integers:
    total = np.zeros(length, np.int64)
    opened = np.frombuffer(b"".join(staged), "<i4")
    total[: opened.size] = opened
    return total
