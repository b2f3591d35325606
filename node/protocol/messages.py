"""What nodes say to each other.

Down the tree, signed once by the key holder and passed on as it is: :class:`Open`, :class:`Total`,
:class:`Close`, :class:`Fail`, :class:`Finish`; and :class:`Snapshot`, from a parent to a child that was away.
Up the tree, from child to parent: :class:`Partial`, :class:`Absent`; and :class:`Joined` and :class:`Gone`,
signed by whom they come from and passed on to the key holder.
"""

from __future__ import annotations

from dataclasses import dataclass

STATISTICS, TRAIN, EVALUATE, ENERGIES = "statistics", "train", "evaluate", "energies"
"""The purposes of a round: sums that must exist before training, model updates, counts of how good the model is, norms
of an update's blocks that say which of its values are sent."""
IDLE = "idle"
"""What the key holder's own enclave is for in a round in which it is not among the chosen; never on the wire."""


@dataclass(frozen=True)
class Joined:
    """I am here, below ``parent``, and hold this state.

    ``applied`` counts the rounds behind the state; of round ``round`` I hold ``held`` frames (its opening is
    the first). ``posture`` is what confines my rooms (``protocol/posture.py``).
    """

    round: int
    base: bytes
    applied: int
    held: int
    parent: str
    posture: str


@dataclass(frozen=True)
class Gone:
    """My child ``name`` is not there any more."""

    base: bytes
    name: str


@dataclass(frozen=True)
class Open:
    """A round begins on the state with digest ``base``: contribute ``length`` integers.

    ``contributors`` are the living parties: they alone decide the round's tree. ``gather_ms`` is the time
    until the key holder closes the set of those who really contributed.
    """

    round: int
    base: bytes
    contributors: frozenset[str]
    purpose: str
    length: int
    key_holder_contributes: bool
    gather_ms: int


@dataclass(frozen=True)
class Partial:
    """One segment's encrypted sum over ``contributors``, all of them in the sender's subtree.

    A higher ``attempt`` begins again with segment 0: the set has lost somebody before it was final.
    """

    round: int
    base: bytes
    segment: int
    contributors: frozenset[str]
    attempt: int
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
    """The round failed; when ``final`` the study ends. ``reason`` says no more than everyone may know."""

    round: int
    base: bytes
    reason: str
    final: bool


@dataclass(frozen=True)
class Finish:
    """The study is complete; ``base`` is the digest of the final state."""

    base: bytes


@dataclass(frozen=True)
class Snapshot:
    """Part ``segment`` of ``segments`` of the state with digest ``base``, for who missed its totals."""

    base: bytes
    segment: int
    segments: int
    content: bytes


Message = Joined | Open | Partial | Absent | Total | Close | Fail | Finish | Gone | Snapshot
FROM_KEY_HOLDER = (Open, Total, Close, Fail, Finish)
