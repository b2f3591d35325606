"""At the relay: what privacy has cost goes into the ledger, and to whoever watches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from node.ledger import Ledger
from node.model_keeper import ModelKeeper
from node.telemetry import Telemetry

if TYPE_CHECKING:
    from node.privacy.hospital import Release


class Spending:
    """Both kinds: of the published totals, at every node; and of this hospital's own training.

    Attributes:
        account: of our own training, with record-level privacy; empty before the first.
    """

    def __init__(self, ledger: Ledger, telemetry: Telemetry) -> None:
        self._ledger, self._telemetry = ledger, telemetry
        self.account = ""

    def published(self, keeper: ModelKeeper, round_: int, listed: frozenset[str], releases: Sequence[Release]) -> None:
        """A round's total is applied: what it cost all hospitals, and what is spent with it."""
        if releases:
            entry = keeper.account.entry(round_, listed, releases)
            self._ledger.append(**entry)
            self._tell(entry, keeper.account.budget.epsilon, keeper.is_spent)

    def trained(self, entry: dict[str, Any]) -> None:
        """Our enclave trained: what it cost our patients is on the disk before anything of it leaves."""
        self._ledger.append(**entry)
        self.account = entry["account"]
        self._tell(entry, entry["budget"], False)

    def _tell(self, entry: dict[str, Any], budget: float, spent: bool) -> None:
        told = {key: entry[key] for key in ("unit", "round", "epsilon", "delta")}
        self._telemetry.tell("privacy", **told, budget=budget, spent=spent)
