"""What a node says of its sandbox when it joins, and which of that a manifest lets take part. Pure.

A *gap* is a part of the sandbox that a node lacks. Those of :data:`REQUIRED` are refused unless the manifest
allows them by name; those of :data:`ADVISORY` count only where the study demands them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

REQUIRED = {
    "external": "an administrator vouches for the room around the node, in place of the kernel",
    "landlock": "the kernel has no Landlock: files are not confined",
    "landlock-tcp": "Landlock has no rules for TCP: the relay may use any port",
    "landlock-truncate": "Landlock has no rule for truncation: what may be read may be emptied",
    "no-sandbox": "the sandbox is off",
    "root": "the node runs as root, though without root's privileges",
    "seccomp": "the kernel has no seccomp filters: system calls are not confined",
    "shared-files": "bubblewrap in place of Landlock: the rooms of the node share one view of files",
}
ADVISORY = {
    "core-pattern": "the machine hands core dumps to a program",
    "hibernation": "the machine may write its memory to a disk",
    "init-on-free": "the kernel does not clear freed memory at once",
    "ptrace": "processes of one user may trace each other",
    "swap": "memory may be written to a swap device",
}
KERNEL = frozenset({"landlock", "landlock-tcp", "landlock-truncate", "seccomp"})
"""What an administrator's own room around the node stands for, where the manifest allows ``external``."""
_TEXT = re.compile(r"([a-z]{1,20}) landlock=([0-9]{1,3}) gaps=((?:[a-z-]{1,30},)*[a-z-]{1,30})?")


@dataclass(frozen=True)
class Posture:
    """What confines a node's rooms.

    Attributes:
        policy: "required", "bubblewrap", "external" or "off".
        landlock: the version of Landlock in force, 0: none.
        gaps: names of what is missing.
    """

    policy: str
    landlock: int
    gaps: frozenset[str]

    @property
    def text(self) -> str:
        """One line, as it goes into the hello and the ledgers: ``required landlock=7 gaps=swap``."""
        return f"{self.policy} landlock={self.landlock} gaps={','.join(sorted(self.gaps))}"


def allowed_gaps(postures: Mapping[str, str]) -> list[str]:
    """Sentences on the parts of the sandbox that nodes, by name, ran without because the manifest allows it."""
    lacking: dict[str, list[str]] = {}
    for party, text in sorted(postures.items()):
        posture = parse_posture(text)
        for gap in sorted(posture.gaps & REQUIRED.keys()) if posture else ():
            lacking.setdefault(gap, []).append(party)
    everyone = sorted(postures)
    return [
        f"Sandbox gap {gap!r} at {'every node' if who == everyone else ', '.join(who)}, as the manifest allows: "
        f"{REQUIRED[gap]}."
        for gap, who in sorted(lacking.items())
    ]


UNCONFINED = Posture("off", 0, frozenset({"no-sandbox"}))
"""What a node is in until its rooms are confined."""


def parse_posture(text: str) -> Posture | None:
    """The inverse of :attr:`Posture.text`; None for anything else."""
    found = _TEXT.fullmatch(text)
    if not found:
        return None
    policy, landlock, gaps = found.groups(default="")
    return Posture(policy, int(landlock), frozenset(gaps.split(",")) - {""})


@dataclass(frozen=True)
class Minimum:
    """What a manifest asks of every node: no gap but the ``allowed``, and none of the ``demanded`` either."""

    allowed: frozenset[str] = frozenset()
    demanded: frozenset[str] = frozenset()

    def refused(self, posture: Posture) -> tuple[str, ...]:
        """The gaps for which a node in this posture may not take part, sorted. A gap that we do not know counts."""
        tolerated = self.allowed | (ADVISORY.keys() - self.demanded)
        if posture.policy == "external" and "external" in self.allowed:
            tolerated |= KERNEL
        return tuple(sorted(posture.gaps - tolerated))

    def objection(self, text: str) -> str | None:
        """What is wrong with the posture that a node gave, None if nothing is."""
        posture = parse_posture(text)
        if posture is None:
            return "no posture"
        gaps = self.refused(posture)
        return f"gaps {', '.join(gaps)}" if gaps else None


NO_GAPS = Minimum()
"""The strictest: whatever is required, nothing allowed."""
