"""What a federation has spent of its hospitals' privacy: one account over all that is published, round after round."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from node.privacy.budget import Budget, BudgetError, PrivacyError
from node.privacy.hospital import KINDS, Loss, Release, to_entry


@dataclass(frozen=True)
class Charge:
    """``times`` equal releases."""

    release: Release
    times: int


class HospitalAccount:
    """What was published so far. The history is all the state there is; every node and the key room keep one.

    Attributes:
        budget: (epsilon, delta), of neighbours that differ by one hospital's vectors being zero.
        history: one entry for all equal releases.
    """

    def __init__(self, budget: Budget, history: Iterable[Charge] = ()) -> None:
        self.budget = budget
        self.history = _joined(history)

    def epsilon(self) -> float:
        """What is spent, at the budget's delta."""
        return self.after()

    def after(self, *releases: Release) -> float:
        """What would be spent with these as well."""
        return sum((_loss(each) for each in self._with(releases)), Loss()).epsilon(self.budget.delta)

    def spend(self, *releases: Release) -> float:
        """Call it *before* a total is opened, for all that will be published of it; gives epsilon with it. A round that
        fails after its opening stays charged.

        Raises:
            BudgetError: it would pass the budget; nothing is spent, and it must not be opened.
        """
        would = self.after(*releases)
        if not would <= self.budget.epsilon:
            raise BudgetError(
                f"privacy: this opening would spend epsilon {would:.4g} at delta {self.budget.delta:g}, "
                f"the budget is {self.budget.epsilon:g}; it is not opened"
            )
        self.history = self._with(releases)
        return would

    def charge(self, *releases: Release) -> None:
        """Count what *was* published, whatever the budget says. :meth:`spend` is for who may still refuse."""
        self.history = self._with(releases)

    def entry(self, round_: int, listed: Collection[str], releases: Iterable[Release]) -> dict[str, Any]:
        """For a ledger: what a round's total over the listed set publishes, and what is spent with it."""
        return {
            "what": "privacy",
            "unit": "hospital",
            "round": round_,
            "listed": sorted(listed),
            "releases": [to_entry(release) for release in releases],
            "epsilon": self.epsilon(),
            "delta": self.budget.delta,
        }

    def state(self) -> bytes:
        """The history, in JSON."""
        history = [{**to_entry(each.release), "times": each.times} for each in self.history]
        return json.dumps({"version": 1, "history": history}, sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def from_state(cls, budget: Budget, state: bytes) -> HospitalAccount:
        """The inverse of :meth:`state`.

        Raises:
            PrivacyError: it is something else.
        """
        try:
            table = json.loads(state)
            if table["version"] != 1:
                raise ValueError
            history = [_charge(dict(entry)) for entry in table["history"]]
        except (ValueError, KeyError, TypeError, RecursionError, PrivacyError):
            raise PrivacyError("privacy: expected the history of an account, came something else") from None
        return cls(budget, history)

    def _with(self, releases: Iterable[Release]) -> tuple[Charge, ...]:
        return _joined([*self.history, *(Charge(release, 1) for release in releases)])


def releases_of(entry: Mapping[str, Any]) -> list[Release]:
    """The releases in an entry of a ledger; none in an entry of another kind."""
    if entry["what"] != "privacy" or entry["unit"] != "hospital":
        return []
    return [_charge({**release, "times": 1}).release for release in entry["releases"]]


def _charge(entry: dict[str, Any]) -> Charge:
    times, kind = entry.pop("times"), entry.pop("kind")
    for key, value in {"times": times, **entry}.items():
        if type(value) is not (float if key == "epsilon" else int) or not value > 0:
            raise ValueError
    return Charge(KINDS[kind](**entry), times)


def _joined(history: Iterable[Charge]) -> tuple[Charge, ...]:
    counts: dict[Release, int] = {}  # what is spent does not depend on the order
    for each in history:
        counts[each.release] = counts.get(each.release, 0) + each.times
    return tuple(Charge(release, times) for release, times in counts.items())


def _loss(charge: Charge) -> Loss:
    return charge.release.loss().times(charge.times)
