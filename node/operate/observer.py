"""What a relay tells of itself while it runs: it looks on, and writes a small file a few times a second.

Events that the relay tells anyway are counted; the rest is read off the round machine when there is something new to
write. Nothing here is asked by the protocol, and nothing of an update comes by.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node.home import STATUS, Home
from node.operate.status import FORMAT
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.party import Party, State
from topology import TopologyError, Tree

WRITE_SECONDS = 0.5
"""No oftener than this, however fast rounds are."""

LAST_ROUNDS, LAST_LINES, LAST_WARNINGS = 100, 12, 5


class Observer:
    """Keeps the status file of one node."""

    def __init__(
        self,
        home: Home,
        machine: Party,
        entries: list[dict[str, Any]],
        heard: Callable[[], float | None],
        curve: Callable[[], tuple[Sequence[str], list[list[float]]]],
    ) -> None:
        """
        Args:
            machine: read only, between two events.
            entries: the ledger's, to which it goes on adding.
            heard: gives when a neighbour was last heard, in seconds since 1970.
            curve: gives the names of the published figures, and for each evaluation its round and the figures.
        """
        self._home, self._machine, self._entries = home, machine, entries
        self._heard, self._curve = heard, curve
        self._path = home.relay_folder / STATUS
        self._place = {home.tree.key_holder: None, **home.tree.parent}
        self._started = time.time()
        self._due, self._is_new = 0.0, True
        self._read, self._manifest = 0, ""
        self._opened = (-1, 0.0)
        self._seconds: dict[int, float] = {}
        self._closed: deque[dict[str, Any]] = deque(maxlen=LAST_ROUNDS)
        self._contributors: list[str] = []
        self._left_out: deque[int] = deque(maxlen=LAST_ROUNDS)
        self._left_out_count = 0
        self._stages: dict[str, dict[str, Any]] = {}
        self._warnings: deque[str] = deque(maxlen=LAST_WARNINGS)
        self._refused, self._error, self._model = 0, None, None
        self._lost: dict[str, int] = {}
        self._standing: dict[str, tuple[str, float]] = dict.fromkeys(home.roster.names, ("awaited", self._started))
        self._tree: tuple[frozenset[str], Tree | None] = (frozenset(), None)

    # ---- what the relay tells ---------------------------------------------------------------------------

    def take(self, event: str, fields: Mapping[str, Any]) -> None:
        """One event of the node's telemetry."""
        self._is_new = True
        match event:
            case "stage":
                stage = self._stages.setdefault(fields["stage"], {"count": 0, "seconds": 0.0})
                stage["count"] += 1
                stage["seconds"] += fields["seconds"]
                stage["last"] = fields["seconds"]
            case "round" if fields["what"] == "opened":
                self._opened = fields["round"], time.time()
                self._look_around(self._opened[1])  # the next writing may come when everybody leaves already
            case "applied":
                self._seconds[fields["round"]] = fields["seconds"]
                self._model = fields["state"]
            case "lost":
                self._lost[fields["peer"]] = self._opened[0]
            case "dropped":
                self._refused += fields["times"]
            case "warning":
                self._warnings.append(fields["text"])
            case "stopped":
                self._error = fields["error"]
                self.write(ended=True)

    def beat(self) -> None:
        """A second has passed: the sign of life is a new one."""
        self._is_new = True

    def write_if_due(self) -> None:
        """Write what is new, if it is time."""
        if self._is_new and time.monotonic() >= self._due:
            self.write()

    def write(self, ended: bool = False) -> None:
        """Put a new file in place of the old one. No failure of the disk ends a node for this."""
        self._is_new, self._due = False, time.monotonic() + WRITE_SECONDS
        text = json.dumps(self.look(time.time(), ended), separators=(",", ":"))
        new = self._path.with_suffix(".new")
        try:
            new.write_text(text, encoding="utf-8")
            os.replace(new, self._path)
        except OSError as error:
            warning = f"the status cannot be written: {error.strerror}"
            if warning not in self._warnings:
                self._warnings.append(warning)

    # ---- what is read off the machine -------------------------------------------------------------------

    def look(self, now: float, ended: bool = False) -> dict[str, Any]:
        """The status, as :class:`node.operate.status.Status` describes it."""
        home, machine = self._home, self._machine
        self._read_ledger()
        self._look_around(now)
        above = {machine.parent, getattr(machine, "target", None)}
        return {
            "format": FORMAT,
            "party": home.name,
            "role": self._role(),
            "study": home.study.name,
            "rounds": home.study.schedule.last,
            "federation": home.manifest.federation,
            "manifest_version": home.manifest.version,
            "manifest_digest": home.manifest.digest,
            "posture": home.posture.text,
            "state": "ended" if ended else machine.state.name.lower(),
            "started_at": self._started,
            "written_at": now,
            "heard_at": self._heard(),
            "parent": machine.parent,
            "children": sorted(machine.up - above),
            "round": self._progress(),
            "closed": list(self._closed),
            "contributors": self._contributors,
            "model": self._model,
            "left_out": list(self._left_out),
            "left_out_count": self._left_out_count,
            "stages": self._stages,
            "parties": self._parties(),
            "epsilon": None,
            "budget": None,
            "evaluations": self._evaluations(),
            "refused": self._refused,
            "warnings": list(self._warnings),
            "error": self._error,
            "ledger": [_line(entry) for entry in self._entries[-LAST_LINES:]],
        }

    def _read_ledger(self) -> None:
        """Rounds that were closed since the last look: also those that were closed before this start."""
        for entry in self._entries[self._read :]:
            if entry["what"] == "started" and entry["manifest"] != self._manifest:
                self._manifest = entry["manifest"]
                self._closed.clear()  # another study's, or another version's
                self._left_out.clear()
                self._left_out_count = 0
            elif entry["what"] == "closed":
                number = entry["round"]
                self._closed.append(
                    {
                        "round": number,
                        "contributors": len(entry["contributors"]),
                        "left_out": entry["left_out"],
                        "closed_at": entry.get("time"),
                        "seconds": self._seconds.pop(number, None) or None,
                    }
                )
                self._model, self._contributors = entry["state"], entry["contributors"]
                if entry["left_out"]:
                    self._left_out.append(number)
                    self._left_out_count += 1
        self._read = len(self._entries)

    def _look_around(self, now: float) -> None:
        """Who is here. In the end everybody leaves, and nobody is gone for that."""
        if self._machine.state in (State.ENDING, State.ENDED):
            return
        here = self._here()
        for name, (standing, _) in self._standing.items():
            seen = "here" if name in here else "awaited" if standing == "awaited" else "gone"
            if seen != standing:
                self._standing[name] = seen, now
        if here != self._tree[0]:
            try:
                self._tree = here, self._home.placement.tree(here)
            except TopologyError:
                self._tree = here, None

    def _here(self) -> frozenset[str]:
        """At the key holder, who joined and is not gone; elsewhere the last opening's set and what our own links,
        and those below us, have told since."""
        machine = self._machine
        if isinstance(machine, KeyHolder):
            return frozenset({machine.me, *machine.present.places})
        assert isinstance(machine, Contributor)
        near = {machine.me, *machine.up, *machine.below}
        listed = machine.tree.parties if machine.seen >= 0 else frozenset[str]()
        for name in [*self._lost]:
            # It is back; or openings go on listing it, so it has another parent.
            if name in near or (name in listed and machine.seen >= self._lost[name] + 2):
                del self._lost[name]
        return (listed | near) - self._lost.keys()

    def _role(self) -> str:
        me = self._machine.me
        tree = self._tree[1] or self._home.tree
        if me == tree.key_holder:
            return "key holder"
        return "apex" if me == tree.apex else "inner node" if tree.children.get(me) else "leaf"

    def _parties(self) -> list[dict[str, Any]]:
        tree = self._tree[1]
        parent: Mapping[str, str] = tree.parent if tree else {}
        last = frozenset(self._contributors) if self._closed else None
        return [
            {
                "name": name,
                "place": self._place[name],
                "parent": parent.get(name),
                "standing": standing,
                "since": since,
                "contributed": None if last is None else name in last,
            }
            for name, (standing, since) in self._standing.items()
        ]

    def _evaluations(self) -> list[dict[str, Any]]:
        """The learning curve, which is part of the published state; a figure that is no number is left out."""
        names, rows = self._curve()
        return [
            {"round": int(number), "metrics": {n: f for n, f in zip(names, figures, strict=True) if math.isfinite(f)}}
            for number, *figures in rows[-LAST_ROUNDS:]
        ]

    def _progress(self) -> dict[str, Any] | None:
        machine = self._machine
        if isinstance(machine, KeyHolder) and machine.round:
            round_ = machine.round
            sealed, merged = (round_.segments if round_.own else 0), round_.arrived
            sent = opened = round_.next
        elif isinstance(machine, Contributor) and machine.round:
            source = machine.round.sources.get(machine.me)
            sealed = source.arrived if source else 0
            merged = sent = machine.round.next
            opened = machine.staged
        else:
            return None
        opening, segments = machine.round.opening, machine.round.segments
        return {
            "round": opening.round,
            "purpose": opening.purpose,
            "opened_at": self._opened[1],
            "members": sorted(opening.contributors),
            "segments": segments,
            "sealed": sealed,
            "merged": merged,
            "sent": sent,
            "opened": opened,
            "applied": opened if machine.state is State.APPLYING else 0,
        }


def _line(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the ledger without signatures, frames and sizes."""
    listed = entry.get("contributors")
    return {
        "what": entry["what"],
        "round": entry.get("round"),
        "contributors": len(listed) if listed else None,
        "time": entry.get("time"),
    }
