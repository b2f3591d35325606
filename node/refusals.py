"""What a node refused: counted in full, shown as far as anybody would read it.

Who is refused can cause a hundred thousand refusals a second; a log or a terminal that shows them all is a
second attack. So the first few are shown as they come, then a few every second, and the rest a kind a line.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

BURST, PER_SECOND = 20, 2
SUMMARY_SECONDS, SUMMARY_LINES = 10.0, 5
MOST_KINDS = 500
"""Different pairs of who and what was expected; strangers can invent any number of names."""

Kind = tuple[str, str]
Tell = Callable[[str, str, str, int], None]


class Refusals:
    """Calls ``tell`` with who, what was expected, what came, and how many refusals this line stands for."""

    def __init__(self, tell: Tell, clock: Callable[[], float] = time.monotonic) -> None:
        self._tell, self._clock = tell, clock
        self.counts: Counter[Kind] = Counter()
        self._silent: Counter[Kind] = Counter()
        self._came: dict[Kind, str] = {}
        self._allowance = float(BURST)
        self._refilled = self._summed = clock()

    @property
    def total(self) -> int:
        return self.counts.total()

    def __call__(self, who: str, expected: str, came: str) -> None:
        """One more refusal."""
        kind = (who, expected)
        if kind not in self.counts and len(self.counts) >= MOST_KINDS:
            kind = ("others", "something else")
        self.counts[kind] += 1
        now = self._clock()
        self._allowance = min(BURST, self._allowance + (now - self._refilled) * PER_SECOND)
        self._refilled = now
        if self._allowance >= 1:
            self._allowance -= 1
            self._tell(*kind, came, 1)
        else:
            self._silent[kind] += 1
            self._came[kind] = came

    def beat(self) -> None:
        """To be called now and then: tells what was not shown, if it is time."""
        now = self._clock()
        if now - self._summed >= SUMMARY_SECONDS:
            self._summed = now
            self.sum_up(SUMMARY_LINES)

    def sum_up(self, lines: int | None = None) -> None:
        """Tell what was not shown, the most frequent first, a line a kind."""
        for kind, count in self._silent.most_common(lines):
            self._tell(*kind, self._came.pop(kind), count)
            del self._silent[kind]
