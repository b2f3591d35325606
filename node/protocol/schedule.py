"""Which round is of which purpose: a pure function of the signed study and of the round's number."""

from __future__ import annotations

from dataclasses import dataclass

from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN


@dataclass(frozen=True)
class Schedule:
    """``training`` rounds of training; after every ``evaluate_every`` of them, and after the last, one of evaluation.

    With ``energies`` each training follows a round that sums the norms of blocks, from which its mask is made. Round 0
    is that of the statistics; the others are numbered from 1. Without evaluations and energies a round's number is that
    of its training.
    """

    training: int
    evaluate_every: int = 0
    energies: bool = False

    @property
    def _of_a_training(self) -> int:
        return 1 + self.energies

    @property
    def last(self) -> int:
        """The number of the last round."""
        every = self.evaluate_every
        return self.training * self._of_a_training + (-(-self.training // every) if every else 0)

    def purpose(self, number: int) -> str:
        if number < 1:
            return STATISTICS
        if self.evaluated(number) != self.evaluated(number - 1):
            return EVALUATE
        is_first = self.energies and number <= self.last and self.trained(number) == self.trained(number - 1)
        return ENERGIES if is_first else TRAIN

    def evaluated(self, number: int) -> int:
        """How many rounds of evaluation there are up to this one."""
        if not self.evaluate_every or number < 1:
            return 0
        if number >= self.last:
            return -(-self.training // self.evaluate_every)
        return number // (self._of_a_training * self.evaluate_every + 1)

    def trained(self, number: int) -> int:
        """How many rounds of training there are up to this one."""
        return (min(max(number, 0), self.last) - self.evaluated(number)) // self._of_a_training
