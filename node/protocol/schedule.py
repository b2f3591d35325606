"""Which round is of which purpose: a pure function of the signed study and of the round's number."""

from __future__ import annotations

from dataclasses import dataclass

from node.protocol.messages import EVALUATE, STATISTICS, TRAIN


@dataclass(frozen=True)
class Schedule:
    """``training`` rounds of training; after every ``evaluate_every`` of them, and after the last, one of evaluation.

    Round 0 is that of the statistics; the others are numbered from 1. With ``evaluate_every`` = 0 nothing is evaluated,
    and a round's number is that of its training.
    """

    training: int
    evaluate_every: int = 0

    @property
    def last(self) -> int:
        """The number of the last round."""
        every = self.evaluate_every
        return self.training + (-(-self.training // every) if every else 0)

    def purpose(self, number: int) -> str:
        if number < 1:
            return STATISTICS
        return TRAIN if self.evaluated(number) == self.evaluated(number - 1) else EVALUATE

    def evaluated(self, number: int) -> int:
        """How many rounds of evaluation there are up to this one."""
        if not self.evaluate_every or number < 1:
            return 0
        return -(-self.training // self.evaluate_every) if number >= self.last else number // (self.evaluate_every + 1)

    def trained(self, number: int) -> int:
        """How many rounds of training there are up to this one."""
        return min(max(number, 0), self.last) - self.evaluated(number)
