"""The round machine of the key holder: open a round, open its total, publish it, close.

In a round it has one neighbour, the apex, and so never holds anything but sums over all other parties. It opens
each segment of each round at most once, and no total in which somebody would not be hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from node.protocol import events as ev
from node.protocol.convener import Convener
from node.protocol.feeder import Feeder
from node.protocol.messages import (
    EVALUATE,
    IDLE,
    STATISTICS,
    Absent,
    Close,
    Gone,
    Joined,
    Open,
    Partial,
    Total,
)
from node.protocol.party import Rules, State, Table
from topology import Placement, TopologyError, Tree, quorum_met

TELLS_APART = "its set would tell of too few parties, beside an earlier one"


@dataclass
class Round:
    """One round as the key holder sees it."""

    opening: Open
    tree: Tree
    segments: int
    chosen: frozenset[str]  # who may contribute, beside us
    own: bool | None = None  # whether our own integers are in the key room; None: not known yet
    others: frozenset[str] = frozenset()
    attempt: int = -1
    parts: dict[int, bytes] = field(default_factory=dict)
    arrived: int = 0
    next: int = 0
    busy: bool = False  # the key room is opening a segment
    ended: bool = False  # nothing more comes: close with what was opened


class KeyHolder(Convener):
    """See the table at the end of this file."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.round: Round | None = None

    def route_is_right(self, event: ev.Received) -> bool:
        message, sender = event.message, event.sender
        if isinstance(message, Joined | Gone):
            return sender in self.placement.order and event.recipient == self.me
        addressed = (sender, event.recipient) == (event.peer, self.me)
        return addressed and isinstance(message, Partial | Absent)

    # ---- a round ----------------------------------------------------------------------------------------

    def begin_with(self, live: frozenset[str]) -> bool:
        """Begin a round, if these are enough for one, and one of them is the apex and our neighbour."""
        try:
            tree = self.placement.tree(live)
        except TopologyError:
            return False  # nobody who listens: wait for one
        if not quorum_met(live, self.rules.min_hidden) or tree.apex not in self.up:
            return False
        self.do(ev.StopTimer("join"), ev.StopTimer("settle"))
        if self.is_at_the_end:
            self.finish()
            return True
        self.began, self.orphans = True, False
        needs_statistics = self.lengths[STATISTICS] and not self.chain and self.begins < 0
        self.number = max(self.number + 1, 0 if needs_statistics else 1)
        purpose = STATISTICS if needs_statistics else self.rules.schedule.purpose(self.number)
        if purpose == EVALUATE and not self.rules.may_evaluate(live, self.evaluated):
            # In the ledger: after a restart it is not held either, when some may have gone home already.
            self.do(ev.Record("skipped", self.number, 0, frozenset()))
            self.do(ev.Report(f"not evaluated: {TELLS_APART}", self.number))
            return self.begin_with(live)  # with the next round, or the end
        chosen = self.rules.chosen(live, purpose, self.base)
        is_chosen, milliseconds = self.me in chosen, round(self.rules.gather_seconds * 1000)
        opening = Open(self.number, self.base, live, purpose, self.lengths[purpose], is_chosen, milliseconds)
        self.present.expected = live - {self.me}
        self.round = Round(opening, tree, self.rules.segments(self.lengths[purpose]), chosen - {self.me})
        self.state = State.GATHERING
        if not is_chosen:
            self.round.own = False
        self.do(ev.Report("opened", self.number), ev.Train(self.number, purpose if is_chosen else IDLE))
        self.do(ev.Record("training", self.number, 0, frozenset()), ev.SetTimer("round", self.rules.gather_seconds))
        self.open_log(self.number, opening)
        return True

    def on_partial(self, event: ev.Received) -> None:
        partial, round_ = event.message, self.round
        assert isinstance(partial, Partial)
        assert round_ is not None
        if event.peer != round_.tree.apex:
            self.drop(event, "a total from the apex", "one from somebody else")
        elif (partial.round, partial.base) != (round_.opening.round, self.base):
            self.drop(event, f"round {round_.opening.round} on our state", f"round {partial.round}")
        elif round_.ended or partial.segment != round_.arrived or partial.segment >= round_.segments:
            self.drop(event, f"segment {round_.arrived}", str(partial.segment))
        elif not partial.contributors or not partial.contributors <= round_.chosen:
            self.drop(event, "contributors beside the key holder", "others or none")
        elif partial.segment and (partial.contributors, partial.attempt) != (round_.others, round_.attempt):
            self.drop(event, "the set that segment 0 froze", "another")
            self._end_round()
        else:
            round_.others, round_.attempt = partial.contributors, partial.attempt
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

    def on_own_lost_late(self, event: ev.OwnLost) -> None:
        """The key room asked for our own integers, and they did not come: open the others' sum, if it is the first."""
        round_ = self.round
        if round_ is None or event.round != self.number or not round_.busy:
            return
        self.do(ev.Report("own update lost", self.number))
        round_.busy = False
        if round_.next:
            self._forget_parts(round_)
            self._end_round()
        else:
            round_.own, self.state = False, State.GATHERING
            if round_.opening.purpose == EVALUATE:
                self.evaluated.pop()  # it was not opened
            self._advance()

    def on_absent(self, event: ev.Received) -> None:
        assert isinstance(event.message, Absent)
        self.do(ev.Consume(event.peer))
        if self.round and event.message.round == self.number and event.peer == self.round.tree.apex:
            self._end_round()

    def on_round_expired(self, event: ev.Expired) -> None:
        if event.timer == "round" and self.round:
            self._end_round()

    def _end_round(self) -> None:
        """Nothing more comes up in this round: open what is here, and close it with that."""
        round_ = self.round
        assert round_ is not None
        round_.ended = True
        if round_.own is None:
            round_.own = False  # everyone is there but we: go on without our own update
        self._advance()

    def _advance(self) -> None:
        round_ = self.round
        assert round_ is not None
        if self.state is State.GATHERING and round_.own is not None and (round_.parts or round_.ended):
            if not round_.parts or not quorum_met(self._contributors(round_), self.rules.min_hidden):
                self.fail("below the quorum: nothing was opened")
                return
            is_evaluation = round_.opening.purpose == EVALUATE
            if is_evaluation and not self.rules.may_evaluate(self._contributors(round_), self.evaluated):
                self.fail(f"{TELLS_APART}: nothing was opened")
                return
            self.state = State.FLOWING
            self.do(ev.SetTimer("round", self.rules.gather_seconds))
        if self.state is not State.FLOWING or round_.busy:
            return
        if round_.next in round_.parts:
            round_.busy = True
            ciphertexts = round_.parts[round_.next]
            if round_.next == 0:  # the key room's ledger has every segment
                if round_.opening.purpose == EVALUATE:
                    self.evaluated.append(self._contributors(round_))
                self.do(ev.Record("opening", self.number, 0, self._contributors(round_)))
            whole = round_.opening.length
            length = self.rules.segment_length(whole, round_.next)
            self.do(ev.OpenTotal(self.number, round_.next, round_.others, bool(round_.own), ciphertexts, length, whole))
        elif round_.ended or round_.next == round_.segments:
            self._close(round_)

    def _contributors(self, round_: Round) -> frozenset[str]:
        return round_.others | ({self.me} if round_.own else frozenset())

    def on_opened(self, event: ev.Opened) -> None:
        round_ = self.round
        if round_ is None or (event.round, event.segment) != (self.number, round_.next):
            return
        round_.busy = False
        del round_.parts[round_.next]
        round_.next += 1
        if round_.tree.apex in self.up:
            self.do(ev.Consume(round_.tree.apex))
        total = Total(event.round, self.base, event.segment, self._contributors(round_), event.integers)
        self.do(ev.Stage(total, round_.opening.purpose), ev.SetTimer("round", self.rules.gather_seconds))
        self.append(total)
        self._advance()

    def on_refused(self, event: ev.OpeningRefused) -> None:
        if event.reason:  # nothing more can be opened in this study, and everyone may know why
            self.is_finished = True
            self.fail(event.reason)
        else:
            self.fail("failed", final=True, private="the opening was refused; the key is retired")

    def _close(self, round_: Round) -> None:
        complete = round_.next == round_.segments
        purpose = round_.opening.purpose
        if round_.next == 0:
            self.fail("the round ended before its totals were opened")
        elif purpose == STATISTICS and not complete:
            # Statistics are the same in every round: two totals over sets that differ by one party are its own.
            self.fail("the statistics ended before all their totals were opened", final=True)
        else:
            self.state = State.APPLYING
            self.do(ev.StopTimer("round"))
            self.closing = (purpose, self._contributors(round_), round_.next)
            self.do(ev.Apply(self.number, purpose, self._contributors(round_), round_.next, None))

    def on_applied(self, event: ev.Applied) -> None:
        assert self.closing is not None
        (_, contributors, segments), self.closing = self.closing, None
        base = self.resumed.base if self.resumed else self.base
        published = ev.Published(Close(event.round, base, contributors, segments, event.state))
        self.do(ev.Keep(published), ev.Wipe(event.round), ev.Report("closed", event.round, contributors))
        if self.resumed:
            self.base, self.resumed = base, None
            self.open_log(event.round, published.close, start=1 + segments)
            self.is_over = True
        else:
            self.append(published.close, is_last=True)
        nobody = frozenset[str]()
        live, asked = (self.round.opening.contributors, self.round.chosen) if self.round else (nobody, nobody)
        self.present.closed(base, live, asked, contributors, event.state)
        self.round, self.state = None, State.IDLE
        self.moved(event)
        self.failures = 0
        self.closed(published)
        self.wait()

    def on_down(self, peer: str, left: bool) -> None:
        super().on_down(peer, left)
        if self.round and peer == self.round.tree.apex:
            self._end_round()

    def abandon(self) -> bool:
        round_, self.round = self.round, None
        if round_:
            self._forget_parts(round_)
            self.do(ev.Wipe(max(self.number, 0)))
        return round_ is not None

    def _forget_parts(self, round_: Round) -> None:
        if round_.tree.apex in self.up:
            self.do(*[ev.Consume(round_.tree.apex)] * len(round_.parts))
        round_.parts.clear()

    TABLE: ClassVar[Table] = {
        (State.JOINING, ev.Ready): Convener.on_ready,
        (State.JOINING, Joined): Convener.on_joined,
        (State.JOINING, Gone): Convener.on_gone,
        (State.IDLE, Joined): Convener.on_joined,
        (State.IDLE, Gone): Convener.on_gone,
        (State.IDLE, ev.Expired): Convener.on_waited,
        (State.GATHERING, Joined): Convener.on_joined_late,
        (State.GATHERING, Gone): Convener.on_gone,
        (State.GATHERING, Partial): on_partial,
        (State.GATHERING, Absent): on_absent,
        (State.GATHERING, ev.Contributed): on_contributed,
        (State.GATHERING, ev.OwnLost): on_own_lost,
        (State.GATHERING, ev.Expired): on_round_expired,
        (State.FLOWING, Joined): Convener.on_joined_late,
        (State.FLOWING, Gone): Convener.on_gone,
        (State.FLOWING, Partial): on_partial,
        (State.FLOWING, Absent): on_absent,
        (State.FLOWING, ev.Opened): on_opened,
        (State.FLOWING, ev.OpeningRefused): on_refused,
        (State.FLOWING, ev.OwnLost): on_own_lost_late,
        (State.FLOWING, ev.Expired): on_round_expired,
        (State.APPLYING, Joined): Convener.on_joined_late,
        (State.APPLYING, Gone): Convener.on_gone,
        (State.APPLYING, ev.Applied): on_applied,
        (State.ENDING, Joined): Convener.on_joined_late,
        (State.ENDING, Gone): Convener.on_gone,
        (State.ENDING, ev.Expired): Feeder.leave,
    }
