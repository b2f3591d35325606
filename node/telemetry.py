"""What a node tells whoever runs it: one dict an event, over a channel to the supervisor or the launcher.

Only what the node's own user may see, and nothing computed from an update, except the debug fingerprints
that the manifest must allow by name.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from node.channel import Channel, ChannelClosedError, packed


class Telemetry:
    """Sends events; never in the way: when nobody listens any more, it is silent."""

    def __init__(self, channel: Channel | None, party: str) -> None:
        self._channel, self._party = channel, party
        self._waiting: list[bytes] = []
        self.observer: Callable[[str, Mapping[str, Any]], None] | None = None

    @property
    def descriptors(self) -> tuple[int, ...]:
        """What must stay open for it."""
        return self._channel.descriptors if self._channel else ()

    def tell(self, event: str, **fields: Any) -> None:
        """Have it sent with the next :meth:`flush`: one write for all that happens at once. The ``observer`` in this
        process hears of it now."""
        if self.observer is not None:
            self.observer(event, fields)
        if self._channel is not None:
            self._waiting += packed(event, party=self._party, time=time.time(), **fields)

    def took(self, stage: str, round_: int, seconds: float) -> None:
        """One stage of a round is done."""
        self.tell("stage", stage=stage, round=round_, seconds=seconds)

    def flush(self) -> None:
        """Send what was told since the last time."""
        waiting, self._waiting = self._waiting, []
        if self._channel is None or not waiting:
            return
        try:
            self._channel.send_packed([b"".join(waiting)])
        except ChannelClosedError:
            self._channel = None


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._began = time.perf_counter()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._began
