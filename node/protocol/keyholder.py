"""The round machine of the key holder: open a round, open its total, publish it, close.

It has one neighbour, the apex, and so never holds anything but sums over all other parties. It opens
each segment of each round at most once, and no total in which somebody would not be hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from node.protocol import events as ev
from node.protocol.messages import STATISTICS, TRAIN, Absent, Close, Fail, Finish, Joined, Open, Partial, Total
from node.protocol.party import Party, Rules, State, Table
from topology import Tree, quorum_met


@dataclass
class Round:
    """One round as the key holder sees it."""

    opening: Open
    segments: int
    own: bool | None = None  # whether our own integers are in the key room; None: not known yet
    others: frozenset[str] = frozenset()
    parts: dict[int, bytes] = field(default_factory=dict)
    arrived: int = 0
    next: int = 0
    busy: bool = False  # the key room is opening a segment
    ended: bool = False  # nothing more comes: close with what was opened


class KeyHolder(Party):
    """See the table at the end of this file."""

    def __init__(self, me: str, tree: Tree, rules: Rules, last_round: int = -1) -> None:
        super().__init__(me, tree, rules)
        self.apex = tree.apex
        self.round: Round | None = None
        self.number = last_round
        self.joined: dict[str, bytes] = {}

    def route_is_right(self, event: ev.Received) -> bool:
        if event.peer != self.apex:
            return False
        if isinstance(event.message, Joined):
            return event.sender in self.tree.parent and event.recipient == self.me
        addressed = (event.sender, event.recipient) == (self.apex, self.me)
        return addressed and isinstance(event.message, Partial | Absent)

    # ---- joining ----------------------------------------------------------------------------------------

    def on_ready(self, event: ev.Ready) -> None:
        self.base, self.lengths = event.state, {STATISTICS: event.statistics, TRAIN: event.parameters}
        self.do(ev.SetTimer("join", self.rules.join_seconds))
        self._begin_when_all_joined()

    def on_joined(self, event: ev.Received) -> None:
        self.joined[event.sender] = event.message.base
        self.do(ev.Consume(event.peer), ev.Report("joined", self.number, frozenset({event.sender})))
        self._begin_when_all_joined()

    def on_joined_late(self, event: ev.Received) -> None:
        self.do(ev.Consume(event.peer))

    def _begin_when_all_joined(self) -> None:
        if not self.base:
            return
        for name, base in sorted(self.joined.items()):
            if base != self.base:
                self._fail(f"{name} holds another model, study or package versions than the key holder", "")
                return
        if self.joined.keys() == self.tree.parent.keys():
            self.do(ev.StopTimer("join"))
            self._begin()

    def on_join_expired(self, event: ev.Expired) -> None:
        missing = sorted(self.tree.parent.keys() - self.joined.keys())
        if not quorum_met({self.me, *self.joined}, self.rules.min_hidden):
            self._fail("too few parties joined in time", f"missing: {', '.join(missing)}")
            return
        self.do(ev.Report("began without", self.number, frozenset(missing)))
        self._begin()

    # ---- a round ----------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self.number < 0:
            self.number = -1 if self.lengths[STATISTICS] else 0
        self.number += 1
        purpose = STATISTICS if self.number == 0 else TRAIN
        length = self.lengths[purpose]
        milliseconds = round(self.rules.gather_seconds * 1000)
        opening = Open(self.number, self.base, purpose, length, True, milliseconds)
        self.round = Round(opening, self.rules.segments(length))
        self.state = State.GATHERING
        self.do(ev.Report("opened", self.number), ev.Train(self.number, purpose))
        self.do(ev.SetTimer("round", self.rules.gather_seconds))
        self.send(self.apex, opening, "")

    def on_partial(self, event: ev.Received) -> None:
        partial, round_ = event.message, self.round
        assert isinstance(partial, Partial)
        assert round_ is not None
        if (partial.round, partial.base) != (round_.opening.round, self.base):
            self.drop(event, f"round {round_.opening.round} on our state", f"round {partial.round}")
        elif round_.ended or partial.segment != round_.arrived or partial.segment >= round_.segments:
            self.drop(event, f"segment {round_.arrived}", str(partial.segment))
        elif not partial.contributors or not partial.contributors <= self.tree.parent.keys():
            self.drop(event, "contributors beside the key holder", "others or none")
        elif partial.segment and partial.contributors != round_.others:
            self.drop(event, "the set that segment 0 froze", "another")
            self._end_round()
        else:
            round_.others = partial.contributors
            round_.parts[partial.segment] = partial.ciphertexts
            round_.arrived += 1
            self._advance()

    def on_contributed(self, event: ev.Contributed) -> None:
        if self.round and event.round == self.number and self.round.own is None:
            self.round.own = True
            self._advance()

    def on_own_lost(self, event: ev.OwnLost) -> None:
        if self.round and event.round == self.number and self.round.own is None:
            self.round.own = False
            self.do(ev.Report("own update lost", self.number))
            self._advance()

    def on_absent(self, event: ev.Received) -> None:
        assert isinstance(event.message, Absent)
        self.do(ev.Consume(event.peer))
        if event.message.round == self.number:
            self._end_round()

    def on_round_expired(self, event: ev.Expired) -> None:
        assert self.round is not None
        if self.state is State.GATHERING and self.round.parts and self.round.own is None:
            self.round.own = False  # everyone is there but we: go on without our own update
            self.do(ev.SetTimer("round", self.rules.gather_seconds))
            self._advance()
        else:
            self._end_round()

    def _advance(self) -> None:
        round_ = self.round
        assert round_ is not None
        if self.state is State.GATHERING and round_.parts and round_.own is not None:
            if not quorum_met(self._contributors(round_), self.rules.min_hidden):
                self._fail("below the quorum: nothing was opened", "")
                return
            self.state = State.FLOWING
            self.do(ev.SetTimer("round", self.rules.gather_seconds))
        if self.state is not State.FLOWING or round_.busy:
            return
        if round_.ended or round_.next == round_.segments:
            self._close(round_)
        elif round_.next in round_.parts and self.has_room(self.apex):
            round_.busy = True
            ciphertexts = round_.parts.pop(round_.next)
            if round_.next == 0:  # the key room's ledger has every segment
                self.do(ev.Record("opening", self.number, 0, self._contributors(round_)))
            self.do(
                ev.OpenTotal(self.number, round_.next, round_.others, bool(round_.own), ciphertexts),
                ev.Consume(self.apex),
            )

    def _contributors(self, round_: Round) -> frozenset[str]:
        return round_.others | ({self.me} if round_.own else frozenset())

    def on_opened(self, event: ev.Opened) -> None:
        round_ = self.round
        if round_ is None or (event.round, event.segment) != (self.number, round_.next):
            return
        round_.busy = False
        round_.next += 1
        contributors = self._contributors(round_)
        self.send(self.apex, Total(event.round, self.base, event.segment, contributors, event.integers), "")
        self.do(ev.Stage(event.round, event.segment, event.integers))
        self.do(ev.SetTimer("round", self.rules.gather_seconds))
        self._advance()

    def on_refused(self, event: ev.OpeningRefused) -> None:
        self._fail("failed", "the opening was refused; the key is retired")

    def _end_round(self) -> None:
        """Nothing more comes up in this round: close it with the prefix that was opened."""
        assert self.round is not None
        self.round.ended = True
        if self.state is State.GATHERING:
            self._fail("below the quorum: nothing was opened", "")
        else:
            self._advance()

    def _close(self, round_: Round) -> None:
        complete = round_.next == round_.segments
        if round_.next == 0 or (round_.opening.purpose == STATISTICS and not complete):
            self._fail("the round ended before its totals were opened", "")
            return
        self.state = State.APPLYING
        self.do(ev.StopTimer("round"), *[ev.Consume(self.apex)] * len(round_.parts))
        purpose = round_.opening.purpose
        self.do(ev.Apply(self.number, purpose, self._contributors(round_), round_.next, None))

    def on_applied(self, event: ev.Applied) -> None:
        round_ = self.round
        assert round_ is not None
        contributors = self._contributors(round_)
        self.send(self.apex, Close(self.number, self.base, contributors, round_.next, event.state), "")
        self.do(ev.Wipe(self.number), ev.Report("closed", self.number, contributors))
        self.round, self.base = None, event.state
        if self.number < self.rules.rounds:
            self._begin()
        else:
            self.send(self.apex, Finish(self.base), "")
            self.end(None)

    # ---- the end ----------------------------------------------------------------------------------------

    def _fail(self, reason: str, private: str) -> None:
        """End the study for everyone. ``private`` is for this node's own user only."""
        if self.round:
            self.do(*[ev.Consume(self.apex)] * len(self.round.parts), ev.Wipe(self.number))
        self.round = None
        self.do(ev.StopTimer("round"), ev.StopTimer("join"))
        self.send(self.apex, Fail(max(self.number, 0), self.base or bytes(32), reason), "")
        self.end(f"round {max(self.number, 0)}: {reason}" + (f" ({private})" if private else ""))

    def on_room(self) -> None:
        if self.state is State.ENDING and not self.pending.get(self.apex):
            self.leave()
        elif self.state is State.FLOWING:
            self._advance()

    TABLE: ClassVar[Table] = {
        (State.JOINING, ev.Ready): on_ready,
        (State.JOINING, Joined): on_joined,
        (State.JOINING, ev.Expired): on_join_expired,
        (State.GATHERING, Joined): on_joined_late,
        (State.GATHERING, Partial): on_partial,
        (State.GATHERING, Absent): on_absent,
        (State.GATHERING, ev.Contributed): on_contributed,
        (State.GATHERING, ev.OwnLost): on_own_lost,
        (State.GATHERING, ev.Expired): on_round_expired,
        (State.FLOWING, Joined): on_joined_late,
        (State.FLOWING, Partial): on_partial,
        (State.FLOWING, Absent): on_absent,
        (State.FLOWING, ev.Opened): on_opened,
        (State.FLOWING, ev.OpeningRefused): on_refused,
        (State.FLOWING, ev.Expired): on_round_expired,
        (State.APPLYING, ev.Applied): on_applied,
        (State.ENDING, ev.Expired): Party.leave,
    }
