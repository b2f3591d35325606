"""A Flower client as it is, as a task: a ``client_fn``, a ``NumPyClient``, or a ``ClientApp`` that takes messages.

The study's ``client`` names it. In each round the enclave makes it anew, as Flower does, hands it the global model, and
takes what it returns; ``flwr`` supplies the types alone, and none of its servers, engines or connections.
"""

from __future__ import annotations

import hashlib
import importlib
import time
from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import msgpack
import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationError, model_validator

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
from node.tasks.hosting import Hosted, arrays_of, imported, lie_together, seeded, with_paths
from node.tasks.loader import CODE

EXAMPLES = "num-examples"
"""Among the metrics of a message: of how many examples they are the mean. Flower's strategies use the same."""


_TIME_TO_LIVE = 86_400.0  # of a message, in seconds; the round's deadline is the node's


def _scalars(table: dict[str, Any]) -> dict[str, Any]:
    for key, value in table.items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"expected {key} to be a number, a text, true or false, came another value")
    return table


Scalars = Annotated[dict[str, Any], AfterValidator(_scalars)]


class FlowerOptions(Hosted):
    """``[task.options]`` of a Flower client."""

    client: str = Field(pattern=rf"^{CODE}$", description='"module:client_fn", or a class or ClientApp instead')
    initial: str | None = Field(default=None, pattern=rf"^{CODE}$", description='"module:function"')
    run_config: Scalars = Field(default_factory=dict, description="a table of numbers and texts")
    fit: Scalars = Field(default_factory=dict, description="a table of numbers and texts")
    evaluate: Scalars = Field(default_factory=dict, description="a table of numbers and texts")
    scaled: list[str] = Field(default_factory=list, description="a list of keys of fit")

    @model_validator(mode="after")
    def _fits_together(self) -> FlowerOptions:
        if self.initial and not lie_together(self.initial, self.client):
            raise ValueError("expected initial in the same module or package as client, which all parties sign")
        if strange := [key for key in self.scaled if not isinstance(self.fit.get(key), float)]:
            raise ValueError(f"expected scaled to name decimal numbers of fit, came {', '.join(strange)}")
        return self


class _Learner(Protocol):
    """A client in one round."""

    def start(self) -> Arrays:
        """The arrays of a model as it begins."""

    def fit(self, arrays: Arrays, config: dict[str, Any], number: int) -> Arrays:
        """The arrays after training."""

    def evaluate(self, arrays: Arrays, config: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        """How many examples, and the measures."""


class FlowerTask(Task):
    """One hospital's Flower client.

    ``[data]`` is the ``node_config`` of its context. ``examples`` there, if given, is the number of this hospital's
    rows: a client says it only after it trained.
    """

    def __init__(self, setup: Setup) -> None:
        self._options, self._setup = _options(setup.options), setup
        data = dict(setup.data)
        self.examples = data.pop("examples", 1)
        self._node_config = with_paths(_node_config(data, setup.party), setup.home)
        self._target = _imported(self._options.client)
        self._learner, self._context = self._make(None)
        self._layout = Layout.of(self._start(self._learner), self._options.stays_local)
        self.parameters = self._layout.size
        self._left: Arrays = dict(self._layout.local)

    @classmethod
    def check_options(cls, options: Mapping[str, Any]) -> None:
        _options(options)

    @classmethod
    def layout(cls, options: Mapping[str, Any]) -> dict[str, tuple[int, ...]] | None:
        """The shared arrays, for an exported model; None where only a client with its data can tell."""
        own = _options(options)
        if own.initial is None:
            return None
        return Layout.of(arrays_of(imported(own.initial)()), own.stays_local).shapes

    def initial(self) -> NDArray[np.float32]:
        """From a client of its own, made under the study's seed; none that is made under it ever trains: what it draws
        there every hospital draws, noise for privacy as well."""
        with seeded(self._setup.seed):
            start = self._start(self._make(None)[0])
        return self._layout.flatten(start, "the first model").astype(np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        config = dict(self._options.fit)
        if round.rate != 1 and not self._options.scaled:
            raise TaskError("flower: the study has a schedule of learning rates: expected options.scaled, came none")
        config.update({key: config[key] * round.rate for key in self._options.scaled})
        local = self._resume(round)
        arrays = self._learner.fit(self._layout.restore(model, local), config, round.number)
        self._left = arrays
        return (self._layout.flatten(arrays, "fit") - model).astype(np.float32)

    def carry(self) -> bytes | None:
        """``context.state``, and the arrays that stay here."""
        from flwr.common.serde import recorddict_to_proto

        if not self._context.state and not self._layout.local:
            return None
        state = recorddict_to_proto(self._context.state).SerializeToString()
        packed: bytes = msgpack.packb([state, self._layout.pack_local(self._left)])
        return packed

    def evaluation_spec(self) -> EvaluationSpec | None:
        return self._options.evaluation_spec()

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        """What the client says, each measure no further out than its bounds."""
        local = self._resume(round)
        arrays = self._layout.restore(model, local)
        examples, came = self._learner.evaluate(arrays, dict(self._options.evaluate), round.number)
        return Evaluation(examples, measures=self._options.measured(came, "evaluate"))

    def _resume(self, round: TrainingRound) -> Arrays:
        """The arrays that stay here; a client that left a state is made again, with that."""
        from flwr.common.serde import recorddict_from_proto
        from flwr.proto.recorddict_pb2 import RecordDict

        if round.carried is None:
            return self._layout.local
        state, local = msgpack.unpackb(round.carried)
        if state:
            self._learner, self._context = self._make(recorddict_from_proto(RecordDict.FromString(state)))
        return self._layout.unpack_local(local)

    def _make(self, state: Any) -> tuple[_Learner, Any]:
        from flwr.app import Context, RecordDict
        from flwr.client import Client, ClientApp, NumPyClient

        node = int.from_bytes(hashlib.sha256(self._setup.party.encode()).digest()[:7], "big")
        state = RecordDict() if state is None else state
        context = Context(0, node, dict(self._node_config), state, dict(self._options.run_config))
        target, name = self._target, self._options.client
        if isinstance(target, ClientApp):
            if getattr(target, "_call", None) is not None:
                raise TaskError(f"client {name}: a ClientApp around a client_fn; expected the name of that client_fn")
            return _App(target, context), context
        if not callable(target):
            raise TaskError(f"client {name}: expected a client_fn, a class or a ClientApp, came another object")
        made = target() if isinstance(target, type) else target(context)
        if not isinstance(made, Client | NumPyClient):
            raise TaskError(f"client {name}: expected a Flower Client or NumPyClient, came {type(made).__name__}")
        return _Legacy(made.to_client()), context

    def _start(self, learner: _Learner) -> Arrays:
        if self._options.initial is None:
            return learner.start()
        return arrays_of(_imported(self._options.initial)())


class _Legacy:
    """A ``Client``, as every ``NumPyClient`` becomes one. Its arrays have no names but their places."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def start(self) -> Arrays:
        from flwr.common import GetParametersIns, parameters_to_ndarrays

        came = self._client.get_parameters(GetParametersIns({}))
        arrays = arrays_of(parameters_to_ndarrays(came.parameters))
        if not arrays:
            raise TaskError("the client has no get_parameters: expected options.initial, which gives the first model")
        return arrays

    def fit(self, arrays: Arrays, config: dict[str, Any], number: int) -> Arrays:
        from flwr.common import FitIns, ndarrays_to_parameters, parameters_to_ndarrays

        parameters = ndarrays_to_parameters(list(arrays.values()))
        came = self._client.fit(FitIns(parameters, {**config, "server_round": number}))
        return _named(parameters_to_ndarrays(came.parameters), tuple(arrays))

    def evaluate(self, arrays: Arrays, config: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        from flwr.common import EvaluateIns, ndarrays_to_parameters

        parameters = ndarrays_to_parameters(list(arrays.values()))
        came = self._client.evaluate(EvaluateIns(parameters, {**config, "server_round": number}))
        return int(came.num_examples), {"loss": came.loss, **came.metrics}


class _App:
    """A ``ClientApp`` whose functions take messages."""

    def __init__(self, app: Any, context: Any) -> None:
        self._app, self._context = app, context

    def start(self) -> Arrays:
        raise TaskError("a ClientApp has no first model: expected options.initial, came none")

    def fit(self, arrays: Arrays, config: dict[str, Any], number: int) -> Arrays:
        content = self._ask("train", arrays, config, number)
        records = list(content.array_records.values())
        if len(records) != 1:
            raise TaskError(f"train: expected a reply with one ArrayRecord, came {len(records)}")
        return {name: array.numpy() for name, array in records[0].items()}

    def evaluate(self, arrays: Arrays, config: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        content = self._ask("evaluate", arrays, config, number)
        metrics = {key: value for record in content.metric_records.values() for key, value in record.items()}
        if not isinstance(metrics.get(EXAMPLES), int):
            raise TaskError(f"evaluate: expected a whole number {EXAMPLES} among the metrics, came none")
        return metrics[EXAMPLES], metrics

    def _ask(self, what: str, arrays: Arrays, config: dict[str, Any], number: int) -> Any:
        from flwr.app import Array, ArrayRecord, ConfigRecord, Message, Metadata, RecordDict

        record = ArrayRecord({name: Array(array) for name, array in arrays.items()})
        content = RecordDict({"arrays": record, "config": ConfigRecord({**config, "server-round": number})})
        # Whole metadata: a message without asks Flower's own process for its run.
        metadata = Metadata(0, "", 0, self._context.node_id, "", str(number), time.time(), _TIME_TO_LIVE, what)
        return self._app(Message(metadata=metadata, content=content), self._context).content


def _options(table: Mapping[str, Any]) -> FlowerOptions:
    try:
        return FlowerOptions.model_validate(dict(table))
    except ValidationError as error:
        raise OptionsError(problems(FlowerOptions, error)) from None


def _node_config(data: dict[str, Any], party: str) -> dict[str, Any]:
    try:
        return _scalars(data)
    except ValueError as error:
        raise TaskError(f"{party}: data: {error}") from None


def _named(arrays: Any, names: tuple[str, ...]) -> Arrays:
    if len(arrays) != len(names):
        raise TaskError(f"fit: expected {len(names)} arrays, came {len(arrays)}")
    return dict(zip(names, map(np.asarray, arrays), strict=True))


def _imported(name: str) -> Any:
    try:
        importlib.import_module("flwr.client")
    except ImportError:
        raise TaskError("task flower: expected the package flwr, came none: pip install 'wardtree[flower]'") from None
    return imported(name)
