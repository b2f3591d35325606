"""What the two round machines share: the dispatch by table, and the bookkeeping towards neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar

from node.protocol import events as ev
from node.protocol.messages import Message
from node.protocol.posture import NO_GAPS, Minimum
from topology import Tree


class State(Enum):
    """Where a node is in the protocol."""

    JOINING = auto()
    IDLE = auto()
    GATHERING = auto()  # the set of contributors is open
    FLOWING = auto()  # the set is frozen; segments go up and totals come down
    APPLYING = auto()  # the key holder only: closed, the new state's digest is awaited
    ENDING = auto()  # the last word is said; neighbours are still reading it
    ENDED = auto()


@dataclass(frozen=True)
class Rules:
    """What the signed manifest and the plan say about rounds. Times in seconds."""

    rounds: int
    min_hidden: int
    values_per_segment: int
    window: int
    gather_seconds: float
    join_seconds: float
    stall_seconds: float = 10.0
    goodbye_seconds: float = 5.0
    minimum: Minimum = NO_GAPS

    @property
    def silence_seconds(self) -> float:
        """How long nothing may come from the key holder before a node gives up."""
        return self.join_seconds + 2 * self.gather_seconds + 30

    def segments(self, length: int) -> int:
        return -(-length // self.values_per_segment)

    def segment_length(self, length: int, segment: int) -> int:
        return min(self.values_per_segment, length - segment * self.values_per_segment)


Table = Mapping[tuple[State, type[Any]], Callable[[Any, Any], None]]


class Party:
    """A round machine: events in, commands out. A subclass brings its table."""

    TABLE: ClassVar[Table]

    def __init__(self, me: str, tree: Tree, rules: Rules) -> None:
        self.me, self.tree, self.rules = me, tree, rules
        self.state = State.JOINING
        self.children = tree.children[me]
        self.base = b""
        self.lengths: Mapping[str, int] = {}
        self.pending: dict[str, int] = {}
        self.error: str | None = None
        self._commands: list[ev.Command] = []

    def handle(self, event: ev.Event) -> list[ev.Command]:
        """Take one event; gives what to do, in this order."""
        if isinstance(event, ev.Received):
            self._receive(event)
        elif isinstance(event, ev.Room):
            self.pending[event.peer] = event.pending
            self.on_room()
        else:
            handler = self.TABLE.get((self.state, type(event)))
            if handler:  # else it is late news of our own: a timer, an enclave that was already given up
                handler(self, event)
        commands, self._commands = self._commands, []
        return commands

    def _receive(self, event: ev.Received) -> None:
        if not self.route_is_right(event):
            self.drop(event, "a message on its proper way", f"{_kind(event.message)} from {event.sender}")
            return
        handler = self.TABLE.get((self.state, type(event.message)))
        if handler:
            handler(self, event)
        else:
            self.drop(event, f"nothing of the kind while {self.state.name}", _kind(event.message))

    def route_is_right(self, event: ev.Received) -> bool:
        """Whether this message may come from this sender over this neighbour."""
        raise NotImplementedError

    def on_room(self) -> None:
        """A neighbour consumed something."""
        raise NotImplementedError

    # ---- commands ---------------------------------------------------------------------------------------

    def do(self, *commands: ev.Command) -> None:
        self._commands.extend(commands)

    def send(self, peer: str, message: Message, recipient: str) -> None:
        self.pending[peer] = self.pending.get(peer, 0) + 1
        self.do(ev.Send(peer, message, recipient))

    def forward(self, peers: tuple[str, ...], event: ev.Received) -> None:
        for peer in peers:
            self.pending[peer] = self.pending.get(peer, 0) + 1
            self.do(ev.Forward(peer, event.frame))

    def has_room(self, *peers: str) -> bool:
        return all(self.pending.get(peer, 0) < self.rules.window for peer in peers)

    def drop(self, event: ev.Received, expected: str, came: str) -> None:
        self.do(ev.Drop(event.peer, expected, came), ev.Consume(event.peer))

    def end(self, error: str | None) -> None:
        """Say goodbye: wait until the children have read the last word, but not for ever."""
        self.error = error
        self.state = State.ENDING
        self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))
        self.on_room()

    def leave(self, *_: object) -> None:
        self.state = State.ENDED
        self.do(ev.Stop(self.error))


def _kind(message: Message) -> str:
    return type(message).__name__
