"""``[privacy]`` of a study, and what does not go with it.

Every node reads a study; what computes is imported where it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from keys.planner import MAX_PARAMETERS
from node.privacy.budget import PrivacyError
from node.privacy.rounding import BETA
from node.settings import Settings

if TYPE_CHECKING:
    from node.privacy.clipping import AdaptiveClip

BIT_VALUE_BITS = 11
"""The clip bit is 512: it takes 11 bits."""


class AdaptiveSettings(Settings):
    """``[privacy.adaptive]``: the clipping norm follows a quantile of the parties' norms; with ``mode = "record"``, of
    the norms of rows' gradients, from batch to batch."""

    quantile: float = Field(default=0.5, gt=0, lt=1, description="a number between 0 and 1")
    rate: float = Field(default=0.2, gt=0, le=2, description="a number above 0, at most 2")
    count_noise: float = Field(gt=0, description="a number above 0: the noise on how many were within the clip")
    lowest: float = Field(gt=0, description="a number above 0")
    highest: float = Field(gt=0, description="a number above 0")

    @model_validator(mode="after")
    def _ordered(self) -> AdaptiveSettings:
        if self.lowest >= self.highest:
            raise ValueError(f"expected lowest below highest, came {self.lowest:g} and {self.highest:g}")
        return self

    @property
    def clip(self) -> AdaptiveClip:
        from node.privacy.clipping import AdaptiveClip

        return AdaptiveClip(**self.model_dump())


class StatisticsNoise(Settings):
    """``[privacy.statistics]``: the statistics round with noise of its own, charged like an update."""

    clip: float = Field(gt=0, description="a number above 0: the L2 norm of a party's statistics")
    noise_multiplier: float = Field(gt=0, description="a number above 0")

    @property
    def mu_squared(self) -> float:
        return 1 / self.noise_multiplier**2


class PrivacySettings(Settings):
    """``[privacy]``.

    ``record``: each hospital trains by DP-SGD; neighbours differ by one patient. ``hospital``: noise on the sum;
    neighbours differ by one hospital's update being zero. ``values`` is the most that a round may sum: the key is made,
    with room for the noise, before a task is loaded that would say how many there are.
    """

    mode: Literal["none", "record", "hospital"] = Field(default="none", description='"none", "record" or "hospital"')
    epsilon: float | None = Field(default=None, gt=0, description="a number above 0")
    delta: float | None = Field(default=None, gt=0, lt=0.1, description="a number between 0 and 0.1")
    mechanism: Literal["gaussian", "laplace", "k-norm"] = Field(
        default="gaussian", description='"gaussian", "laplace" or "k-norm"'
    )
    clip_norm: Literal["l1", "l2"] = Field(default="l2", description='"l1" or "l2"')
    clip: float | None = Field(default=None, gt=0, description="a number above 0")
    noise_multiplier: float | None = Field(default=None, gt=0, description="a number above 0")
    coalition: int = Field(default=1, ge=1, description="a whole number above 0")
    beta: float = Field(default=BETA, gt=0, lt=0.5, description="a number between 0 and 0.5")
    adaptive: AdaptiveSettings | None = Field(default=None, description="a table")
    statistics: StatisticsNoise | None = Field(default=None, description="a table")
    values: int = Field(
        default=1 << 20, ge=1, le=MAX_PARAMETERS, description=f"a whole number from 1 to {MAX_PARAMETERS}"
    )

    @model_validator(mode="after")
    def _whole(self) -> PrivacySettings:
        if found := list(self._problems()):
            raise ValueError("; ".join(found))
        return self

    @property
    def is_private(self) -> bool:
        return self.mode != "none"

    def _problems(self) -> Iterator[str]:
        if self.mode == "none":
            asked = self.model_fields_set - {"mode"}
            if asked:
                yield f'expected nothing else with mode = "none", came {", ".join(sorted(asked))}'
            return
        for name in ("epsilon", "delta", "clip"):
            if getattr(self, name) is None:
                yield f'expected {name} with mode = "{self.mode}", came nothing'
        if self.adaptive and self.clip and not self.adaptive.lowest <= self.clip <= self.adaptive.highest:
            yield f"expected clip between adaptive.lowest and adaptive.highest, came {self.clip:g}"
        if self.mode == "record":
            for name in ("mechanism", "clip_norm", "coalition", "beta", "statistics", "values"):
                if name in self.model_fields_set:
                    yield f'{name} is for mode = "hospital"; DP-SGD adds Gaussian noise to gradients clipped in L2'
            return
        if self.mechanism == "laplace" and self.clip_norm == "l2":
            yield (
                'mechanism = "laplace" with clip_norm = "l2": noise of scale clip/epsilon hides a vector whose *L1* '
                "norm is at most clip; d values clipped in L2 can have an L1 norm of sqrt(d) * clip, so what is really "
                'spent is sqrt(d) * epsilon. Expected clip_norm = "l1", or mechanism = "k-norm"'
            )
        if self.mechanism != "laplace" and self.clip_norm == "l1":
            yield f'mechanism = "{self.mechanism}" with clip_norm = "l1": its noise is for clip_norm = "l2"'
        if self.mechanism != "gaussian":
            for name in ("noise_multiplier", "adaptive", "statistics"):
                if getattr(self, name) is not None:
                    yield f'{name} is for mechanism = "gaussian", came mechanism = "{self.mechanism}"'


@dataclass(frozen=True)
class Surroundings:
    """What of the rest of a study privacy depends on.

    Attributes:
        weights: ``aggregation.weights``.
        statistics: whether the task has a statistics round.
        metrics: whether figures computed on held-out patients are published.
        data_masks: whether a mask is chosen by sums that are computed on data (block norms).
    """

    weights: Literal["examples", "equal"]
    rounds: int
    value_bits: int
    min_hidden: int
    statistics: bool = False
    metrics: bool = False
    data_masks: bool = False


def conflicts(privacy: PrivacySettings, around: Surroundings) -> list[str]:
    """Everything in a study that takes the promise of ``[privacy]`` away, one line each, beginning with its key."""
    return list(_conflicts(privacy, around)) if privacy.is_private else []


def _conflicts(privacy: PrivacySettings, around: Surroundings) -> Iterator[str]:
    mode = f'with privacy.mode = "{privacy.mode}"'
    if around.metrics:
        yield f"evaluation: metrics of patients are published without noise {mode}: expected them off"
    if around.statistics and privacy.statistics is None:
        how = " or [privacy.statistics]" if privacy.mode == "hospital" and privacy.mechanism == "gaussian" else ""
        yield f"task.options: the statistics round is computed on data and not charged {mode}: expected it off{how}"
    if around.data_masks:
        yield f'compression.mask: "energy" publishes sums computed on data, not charged {mode}: expected another mask'
    if privacy.mode != "hospital":
        return
    if around.weights != "equal":
        yield f'aggregation.weights: expected "equal" {mode}: one hospital\'s weight would be in its sensitivity'
    from node.privacy.hospital import guaranteed_shares

    try:
        guaranteed_shares(around.min_hidden, privacy.coalition)
    except PrivacyError as error:
        yield f"privacy.coalition: {_text(error)}"
    if privacy.adaptive and around.value_bits < BIT_VALUE_BITS:
        yield (
            f"aggregation.value_bits: expected at least {BIT_VALUE_BITS} with privacy.adaptive, "
            f"came {around.value_bits}"
        )
    if privacy.mechanism == "gaussian":
        yield from _budget(privacy, around)


def _budget(privacy: PrivacySettings, around: Surroundings) -> Iterator[str]:
    assert privacy.epsilon is not None
    assert privacy.delta is not None
    from node.privacy.protect import multiplier_for

    statistics = privacy.statistics.mu_squared if privacy.statistics else 0.0
    try:
        least = multiplier_for(privacy.epsilon, privacy.delta, around.rounds, statistics)
    except PrivacyError as error:
        yield f"privacy.statistics.noise_multiplier: {_text(error)}"
        return
    multiplier = privacy.noise_multiplier or least
    if multiplier < least:
        enough = math.floor(around.rounds * (multiplier / least) ** 2)
        yield (
            f"privacy.noise_multiplier: {around.rounds} rounds within epsilon {privacy.epsilon:g} take at least "
            f"{least:.4g}, came {multiplier:g}, which is enough for {enough}"
        )
    if privacy.adaptive:
        try:
            privacy.adaptive.clip.update_multiplier(multiplier)
        except PrivacyError as error:
            yield f"privacy.adaptive.count_noise: {_text(error)}"


def _text(error: PrivacyError) -> str:
    return str(error).removeprefix("privacy: ")
