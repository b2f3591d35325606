"""What happens to a round machine, and what it asks for in return."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from node.protocol.messages import Close, Message, Total

# ---- events ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Published:
    """A round that was closed: the key holder's word, and, but at the key holder, the frame to pass on."""

    close: Close
    frame: Any = None


@dataclass(frozen=True)
class Resumed:
    """At a key holder that was interrupted: the totals of a round that were opened and are to be closed."""

    round: int
    base: bytes
    purpose: str
    contributors: frozenset[str]
    segments: int
    applied: bool


@dataclass(frozen=True)
class Ready:
    """Our own enclave has its data and model, and the ledger was read.

    ``state`` is our state's digest, ``size`` its bytes, ``largest`` the bytes of the largest that this study may have,
    ``finished`` whether the state ends it; ``lengths`` are the integers of a round by purpose. ``chain`` has the
    closed rounds behind the state; ``last_round`` is the last round that we trained in or opened, ``forwarded`` the
    last that left us as the apex; ``begins`` the round that the first state under this manifest is of (-1: it is new,
    and has no statistics). In ``posture`` our rooms run; ``evaluated`` are the sets of the evaluations opened here.
    """

    state: bytes
    lengths: Mapping[str, int]
    size: int
    largest: int
    posture: str
    chain: tuple[Published, ...] = ()
    last_round: int = -1
    forwarded: int = -1
    begins: int = -1
    resumed: Resumed | None = None
    finished: bool = False
    evaluated: tuple[frozenset[str], ...] = ()


@dataclass(frozen=True)
class Up:
    """A neighbour and we know each other: both sides' links are new and empty."""

    peer: str


@dataclass(frozen=True)
class Down:
    """A neighbour has not been heard for too long; or it ``left`` on purpose, for another parent."""

    peer: str
    left: bool = False


@dataclass(frozen=True)
class Received:
    """A verified frame came from the neighbour ``peer``. ``frame`` is what to pass on."""

    peer: str
    sender: str
    recipient: str
    message: Message
    frame: Any = None


@dataclass(frozen=True)
class Room:
    """A neighbour consumed something; ``pending`` items to it are still on their way."""

    peer: str
    pending: int


@dataclass(frozen=True)
class Sealed:
    """Our enclave encrypted the next segment of our own update."""

    round: int
    segment: int
    ciphertexts: bytes


@dataclass(frozen=True)
class Contributed:
    """At the key holder: our enclave gave its integers to the key room."""

    round: int


@dataclass(frozen=True)
class OwnLost:
    """Our own enclave gives nothing (more) in this round."""

    round: int


@dataclass(frozen=True)
class Merged:
    """The sum that :class:`Merge` asked for."""

    round: int
    attempt: int
    segment: int
    ciphertexts: bytes


@dataclass(frozen=True)
class NotMerged:
    """There is no such sum: the parts at these places are no ciphertexts of the plan."""

    round: int
    attempt: int
    segment: int
    places: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """The key room opened and checked a segment: the exact integers, the key holder's own included."""

    round: int
    segment: int
    integers: bytes


@dataclass(frozen=True)
class OpeningRefused:
    """The key room gives nothing: a check failed, or its ledger forbids it. A ``reason`` is one that everyone may know,
    and the key is not retired."""

    round: int
    segment: int
    reason: str = ""


@dataclass(frozen=True)
class Applied:
    """The totals are applied; the state now has this digest and so many bytes, and ends the study or not. ``lengths``
    are those that it changes."""

    round: int
    state: bytes
    size: int
    finished: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Adopted:
    """The state that we were handed is the one that the key holder signed; as in :class:`Applied`."""

    state: bytes
    size: int
    finished: bool = False
    lengths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class NotAdopted:
    """The state that we were handed is another."""


@dataclass(frozen=True)
class Expired:
    """A timer of ours."""

    timer: str


Event = (
    Ready | Up | Down | Received | Room | Sealed | Contributed | OwnLost | Merged | NotMerged | Opened | OpeningRefused
    | Applied | Adopted | NotAdopted | Expired
)  # fmt: skip

# ---- commands -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Send:
    """Sign for ``recipient`` (``""``: for everyone) and send to the neighbour ``peer``."""

    peer: str
    message: Message
    recipient: str


@dataclass(frozen=True)
class Forward:
    """Pass a frame on as it came."""

    peer: str
    frame: Any


@dataclass(frozen=True)
class Consume:
    """One item from this neighbour is done with: it may send another."""

    peer: str


@dataclass(frozen=True)
class Drop:
    """Count and log: who sent what it must not."""

    who: str
    expected: str
    came: str


@dataclass(frozen=True)
class Train:
    """Start the round's enclave."""

    round: int
    purpose: str


@dataclass(frozen=True)
class PullSegment:
    """Let the enclave hand over its next encrypted segment."""

    round: int
    segment: int


@dataclass(frozen=True)
class Merge:
    """Add the parts of one segment of ``length`` integers."""

    round: int
    attempt: int
    segment: int
    parts: tuple[bytes, ...]
    length: int


@dataclass(frozen=True)
class Record:
    """Write to the ledger, durably, before anything that follows. ``posture``: of who joined."""

    what: str
    round: int
    segment: int
    contributors: frozenset[str]
    posture: str = ""


@dataclass(frozen=True)
class OpenTotal:
    """Have the key room open one segment's total over ``others``, and add our own ``length`` integers if ``own``. The
    round sums ``whole`` integers."""

    round: int
    segment: int
    others: frozenset[str]
    own: bool
    ciphertexts: bytes
    length: int
    whole: int


@dataclass(frozen=True)
class Stage:
    """Keep a published segment until the close; at the key holder on the disk, before anyone hears of it."""

    total: Total
    purpose: str


@dataclass(frozen=True)
class Apply:
    """Apply the staged totals over these contributors; ``state`` is the digest that must come out, if known."""

    round: int
    purpose: str
    contributors: frozenset[str]
    segments: int
    state: bytes | None


@dataclass(frozen=True)
class Keep:
    """Write the close of a round to the ledger."""

    published: Published


@dataclass(frozen=True)
class SendState:
    """Send one part of our state to a child that missed rounds."""

    peer: str
    part: int
    parts: int


@dataclass(frozen=True)
class Adopt:
    """Take these parts as our state, if the digest is that of the last of these closes."""

    closes: tuple[Published, ...]
    parts: tuple[bytes, ...]


@dataclass(frozen=True)
class Dial:
    """Connect to a neighbour above us."""

    peer: str


@dataclass(frozen=True)
class HangUp:
    """Say goodbye to a neighbour above us, or stop dialling it."""

    peer: str


@dataclass(frozen=True)
class Wipe:
    """Forget everything of this round but the state and the ledger."""

    round: int


@dataclass(frozen=True)
class SetTimer:
    timer: str
    seconds: float


@dataclass(frozen=True)
class StopTimer:
    timer: str


@dataclass(frozen=True)
class Report:
    """Tell whoever watches this node."""

    what: str
    round: int
    contributors: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Stop:
    """This node is done. ``error`` is None when the study is complete."""

    error: str | None = None


Command = (
    Send | Forward | Consume | Drop | Train | PullSegment | Merge | Record | OpenTotal | Stage | Apply | Keep
    | SendState | Adopt | Dial | HangUp | Wipe | SetTimer | StopTimer | Report | Stop
)  # fmt: skip
