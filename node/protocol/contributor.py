"""The round machine of every party but the key holder: train, add, pass up, apply what comes down.

Here a round opens, its totals are staged, and applied at its close. What goes up, and when it may, is in
``adder.py``; how a node finds and keeps its place in ``climber.py``; what goes down from it in ``feeder.py``.
"""

from __future__ import annotations

from typing import ClassVar

from node.protocol import events as ev
from node.protocol.adder import Adder
from node.protocol.climber import Climber
from node.protocol.gathering import Gathering
from node.protocol.messages import Absent, Close, Fail, Finish, Gone, Joined, Open, Partial, Snapshot, Total
from node.protocol.party import Rules, State, Table
from topology import Placement, TopologyError, quorum_met


class Contributor(Adder):
    """See the table at the end of this file."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.staged = 0
        self.published: frozenset[str] = frozenset()
        self.last_round = -1

    @property
    def has_final_state(self) -> bool:
        """Whether the last round is closed: then there is nothing to wait for but the goodbye."""
        return bool(self.chain) and (self.is_finished or self.chain[-1].close.round >= self.rules.schedule.last)

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
            same = opening.contributors == self.tree.parties
            tree = self.tree if same else self.placement.tree(opening.contributors)
        except TopologyError as error:
            self.do(ev.Drop(event.sender, "contributors that make a tree", str(error)))
            return
        self._abandon()
        self.seen, self.tree, self.orphans = opening.round, tree, False
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
        chosen = self.rules.chosen(opening.contributors, opening.purpose, self.base)
        if self.me in chosen and opening.round > self.last_round:
            self.last_round = opening.round
            # The enclave starts while the disk takes the record, which is there before anything of it can be sent.
            self.do(ev.Train(opening.round, opening.purpose))
            self.do(ev.Record("training", opening.round, 0, frozenset()), ev.PullSegment(opening.round, 0))
        else:
            self.round.awaited.discard(self.me)  # we trained in it before we restarted (never twice), or pass things on
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
        self.moved(event)
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
        if self.state is State.ENDING and (self.last_word is None or self.everyone_has_left):
            self.leave()

    def on_room(self, peer: str, consumed: bool) -> None:
        self.feed(peer)
        self.pass_news()
        if self.state is not State.ENDING:
            self._advance()
        elif consumed:
            self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))

    def on_down(self, peer: str, left: bool) -> None:
        super().on_down(peer, left)
        self._leave_if_told()

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
        (State.GATHERING, Partial): Adder.on_partial,
        (State.GATHERING, Absent): Adder.on_absent,
        (State.GATHERING, ev.Sealed): Adder.on_sealed,
        (State.GATHERING, ev.OwnLost): Adder.on_own_lost,
        (State.GATHERING, ev.Expired): Adder.on_gather_expired,
        (State.GATHERING, Total): on_total,
        (State.GATHERING, Close): on_close,
        (State.GATHERING, Fail): on_failed,
        (State.GATHERING, Finish): on_finish,
        (State.FLOWING, Joined): Climber.on_joined,
        (State.FLOWING, Gone): Climber.on_gone,
        (State.FLOWING, Open): on_open,
        (State.FLOWING, Partial): Adder.on_partial,
        (State.FLOWING, Absent): Adder.on_absent,
        (State.FLOWING, ev.Sealed): Adder.on_sealed,
        (State.FLOWING, ev.OwnLost): Adder.on_own_lost,
        (State.FLOWING, ev.Merged): Adder.on_merged,
        (State.FLOWING, ev.NotMerged): Adder.on_not_merged,
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
