"""What goes down: to each neighbour below us the published frames, in order, as fast as it takes them.

A round's frames are a *log*, and each child has a place in it: a slow child holds up nobody, and one that
moved to us in the middle of a round goes on where it was. Who missed a whole round gets the key holder's
closes from there on, and our state, whose digest the last close names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from node.protocol import events as ev
from node.protocol.messages import Close, Joined
from node.protocol.party import Party


@dataclass
class Child:
    """One neighbour below us. Which of our frames it gets next; None: it has not said where it is."""

    position: Joined | None = None
    cursor: int | None = None  # the next frame of the log
    close: int | None = None  # before that, our state: the next of the closes that lead to it
    part: int = 0
    told: bool = False


class Feeder(Party):
    """A party that feeds neighbours. ``log`` is of round ``log_round``, which began on ``log_base``."""

    def begin_feeding(self) -> None:
        """To be called once, before any neighbour is there."""
        self.fed: dict[str, Child] = {}
        self.last_word: Any = None
        self.orphans = False  # somebody is lost who had others below it: they may come to us
        self.chain: list[ev.Published] = []
        self.log: list[Any] = []
        self.log_base, self.log_round, self.log_start = b"", -1, 0
        self.is_over = True

    # ---- the log ----------------------------------------------------------------------------------------

    def open_log(self, round_: int, item: Any, start: int = 0) -> None:
        """A round begins. ``start`` is the place of its first frame here: at a resumed close, not the first."""
        for child in self.fed.values():
            if child.cursor is not None and child.position is not None:
                missed = child.close is None and child.position.base != self.base
                child.cursor = 0
                if missed:  # it is still in the round before, whose frames go now
                    self._from_state(child)
        self.log, self.log_base, self.log_round, self.log_start = [item], self.base, round_, start
        self.is_over = False
        self.feed_all()

    def append(self, item: Any, is_last: bool = False) -> None:
        """One more frame of the round in hand: ours to sign, or one that came."""
        self.log.append(item)
        self.is_over = is_last
        self.feed_all()

    def end_feeding(self, item: Any) -> None:
        """The last frame that anyone gets."""
        self.last_word = item
        self.feed_all()

    def closed(self, published: ev.Published) -> None:
        """A round's close was applied, and our state is another now."""
        self.chain.append(published)
        self.aim_all()

    def adopted(self, closes: tuple[ev.Published, ...]) -> None:
        """Our state is now the one after these closes, and we have no log that leads to it."""
        self.chain.extend(closes)
        self.log, self.log_base, self.log_start, self.is_over = [], self.base, 0, True
        for child in self.fed.values():
            child.cursor = None
        self.aim_all()

    def aim_all(self) -> None:
        """Our state is another: see anew what each neighbour needs."""
        for child in self.fed.values():
            if child.cursor is None and child.position:
                self._aim(child, child.position)
            elif child.close is not None:  # the state that it was getting is history
                child.part, child.cursor = 0, self._end
        self.feed_all()

    @property
    def _end(self) -> int:
        return self.log_start + len(self.log)

    # ---- children ---------------------------------------------------------------------------------------

    def place(self, peer: str, position: Joined) -> None:
        """A neighbour says where it is."""
        child = self.fed.setdefault(peer, Child())
        if child.cursor is not None:
            return  # since it is here we know better ourselves
        child.position = position
        if self.base:
            self._aim(child, position)
        self.feed(peer)

    def _aim(self, child: Child, position: Joined) -> None:
        in_log = position.base == self.log_base and not (self.is_over and position.base == self.base)
        if in_log:
            held = position.held if position.round == self.log_round else 0
            child.cursor = held
            if held < self.log_start:  # what it lacks is not here any more
                child.cursor = self._end
                self._from_state(child)
        elif position.base == self.base:
            child.cursor = self._end
        else:
            child.cursor = self._end if self.log_base != self.base or self.is_over else 0
            self._from_state(child)

    def _from_state(self, child: Child) -> None:
        """It needs our state first; and nothing of ours helps if it holds a state that never was published."""
        assert child.position is not None
        base = child.position.base
        index = next((i for i, published in enumerate(self.chain) if published.close.base == base), None)
        child.close, child.part = index, 0
        if index is None:
            child.cursor = None

    def feed_all(self) -> None:
        for peer in self.fed:
            self.feed(peer)

    def feed(self, peer: str) -> None:
        """Give a neighbour what it has room for."""
        child = self.fed.get(peer)
        while child is not None and child.cursor is not None and self.has_room(peer):
            if child.close is not None and child.close < len(self.chain):
                self._pass_on(peer, self.chain[child.close])
                child.close += 1
            elif child.close is not None:
                parts = self.rules.parts(self.size)
                self.pending[peer] += 1
                self.do(ev.SendState(peer, child.part, parts))
                child.part += 1
                if child.part == parts:
                    child.close = None
                    self._reached(child, self.base, self.chain[-1].close.round + 1)
            elif child.cursor < self._end:
                item = self.log[child.cursor - self.log_start]
                self._pass_on(peer, item)
                child.cursor += 1
                close = item.message if isinstance(item, ev.Received) else item
                if isinstance(close, Close):
                    self._reached(child, close.state, close.round + 1)
            elif self.last_word is not None and not child.told:
                self._pass_on(peer, self.last_word)
                child.told = True
            else:
                return

    def _reached(self, child: Child, base: bytes, applied: int) -> None:
        assert child.position is not None
        child.position = replace(child.position, round=0, base=base, applied=applied, held=0)

    def _pass_on(self, peer: str, item: Any) -> None:
        match item:
            case ev.Received(frame=frame) | ev.Published(frame=frame) if frame is not None:
                self.forward(peer, frame)
            case ev.Published(close=close):
                self.send(peer, close, "")
            case _:
                self.send(peer, item, "")

    @property
    def everyone_has_left(self) -> bool:
        """Whether every neighbour that we can help has taken the last word, passed it on, and said goodbye."""
        return not self.orphans and all(child.cursor is None for child in self.fed.values())
