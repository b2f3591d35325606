"""The round machine of every party but the key holder: train, add, pass up, apply what comes down.

The first of them below the key holder is the *apex*, and the gate: it passes nothing up unless every
party stays hidden among ``min_hidden`` others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from node.protocol import events as ev
from node.protocol.messages import (
    FROM_KEY_HOLDER,
    STATISTICS,
    TRAIN,
    Absent,
    Close,
    Fail,
    Finish,
    Joined,
    Open,
    Partial,
    Total,
)
from node.protocol.party import Party, Rules, State, Table
from topology import Tree, quorum_met


@dataclass
class Round:
    """One round as this node sees it. A source is a child or ourselves."""

    opening: Open
    segments: int
    awaited: set[str]
    sets: dict[str, frozenset[str]] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    arrived: dict[str, int] = field(default_factory=dict)
    next: int = 0
    merging: bool = False
    cut: bool = False  # nothing (more) of ours goes up in this round
    staged: int = 0
    published: frozenset[str] = frozenset()

    @property
    def contributors(self) -> frozenset[str]:
        return frozenset().union(*self.sets.values())


class Contributor(Party):
    """See the table at the end of this file."""

    def __init__(self, me: str, tree: Tree, rules: Rules, last_round: int = -1) -> None:
        super().__init__(me, tree, rules)
        self.parent = tree.parent[me]
        self.round: Round | None = None
        self.last_round = last_round
        self._early: ev.Received | None = None
        self._owed = 0  # totals from our parent that we have not consumed yet

    def route_is_right(self, event: ev.Received) -> bool:
        message, peer, sender = event.message, event.peer, event.sender
        if isinstance(message, FROM_KEY_HOLDER):
            return (peer, sender, event.recipient) == (self.parent, self.tree.key_holder, "")
        if peer not in self.children:
            return False
        if isinstance(message, Joined):
            return sender in self.tree.subtree(peer) and event.recipient == self.tree.key_holder
        return (sender, event.recipient) == (peer, self.me)

    # ---- joining ----------------------------------------------------------------------------------------

    def on_ready(self, event: ev.Ready) -> None:
        self.base, self.lengths = event.state, {STATISTICS: event.statistics, TRAIN: event.parameters}
        self.state = State.IDLE
        self.send(self.parent, Joined(self.base), self.tree.key_holder)
        self.do(ev.SetTimer("silence", self.rules.silence_seconds))
        if self._early:
            early, self._early = self._early, None
            self._receive(early)

    def on_joined(self, event: ev.Received) -> None:
        self.forward((self.parent,), event)
        self.do(ev.Consume(event.peer))

    def on_open_early(self, event: ev.Received) -> None:
        self._early = event  # consumed once we know our own state

    # ---- a round opens ----------------------------------------------------------------------------------

    def on_open(self, event: ev.Received) -> None:
        opening = event.message
        assert isinstance(opening, Open)
        if opening.round <= self.last_round:
            self.drop(event, f"a round after {self.last_round}", str(opening.round))
            return
        self.forward(self.children, event)
        self.do(ev.Consume(event.peer))
        if opening.base != self.base or opening.length != self.lengths.get(opening.purpose):
            self.end(
                f"round {opening.round}: the key holder works on another model than this node; compare study, "
                "data columns and package versions"
            )
            return
        self.last_round = opening.round
        self.round = Round(opening, self.rules.segments(opening.length), {self.me, *self.children})
        self.state = State.GATHERING
        self.do(
            ev.Report("opened", opening.round),
            ev.Train(opening.round, opening.purpose),
            ev.PullSegment(opening.round, 0),
            ev.SetTimer("gather", self._patience(opening.gather_ms / 1000)),
            ev.SetTimer("silence", self.rules.silence_seconds),
        )

    def _patience(self, seconds: float) -> float:
        """How long to wait for our children: the deeper a node, the earlier it goes on without them."""
        height, below = self.tree.height(self.tree.key_holder), self.tree.height(self.me)
        return seconds * (1 - min(0.05 * (height - below), 0.5))

    # ---- segments come: ours and our children's -----------------------------------------------------------

    def on_partial(self, event: ev.Received) -> None:
        partial, round_ = event.message, self.round
        assert isinstance(partial, Partial)
        assert round_ is not None
        source = event.peer
        if (partial.round, partial.base) != (round_.opening.round, self.base):
            self.drop(event, f"round {round_.opening.round} on our state", f"round {partial.round}")
        elif partial.segment != round_.arrived.get(source, 0) or partial.segment >= round_.segments:
            self.drop(event, f"segment {round_.arrived.get(source, 0)}", str(partial.segment))
        elif not partial.contributors or not partial.contributors <= self.tree.subtree(source):
            self.drop(event, "contributors of the sender's subtree", "others or none")
        elif round_.cut or (source not in round_.sets and source not in round_.awaited):
            self.drop(event, "segments before the set was frozen", "a late one")
        elif partial.segment and partial.contributors != round_.sets[source]:
            self.drop(event, "the set that segment 0 froze", "another")
            self._lose(source)
        else:
            self._take(source, partial.segment, partial.contributors, partial.ciphertexts)

    def on_sealed(self, event: ev.Sealed) -> None:
        round_ = self.round
        if round_ and event.round == round_.opening.round and not round_.cut:
            self._take(self.me, event.segment, frozenset({self.me}), event.ciphertexts)

    def on_absent(self, event: ev.Received) -> None:
        assert isinstance(event.message, Absent)
        self.do(ev.Consume(event.peer))
        if self.round and event.message.round == self.round.opening.round:
            self._lose(event.peer)

    def on_own_lost(self, event: ev.OwnLost) -> None:
        if self.round and event.round == self.round.opening.round:
            self.do(ev.Report("own update lost", event.round))
            self._lose(self.me)

    def on_gather_expired(self, event: ev.Expired) -> None:
        if event.timer == "gather" and self.round:
            late = frozenset(self.round.awaited)
            self.do(ev.Report("gave up on", self.round.opening.round, late))
            self.round.awaited.clear()
            self._advance()
        else:
            self.on_expired(event)

    def _take(self, source: str, segment: int, contributors: frozenset[str], ciphertexts: bytes) -> None:
        assert self.round is not None
        self.round.arrived[source] = segment + 1
        self.round.sets.setdefault(source, contributors)
        self.round.parts[source, segment] = ciphertexts
        self.round.awaited.discard(source)
        self._advance()

    def _lose(self, source: str) -> None:
        """Nothing more comes from a source: go on without it, or, if it is in the frozen set, not at all."""
        assert self.round is not None
        self.round.awaited.discard(source)
        if self.state is State.GATHERING and source not in self.round.sets:
            self._advance()
        elif source in self.round.sets and not self.round.cut:
            self._cut()

    # ---- merge and pass up ------------------------------------------------------------------------------

    def _advance(self) -> None:
        round_ = self.round
        assert round_ is not None
        if self.state is State.GATHERING and not round_.awaited:
            self._freeze(round_)
        ready = all((source, round_.next) in round_.parts for source in round_.sets)
        if self.state is not State.FLOWING or round_.cut or round_.merging or not ready:
            return
        if round_.next < round_.segments and self.has_room(self.parent):
            round_.merging = True
            parts = tuple(round_.parts[source, round_.next] for source in sorted(round_.sets))
            self.do(ev.Merge(round_.opening.round, round_.next, parts))

    def _freeze(self, round_: Round) -> None:
        """Segment 0 fixes the set of contributors. The apex lets it pass only if everyone stays hidden."""
        self.state = State.FLOWING
        self.do(ev.StopTimer("gather"))
        if not round_.sets:
            self._cut()
        elif self.me == self.tree.apex:
            own = {self.tree.key_holder} if round_.opening.key_holder_contributes else frozenset()
            if not quorum_met(round_.contributors | own, self.rules.min_hidden):
                self.do(ev.Report("below quorum", round_.opening.round, round_.contributors))
                self._cut()

    def on_merged(self, event: ev.Merged) -> None:
        round_ = self.round
        if not round_ or event.round != round_.opening.round or round_.cut:
            return
        round_.merging = False
        if self.me == self.tree.apex and event.segment == 0:  # which freezes the set: the others say nothing new
            self.do(ev.Record("forwarded", event.round, event.segment, round_.contributors))
        partial = Partial(event.round, self.base, event.segment, round_.contributors, event.ciphertexts)
        self.send(self.parent, partial, self.parent)
        for source in sorted(round_.sets):
            del round_.parts[source, event.segment]
            if source != self.me:
                self.do(ev.Consume(source))
            elif event.segment + 1 < round_.segments:
                self.do(ev.PullSegment(event.round, event.segment + 1))
        round_.next += 1
        self._advance()

    def _cut(self) -> None:
        assert self.round is not None
        self.round.cut = True
        self._release()
        self.send(self.parent, Absent(self.round.opening.round, self.base), self.parent)

    def _release(self) -> None:
        """Forget parts that will not be merged, and give their senders credit again."""
        assert self.round is not None
        for source, _ in self.round.parts:
            if source != self.me:
                self.do(ev.Consume(source))
        self.round.parts.clear()

    # ---- totals come down -------------------------------------------------------------------------------

    def on_total(self, event: ev.Received) -> None:
        total, round_ = event.message, self.round
        assert isinstance(total, Total)
        assert round_ is not None
        length = self.rules.segment_length(round_.opening.length, total.segment)
        if (total.round, total.base, total.segment) != (round_.opening.round, self.base, round_.staged):
            self.drop(event, f"segment {round_.staged} of round {round_.opening.round}", "another")
        elif len(total.integers) != 4 * length or (round_.staged and total.contributors != round_.published):
            self.drop(event, f"{length} integers over one set", "something else")
        elif not quorum_met(total.contributors, self.rules.min_hidden):
            self.forward(self.children, event)
            self._give_up(f"round {total.round}: the key holder published a total below the quorum")
        else:
            if self.state is State.GATHERING:  # the set was closed without us
                self.state = State.FLOWING
                self.do(ev.StopTimer("gather"))
                self._cut()
            round_.staged += 1
            round_.published = total.contributors
            self.do(ev.Stage(total.round, total.segment, total.integers))
            self.do(ev.SetTimer("silence", self.rules.silence_seconds))
            self.forward(self.children, event)
            self._owed += 1
            self._repay()

    def on_room(self) -> None:
        if self.state is State.ENDING:
            if not any(self.pending.get(child) for child in self.children):
                self.leave()
            return
        self._repay()
        if self.round:
            self._advance()

    def _repay(self) -> None:
        """Take another total from our parent only when every child has room for it."""
        owed = self._owed
        while self._owed and self.has_room(*self.children):
            self._owed -= 1
            self.do(ev.Consume(self.parent))
        if self._owed < owed:
            self.do(ev.StopTimer("stall"))
        if self._owed:
            self.do(ev.SetTimer("stall", self.rules.stall_seconds))

    def on_stall(self) -> None:
        """A child that takes nothing must not hold up the others: leave it behind."""
        stuck = frozenset(child for child in self.children if not self.has_room(child))
        self.children = tuple(child for child in self.children if child not in stuck)
        self.do(ev.Report("left behind", self.last_round, stuck))
        self.on_room()

    def on_close(self, event: ev.Received) -> None:
        close, round_ = event.message, self.round
        assert isinstance(close, Close)
        assert round_ is not None
        if (close.round, close.base) != (round_.opening.round, self.base) or close.segments > round_.staged:
            self.drop(event, f"the close of round {round_.opening.round}", "another")
            return
        self.forward(self.children, event)
        self.do(ev.Consume(event.peer))
        self._release()
        purpose = round_.opening.purpose
        self.do(ev.Apply(close.round, purpose, close.contributors, close.segments, close.state))

    def on_applied(self, event: ev.Applied) -> None:
        self._owed, owed = 0, self._owed
        self.do(*[ev.Consume(self.parent)] * owed, ev.StopTimer("gather"), ev.Wipe(event.round))
        assert self.round is not None
        self.do(ev.Report("closed", event.round, self.round.published))
        self.round, self.base, self.state = None, event.state, State.IDLE

    # ---- the end ----------------------------------------------------------------------------------------

    def on_fail(self, event: ev.Received) -> None:
        fail = event.message
        assert isinstance(fail, Fail)
        self._last_word(event, f"round {fail.round}: {fail.reason}")

    def on_finish(self, event: ev.Received) -> None:
        self._last_word(event, None if event.message.base == self.base else "the final models differ")

    def _last_word(self, event: ev.Received, error: str | None) -> None:
        self.forward(self.children, event)
        self.do(ev.Consume(event.peer))
        self._give_up(error)

    def _give_up(self, error: str | None) -> None:
        self.do(*[ev.StopTimer(timer) for timer in ("gather", "silence", "stall")])
        if self.round:
            self._release()
            self.do(ev.Wipe(self.round.opening.round))
            self.round = None
        self.end(error)

    def on_expired(self, event: ev.Expired) -> None:
        if event.timer == "silence":
            self._give_up(f"nothing came from the key holder in {self.rules.silence_seconds:.0f} s")
        elif event.timer == "stall":
            self.on_stall()

    TABLE: ClassVar[Table] = {
        (State.JOINING, ev.Ready): on_ready,
        (State.JOINING, Open): on_open_early,
        (State.JOINING, Joined): on_joined,
        (State.JOINING, Fail): on_fail,
        (State.IDLE, Joined): on_joined,
        (State.IDLE, Open): on_open,
        (State.IDLE, Fail): on_fail,
        (State.IDLE, Finish): on_finish,
        (State.IDLE, ev.Expired): on_expired,
        (State.GATHERING, Joined): on_joined,
        (State.GATHERING, Partial): on_partial,
        (State.GATHERING, Absent): on_absent,
        (State.GATHERING, ev.Sealed): on_sealed,
        (State.GATHERING, ev.OwnLost): on_own_lost,
        (State.GATHERING, ev.Expired): on_gather_expired,
        (State.GATHERING, Total): on_total,
        (State.GATHERING, Fail): on_fail,
        (State.FLOWING, Joined): on_joined,
        (State.FLOWING, Partial): on_partial,
        (State.FLOWING, Absent): on_absent,
        (State.FLOWING, ev.Sealed): on_sealed,
        (State.FLOWING, ev.OwnLost): on_own_lost,
        (State.FLOWING, ev.Merged): on_merged,
        (State.FLOWING, Total): on_total,
        (State.FLOWING, Close): on_close,
        (State.FLOWING, ev.Applied): on_applied,
        (State.FLOWING, Fail): on_fail,
        (State.FLOWING, ev.Expired): on_expired,
        (State.ENDING, ev.Expired): Party.leave,
    }
