"""The global model at the relay: what was published is staged, applied at the close, saved, handed on."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from node import update
from node.continuation import base_model
from node.course import Regime, Terms
from node.evaluation import spec_from
from node.home import BASE, BEST, MODEL, OPENED, Home, HomeError, Options
from node.protocol import events as ev
from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.published import (
    OpenedTotals,
    PublishedError,
    largest_state,
    load_model,
    save_model,
    state_from,
    state_part,
    state_size,
)
from node.shared import SharedModel
from node.sumcheck import fingerprints
from node.tasks.base import StatisticsSpec
from node.telemetry import Telemetry

if TYPE_CHECKING:
    from node.privacy.account import HospitalAccount

SAVE_SECONDS = 5.0
"""A node that is not the key holder saves its model no more often."""


class ModelKeeper:
    """Holds the current global model, and the totals of the round in hand until its close."""

    def __init__(self, home: Home, options: Options, telemetry: Telemetry) -> None:
        self._home, self._options, self._telemetry = home, options, telemetry
        rules = home.study.aggregation
        self.regime = Regime.of(home.study, home.plan, home.manifest.quorum, home.digest)
        self._recipe = update.Recipe(
            home.plan, rules.clip, home.manifest.weights, home.study.optimisation.optimiser, regime=self.regime
        )
        self._digest: bytes | None = None
        self._terms: dict[str, Terms] = {}
        self._selection = home.study.evaluation.selection(())
        self._staged: list[bytes] = []
        self._opened = OpenedTotals(home.relay_folder / OPENED) if home.is_key_holder else None
        self._base = base_model(home)
        self.begins = self._base.round if self._base else -1
        self.shared = SharedModel(1)
        self.model = update.Model(-1, self.shared.parameters[:0])
        self._is_saved, self._last_saved = True, -math.inf

    @property
    def digest(self) -> bytes:
        if self._digest is None:
            self._digest = self.model.digest(self._home.digest)
        return self._digest

    @property
    def size(self) -> int:
        return state_size(self.model)

    @property
    def largest(self) -> int:
        """Bytes of the largest state that this study may have."""
        evaluations = self._home.study.schedule.evaluated(self._home.study.schedule.last)
        parameters, moments = self.model.parameters.size, self._recipe.optimiser.moments
        course = self.regime.largest_course(parameters)
        figures = len(self.figure_names)
        return largest_state(parameters, self._counts[STATISTICS], moments, evaluations, figures, course)

    @property
    def figure_names(self) -> tuple[str, ...]:
        return self._recipe.evaluation.names if self._recipe.evaluation else ()

    @property
    def finished(self) -> bool:
        """Whether what was published ends the study before its last round: figures that get no better, or privacy of
        which nothing is left for another."""
        return self.is_spent or self._selection.stops(self.model.curve, self.figure_names)

    @property
    def account(self) -> HospitalAccount:
        """What all published rounds have cost. Hospital-level privacy only."""
        return self.regime.account(self.model.course)

    @property
    def is_spent(self) -> bool:
        """Whether the next training would pass the privacy budget."""
        return self.regime.is_spent(self.model.course, self.terms(TRAIN))

    # ---- at the start -----------------------------------------------------------------------------------

    def begin(self, length: int, start: int, values: bytes) -> None:
        """Take a piece of the first model from the enclave that prepares the data; all come before the last word."""
        if not start:
            self.shared = SharedModel(length)
            self.model = update.Model(-1, self.shared.parameters)
        piece = np.frombuffer(values, dtype="<f4")
        self.model.parameters[start : start + piece.size] = piece

    def prepared(self, message: dict[str, Any]) -> None:
        """The enclave that prepared the data is done: what a round of each kind sums. The first model is that of the
        enclave, unless this version of the manifest goes on from a published one.

        Raises:
            HomeError: the model that the manifest goes on from is not one of this task, or this task is not one for
                which the study can keep its promise of privacy.
        """
        statistics = StatisticsSpec(*message["statistics"]) if message["statistics"] else None
        layout = self._home.study.evaluation.layout(spec_from(message["evaluation"]), self._home.plan)
        self._recipe = replace(self._recipe, statistics=statistics, evaluation=layout)
        self._selection = self._home.study.evaluation.selection(self.figure_names)
        moments = self._recipe.optimiser.begin(self.model.parameters.size)
        self._have(replace(self.model, moments=moments, course=self.regime.begin()))
        self._check_privacy()
        if self._base:
            self._check_base(self._base)
            self._take(self._begun_from(self._base))
            self._base = None
        self._save_history()

    def _check_privacy(self) -> None:
        conflicts = self._home.study.conflicts(statistics=self._counts[STATISTICS] > 0)
        lacking = (self.regime.lacking(purpose, count) for purpose, count in self._counts.items())
        if problems := [*conflicts, *filter(None, lacking)]:
            raise HomeError(f"{self._home.name}: {'; '.join(problems)}")

    def _check_base(self, base: update.Model) -> None:
        sums = 0 if base.statistics is None else base.statistics.size
        here = self.model.parameters.size, self._counts[STATISTICS]
        if (base.parameters.size, sums) != here:
            raise HomeError(
                f"{self._home.path / BASE}: the model that this version goes on from has {base.parameters.size} "
                f"parameters and {sums} statistics; the task here has {here[0]} and {here[1]}"
            )

    def _begun_from(self, base: update.Model) -> update.Model:
        """What a new version goes on with: the model, the sums, and what they have cost in privacy. The rest begins
        anew, by its study."""
        course = replace(self.model.course, account=base.course.account if self.regime.adds_noise else b"")
        return replace(base, moments=self.model.moments, curve=self.model.curve, course=course)

    @property
    def _counts(self) -> dict[str, int]:
        """Values that a party has for a round of each purpose."""
        recipe = self._recipe
        return {
            TRAIN: self.model.parameters.size,
            STATISTICS: recipe.statistics.length if recipe.statistics else 0,
            EVALUATE: recipe.evaluation.length if recipe.evaluation else 0,
            ENERGIES: self.model.parameters.size,
        }

    @property
    def lengths(self) -> dict[str, int]:
        """Integers of the next round, if it is one of each purpose."""
        return {purpose: self.terms(purpose).length for purpose in self._counts}

    def terms(self, purpose: str) -> Terms:
        """Of the next round, if it is one of this purpose."""
        if purpose not in self._terms:
            base = self.digest if self.regime.compression.is_sparse else b""
            self._terms[purpose] = self.regime.terms(purpose, self.model, self._counts.get(purpose, 0), base)
        return self._terms[purpose]

    def resume(self, chain: Sequence[ev.Published]) -> tuple[tuple[ev.Published, ...], ev.Resumed | None]:
        """Go back to the state before this node was interrupted, as far as its ledger can prove it.

        Returns:
            The closes behind the state that we hold now, and at the key holder the round that was not closed.
        """
        totals = self._opened.read() if self._opened else []
        try:
            saved = load_model(self._home.relay_folder / MODEL)
        except PublishedError:
            saved = self.model  # none: this is the first start
        states = [self.digest, *(published.close.state for published in chain)]
        digest = saved.digest(self._home.digest)
        held = totals[0].total.base if totals else b""
        if digest in states:
            self._take(saved)
            chain = chain[: states.index(digest)]
        elif totals and held == states[-1]:  # applied and saved, but not yet in the ledger
            self._take(saved)
            return tuple(chain), self._resumed(totals, applied=True)
        else:
            chain = ()  # the state that the ledger names is lost: our parent has it
        if totals and held == self.digest:
            self._staged = [command.total.integers for command in totals]
            return tuple(chain), self._resumed(totals, applied=False)
        if self._opened:
            self._opened.clear()  # of a round that is closed, or of another manifest: nothing may follow it in the file
        return tuple(chain), None

    def _resumed(self, totals: list[ev.Stage], applied: bool) -> ev.Resumed:
        total, purpose = totals[0].total, totals[0].purpose
        return ev.Resumed(total.round, total.base, purpose, total.contributors, len(totals), applied)

    # ---- in a round -------------------------------------------------------------------------------------

    def stage(self, command: ev.Stage) -> None:
        """Keep a published total until its round is closed."""
        if self._opened:
            self._opened.add(command)
        self._staged.append(command.total.integers)

    def apply(self, command: ev.Apply) -> bytes:
        """Apply the staged totals that the close lists; gives the new state's digest."""
        staged = self._staged[: command.segments]
        self._check_sums(command, staged)
        terms = self.terms(command.purpose)
        self._have(
            update.apply(self.model, command.round, command.purpose, staged, command.contributors, self._recipe, terms)
        )
        if command.purpose == EVALUATE:
            self._evaluated()
        self._changed()
        return self.digest

    def _evaluated(self) -> None:
        """The model has its figures: everyone is told, and keeps it if it is the best so far."""
        round_, *figures = self.model.curve[-1].tolist()
        named = dict(zip(self.figure_names, figures, strict=True))
        self._telemetry.tell("evaluated", round=int(round_), figures=named)
        if self._selection.best(self.model.curve, self.figure_names) == len(self.model.curve) - 1:
            save_model(self._home.relay_folder / BEST, self.model)

    def _take(self, model: update.Model) -> None:
        """Another state as ours: its parameters go where our enclaves read them."""
        self.shared.parameters[:] = model.parameters
        self._have(replace(model, parameters=self.shared.parameters))

    def _have(self, model: update.Model) -> None:
        """What follows from the state is found anew, when it is asked for."""
        self.model, self._digest, self._terms = model, None, {}

    def _changed(self) -> None:
        """The state is another one. The key holder's is on the disk at once; another node that is killed gets the
        newest from its parent, so rounds that follow each other fast need not all be saved."""
        self._is_saved = False
        if self._home.is_key_holder or time.monotonic() >= self._last_saved + SAVE_SECONDS:
            self.save()
        self._save_history()

    def save(self) -> None:
        """Save the state, unless it is saved already. To be called in the end."""
        if not self._is_saved:
            save_model(self._home.relay_folder / MODEL, self.model, durable=self._home.is_key_holder)
            self._is_saved, self._last_saved = True, time.monotonic()

    def kept(self) -> None:
        """The round's close is in the ledger."""
        if self._opened:
            self._opened.clear()

    def wipe(self) -> int:
        """Forget the staged totals; gives the number of bytes."""
        return update.wipe(self._staged)

    # ---- for who was away -------------------------------------------------------------------------------

    def part(self, number: int) -> bytes:
        """One part of the state, for a neighbour that missed it."""
        return state_part(self.model, number, 4 * self._home.plan.values_per_segment)

    def adopt(self, command: ev.Adopt) -> bool:
        """Take a state that we were handed, if it is the one that the key holder signed."""
        model = state_from(command.parts)
        if model is None or model.digest(self._home.digest) != command.closes[-1].close.state:
            return False
        self._take(model)
        self._changed()
        return True

    def check_seed(self, round_: int) -> bytes | None:
        """The round's seed of the debug check, if the manifest allows it and the launcher asked for it."""
        allowed = "check-sums" in self._home.manifest.debug and round_ < len(self._options.check_seeds)
        return self._options.check_seeds[round_] if allowed else None

    def _check_sums(self, command: ev.Apply, staged: list[bytes]) -> None:
        seed = self.check_seed(command.round)
        if seed is not None:
            total = np.frombuffer(b"".join(staged), dtype="<i4")
            values = fingerprints(seed, total, self._home.plan.segments(total.size))
            self._telemetry.tell("total", round=command.round, values=values)

    def _save_history(self) -> None:
        if self._options.history:
            save_model(self._options.history / f"round-{self.model.round + 1:05}.npz", self.model)
