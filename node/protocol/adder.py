"""What goes up: our own update and what our children send is added, and passed on as one sum.

The first party below the key holder is the *apex*, and the gate: it passes nothing up unless every party stays
hidden among ``min_hidden`` others, and never a second sum in one round.
"""

from __future__ import annotations

from node.protocol import events as ev
from node.protocol.climber import Climber
from node.protocol.gathering import ATTEMPTS_PER_PARTY, Gathering
from node.protocol.messages import Absent, Partial
from node.protocol.party import Rules, State
from topology import Placement, Tree, quorum_met


class Adder(Climber):
    """A party in a round: ``round`` has what came, ``tree`` who may send it."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.tree: Tree = placement.tree(placement.roster.names)
        self.round: Gathering | None = None
        self.last_forwarded = -1

    def on_expired(self, event: ev.Expired) -> None:
        """A timer that is none of a round's gathering."""
        raise NotImplementedError

    @property
    def way_up(self) -> str | None:
        """Our parent, if our sum may go to it: an ancestor in the round's tree; the key holder gets the apex's."""
        if self.parent == self.key_holder:
            return self.parent if self.me == self.tree.apex else None
        return self.parent if self.parent and self.tree.is_within(self.me, self.parent) else None

    # ---- segments come: ours and our children's -----------------------------------------------------------

    def on_partial(self, event: ev.Received) -> None:
        partial, round_, child = event.message, self.round, event.peer
        assert isinstance(partial, Partial)
        assert round_ is not None
        source = round_.sources.get(child)
        is_new = partial.segment == 0 and (source is None or partial.attempt > source.attempt)
        if (partial.round, partial.base) != (round_.opening.round, self.base):
            self.drop(event, f"round {round_.opening.round} on our state", f"round {partial.round}")
        elif not self._is_below(child) or not partial.contributors or not self._holds(child, partial.contributors):
            self.drop(event, "contributors of the sender's subtree", "others or none")
        elif partial.segment >= round_.segments:
            self.drop(event, f"one of {round_.segments} segments", f"segment {partial.segment}")
        elif max(partial.attempt, round_.begun[child] if is_new else 0) >= self._most_attempts(child):
            self.drop(event, f"at most {self._most_attempts(child)} attempts", "one more")
        elif round_.cut or (is_new and self._is_too_late(child)):
            self.drop(event, "segments before the set was frozen", "a late one")
            if source is not None and not round_.cut:
                self._lose(child)
        elif is_new:
            if source is not None:
                self._lose(child)
            round_.take(child, 0, partial.contributors, partial.attempt, partial.ciphertexts)
            self._advance()
        elif source is None or (partial.attempt, partial.segment) != (source.attempt, source.arrived):
            self.drop(event, "the next segment", f"segment {partial.segment}, attempt {partial.attempt}")
        elif partial.contributors != source.contributors:
            self.drop(event, "the set that segment 0 froze", "another")
            self._lose(child)
        else:
            round_.take(child, partial.segment, partial.contributors, partial.attempt, partial.ciphertexts)
            self._advance()

    def _is_below(self, child: str) -> bool:
        return self.tree.is_within(child, self.me)

    def _holds(self, child: str, contributors: frozenset[str]) -> bool:
        return contributors <= self.tree.subtree(child)

    def _most_attempts(self, child: str) -> int:
        return ATTEMPTS_PER_PARTY * len(self.tree.subtree(child))

    def _is_too_late(self, child: str) -> bool:
        """Whether a new source cannot be merged any more."""
        assert self.round is not None
        if self.state is State.GATHERING:
            return False
        return self._is_frozen or child not in self.round.merged_from

    @property
    def _is_frozen(self) -> bool:
        """Whether the round's set is beyond change: it is published, or, at the gate, it went through."""
        assert self.round is not None
        went_through = self.me == self.tree.apex and self.last_forwarded == self.round.opening.round
        return self.round.is_final or went_through

    def on_sealed(self, event: ev.Sealed) -> None:
        round_ = self.round
        if round_ and event.round == round_.opening.round and not round_.cut:
            round_.take(self.me, event.segment, frozenset({self.me}), 0, event.ciphertexts)
            self._advance()

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
        assert self.round is not None
        match event.timer:
            case "gather":
                self._stop_awaiting(self.round, self.round.awaited)
            case "settle":
                self._stop_awaiting(self.round, self.round.awaited - self.up - {self.me})
            case _:
                self.on_expired(event)

    def _stop_awaiting(self, round_: Gathering, names: set[str]) -> None:
        if names:
            self.do(ev.Report("gave up on", round_.opening.round, frozenset(names)))
        round_.awaited -= names
        self._advance()

    def _expect_connections(self) -> None:
        """Whoever we wait for has a while to find us: it may be gone, or have gone to another ancestor."""
        assert self.round is not None
        if self.round.awaited - self.up - {self.me}:
            self.do(ev.SetTimer("settle", self.rules.settle_seconds))

    def _lose(self, name: str) -> None:
        """Nothing more comes from a source: the sum goes on, or begins again, without it, while that is allowed."""
        round_ = self.round
        assert round_ is not None
        if not round_.cut and not round_.is_complete(name):
            self._go_on_without(round_, name)

    def _go_on_without(self, round_: Gathering, name: str) -> None:
        merged = name in round_.merged_from
        source = round_.lose(name)
        if source and name in self.up:
            self.do(*[ev.Consume(name)] * (source.arrived - source.used))
        if not merged:
            self._advance()
        elif self._is_frozen:
            self._cut()
        else:
            self.state = State.GATHERING
            round_.begin_again()
            self.do(ev.SetTimer("gather", self.rules.settle_seconds))
            self._advance()

    def lost_below(self, child: str) -> None:
        """A neighbour below us is gone. Until the set is frozen its children may come to us instead."""
        round_ = self.round
        if round_ is None or round_.cut:
            return
        source = round_.sources.get(child)
        if source and round_.is_complete(child):
            source.used = source.arrived  # nobody is there to get the credit
            return
        if self._is_below(child) and not self._is_frozen and (source or child in round_.awaited):
            round_.awaited |= set(self.tree.children[child]) - round_.sources.keys()
            self._expect_connections()
        self._lose(child)

    def _stop_timers(self) -> None:
        self.do(ev.StopTimer("gather"), ev.StopTimer("settle"))

    # ---- merge and pass up ------------------------------------------------------------------------------

    def _advance(self) -> None:
        round_ = self.round
        if round_ is None or round_.cut:
            return
        if self.state is State.GATHERING and not round_.awaited:
            self._freeze(round_)
        if self.state is not State.FLOWING or self.way_up is None or not self.has_room(self.way_up):
            return
        parts = round_.parts()
        if parts is not None:
            round_.merging = True
            length = self.rules.segment_length(round_.opening.length, round_.next)
            self.do(ev.Merge(round_.opening.round, round_.attempt, round_.next, parts, length))

    def _freeze(self, round_: Gathering) -> None:
        """Segment 0 fixes our set. The apex lets it pass only if everyone stays hidden, and only once a round."""
        self.state = State.FLOWING
        self._stop_timers()
        round_.choose(self.me)
        if not round_.merged_from:
            self._cut()
        elif self.me == self.tree.apex:
            own = {self.key_holder} if round_.opening.key_holder_contributes else frozenset()
            if not quorum_met(round_.contributors | own, self.rules.min_hidden):
                self.do(ev.Report("below quorum", round_.opening.round, round_.contributors))
                self._cut()
            elif round_.opening.round <= self.last_forwarded:
                self._cut()

    def _summing(self, event: ev.Merged | ev.NotMerged) -> Gathering | None:
        """The round, if this is of the sum that is being made."""
        round_ = self.round
        if round_ is None or round_.cut or (event.round, event.attempt) != (round_.opening.round, round_.attempt):
            return None
        return round_

    def on_merged(self, event: ev.Merged) -> None:
        round_ = self._summing(event)
        if round_ is None:
            return
        round_.merging = False
        if self.way_up is None:
            return  # it is merged again for our next parent
        contributors = round_.contributors
        if self.me == self.tree.apex and self.last_forwarded != event.round:  # its set is frozen by segment 0
            self.last_forwarded = event.round
            self.do(ev.Record("forwarded", event.round, event.segment, contributors))
        partial = Partial(event.round, self.base, event.segment, contributors, event.attempt, event.ciphertexts)
        self.send(self.way_up, partial, self.way_up)
        for name in round_.passed():
            if name != self.me:
                self.do(ev.Consume(name))
            elif event.segment + 1 < round_.segments:
                self.do(ev.PullSegment(event.round, event.segment + 1))
        self._advance()

    def on_not_merged(self, event: ev.NotMerged) -> None:
        round_ = self._summing(event)
        if round_ is None:
            return
        for name in [round_.merged_from[place] for place in event.places]:
            self.do(ev.Drop(name, "ciphertexts of this federation's plan", "something else"))
            if not round_.cut:
                self._go_on_without(round_, name)

    def _cut(self) -> None:
        assert self.round is not None
        self._release()
        self._say_absent()

    def _say_absent(self) -> None:
        assert self.round is not None
        if self.way_up:
            self.send(self.way_up, Absent(self.round.opening.round, self.base), self.way_up)

    def _release(self) -> None:
        """Forget parts that will not be merged, and give their senders credit again."""
        assert self.round is not None
        for name, unused in self.round.stop().items():
            if name in self.up:
                self.do(*[ev.Consume(name)] * unused)

    def attached(self) -> None:
        """We have a new parent, or the old one restarted: it gets everything from segment 0, while that helps."""
        round_ = self.round
        if round_ is None or self.me not in self.tree.parties:
            return
        if round_.cut:
            self._say_absent()
        elif self.state is State.FLOWING and self._is_frozen:
            self._cut()
        elif self.state is State.FLOWING:
            merged_from = round_.merged_from
            round_.begin_again()
            round_.merged_from = merged_from
            self._advance()
