"""What tasks that run another framework's client have in common: its code, its first model, its data."""

from __future__ import annotations

import importlib
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from node.settings import Settings
from node.tasks.arrays import Arrays
from node.tasks.base import EvaluationSpec, Measure, TaskError


class Hosted(Settings):
    """What every such task's ``[task.options]`` may say."""

    measures: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] = Field(
        default_factory=dict, description="a table of name = [low, high]"
    )
    stays_local: list[str] = Field(default_factory=list, description="a list of names of arrays")

    @model_validator(mode="after")
    def _low_below_high(self) -> Self:
        if wrong := [name for name, (low, high) in self.measures.items() if low >= high]:
            raise ValueError(f"expected measures with low below high, came others for {', '.join(wrong)}")
        return self

    def evaluation_spec(self) -> EvaluationSpec | None:
        """The measures; None where the study names none."""
        measures = tuple(Measure(name, low, high) for name, (low, high) in self.measures.items())
        return EvaluationSpec(measures=measures) if measures else None

    def measured(self, came: Mapping[str, Any], whence: str) -> dict[str, float]:
        """Each measure of ``came``, no further out than its bounds. Raises TaskError where one is no number."""
        measures = {}
        for name, (low, high) in self.measures.items():
            value: Any = came.get(name)
            if isinstance(value, str) or not hasattr(value, "__float__"):
                raise TaskError(f"{whence}: expected a number {name} among the metrics, came none")
            measures[name] = float(np.clip(float(value), low, high))
        return measures


def imported(name: str) -> Any:
    """What ``module:name`` is. Imports, and so runs, the user's code. Raises TaskError."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except AttributeError:
        raise TaskError(f"{name}: expected {attribute} in {module}, came none") from None
    except ImportError as error:
        raise TaskError(f"{name}: importing {module} failed: {type(error).__name__}: {error}") from error


def lie_together(one: str, other: str) -> bool:
    """Whether two ``module:name`` lie in the same top-level module or package."""
    return one.partition(":")[0].split(".")[0] == other.partition(":")[0].split(".")[0]


def arrays_of(model: Any) -> Arrays:
    """The arrays of a torch module, or of a table of them; of a list each is named by its place."""
    if hasattr(model, "state_dict"):
        model = model.state_dict()
    named = model.items() if isinstance(model, Mapping) else ((str(place), each) for place, each in enumerate(model))
    return {name: np.asarray(each.detach().cpu() if hasattr(each, "detach") else each) for name, each in named}


def with_paths(data: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """``data`` with an absolute path for each text that names a file from the node's home: clients know no home."""
    return {
        key: str(home / value) if isinstance(value, str) and value and (home / value).exists() else value
        for key, value in data.items()
    }


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """All generators that a client may draw from, under ``seed``; after it they go on where they were."""
    torch = sys.modules.get("torch")
    before = random.getstate(), np.random.get_state(), torch.get_rng_state() if torch else None
    random.seed(seed)
    np.random.seed(seed)
    if torch:
        torch.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        if torch:
            torch.set_rng_state(before[2])
