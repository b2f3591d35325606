"""How a node finds its parent and keeps it, and how it comes back to the published state after an absence.

A node dials down its *ladder* (``topology.Placement.ladder``) until somebody answers, and moves to its proper
place when a round opens. To whoever is its parent it says where it stands, and passes on who stands below it, so
that the key holder knows who is alive. What it missed comes as the key holder's signed closes, each of
which names the state before and after it, and the parts of the last state: another state cannot be handed to it.
"""

from __future__ import annotations

from typing import Any

from node.protocol import events as ev
from node.protocol.feeder import Feeder
from node.protocol.messages import FROM_KEY_HOLDER, Absent, Close, Gone, Joined, Partial, Snapshot
from node.protocol.party import Rules, State
from topology import Placement


class Climber(Feeder):
    """A party with a parent: attached to ``parent``, or dialling ``target``."""

    def __init__(self, me: str, placement: Placement, rules: Rules) -> None:
        super().__init__(me, placement, rules)
        self.begin_feeding()
        self.ladder = placement.ladder(me)
        self.target: str | None = None
        self.below: dict[str, tuple[str, Any]] = {}
        self.news: dict[str, Any] = {}
        self.closing: ev.Published | None = None
        self.asked: tuple[int, bytes] | None = None
        self.seen = -1
        self.joined_on = b""
        self._missed: list[ev.Published] = []
        self._parts: list[bytes] = []

    def route_is_right(self, event: ev.Received) -> bool:
        message, peer, sender = event.message, event.peer, event.sender
        if isinstance(message, FROM_KEY_HOLDER):
            return (sender, event.recipient) == (self.key_holder, "") and peer == self.parent
        if isinstance(message, Snapshot):
            return (sender, event.recipient) == (peer, self.me) and peer == self.parent
        if peer in (self.parent, self.target):
            return False
        if isinstance(message, Joined | Gone):
            return sender in self.placement.order and event.recipient == self.key_holder
        return (sender, event.recipient) == (peer, self.me) and isinstance(message, Partial | Absent)

    # ---- for the round machine --------------------------------------------------------------------------

    @property
    def held(self) -> int:
        """How many frames of the round in hand are here."""
        raise NotImplementedError

    def attached(self) -> None:
        """We have a parent, and it knows nothing of the round in hand from us."""
        raise NotImplementedError

    def lost_below(self, child: str) -> None:
        """A neighbour below us is gone."""
        raise NotImplementedError

    def _abandon(self) -> None:
        raise NotImplementedError

    # ---- up the ladder ----------------------------------------------------------------------------------

    def start_climbing(self) -> None:
        self._dial(self.ladder[0])

    def climb_to(self, place: str) -> None:
        """Our place in this round; until it answers we stay where we are."""
        if place == self.parent:
            self._stop_dialling()  # of an earlier round
        elif place != self.target:
            self._dial(place)

    def dial_next(self) -> None:
        """Nobody answered: the next on the ladder, round and round; but who has a parent stays with it."""
        if self.target is None:
            return
        following = self._after(self.target)
        if self.parent and following in (self.parent, self.ladder[0]):
            self._stop_dialling()
        else:
            self._dial(following)

    def attach_anew(self) -> None:
        """Our parent fed us what does not fit: begin again with it, from where we stand."""
        assert self.parent
        lost, self.parent = self.parent, None
        self.do(ev.HangUp(lost))
        self.forget(lost)
        self._dial(lost)

    def _after(self, peer: str) -> str:
        return self.ladder[(self.ladder.index(peer) + 1) % len(self.ladder)]

    def _dial(self, peer: str) -> None:
        self._stop_dialling()
        self.target = peer
        self.do(ev.Dial(peer), ev.SetTimer("dial", self.rules.dial_seconds))

    def _stop_dialling(self) -> None:
        if self.target is not None:
            self.do(ev.StopTimer("dial"))
            self.do(ev.HangUp(self.target))
            self.target = None

    def on_up(self, peer: str, restarted: bool) -> None:
        if peer == self.target:
            self.do(ev.StopTimer("dial"))
            if self.parent and self.parent != peer:
                self.do(ev.HangUp(self.parent))
                self.forget(self.parent)
            self.target = None
            self._attach(peer)
        elif peer == self.parent:
            self._attach(peer)
        elif restarted:
            self._lose_child(peer, left=True)

    def _attach(self, peer: str) -> None:
        self.parent = peer
        self._missed, self._parts = [], []
        self.join()
        self.news |= {name: event for name, (_, event) in self.below.items()}
        self.pass_news()
        self.attached()

    def on_down(self, peer: str, left: bool) -> None:
        if peer == self.parent:
            self._leave_parent()
            return
        self._lose_child(peer, left)
        if not left and self.base:
            self.news[peer] = Gone(self.base, peer)
            self.pass_news()

    def _leave_parent(self) -> None:
        assert self.parent
        lost, self.parent = self.parent, None
        self.do(ev.HangUp(lost))
        self.forget(lost)
        if self.target is None and self.state not in (State.ENDING, State.ENDED):
            self._dial(self._after(lost))

    def _lose_child(self, peer: str, left: bool) -> None:
        self.fed.pop(peer, None)
        for name in [name for name, (via, _) in self.below.items() if via == peer]:
            del self.below[name]
            self.news.pop(name, None)
            self.orphans |= name != peer and not left
        self.lost_below(peer)

    def leave(self, *_: object) -> None:
        """Say goodbye above: our parent waits for it."""
        if self.parent:
            self.do(ev.HangUp(self.parent))
        super().leave()

    # ---- who is here ------------------------------------------------------------------------------------

    def join(self) -> None:
        """Tell our parent, and through it the key holder, where we stand."""
        if self.parent:
            applied = self.chain[-1].close.round + 1 if self.chain else 0
            round_ = self.log_round if self.held else 0
            self.joined_on = self.base
            self.news[self.me] = Joined(round_, self.base, applied, self.held, self.parent, self.posture)
            self.pass_news()

    def pass_news(self) -> None:
        """The latest of everyone, as our parent takes it: however much is said below, no more waits here."""
        while self.news and self.parent and self.has_room(self.parent):
            name = next(iter(self.news))
            item = self.news.pop(name)
            if isinstance(item, ev.Received):
                self.forward(self.parent, item.frame)
            else:
                self.send(self.parent, item, self.key_holder)

    def on_joined(self, event: ev.Received) -> None:
        assert isinstance(event.message, Joined)
        if objection := self.rules.minimum.objection(event.message.posture):
            self.drop(event, f"{event.sender} in a sandbox as the manifest demands", objection)
            return
        self.do(ev.Consume(event.peer))
        self.below[event.sender] = (event.peer, event)
        self.news[event.sender] = event
        if event.sender == event.peer:
            self.place(event.peer, event.message)
        self.pass_news()

    def on_gone(self, event: ev.Received) -> None:
        assert isinstance(event.message, Gone)
        self.do(ev.Consume(event.peer))
        name = event.message.name
        if self.below.get(name, ("",))[0] == event.peer:
            del self.below[name]
            self.news[name] = event
            self.pass_news()

    # ---- back to the published state --------------------------------------------------------------------

    def on_missed_close(self, event: ev.Received) -> None:
        close = event.message
        assert isinstance(close, Close)
        head = self._missed[-1].close.state if self._missed else self.base
        self.do(ev.Consume(event.peer))
        if close.base == head:
            self._abandon()  # the round in hand, if any, is over, and we lack some of its totals
            self._missed.append(ev.Published(close, event.frame))
            self._parts = []

    def on_snapshot(self, event: ev.Received) -> None:
        snapshot = event.message
        assert isinstance(snapshot, Snapshot)
        if snapshot.base == self.base:
            self.do(ev.Consume(event.peer))  # on its way when we told where we stand
        elif not self._missed or snapshot.base != self._missed[-1].close.state:
            self.drop(event, "the state after the closes that came", "another")
        elif snapshot.segments > self.rules.parts(self.largest) or snapshot.segment not in (0, len(self._parts)):
            self.drop(event, f"part {len(self._parts)}", f"{snapshot.segment} of {snapshot.segments}")
        elif len(snapshot.content) > 4 * self.rules.values_per_segment:
            self.drop(event, f"a part of {4 * self.rules.values_per_segment} bytes", f"{len(snapshot.content)}")
        else:
            self.do(ev.Consume(event.peer))
            self._parts = [*self._parts[: snapshot.segment], snapshot.content]
            if len(self._parts) == snapshot.segments:
                self.do(ev.Adopt(tuple(self._missed), tuple(self._parts)))
                self._parts = []

    def on_adopted(self, event: ev.Adopted) -> None:
        closes, self._missed = tuple(self._missed), []
        self.moved(event)
        self.do(*[ev.Keep(published) for published in closes])
        self.do(ev.SetTimer("silence", self.rules.silence_seconds))
        self.adopted(closes)
        self.join()

    def on_not_adopted(self, event: ev.NotAdopted) -> None:
        """Our parent handed us another state than the key holder signed: look for another parent."""
        self._missed = []
        if self.parent:
            self.do(ev.Report("was handed a false state", self.seen))
            self._leave_parent()
