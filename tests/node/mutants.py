"""Round machines with one rule taken out each: what checks the protocol must notice that it is gone."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from node.protocol import events as ev
from node.protocol import keyholder as keyholder_module
from node.protocol.contributor import Contributor
from node.protocol.gathering import Gathering
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import Open, Partial, Total
from node.protocol.party import State, Table


class Overlap(Contributor):
    """Merges sources that share contributors."""

    def _freeze(self, round_: Gathering) -> None:
        super()._freeze(round_)
        if not round_.cut:
            round_.merged_from = tuple(sorted(round_.sources))


class NoGate(Contributor):
    """Passes up whatever came, as the apex too."""

    def _freeze(self, round_: Gathering) -> None:
        self.rules = replace(self.rules, min_hidden=-1)
        super()._freeze(round_)


class NoQuorum(KeyHolder):
    """Opens totals in which somebody is not hidden."""

    def _advance(self) -> None:
        kept, keyholder_module.quorum_met = keyholder_module.quorum_met, lambda *_: True
        try:
            super()._advance()
        finally:
            keyholder_module.quorum_met = kept


class ForgetsOpenings(KeyHolder):
    """After a restart it counts on from the last close, whatever it has opened since."""

    def on_ready(self, event: ev.Ready) -> None:
        super().on_ready(replace(event, last_round=-1))

    TABLE: ClassVar[Table] = {**KeyHolder.TABLE, (State.JOINING, ev.Ready): on_ready}


class ForgetsTraining(Contributor):
    """After a restart it trains again in the round that it had trained in."""

    def on_ready(self, event: ev.Ready) -> None:
        super().on_ready(replace(event, last_round=-1))

    TABLE: ClassVar[Table] = {**Contributor.TABLE, (State.JOINING, ev.Ready): on_ready}


class TakesAnyRound(ForgetsTraining):
    """Takes part in a round again when the key holder opens it again."""

    def on_open(self, event: ev.Received) -> None:
        self.seen = self.last_round = self.last_forwarded = -1
        super().on_open(event)

    TABLE: ClassVar[Table] = {
        **ForgetsTraining.TABLE,
        (State.IDLE, Open): on_open,
        (State.GATHERING, Open): on_open,
        (State.FLOWING, Open): on_open,
    }


class StaleEpoch(Contributor):
    """Takes parts of an earlier round for parts of this one."""

    def on_partial(self, event: ev.Received) -> None:
        assert self.round is not None
        assert isinstance(event.message, Partial)
        message = replace(event.message, round=self.round.opening.round, base=self.base)
        super().on_partial(replace(event, message=message))

    TABLE: ClassVar[Table] = {
        **Contributor.TABLE,
        (State.GATHERING, Partial): on_partial,
        (State.FLOWING, Partial): on_partial,
    }


class SecondSet(Contributor):
    """Begins the sum again although its first segment went through the gate."""

    @property
    def _is_frozen(self) -> bool:
        return self.round is not None and self.round.is_final

    def _freeze(self, round_: Gathering) -> None:
        self.last_forwarded = -1
        super()._freeze(round_)


class AnyWayUp(Contributor):
    """Sends its sum to whoever is its parent: also to the key holder, and to who is no ancestor."""

    @property
    def way_up(self) -> str | None:
        return self.parent


class ForeignSubtree(Contributor):
    """Believes a child about parties that are not below it."""

    def _holds(self, child: str, contributors: frozenset[str]) -> bool:
        return True


class AppliesEarly(Contributor):
    """Applies the totals when it has them all, before the key holder's close."""

    def on_total(self, event: ev.Received) -> None:
        super().on_total(event)
        if self.round and self.staged == self.round.segments:
            opening = self.round.opening
            self.do(ev.Apply(opening.round, opening.purpose, self.published, self.staged, None))

    TABLE: ClassVar[Table] = {
        **Contributor.TABLE,
        (State.GATHERING, Total): on_total,
        (State.FLOWING, Total): on_total,
    }


class SkipsWipe(Contributor):
    """Keeps what it staged."""

    def do(self, *commands: ev.Command) -> None:
        super().do(*[command for command in commands if not isinstance(command, ev.Wipe)])


class Liar(Contributor):
    """Not a mutant but an attacker: as an inner node it claims somebody who is not below it."""

    def send(self, peer: str, message: object, recipient: str) -> None:
        if isinstance(message, Partial) and self.tree.children[self.me] and self.me != self.tree.apex:
            strangers = sorted(set(self.tree.parent) - self.tree.subtree(self.me))
            message = replace(message, contributors=message.contributors | {strangers[0]})
        super().send(peer, message, recipient)  # type: ignore[arg-type]


MUTANTS: dict[str, tuple[type[KeyHolder], type[Contributor]]] = {
    "overlap": (KeyHolder, Overlap),
    "quorum": (NoQuorum, NoGate),
    "double opening after a restart": (ForgetsOpenings, TakesAnyRound),
    "training twice in a round": (KeyHolder, ForgetsTraining),
    "stale epoch": (KeyHolder, StaleEpoch),
    "second set": (KeyHolder, SecondSet),
    "to the key holder past the gate": (KeyHolder, AnyWayUp),
    "apply before the close": (KeyHolder, AppliesEarly),
    "skipped wipe": (KeyHolder, SkipsWipe),
}
