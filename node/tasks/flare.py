"""A script of FLARE's client API as it is, as a task: ``flare.receive()``, train, ``flare.send(...)``.

Each round runs the script from its beginning, in the enclave, with :mod:`node.tasks.flare_api` in place of FLARE's
own package: none of FLARE is needed.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from node.settings import problems
from node.tasks.arrays import Arrays, Layout
from node.tasks.base import (
    Evaluation,
    EvaluationSpec,
    OptionsError,
    Setup,
    Task,
    TaskError,
    TrainingRound,
)
from node.tasks.flare_api import FLModel, ParamsType, Round, standing_in
from node.tasks.hosting import Hosted, arrays_of, imported, lie_together, seeded, with_paths
from node.tasks.loader import CODE, MODULE


class FlareOptions(Hosted):
    """``[task.options]`` of a script."""

    script: str = Field(pattern=rf"^{MODULE}$", description="the name of a module, such as hospital.client")
    initial: str = Field(pattern=rf"^{CODE}$", description='"module:function", which gives the first model')
    arguments: list[str] = Field(default_factory=list, description="a list of texts")
    tensors: bool = Field(default=False, description="true or false")

    @model_validator(mode="after")
    def _fits_together(self) -> FlareOptions:
        if not lie_together(self.initial, self.script):
            raise ValueError("expected initial in the same module or package as script, which all parties sign")
        return self


class FlareTask(Task):
    """One hospital's script.

    A ``{key}`` among its ``arguments`` is what ``key`` is in this hospital's ``[data]``; ``examples`` there, if given,
    is the number of its rows, which FLARE's API does not ask a script for.
    """

    def __init__(self, setup: Setup) -> None:
        self._options, self._setup = _options(setup.options), setup
        self._data = with_paths(setup.data, setup.home)
        self.examples = self._data.get("examples", 1)
        self._layout = Layout.of(self._start(), self._options.stays_local)
        self.parameters = self._layout.size
        self._left: Arrays = dict(self._layout.local)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    @classmethod
    def layout(cls, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
        """The shared arrays, for an exported model."""
        own = _options(options)
        with standing_in(Round("", "", "train", FLModel(), {})):
            return Layout.of(arrays_of(imported(own.initial)()), own.stays_local).shapes

    def initial(self) -> NDArray[np.float32]:
        return self._layout.flatten(self._start(), "the first model").astype(np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        if round.rate != 1:
            raise TaskError(
                "flare: expected a constant schedule of learning rates: a script is not told it; came another"
            )
        given = self._layout.restore(model, self._local(round))
        sent = self._run(given, "train", round)
        if sent.params is None:
            raise TaskError("flare.send: expected params, came none")
        arrays = arrays_of(sent.params)
        is_difference = sent.params_type == ParamsType.DIFF
        self._left = {name: given[name] + arrays[name] if is_difference else arrays[name] for name in self._left}
        flat = self._layout.flatten(arrays, "flare.send")
        return (flat if is_difference else flat - model).astype(np.float32)

    def carry(self) -> bytes | None:
        """The arrays that stay here."""
        return self._layout.pack_local(self._left) if self._left else None

    def evaluation_spec(self) -> EvaluationSpec | None:
        return self._options.evaluation_spec()

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """The metrics that the script sends of the model it received, each no further out than its bounds."""
        sent = self._run(self._layout.restore(model, self._local(round)), "evaluate", round)
        return Evaluation(self.examples, measures=self._options.measured(sent.metrics or {}, "flare.send"))

    def _local(self, round: TrainingRound) -> Arrays:
        return self._layout.local if round.carried is None else self._layout.unpack_local(round.carried)

    def _run(self, arrays: Arrays, purpose: str, round: TrainingRound) -> FLModel:
        params: Any = arrays
        if self._options.tensors:
            import torch

            params = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}
        given = FLModel(ParamsType.FULL, params, current_round=round.number - 1, total_rounds=round.rounds)
        current = Round(self._setup.party, "wardtree", purpose, given, dict(self._data))
        argv, sys.argv = sys.argv, [self._options.script, *map(self._filled, self._options.arguments)]
        try:
            with standing_in(current):
                runpy.run_module(self._options.script, run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise TaskError(f"script {self._options.script}: ended with an error before it sent a model") from None
        finally:
            sys.argv = argv
        if current.sent is None:
            raise TaskError(f"script {self._options.script}: expected flare.send, came none")
        return current.sent

    def _filled(self, argument: str) -> str:
        for key, value in self._data.items():
            argument = argument.replace("{" + key + "}", str(value))
        return argument

    def _start(self) -> Arrays:
        """Under the study's seed, for all parties alike; what trains draws from the operating system's randomness."""
        current = Round(self._setup.party, "wardtree", "train", FLModel(), dict(self._data))
        with seeded(self._setup.seed), standing_in(current):
            return arrays_of(imported(self._options.initial)())


def _options(table: Mapping[str, Any]) -> FlareOptions:
    try:
        return FlareOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(FlareOptions, error)) from None
