"""What nodes say to each other.

Down the tree, signed once by the key holder and passed on as it is: :class:`Open`, :class:`Total`,
:class:`Close`, :class:`Fail`, :class:`Finish`. Up the tree, from child to parent: :class:`Partial`,
:class:`Absent`; and :class:`Joined`, signed by who joins and passed on to the key holder.
"""

from __future__ import annotations

from dataclasses import dataclass

STATISTICS, TRAIN = "statistics", "train"
"""The purposes of a round: sums that must exist before training, and model updates."""


@dataclass(frozen=True)
class Joined:
    """I am here, ready, and hold this state; ``posture`` is what confines my rooms (``protocol/posture.py``)."""

    base: bytes
    posture: str


@dataclass(frozen=True)
class Open:
    """A round begins on the state with digest ``base``: contribute ``length`` integers.

    ``gather_ms`` is the time until the key holder closes the set of contributors.
    """

    round: int
    base: bytes
    purpose: str
    length: int
    key_holder_contributes: bool
    gather_ms: int


@dataclass(frozen=True)
class Partial:
    """One segment's encrypted sum over ``contributors``, all of them in the sender's subtree."""

    round: int
    base: bytes
    segment: int
    contributors: frozenset[str]
    ciphertexts: bytes


@dataclass(frozen=True)
class Absent:
    """Nothing (more) will come from my subtree in this round."""

    round: int
    base: bytes


@dataclass(frozen=True)
class Total:
    """One opened segment: little-endian int32 sums over ``contributors``, the key holder perhaps among them."""

    round: int
    base: bytes
    segment: int
    contributors: frozenset[str]
    integers: bytes


@dataclass(frozen=True)
class Close:
    """Apply the first ``segments`` totals; the state then has digest ``state``."""

    round: int
    base: bytes
    contributors: frozenset[str]
    segments: int
    state: bytes


@dataclass(frozen=True)
class Fail:
    """The round failed and the study ends. ``reason`` says no more than everyone may know."""

    round: int
    base: bytes
    reason: str


@dataclass(frozen=True)
class Finish:
    """The study is complete; ``base`` is the digest of the final state."""

    base: bytes


Message = Joined | Open | Partial | Absent | Total | Close | Fail | Finish
FROM_KEY_HOLDER = (Open, Total, Close, Fail, Finish)
