"""What goes wrong, and when: drawn from a seed before anything starts. Pure."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from keys.errors import WardtreeError

CALM_ROUNDS = 3
"""At the end: everything is mended, everyone is back, and the study must come to its end."""

ROUNDS_A_FAULT = 1.0
"""So many rounds pass from one fault to the next, on average."""

NODE, RELAY, TEMPLATE, ENCLAVE, KEYROOM = "node", "relay", "template", "enclave", "keyroom"
STOP, CUT, ISOLATE = "stop", "cut", "isolate"
ROOMS = (RELAY, TEMPLATE, ENCLAVE, KEYROOM)
"""SIGKILL for a whole node or one of its rooms; SIGSTOP; one link cut, or all links of a node."""

KILLS = (NODE, *ROOMS)
LINKS = (CUT, ISOLATE)

SECONDS = {
    **dict.fromkeys(KILLS, (0.0, 0.5, 2.0, 6.0)),
    STOP: (0.3, 2.0, 5.0, 13.0),
    CUT: (1.0, 4.0, 13.0),
    ISOLATE: (1.0, 4.0, 13.0),
}
"""How long until it is started again, goes on or is mended: less than it takes to be missed, and more."""


class ScheduleError(WardtreeError):
    """So little room is there for faults."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        round: when the key holder has opened this round, ...
        after: ... so many seconds later.
        kind: one of :data:`KILLS`, STOP, CUT or ISOLATE.
        victim: to whom; ``other``: the other end of a cut link.
        seconds: until it is undone; infinite: never.
    """

    round: int
    after: float
    kind: str
    victim: str
    seconds: float
    other: str = ""


def draw(
    names: Sequence[str], key_holder: str, apex: str, rounds: int, seed: int, *, links: bool, most_after: float = 1.5
) -> tuple[Fault, ...]:
    """The faults of a run, in the order of their rounds.

    Key holder and apex are hit oftener than their number would have it. One node is killed for good, where there
    are enough of them; with ``links`` a quarter of the faults are in the network.

    Raises:
        ScheduleError: there are too few rounds or parties.
    """
    if rounds <= CALM_ROUNDS or len(names) < 4:
        raise ScheduleError(f"chaos takes at least {CALM_ROUNDS + 1} rounds and 4 parties, came {rounds}, {len(names)}")
    source = random.Random(seed)
    others = sorted(set(names) - {key_holder, apex})
    kinds = (NODE, NODE, NODE, *ROOMS, STOP, STOP) + (LINKS[:1] * 2 + LINKS[1:] if links else ())

    def fault(round_: int) -> Fault:
        kind = source.choice(kinds)
        victim = key_holder if kind == KEYROOM else source.choice((key_holder, apex, *source.sample(others, 2) * 2))
        other = source.choice([name for name in names if name != victim]) if kind == CUT else ""
        return Fault(round_, source.uniform(0.0, most_after), kind, victim, source.choice(SECONDS[kind]), other)

    count = max(1, round((rounds - CALM_ROUNDS) / ROUNDS_A_FAULT))
    faults = [fault(source.randrange(1, rounds - CALM_ROUNDS + 1)) for _ in range(count)]
    if len(names) >= 6:
        faults.append(Fault(source.randrange(1, rounds - CALM_ROUNDS + 1), 0.0, NODE, source.choice(others), math.inf))
    return tuple(sorted(faults, key=lambda each: (each.round, each.after)))
