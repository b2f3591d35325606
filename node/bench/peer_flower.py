"""Flower's SecAgg+ for the benchmark: ``SecAggPlusWorkflow`` and ``secaggplus_mod``, driven in one process.

The workflow talks to a grid that hands its messages to the clients' mod at once. Replies become bytes as
Flower's own client makes them (every object deflated and hashed), and become objects again at the server.
The strategy is ``FedAvg``. What the workflow sends out is not serialised, and its model is empty: neither
counts against it. Nor does the client app's own work: its result lies ready when the mod asks for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
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

from node.bench.common import Clock, arguments, make_update, print_result

EXAMPLES = 1000
"""Each client's weight: the workflow's ``max_weight``, at which no precision is lost."""


class Clients:
    """The grid: every client of the study, each with its own state, in this process."""

    def __init__(self, ids: Iterable[int], result: FitRes, clock: Clock) -> None:
        self.contexts = {
            client: Context(run_id=1, node_id=client, node_config={}, state=RecordDict(), run_config={})
            for client in ids
        }
        self.result = result
        self.clock = clock
        self.upload_bytes = 0

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every client's reply, by way of bytes; all but the way back from bytes is the clients' time."""
        replies = []
        for message in messages:
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
        return name, contents

    def _app(self, request: Message, _: Context) -> Message:
        return Message(compat.fitres_to_recorddict(self.result, keep_input=True), reply_to=request)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shares", type=int, default=3, help="0: every client is every other's neighbour")
    options = parser.parse_args()
    logging.disable()
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    update = make_update(options.params)
    ids = range(2, 2 + options.parties)
    fitted = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([update]), EXAMPLES, {})
    clock = Clock()
    clients = Clients(ids, fitted, clock)
    # Flower names no default for these two: 3 and 2 are its own example's.
    shares, threshold = (options.shares, 2) if options.shares else (1.0, 0.5)
    workflow = SecAggPlusWorkflow(num_shares=shares, reconstruction_threshold=threshold)
    for _ in clock.runs_after_warm_up(options.repeats):
        context = server_context(clients, ids)
        with clock.time("server"):
            workflow(clients, context)
        sample = clock.runs[-1]
        sample["server"] = sample["server"] - sample.pop("clients")
        for name in ("protect", "protect_mod", "other_stages"):
            sample[name] = sample[name] / options.parties
        downloaded = context.state.array_records[MAIN_PARAMS_RECORD]
        with clock.time("read_back"):
            (mean,) = parameters_to_ndarrays(compat.arrayrecord_to_parameters(downloaded, keep_input=True))
    print_result(clock, update, clients.upload_bytes, mean, f"flwr {version('flwr')}")


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
