"""When the timers of a node are due, by the machine's monotonic clock."""

from __future__ import annotations

import time
from collections.abc import Iterator


class Timers:
    """Named timers, each set for one time."""

    def __init__(self) -> None:
        self._due: dict[str, float] = {}

    def set(self, timer: str, seconds: float) -> None:
        """Let it be due in so many seconds from now, whenever it was to be before."""
        self._due[timer] = time.monotonic() + seconds

    def stop(self, timer: str) -> None:
        """Let it not be due at all."""
        self._due.pop(timer, None)

    @property
    def patience(self) -> float | None:
        """Seconds until the first is due; None: there is none."""
        return max(0.0, min(self._due.values()) - time.monotonic()) if self._due else None

    def expired(self) -> Iterator[str]:
        """Those that are due, each once; not one that was stopped meanwhile."""
        now = time.monotonic()
        for timer in [timer for timer, due in self._due.items() if due <= now]:
            if self._due.pop(timer, None) is not None:
                yield timer
