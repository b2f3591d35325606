"""``[compression]`` of a study."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from node.compression.density import Density, MovingThreshold
from node.settings import Settings


class CompressionSettings(Settings):
    """``[compression]``: which values of an update are sent. ``node/compression/masks.py`` says what each mask is."""

    mask: Literal["none", "cyclic", "random", "top", "energy"] = Field(
        default="none", description='"none", "cyclic", "random", "top" or "energy"'
    )
    density: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")
    block: int = Field(default=64, ge=1, le=1 << 20, description="a whole number from 1 to 1048576")
    explore: float = Field(default=0.1, ge=0, le=1, description="a number from 0 to 1")
    feedback: bool = Field(default=True, description="true or false")
    warm_up: int = Field(default=0, ge=0, description="a whole number of at least 0")
    schedule: Literal["fixed", "moving"] = Field(default="fixed", description='"fixed" or "moving"')
    alpha: float = Field(default=0.9, gt=0, lt=1, description="a number between 0 and 1")
    lowest: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")
    highest: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1")

    @model_validator(mode="after")
    def _whole(self) -> CompressionSettings:
        asked = self.model_fields_set - {"mask"}
        if self.mask == "none":
            if asked:
                raise ValueError(f'expected nothing else with mask = "none", came {", ".join(sorted(asked))}')
            return self
        if self.density is None:
            raise ValueError(f'expected density with mask = "{self.mask}", came nothing')
        for name, needed, has in (
            ("explore", 'mask = "top"', self.mask == "top"),
            ("block", "a mask of blocks", self.mask != "cyclic"),
            *((name, 'schedule = "moving"', self.schedule == "moving") for name in ("alpha", "lowest", "highest")),
        ):
            if name in asked and not has:
                raise ValueError(f"{name} goes with {needed}")
        if self.mask == "top" and self.explore == 0:
            raise ValueError(
                'explore: expected a number above 0 with mask = "top", came 0: a value outside the first mask would '
                "never be sent"
            )
        if self.schedule == "moving" and self.mask != "top":
            raise ValueError(f'schedule = "moving" goes with mask = "top", came "{self.mask}"')
        if self.schedule == "moving" and not self.least <= self.density <= self.most:
            raise ValueError(
                f"expected lowest <= density <= highest, came {self.least:g}, {self.density:g} and {self.most:g}"
            )
        return self

    @property
    def is_sparse(self) -> bool:
        return self.mask != "none"

    @property
    def least(self) -> float:
        """The smallest density that a moving threshold may give; unless said, half the target."""
        return self.lowest if self.lowest is not None else (self.density or 1.0) / 2

    @property
    def most(self) -> float:
        return self.highest if self.highest is not None else min(1.0, 2 * (self.density or 1.0))

    @property
    def schedule_of_density(self) -> Density:
        return Density(self.density if self.density is not None else 1.0, self.warm_up)

    @property
    def threshold(self) -> MovingThreshold:
        return MovingThreshold(self.alpha)
