"""What the two round machines share: the dispatch by table, and the bookkeeping towards neighbours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from node.protocol import events as ev
from node.protocol.messages import TRAIN, Message
from node.protocol.posture import NO_GAPS, Minimum
from node.protocol.schedule import Schedule
from topology import Placement, tells_apart


class State(Enum):
    """Where a node is in the protocol."""

    JOINING = auto()
    IDLE = auto()
    GATHERING = auto()  # the set of contributors is open
    FLOWING = auto()  # the set is frozen; segments go up and totals come down
    APPLYING = auto()  # closed; the new state's digest is awaited
    ENDING = auto()  # the last word is said; neighbours are still reading it
    ENDED = auto()


@dataclass(frozen=True)
class Rules:
    """What the signed manifest and the plan say about rounds. Times in seconds.

    ``sample`` is the share of the living parties that train in a round; the others pass on what comes. ``near_sets``
    allows evaluations over sets of which two totals tell of fewer than ``min_hidden`` parties.
    """

    schedule: Schedule
    min_hidden: int
    values_per_segment: int
    window: int
    gather_seconds: float
    join_seconds: float
    dial_seconds: float = 2.0
    settle_seconds: float = 6.0
    goodbye_seconds: float = 5.0
    most_failures: int = 10
    minimum: Minimum = NO_GAPS
    sample: float = 1.0
    near_sets: bool = False

    @property
    def silence_seconds(self) -> float:
        """How long nothing may come from the key holder before a node gives up."""
        return self.join_seconds + 2 * self.gather_seconds + 30

    def segments(self, length: int) -> int:
        return -(-length // self.values_per_segment)

    def segment_length(self, length: int, segment: int) -> int:
        return min(self.values_per_segment, length - segment * self.values_per_segment)

    def chosen(self, living: Set[str], purpose: str, base: bytes) -> frozenset[str]:
        """Who of the living contributes to a round on this state: all, or of a training the sample, which nobody
        chooses: it follows from the state."""
        if purpose != TRAIN or self.sample == 1:
            return frozenset(living)
        count = max(math.ceil(self.sample * len(living)), self.min_hidden + 1)
        order = sorted(living, key=lambda name: hashlib.sha256(b"wardtree/sample/1\0" + base + name.encode()).digest())
        return frozenset(order[:count])

    def may_evaluate(self, contributors: Set[str], earlier: Iterable[Set[str]]) -> bool:
        """Whether an evaluation over this set, beside those over ``earlier`` ones, tells of nobody alone."""
        return self.near_sets or not tells_apart(contributors, earlier, self.min_hidden)

    def parts(self, size: int) -> int:
        """In how many parts a state of so many bytes travels."""
        return -(-size // (4 * self.values_per_segment))


Table = Mapping[tuple[State, type[Any]], Callable[[Any, Any], None]]


class Party:
    """A round machine: events in, commands out. A subclass brings its table."""

    TABLE: ClassVar[Table]

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        self.me, self.placement, self.rules = me, placement, rules
        self.key_holder = placement.roster.key_holder
        self.state = State.JOINING
        self.base = b""
        self.size = self.largest = 0
        self.is_finished = False  # the state says so: the study stops before its last round
        self.posture = ""
        self.lengths: Mapping[str, int] = {}
        self.parent: str | None = None
        self.up: set[str] = set()
        self.pending: dict[str, int] = {}
        self.error: str | None = None
        self._commands: list[ev.Command] = []

    def handle(self, event: ev.Event) -> list[ev.Command]:
        """Take one event; gives what to do, in this order."""
        match event:
            case ev.Received():
                self._receive(event)
            case ev.Room(peer, pending):
                if peer in self.up:
                    was, self.pending[peer] = self.pending[peer], pending
                    self.on_room(peer, pending < was)
            case ev.Up(peer):
                restarted = peer in self.up  # or it gave us up, before we noticed
                self.up.add(peer)
                self.pending[peer] = 0
                self.on_up(peer, restarted)
            case ev.Down(peer, left):
                if peer in self.up:
                    self.forget(peer)
                    self.on_down(peer, left)
            case _:
                handler = self.TABLE.get((self.state, type(event)))
                if handler:  # else it is late news of our own: a timer, an enclave that was already given up
                    handler(self, event)
        commands, self._commands = self._commands, []
        return commands

    def _receive(self, event: ev.Received) -> None:
        if event.peer not in self.up:
            return  # it was there when this came in
        if not self.route_is_right(event):
            self.drop(event, "a message on its proper way", f"{_kind(event.message)} from {event.sender}")
            return
        handler = self.TABLE.get((self.state, type(event.message)))
        if handler:
            handler(self, event)
        else:
            self.drop(event, f"nothing of the kind while {self.state.name}", _kind(event.message))

    def forget(self, peer: str) -> None:
        """A neighbour is none any more."""
        self.up.discard(peer)
        self.pending.pop(peer, None)

    def ready(self, event: ev.Ready) -> None:
        """Our own state is known."""
        self.base, self.size, self.posture = event.state, event.size, event.posture
        self.lengths, self.largest, self.is_finished = event.lengths, event.largest, event.finished

    def moved(self, event: ev.Applied | ev.Adopted) -> None:
        """Our state is another one."""
        self.base, self.size, self.is_finished = event.state, event.size, event.finished
        self.lengths = {**self.lengths, **event.lengths}

    # ---- for subclasses ---------------------------------------------------------------------------------

    def route_is_right(self, event: ev.Received) -> bool:
        """Whether this message may come from this sender over this neighbour."""
        raise NotImplementedError

    def on_up(self, peer: str, restarted: bool) -> None:
        """A neighbour is there, with a new and empty link; ``restarted``: we thought it was there all the time."""
        raise NotImplementedError

    def on_down(self, peer: str, left: bool) -> None:
        """A neighbour is not there any more."""
        raise NotImplementedError

    def on_room(self, peer: str, consumed: bool) -> None:
        """A neighbour was heard; whether it ``consumed`` something."""
        raise NotImplementedError

    # ---- commands ---------------------------------------------------------------------------------------

    def do(self, *commands: ev.Command) -> None:
        self._commands.extend(commands)

    def send(self, peer: str, message: Message, recipient: str) -> None:
        self.pending[peer] += 1
        self.do(ev.Send(peer, message, recipient))

    def forward(self, peer: str, frame: Any) -> None:
        self.pending[peer] += 1
        self.do(ev.Forward(peer, frame))

    def has_room(self, peer: str) -> bool:
        return peer in self.up and self.pending[peer] < self.rules.window

    def drop(self, event: ev.Received, expected: str, came: str) -> None:
        self.do(ev.Drop(event.peer, expected, came), ev.Consume(event.peer))

    def leave(self, *_: object) -> None:
        self.state = State.ENDED
        self.do(ev.Stop(self.error))


def _kind(message: Message) -> str:
    return type(message).__name__
