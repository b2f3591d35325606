"""Real nodes, and what the schedule does to them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from node.chaos.mesh import Mesh
from node.chaos.schedule import CALM_ROUNDS, CUT, ENCLAVE, LINKS, NODE, STOP, Fault
from node.gauge import descendants
from node.launcher import Launcher, was_ended_from_outside
from node.record import Record
from node.simulation import Federation

EVENTS = "events.jsonl"
"""In the run's folder: what every node told, and what was done to it."""

START_SECONDS, ROUND_SECONDS = 120.0, 15.0
"""What everything before the first round, and each round with its faults, may take: after that there is no hope."""


@dataclass
class Happened:
    """What was done to the nodes, and what they told.

    Attributes:
        faults: how many of each kind really hit.
        restarts: how often a node was started again.
        codes: each node's last exit code; missing: it did not end.
        dead: who was killed for good.
        seconds: from the first start to the last end.
    """

    record: Record
    faults: Counter[str] = field(default_factory=Counter)
    restarts: int = 0
    codes: dict[str, int] = field(default_factory=dict)
    dead: set[str] = field(default_factory=set)
    seconds: float = 0.0


@dataclass
class Due:
    """Something to do at a time of the monotonic clock."""

    when: float
    action: Callable[[], None]


class Chaos:
    """One run."""

    def __init__(
        self,
        federation: Federation,
        launcher: Launcher,
        schedule: Sequence[Fault],
        *,
        watch: Callable[[Record], None],
        tell: Callable[[str], None],
        mesh: Mesh | None = None,
    ) -> None:
        """``watch`` is called now and then, ``tell`` with a line for each fault; ``mesh``: where links can be cut."""
        self._federation, self._launcher, self._mesh = federation, launcher, mesh
        self._watch, self._tell = watch, tell
        self._waiting = deque(schedule)
        self._due: list[Due] = []
        self._away: dict[str, Due] = {}  # nodes that are down or stopped, and what brings them back
        self._round = 0
        self._log = (federation.out / EVENTS).open("w", encoding="utf-8")
        self.happened = Happened(Record(federation.names))

    def run(self) -> Happened:
        """Until every node has ended that is not dead for good, or nothing moves any more."""
        began = time.monotonic()
        deadline = began + START_SECONDS + ROUND_SECONDS * self._federation.study.rounds
        for name in self._federation.names:
            self._launcher.start(name)
        while (self._launcher.running or self._away) and time.monotonic() < deadline:
            self._hear()
            self._act()
            self._watch(self.happened.record)
        self._log.close()
        self.happened.seconds = time.monotonic() - began
        return self.happened

    # ---- what the nodes tell ----------------------------------------------------------------------------

    def _hear(self) -> None:
        patience = min([0.2, *(due.when - time.monotonic() for due in self._due)])
        for event in self._launcher.listen(max(0.0, patience)):
            self._note(event)
            if event["kind"] == "ended":
                self._ended(event["party"], event["code"])
                continue
            self.happened.record.take(event)
            if event["kind"] == "round" and event["what"] == "opened" and event["party"] == self._federation.key_holder:
                self._opened(event["round"])

    def _note(self, event: Mapping[str, Any]) -> None:
        print(json.dumps(event), file=self._log, flush=True)

    def _ended(self, name: str, code: int) -> None:
        if not was_ended_from_outside(code):
            self.happened.codes[name] = code
            if name in self._away:  # it ended by itself before we could hurt it
                self._due.remove(self._away.pop(name))
        elif name not in self._away and name not in self.happened.dead:
            self._bring_back(name, 0.0, partial(self._start, name))

    def _opened(self, round_: int) -> None:
        self._round = max(self._round, round_)
        now = time.monotonic()
        while self._waiting and self._waiting[0].round <= round_:
            fault = self._waiting.popleft()
            self._due.append(Due(now + fault.after, partial(self._strike, fault)))
        if round_ > self._federation.study.rounds - CALM_ROUNDS:
            for due in self._due:
                due.when = min(due.when, now)

    def _act(self) -> None:
        now = time.monotonic()
        for due in sorted(self._due, key=lambda due: due.when):
            if due.when <= now and due in self._due:
                self._due.remove(due)
                due.action()

    # ---- what is done to them ---------------------------------------------------------------------------

    def _strike(self, fault: Fault) -> None:
        if fault.kind in LINKS:
            self._cut(fault)
            return
        name = self._healthy(fault.victim)
        if name is None:
            return
        if fault.kind == STOP:
            self._launcher.signal(name, signal.SIGSTOP)
            self._bring_back(name, fault.seconds, partial(self._go_on, name))
        elif fault.kind == ENCLAVE:
            if not self._kill_room(name, ENCLAVE):
                return  # it has none just now
        else:
            if fault.kind == NODE or not self._kill_room(name, fault.kind):
                self._launcher.signal(name, signal.SIGKILL)
            if fault.seconds == math.inf:
                self.happened.dead.add(name)
            else:
                self._bring_back(name, fault.seconds, partial(self._start, name))
        self._count(fault, name)

    def _count(self, fault: Fault, whom: str) -> None:
        self.happened.faults[fault.kind] += 1
        what = {STOP: "stopped", NODE: "killed", CUT: "cut off"}.get(fault.kind, f"{fault.kind} hit")
        until = "for good" if fault.seconds == math.inf else f"for {fault.seconds:g} s"
        self._tell(f"round {self._round}: {whom}: {what} {until}")
        self._note({"kind": "fault", "what": fault.kind, "party": whom, "time": time.time(), "seconds": fault.seconds})

    def _healthy(self, victim: str) -> str | None:
        """The victim, or the next after it to whom nothing is done just now."""
        names = self._federation.names
        start = names.index(victim)
        for name in (*names[start:], *names[:start]):
            if name in self._launcher.running and name not in self._away and name not in self.happened.dead:
                return name
        return None

    def _kill_room(self, name: str, room: str) -> bool:
        for process in descendants(self._launcher.process(name)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{process}/comm").read_text().startswith(room):
                    os.kill(process, signal.SIGKILL)
                    return True
        return False

    def _bring_back(self, name: str, seconds: float, action: Callable[[], None]) -> None:
        self._away[name] = Due(time.monotonic() + seconds, action)
        self._due.append(self._away[name])

    def _start(self, name: str) -> None:
        if name in self._launcher.running:  # it is still ending
            self._bring_back(name, 0.1, partial(self._start, name))
            return
        del self._away[name]
        self.happened.restarts += 1
        self._launcher.start(name)

    def _go_on(self, name: str) -> None:
        del self._away[name]
        self._launcher.signal(name, signal.SIGCONT)

    def _cut(self, fault: Fault) -> None:
        assert self._mesh
        ends = (fault.victim, fault.other) if fault.kind == CUT else (fault.victim,)
        self._mesh.cut(*ends)
        self._due.append(Due(time.monotonic() + fault.seconds, partial(self._mesh.mend, *ends)))
        self._count(fault, " and ".join(ends))
