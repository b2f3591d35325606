"""Flower's SecAgg+ for the benchmark: ``SecAggPlusWorkflow`` and ``secaggplus_mod``, driven in one process.

The workflow talks to a grid that hands its messages to the clients' mod at once. Replies become bytes as
Flower's own client makes them (every object deflated and hashed), and become objects again at the server.
The strategy is ``FedAvg``. What the workflow sends out is not serialised, and its model is empty: neither
counts against it. Nor does the client app's own work: its result lies ready when the mod asks for it.

A client that drops out answers no more once keys are shared. The workflow knows it at once here, where in a network it
would wait for its timeout.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from importlib.metadata import version
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitRes,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.common.secure_aggregation.secaggplus_constants import (
    RECORD_KEY_CONFIGS,
    Key,
    Stage,
)
from flwr.compat.common import recorddict_compat as compat
from flwr.server import LegacyContext, SimpleClientManager
from flwr.server.compat.grid_client_proxy import GridClientProxy
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import (
    MAIN_CONFIGS_RECORD,
    MAIN_PARAMS_RECORD,
)
from flwr.server.workflow.constant import Key as WorkflowKey
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
)
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from node.bench.common import Clock, arguments, make_update, print_result

EXAMPLES = 1000
"""Each client's weight: the workflow's ``max_weight``, at which no precision is lost."""


class Clients:
    """The grid: every client of the study, each with its own state, in this process."""

    def __init__(self, updates: Mapping[int, NDArray[np.float32]], dropped: Collection[int], clock: Clock) -> None:
        """``updates``: of each client, by its number; ``dropped``: who is gone when updates are collected."""
        self.contexts = {
            client: Context(run_id=1, node_id=client, node_config={}, state=RecordDict(), run_config={})
            for client in updates
        }
        self.results = {
            client: FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), EXAMPLES, {})
            for client, update in updates.items()
        }
        self.dropped, self.clock = dropped, clock
        self.upload_bytes = self.other_bytes = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every client's reply, by way of bytes; all but the way back from bytes is the clients' time."""
        replies = []
        for message in messages:
            stage = dict(message.content.config_records[RECORD_KEY_CONFIGS])[Key.STAGE]
            if message.metadata.dst_node_id in self.dropped and stage in (Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK):
                continue
            with self.clock.time("clients"):
                name, contents = self._answer(message)
            replies.append(inflate_object_from_contents(name, contents))
        return replies

    def _answer(self, message: Message) -> tuple[str, dict[str, bytes]]:
        config = dict(message.content.config_records[RECORD_KEY_CONFIGS])
        is_update = config[Key.STAGE] == Stage.COLLECT_MASKED_VECTORS
        # The mod takes the stage out of the record that it gets, and the workflow gives all clients the same.
        message.content = RecordDict(dict(message.content))
        message.content.config_records[RECORD_KEY_CONFIGS] = ConfigRecord(config)
        with self.clock.time("protect" if is_update else "other_stages"):
            with self.clock.time("protect_mod" if is_update else "other_mod"):
                reply = secaggplus_mod(message, self.contexts[message.metadata.dst_node_id], self._app)
            with no_object_id_recompute():
                name = get_object_tree(reply).object_id
                contents = {key: thing.deflate() for key, thing in get_all_nested_objects(reply).items()}
        if is_update:
            self.upload_bytes = sum(map(len, contents.values()))
        else:
            self.other_bytes += sum(map(len, contents.values()))
        return name, contents

    def _app(self, request: Message, context: Context) -> Message:
        result = self.results[context.node_id]
        return Message(compat.fitres_to_recorddict(result, keep_input=True), reply_to=request)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shares", type=int, default=3, help="0: every client is every other's neighbour")
    parser.add_argument("--threshold", type=int, help="shares that give a client's secret back; default: 2, or half")
    parser.add_argument("--updates", help="an .npy file, (parties, params), float32, instead of one that all have")
    parser.add_argument("--drop", type=int, default=0, help="so many clients are gone once keys are shared")
    options = parser.parse_args()
    logging.disable()
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    one = make_update(options.params)
    updates = np.load(options.updates) if options.updates else [one] * options.parties
    ids = range(2, 2 + options.parties)
    expected: NDArray[np.floating[Any]] = (
        one if not options.updates else np.mean(updates[options.drop :], axis=0, dtype=np.float64)
    )
    clock = Clock()
    clients = Clients(dict(zip(ids, updates, strict=True)), ids[: options.drop], clock)
    # Flower names no default for these two: 3 and 2 are its own example's.
    shares, threshold = (options.shares, options.threshold or 2) if options.shares else (1.0, options.threshold or 0.5)
    workflow = SecAggPlusWorkflow(num_shares=shares, reconstruction_threshold=threshold)
    for _ in clock.runs_after_warm_up(options.repeats):
        clients.other_bytes = 0
        context = server_context(clients, ids)
        with clock.time("server"):
            workflow(clients, context)
        sample = clock.runs[-1]
        sample["server"] = sample["server"] - sample.pop("clients")
        for name in ("protect", "protect_mod"):
            sample[name] = sample[name] / (options.parties - options.drop)
        sample["other_stages"] = sample["other_stages"] / options.parties
        downloaded = context.state.array_records[MAIN_PARAMS_RECORD]
        with clock.time("read_back"):
            (mean,) = parameters_to_ndarrays(compat.arrayrecord_to_parameters(downloaded, keep_input=True))
    more = {"aggregated": bool(mean.size), "other_bytes": clients.other_bytes / options.parties}
    print_result(clock, expected, clients.upload_bytes, mean if mean.size else None, f"flwr {version('flwr')}", more)


def server_context(clients: Clients, ids: Iterable[int]) -> Any:
    """The server's state as it stands when Flower's default workflow starts a round's fit."""
    manager = SimpleClientManager()
    for client in ids:
        manager.register(GridClientProxy(client, clients, 1))
    count = manager.num_available()
    strategy = FedAvg(fraction_fit=1.0, min_fit_clients=count, min_available_clients=count)
    state = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    context = LegacyContext(state, strategy=strategy, client_manager=manager)
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({WorkflowKey.CURRENT_ROUND: 1})
    empty = ndarrays_to_parameters([np.zeros(0)])
    context.state.array_records[MAIN_PARAMS_RECORD] = compat.parameters_to_arrayrecord(empty, True)
    return context


if __name__ == "__main__":
    main()
