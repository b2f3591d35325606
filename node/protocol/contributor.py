"""The round machine of every party but the key holder: train, add, pass up, apply what comes down.

The first of them below the key holder is the *apex*, and the gate: it passes nothing up unless every
party stays hidden among ``min_hidden`` others. How a node finds and keeps its place is in ``climber.py``,
what goes down from it in ``feeder.py``.
"""

from __future__ import annotations

from typing import ClassVar

from node.protocol import events as ev
from node.protocol.climber import Climber
from node.protocol.gathering import ATTEMPTS_PER_PARTY, Gathering
from node.protocol.messages import Absent, Close, Fail, Finish, Gone, Joined, Open, Partial, Snapshot, Total
from node.protocol.party import Rules, State, Table
from topology import Placement, TopologyError, Tree, quorum_met


class Contributor(Climber):
    """See the table at the end of this file."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.tree: Tree = placement.tree(placement.roster.names)
        self.round: Gathering | None = None
        self.staged = 0
        self.published: frozenset[str] = frozenset()
        self.last_round = self.last_forwarded = -1

    @property
    def way_up(self) -> str | None:
        """Our parent, if our sum may go to it: an ancestor in the round's tree; the key holder gets the apex's."""
        if self.parent == self.key_holder:
            return self.parent if self.me == self.tree.apex else None
        return self.parent if self.parent and self.me in self.tree.subtree(self.parent) else None

    @property
    def has_final_state(self) -> bool:
        """Whether the last round is closed: then there is nothing to wait for but the goodbye."""
        return bool(self.chain) and self.chain[-1].close.round >= self.rules.rounds

    @property
    def held(self) -> int:
        return 1 + self.staged if self.round else 0

    def on_ready(self, event: ev.Ready) -> None:
        self.ready(event)
        self.chain.extend(event.chain)
        self.last_round, self.last_forwarded = event.last_round, event.forwarded
        if self.has_final_state:
            self.leave()
            return
        self.state = State.IDLE
        self.do(ev.SetTimer("silence", self.rules.silence_seconds))
        self.aim_all()
        self.start_climbing()

    # ---- a round opens ----------------------------------------------------------------------------------

    def on_open(self, event: ev.Received) -> None:
        opening = event.message
        assert isinstance(opening, Open)
        self.do(ev.Consume(event.peer))
        if opening.round <= self.seen:
            return  # a neighbour before it gave us the same
        if opening.base != self.base or opening.length != self.lengths.get(opening.purpose):
            self._refuse(opening)
            return
        try:
            tree = self.placement.tree(opening.contributors)
        except TopologyError as error:
            self.do(ev.Drop(event.sender, "contributors that make a tree", str(error)))
            return
        self._abandon()
        self.seen, self.tree = opening.round, tree
        takes_part = self.me in opening.contributors
        awaited = {*self.tree.children[self.me], self.me} if takes_part else set()
        self.round = Gathering(opening, self.rules.segments(opening.length), awaited)
        self.staged, self.published, self.state = 0, frozenset(), State.GATHERING
        self.do(ev.Report("opened", opening.round), ev.SetTimer("silence", self.rules.silence_seconds))
        self.open_log(opening.round, event)
        if not takes_part:
            self.round.stop()
            self.join()  # the key holder did not know that we are here
            return
        self.climb_to(self.tree.parent[self.me])
        if opening.round > self.last_round:
            self.last_round = opening.round
            self.do(ev.Record("training", opening.round, 0, frozenset()))
            self.do(ev.Train(opening.round, opening.purpose), ev.PullSegment(opening.round, 0))
        else:
            self.round.awaited.discard(self.me)  # we trained in it before we restarted: never twice in a round
        self.do(ev.SetTimer("gather", self._patience(opening.gather_ms / 1000)))
        self._expect_connections()
        self._advance()

    def _refuse(self, opening: Open) -> None:
        """The round is on another state: ask once for what we missed; there is nothing to do if that is not it."""
        if self.asked != (opening.round, self.base):
            self.asked = (opening.round, self.base)
            self.attach_anew()
            return
        self._give_up(
            f"round {opening.round}: the key holder works on another model than this node; compare study, "
            "data columns and package versions"
        )

    def _patience(self, seconds: float) -> float:
        """How long to wait for our children: the deeper a node, the earlier it goes on without them."""
        height, below = self.tree.height(self.key_holder), self.tree.height(self.me)
        return seconds * (1 - min(0.05 * (height - below), 0.5))

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
        return child in self.tree.subtree(self.me)

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
            self.do(ev.Merge(round_.opening.round, round_.attempt, round_.next, parts))

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

    def on_merged(self, event: ev.Merged) -> None:
        round_ = self.round
        if round_ is None or round_.cut or (event.round, event.attempt) != (round_.opening.round, round_.attempt):
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
        round_ = self.round
        if round_ is None or round_.cut or (event.round, event.attempt) != (round_.opening.round, round_.attempt):
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

    # ---- totals come down -------------------------------------------------------------------------------

    def on_total(self, event: ev.Received) -> None:
        total, round_ = event.message, self.round
        assert isinstance(total, Total)
        assert round_ is not None
        length = self.rules.segment_length(round_.opening.length, total.segment)
        if (total.round, total.base) == (round_.opening.round, self.base) and total.segment < self.staged:
            self.do(ev.Consume(event.peer))  # a neighbour before it gave us the same
        elif (total.round, total.base, total.segment) != (round_.opening.round, self.base, self.staged):
            self.drop(event, f"segment {self.staged} of round {round_.opening.round}", "another")
        elif len(total.integers) != 4 * length or (self.staged and total.contributors != self.published):
            self.drop(event, f"{length} integers over one set", "something else")
        elif not quorum_met(total.contributors, self.rules.min_hidden):
            self._give_up(f"round {total.round}: the key holder published a total below the quorum")
        else:
            self.do(ev.Consume(event.peer), ev.Stage(total, round_.opening.purpose))
            self.do(ev.SetTimer("silence", self.rules.silence_seconds))
            self.staged += 1
            self.published = total.contributors
            self.append(event)
            self._set_is_final(round_)

    def _set_is_final(self, round_: Gathering) -> None:
        if self.state is State.GATHERING:  # the set was closed without us
            self.state = State.FLOWING
            self._stop_timers()
            if not round_.cut:
                self._cut()
        if not round_.is_final:
            round_.settle()
            for name in round_.sources.keys() - set(round_.merged_from):
                source = round_.lose(name)
                if source and name in self.up:
                    self.do(*[ev.Consume(name)] * (source.arrived - source.used))

    def on_close(self, event: ev.Received) -> None:
        close, round_ = event.message, self.round
        assert isinstance(close, Close)
        if round_ and (close.round, close.base) == (round_.opening.round, self.base) and close.segments <= self.staged:
            self.do(ev.Consume(event.peer))
            self._release()
            self.append(event, is_last=True)
            self.state, self.closing = State.APPLYING, ev.Published(close, event.frame)
            purpose = round_.opening.purpose
            self.do(ev.Apply(close.round, purpose, close.contributors, close.segments, close.state))
        else:
            self.on_missed_close(event)

    def on_applied(self, event: ev.Applied) -> None:
        assert self.closing is not None
        just_joined = self.joined_on == self.base  # the key holder may believe that we are still there
        self.base, self.size = event.state, event.size
        self._stop_timers()
        self.do(ev.Keep(self.closing), ev.Wipe(event.round))
        self.do(ev.Report("closed", event.round, self.closing.close.contributors))
        self.round, self.state = None, State.IDLE
        self.closed(self.closing)
        if just_joined:
            self.join()

    def on_failed(self, event: ev.Received) -> None:
        fail = event.message
        assert isinstance(fail, Fail)
        self.do(ev.Consume(event.peer), ev.SetTimer("silence", self.rules.silence_seconds))
        if fail.final:
            self._last_word(event, f"round {fail.round}: {fail.reason}")
        elif self.round and fail.round == self.round.opening.round:
            self.do(ev.Report(f"failed: {fail.reason}", fail.round))
            self._abandon()
            self.append(event, is_last=True)

    def _abandon(self) -> None:
        """Forget the round in hand, if there is one."""
        if self.round:
            self._release()
            self._stop_timers()
            self.do(ev.Wipe(self.round.opening.round))
            self.round, self.staged = None, 0
        if self.state is not State.ENDING:
            self.state = State.IDLE

    # ---- the end ----------------------------------------------------------------------------------------

    def on_finish(self, event: ev.Received) -> None:
        self.do(ev.Consume(event.peer))
        if event.message.base == self.base:
            self._last_word(event, None)
        elif self.asked != (-1, self.base):  # we missed the last rounds
            self.asked = (-1, self.base)
            self.attach_anew()
        else:
            self._last_word(event, "the final models differ")

    def _last_word(self, event: ev.Received, error: str | None) -> None:
        self.end_feeding(event)
        self._give_up(error)

    def _give_up(self, error: str | None) -> None:
        self._abandon()
        self.do(*[ev.StopTimer(timer) for timer in ("silence", "dial")])
        self.error, self.state = error, State.ENDING
        self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))
        self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self.state is State.ENDING and (self.last_word is None or self.everyone_is_fed):
            self.leave()

    def on_room(self, peer: str) -> None:
        self.feed(peer)
        self.pass_news()
        if self.state is State.ENDING:
            self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))
            self._leave_if_told()
        else:
            self._advance()

    def on_expired(self, event: ev.Expired) -> None:
        if event.timer == "silence":
            silent = f"nothing came from the key holder in {self.rules.silence_seconds:.0f} s"
            self._give_up(None if self.has_final_state else silent)
        elif event.timer == "dial":
            self.dial_next()

    TABLE: ClassVar[Table] = {
        (State.JOINING, ev.Ready): on_ready,
        (State.JOINING, Joined): Climber.on_joined,
        (State.JOINING, Gone): Climber.on_gone,
        (State.IDLE, Joined): Climber.on_joined,
        (State.IDLE, Gone): Climber.on_gone,
        (State.IDLE, Open): on_open,
        (State.IDLE, Close): Climber.on_missed_close,
        (State.IDLE, Snapshot): Climber.on_snapshot,
        (State.IDLE, ev.Adopted): Climber.on_adopted,
        (State.IDLE, ev.NotAdopted): Climber.on_not_adopted,
        (State.IDLE, Fail): on_failed,
        (State.IDLE, Finish): on_finish,
        (State.IDLE, ev.Expired): on_expired,
        (State.GATHERING, Joined): Climber.on_joined,
        (State.GATHERING, Gone): Climber.on_gone,
        (State.GATHERING, Open): on_open,
        (State.GATHERING, Partial): on_partial,
        (State.GATHERING, Absent): on_absent,
        (State.GATHERING, ev.Sealed): on_sealed,
        (State.GATHERING, ev.OwnLost): on_own_lost,
        (State.GATHERING, ev.Expired): on_gather_expired,
        (State.GATHERING, Total): on_total,
        (State.GATHERING, Close): on_close,
        (State.GATHERING, Fail): on_failed,
        (State.GATHERING, Finish): on_finish,
        (State.FLOWING, Joined): Climber.on_joined,
        (State.FLOWING, Gone): Climber.on_gone,
        (State.FLOWING, Open): on_open,
        (State.FLOWING, Partial): on_partial,
        (State.FLOWING, Absent): on_absent,
        (State.FLOWING, ev.Sealed): on_sealed,
        (State.FLOWING, ev.OwnLost): on_own_lost,
        (State.FLOWING, ev.Merged): on_merged,
        (State.FLOWING, ev.NotMerged): on_not_merged,
        (State.FLOWING, Total): on_total,
        (State.FLOWING, Close): on_close,
        (State.FLOWING, Fail): on_failed,
        (State.FLOWING, Finish): on_finish,
        (State.FLOWING, ev.Expired): on_expired,
        (State.APPLYING, ev.Applied): on_applied,
        (State.ENDING, Joined): Climber.on_joined,
        (State.ENDING, Gone): Climber.on_gone,
        (State.ENDING, ev.Expired): Climber.leave,
    }
