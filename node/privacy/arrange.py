"""Hospital-level privacy of one round, from the study: what the enclave, the key room and the ledger each need of it.

arranged = arrange(study.privacy, plan, length, study.rounds, min_hidden)
integers = arranged.protect(values, clip)               # enclave: ``length`` values, and perhaps a clip bit
account.spend(*arranged.releases)                       # key room: before the round's first opening
clip = arranged.next_clip(clip, total[-1], parties)     # every node: from the published total
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from keys.plan import Plan
from node.privacy.budget import Budget
from node.privacy.clipping import AdaptiveClip
from node.privacy.hospital import Release, check_listed, guaranteed_shares
from node.privacy.protect import Integers, Protection, epsilon_for, gaussian, k_norm, laplace, multiplier_for
from node.privacy.settings import PrivacySettings


@dataclass(frozen=True)
class Arranged:
    """How the vectors of one round are protected.

    Attributes:
        protection: of the values.
        adaptive: None with a fixed clip; otherwise a clip bit follows the values.
        shares: of noise that are guaranteed.
        coalition: of how many parties that pool what they know.
    """

    protection: Protection
    adaptive: AdaptiveClip | None
    shares: int
    coalition: int

    @property
    def releases(self) -> tuple[Release, ...]:
        """All that a round publishes: to be charged before its first opening."""
        bits = (self.adaptive.release(self.shares),) if self.adaptive else ()
        return (self.protection.release, *bits)

    @property
    def length(self) -> int:
        """Integers of a party in this round: one for each value, and one for the clip bit."""
        return self.protection.release.dimension + (self.adaptive is not None)

    def room(self, parties: int) -> int:
        """The plan's ``max_noise`` for so many parties."""
        return max(release.room(parties) for release in self.releases)

    def protect(self, values: NDArray[np.float64], clip: float | None = None) -> Integers:
        """One party's integers with its noise, shape (length,). Enclave; once a round.

        Args:
            clip: this round's norm, where it moves.
        """
        protection = self.protection if clip is None else replace(self.protection, clip=clip)
        integers = protection.protect(values)
        if self.adaptive is None:
            return integers
        bit = self.adaptive.bit(float(np.linalg.norm(values)), protection.clip)
        return np.append(integers, self.adaptive.release(self.shares).draw() + bit)

    def step(self, clip: float | None = None) -> float:
        """What an integer of the published total stands for."""
        return (self.protection if clip is None else replace(self.protection, clip=clip)).step

    def next_clip(self, clip: float, bits: int, parties: int) -> float:
        """The norm of the next round. ``bits``: the last integer of the published total."""
        return self.adaptive.next_clip(clip, bits, parties) if self.adaptive else clip

    def check(self, listed: Collection[str]) -> None:
        """Whether a total over the listed set may be opened. Raises PrivacyError. Key room, and whoever verifies it."""
        for release in self.releases:
            check_listed(release, listed, self.coalition)


def arrange(settings: PrivacySettings, plan: Plan, values: int, rounds: int, min_hidden: int) -> Arranged:
    """The protection of a training round.

    Args:
        values: of a party that are sent in it, the mask's size.
        rounds: training rounds of the study, among which the budget is divided.

    Raises:
        PrivacyError: it cannot be had.
    """
    epsilon, delta, clip, shares = _checked(settings, min_hidden)
    protection: Protection
    if settings.mechanism == "gaussian":
        statistics = settings.statistics.mu_squared if settings.statistics else 0.0
        multiplier = settings.noise_multiplier or multiplier_for(epsilon, delta, rounds, statistics)
        if settings.adaptive:
            multiplier = settings.adaptive.clip.update_multiplier(multiplier)
        protection = gaussian(clip, plan, values, multiplier, shares, settings.beta)
    else:
        make = laplace if settings.mechanism == "laplace" else k_norm
        protection = make(clip, plan, values, epsilon_for(epsilon, delta, rounds), settings.beta)
    adaptive = settings.adaptive.clip if settings.adaptive else None
    return Arranged(protection, adaptive, shares, settings.coalition)


def arrange_statistics(settings: PrivacySettings, plan: Plan, values: int, min_hidden: int) -> Arranged:
    """The protection of the statistics round, charged to the same budget."""
    _, _, _, shares = _checked(settings, min_hidden)
    assert settings.statistics is not None
    noise = settings.statistics
    protection = gaussian(noise.clip, plan, values, noise.noise_multiplier, shares, settings.beta)
    return Arranged(protection, None, shares, settings.coalition)


def budget(settings: PrivacySettings) -> Budget:
    """What the account of a study may spend."""
    assert settings.epsilon is not None
    assert settings.delta is not None
    return Budget(settings.epsilon, settings.delta)


def _checked(settings: PrivacySettings, min_hidden: int) -> tuple[float, float, float, int]:
    assert settings.mode == "hospital"
    limits = budget(settings)
    assert settings.clip is not None
    return limits.epsilon, limits.delta, settings.clip, guaranteed_shares(min_hidden, settings.coalition)
