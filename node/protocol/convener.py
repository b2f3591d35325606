"""Who is there: the key holder's part of joining, waiting, and the end, apart from what it does in a round."""

from __future__ import annotations

from node.protocol import events as ev
from node.protocol.attendance import Attendance
from node.protocol.feeder import Feeder
from node.protocol.messages import Fail, Finish, Gone, Joined
from node.protocol.party import Rules, State
from topology import Placement


class Convener(Feeder):
    """Knows who is there, begins a round when everyone is or the time is up, and says the last word."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.begin_feeding()
        self.number = self.begins = -1
        self.present = Attendance(me, frozenset(placement.order))
        self.failures = 0
        self.began = self.is_told = False
        self.closing: tuple[str, frozenset[str], int] | None = None
        self.resumed: ev.Resumed | None = None
        self.evaluated: list[frozenset[str]] = []

    def begin_with(self, live: frozenset[str]) -> bool:
        """Begin the next round, if these are enough for one, or end the study after the last."""
        raise NotImplementedError

    def on_applied(self, event: ev.Applied) -> None:
        """The round that is to be closed is in our state."""
        raise NotImplementedError

    def abandon(self) -> bool:
        """Forget the round in hand; whether there was one."""
        raise NotImplementedError

    @property
    def is_at_the_end(self) -> bool:
        return self.is_finished or self.number >= self.rules.schedule.last

    # ---- who is there -----------------------------------------------------------------------------------

    def on_ready(self, event: ev.Ready) -> None:
        self.ready(event)
        self.chain.extend(event.chain)
        self.begins, self.evaluated = event.begins, [*event.evaluated]
        self.number = max(event.last_round, event.begins, *(published.close.round for published in event.chain))
        self.state = State.IDLE
        self.resumed = event.resumed
        if event.resumed:
            self._close_resumed(event.resumed)
            return
        self.wait()

    def _close_resumed(self, resumed: ev.Resumed) -> None:
        """We were interrupted after an opening: its round is closed with what was opened."""
        self.state = State.APPLYING
        self.closing = (resumed.purpose, resumed.contributors, resumed.segments)
        self.number = max(self.number, resumed.round)
        if resumed.applied:
            self.on_applied(ev.Applied(resumed.round, self.base, self.size, self.is_finished))
        else:
            self.do(ev.Apply(resumed.round, resumed.purpose, resumed.contributors, resumed.segments, None))

    def wait(self) -> None:
        """Until enough are there for the next round."""
        is_resumed = self.number > self.begins and not self.began
        self.do(ev.SetTimer("join", self.rules.join_seconds))
        if self.began or is_resumed:
            self.do(ev.SetTimer("settle", self.rules.settle_seconds))
        self.aim_all()
        self._begin_if_all_are_there()

    def on_up(self, peer: str, restarted: bool) -> None:
        if restarted:
            self.on_down(peer, left=False)

    def on_down(self, peer: str, left: bool) -> None:
        child = self.fed.pop(peer, None)
        self.is_told = self.is_told or bool(child and child.told and left)
        self.orphans |= not left and any(place.parent == peer for place in self.present.places.values())
        self.present.gone(peer, self.me)
        if self.state is State.IDLE:
            self.do(ev.SetTimer("settle", self.rules.settle_seconds))
        self._leave_if_told()

    def on_joined(self, event: ev.Received) -> None:
        joined = event.message
        assert isinstance(joined, Joined)
        if objection := self.rules.minimum.objection(joined.posture):
            self.drop(event, f"{event.sender} in a sandbox as the manifest demands", objection)
            return
        self.do(ev.Consume(event.peer))
        if self.present.joined(event.sender, joined.parent, joined.base):
            who = frozenset({event.sender})
            self.do(ev.Report("joined", max(self.number, 0), who))
            self.do(ev.Record("joined", max(self.number, 0), 0, who, joined.posture))
        if event.sender == event.peer:
            self.place(event.peer, joined)
        if self.state is State.IDLE and joined.base not in self._known:
            name = event.sender
            if not self.began:
                self.fail(f"{name} holds another model, study or package versions than the key holder", final=True)
            else:
                self.do(ev.Report("holds another model", self.number, frozenset({name})))
        elif self.state is State.IDLE:
            if self.began or self.number > self.begins:
                self.do(ev.SetTimer("settle", self.rules.settle_seconds))
            self._begin_if_all_are_there()

    @property
    def _known(self) -> set[bytes]:
        """Every state that this study has had."""
        return {self.base, *(published.close.base for published in self.chain)}

    def on_gone(self, event: ev.Received) -> None:
        gone = event.message
        assert isinstance(gone, Gone)
        self.do(ev.Consume(event.peer))
        if self.present.gone(gone.name, event.sender) and self.state is State.IDLE:
            self._begin_if_all_are_there()

    def live(self) -> frozenset[str]:
        """Who can take part in a round that begins now."""
        return self.present.live(self.base, self._known, self.up, not self.began)

    def _begin_if_all_are_there(self) -> None:
        if self.base and self.present.expected and self.present.expected <= self.live():
            self.begin_with(self.live())

    def on_waited(self, event: ev.Expired) -> None:
        if self.is_at_the_end:
            self.finish()
            return
        live = self.live()
        missing = sorted(frozenset(self.placement.order) - live)
        if self.begin_with(live):
            self.do(ev.Report("began without", self.number, frozenset(missing)))
        elif event.timer == "settle":
            self.do(ev.SetTimer("settle", self.rules.settle_seconds))
        else:
            self.fail("too few parties joined in time", final=True, private=f"missing: {', '.join(missing)}")

    def on_joined_late(self, event: ev.Received) -> None:
        assert isinstance(event.message, Joined)
        self.do(ev.Consume(event.peer))
        self.present.joined(event.sender, event.message.parent, event.message.base)
        if event.sender == event.peer:
            self.place(event.peer, event.message)

    # ---- the end ----------------------------------------------------------------------------------------

    def finish(self) -> None:
        self.do(ev.StopTimer("join"), ev.StopTimer("settle"))
        self._say_goodbye(Finish(self.base), None)

    def fail(self, reason: str, final: bool = False, private: str = "") -> None:
        """End the round for everyone, and the study if it is final. ``private`` is for this node's own user only."""
        number = max(self.number, 0)
        self.failures += 1
        if self.failures >= self.rules.most_failures:
            final = True
        was_round = self.abandon()
        self.do(ev.StopTimer("round"), ev.StopTimer("join"), ev.StopTimer("settle"))
        fail = Fail(number, self.base or bytes(32), reason, final)
        if final:
            self._say_goodbye(fail, f"round {number}: {reason}" + (f" ({private})" if private else ""))
            return
        self.do(ev.Report(f"failed: {reason}", number))
        if was_round:
            self.append(fail, is_last=True)
        self.state = State.IDLE
        self.wait()

    def _say_goodbye(self, word: Finish | Fail, error: str | None) -> None:
        self.error, self.state = error, State.ENDING
        self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))
        self.end_feeding(word)
        self._leave_if_told()

    def _leave_if_told(self) -> None:
        if self.state is State.ENDING and self.is_told and self.everyone_has_left:
            self.leave()

    def on_room(self, peer: str, consumed: bool) -> None:
        self.feed(peer)
        if self.state is State.ENDING and consumed:
            self.do(ev.SetTimer("goodbye", self.rules.goodbye_seconds))
