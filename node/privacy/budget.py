"""What may be spent, and the refusal of what would be more."""

from __future__ import annotations

from dataclasses import dataclass

from keys.errors import WardtreeError


class BudgetError(WardtreeError):
    """A step that would pass the privacy budget; it was not taken."""


@dataclass(frozen=True)
class Budget:
    """(epsilon, delta). Who uses it says what neighbours are: one patient's row more, or one hospital's update zero."""

    epsilon: float
    delta: float


class PrivacyError(WardtreeError):
    """Noise that cannot be added or accounted for as it was asked for."""
