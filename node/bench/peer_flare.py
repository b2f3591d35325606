"""NVIDIA FLARE's own homomorphic encryption for the benchmark: its classes, called in its order.

Keys and settings come from ``HEBuilder`` as FLARE's provisioning makes them. A client's result passes
``HEModelEncryptor`` and FLARE's serialisation; the server deserialises, accumulates, aggregates, turns the
result into the next task's data; a client deserialises that and passes it through ``HEModelDecryptor``.
"""

from __future__ import annotations

import logging
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvflare.apis.dxo import DXO, DataKind, MetaKey, from_shareable  # type: ignore[import-not-found]
from nvflare.apis.event_type import EventType  # type: ignore[import-not-found]
from nvflare.apis.fl_constant import FLContextKey, ReservedKey  # type: ignore[import-not-found]
from nvflare.apis.fl_context import FLContext  # type: ignore[import-not-found]
from nvflare.apis.utils.decomposers import flare_decomposers  # type: ignore[import-not-found]
from nvflare.app_common.abstract.model import make_model_learnable  # type: ignore[import-not-found]
from nvflare.app_common.app_constant import AppConstants  # type: ignore[import-not-found]
from nvflare.app_opt.he.intime_accumulate_model_aggregator import (  # type: ignore[import-not-found]
    HEInTimeAccumulateWeightedAggregator,
)
from nvflare.app_opt.he.model_decryptor import HEModelDecryptor  # type: ignore[import-not-found]
from nvflare.app_opt.he.model_encryptor import HEModelEncryptor  # type: ignore[import-not-found]
from nvflare.app_opt.he.model_shareable_generator import (  # type: ignore[import-not-found]
    HEModelShareableGenerator,
)
from nvflare.fuel.sec.security_content_service import SecurityContentService  # type: ignore[import-not-found]
from nvflare.fuel.utils import fobs  # type: ignore[import-not-found]
from nvflare.lighter.impl.he import HEBuilder  # type: ignore[import-not-found]

from node.bench.common import DISTINCT, Clock, arguments, make_update, print_result

ROUND = 0


class Flare:
    """One client's filters and the server's components, set up as a job's start does."""

    def __init__(self, folder: Path, parties: int) -> None:
        builder = HEBuilder()
        builder.initialize(None, None)
        (folder / "server_context.tenseal").write_bytes(builder.get_serialized_context())
        (folder / "client_context.tenseal").write_bytes(builder.get_serialized_context(is_client=True))
        SecurityContentService.initialize(str(folder))
        flare_decomposers.register()
        self.context = FLContext()
        self.context.set_prop(FLContextKey.SECURE_MODE, False)  # the context files are not signed here
        self.context.set_prop(AppConstants.CURRENT_ROUND, ROUND)
        self.context.set_prop(AppConstants.GLOBAL_MODEL, make_model_learnable({}, {}))
        peer = FLContext()
        peer.set_prop(ReservedKey.IDENTITY_NAME, "site-1")
        self.context.set_peer_context(peer)
        self.encryptor, self.decryptor = HEModelEncryptor(), HEModelDecryptor()
        self.aggregator = HEInTimeAccumulateWeightedAggregator(
            aggregation_weights={f"site-{party}": 1.0 for party in range(parties)},
            expected_data_kind=DataKind.WEIGHTS,
        )
        self.generator = HEModelShareableGenerator()
        for component in (self.encryptor, self.decryptor, self.aggregator, self.generator):
            component.handle_event(EventType.START_RUN, self.context)

    def protect(self, layers: dict[str, NDArray[np.float32]]) -> bytes:
        """Client: from the layers to the bytes of its result."""
        dxo = DXO(DataKind.WEIGHTS, data=layers, meta={MetaKey.NUM_STEPS_CURRENT_ROUND: 1})
        return bytes(fobs.dumps(self.encryptor.process(dxo.to_shareable(), self.context)))

    def aggregate(self, results: list[bytes], parties: int) -> bytes:
        """Server: from the results' bytes to the bytes of the next task's data."""
        for party in range(parties):
            result = fobs.loads(results[party % len(results)])
            result.set_peer_props({ReservedKey.IDENTITY_NAME: f"site-{party}"})
            result.add_cookie(AppConstants.CONTRIBUTION_ROUND, ROUND)
            if not self.aggregator.accept(result, self.context):
                raise RuntimeError("FLARE's aggregator refused a result")
        learnable = self.generator.shareable_to_learnable(self.aggregator.aggregate(self.context), self.context)
        return bytes(fobs.dumps(self.generator.learnable_to_shareable(learnable, self.context)))

    def read_back(self, task_data: bytes) -> dict[str, Any]:
        """Client: from the bytes to the layers' floats."""
        return dict(from_shareable(self.decryptor.process(fobs.loads(task_data), self.context)).data)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--layers", type=int, default=1)
    options = parser.parse_args()
    logging.disable()
    update = make_update(options.params)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        flare = Flare(Path(folder), options.parties)

    def layers() -> dict[str, NDArray[np.float32]]:
        return {str(index): part for index, part in enumerate(np.array_split(update, options.layers))}

    kept: list[bytes] = []
    for _ in clock.runs_after_warm_up(options.repeats):
        with clock.time("protect"):
            message = flare.protect(layers())
        while len(kept) < min(options.parties, DISTINCT) - 1:
            kept.append(flare.protect(layers()))
        with clock.time("server"):
            reply = flare.aggregate([message, *kept], options.parties)
        with clock.time("read_back"):
            opened = flare.read_back(reply)
    mean = np.concatenate([np.asarray(opened[name]) for name in layers()])
    versions = f"nvflare {version('nvflare')}, tenseal {version('tenseal')}"
    print_result(clock, update, len(message), mean, versions)


if __name__ == "__main__":
    main()
