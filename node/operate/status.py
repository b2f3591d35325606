"""The status of a node: what its relay writes beside its model, and what ``wardtree status --json`` and the live page
say of it.

Only what all parties know (the manifest, who takes part in which round, what was published) and what this node
does: counts, times and errors of its own. No update, no ciphertext, nothing computed from one.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from keys.errors import WardtreeError
from keys.vault import read_bounded
from node.home import LOCK, RELAY, STATUS

FORMAT = "wardtree-status/1"
MAX_STATUS = 4 << 20
STALE_SECONDS = 10.0
"""A relay writes every second; after so long without, it hangs, or is being stopped by somebody."""

Standing = Literal["here", "gone", "awaited"]
Role = Literal["key holder", "apex", "inner node", "leaf"]


class StatusError(WardtreeError):
    """There is no status of this node."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Progress(_Part):
    """The round in hand, in segments."""

    round: int
    purpose: str
    opened_at: float = Field(description="When this node heard of it, in seconds since 1970.")
    members: tuple[str, ...] = Field(description="Whom the key holder's opening lists.")
    segments: int = Field(description="How many make the whole update.")
    sealed: int = Field(description="Of this node's own update; at the key holder all or none.")
    merged: int = Field(description="Sums that were made here; at the key holder: that came from the apex.")
    sent: int = Field(description="Sums that were passed up; at the key holder: totals that were published.")
    opened: int = Field(description="Opened totals that are here.")
    applied: int = Field(description="Totals that are in the model.")


class Closed(_Part):
    """A round that is over."""

    round: int
    contributors: int = Field(description="How many.")
    left_out: bool = Field(description="Whether this node's update is not in it.")
    closed_at: float | None = Field(description="When this node applied it, in seconds since 1970.")
    seconds: float | None = Field(description="From its opening here; null for one that was caught up later.")


class Stage(_Part):
    """One of this node's own steps, since it started."""

    count: int
    seconds: float = Field(description="All together.")
    last: float = Field(description="The last one's seconds.")


class PartyState(_Part):
    """A party of the manifest, as far as this node knows."""

    name: str
    place: str | None = Field(description="Its parent when everyone is here; null for the key holder.")
    parent: str | None = Field(description="Its parent among those who are here; null where it has none.")
    standing: Standing = Field(description="awaited: it was not heard of since this node started.")
    since: float = Field(description="When this node saw its standing change, in seconds since 1970.")
    contributed: bool | None = Field(description="Whether it is in the last closed round; null before there is one.")


class Evaluation(_Part):
    """Published totals of a round's evaluation."""

    round: int
    metrics: dict[str, float]


class LedgerLine(_Part):
    """What an entry of this node's ledger says, without signatures and frames."""

    what: str
    round: int | None
    contributors: int | None = Field(description="How many it lists.")
    time: int | None


class Status(_Part):
    """What the relay writes: ``relay/status/status.json`` in the home."""

    format: Literal["wardtree-status/1"]
    party: str
    role: Role
    study: str
    rounds: int = Field(description="Rounds of the study, those of evaluation among them.")
    federation: str
    manifest_version: int
    manifest_digest: str
    posture: str = Field(description="What confines the rooms of this node, as its ledger says.")
    state: Literal["joining", "idle", "gathering", "flowing", "applying", "ending", "ended"]
    started_at: float
    written_at: float
    heard_at: float | None = Field(description="The last word of a neighbour, in seconds since 1970.")
    parent: str | None = Field(description="Whom this node is connected to above.")
    children: tuple[str, ...] = Field(description="Who is connected to it below.")
    round: Progress | None
    closed: tuple[Closed, ...] = Field(description="The last rounds that are over, oldest first.")
    contributors: tuple[str, ...] = Field(description="Of the last closed round.")
    model: str | None = Field(description="SHA-256 of the published state, which is the same at every party.")
    left_out: tuple[int, ...] = Field(description="The last closed rounds without this node's update.")
    left_out_count: int
    stages: dict[str, Stage]
    parties: tuple[PartyState, ...]
    epsilon: float | None = Field(description="Of the privacy budget, spent; null while no privacy mode is on.")
    budget: float | None
    evaluations: tuple[Evaluation, ...]
    refused: int = Field(description="Messages and connections that were dropped since the start.")
    warnings: tuple[str, ...] = Field(description="The last few.")
    error: str | None
    ledger: tuple[LedgerLine, ...] = Field(description="Its last lines.")


class Report(Status):
    """What ``wardtree status --json`` prints, and the live page shows."""

    running: Literal["yes", "no", "silent"] = Field(
        description=f"silent: it runs, but wrote nothing for {STALE_SECONDS:.0f} seconds."
    )
    age: float = Field(description="Seconds since the status was written.")
    seconds_since_word: float | None = Field(description="Since a neighbour was last heard.")

    @property
    def is_well(self) -> bool:
        """It runs, or its study is complete."""
        return self.error is None and (self.running == "yes" or self.state == "ended")


def read_report(home: Path) -> Report:
    """The status of the node of a home, which may run or not.

    Raises:
        StatusError: it has not run yet, or is just starting.
    """
    running = is_running(home)
    if not (home / RELAY / STATUS).exists():
        why = "the node is starting" if running else "no node has run from this home yet (`wardtree node`)"
        raise StatusError(f"{home}: expected a status, came none: {why}")
    return read_status(home / RELAY / STATUS, running)


def read_status(path: Path, running: bool) -> Report:
    """A status file as a report, at this moment.

    Raises:
        StatusError: the file is not what a relay writes.
    """
    try:
        status = Status.model_validate_json(read_bounded(path, MAX_STATUS))
    except ValidationError as error:
        raise StatusError(f"{path}: expected the status of a node, came something else") from error
    now = time.time()
    age = max(0.0, now - status.written_at)
    ended = status.state == "ended" or not running
    return Report(
        **dict(status),
        running="no" if ended else "silent" if age > STALE_SECONDS else "yes",
        age=age,
        seconds_since_word=None if status.heard_at is None else max(0.0, now - status.heard_at),
    )


def is_running(home: Path) -> bool:
    """Whether a node holds the home's lock. One that is just starting may find it taken for a moment; it asks again."""
    try:
        descriptor = os.open(home / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
