"""An LWE encryption to compare with: Zama's Concrete (TFHE), one ciphertext a value.

It runs in an environment of its own, which has concrete-python and nothing of ours: standard library and numpy only.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import numpy as np
from concrete import fhe

from node.bench.common import Clock, arguments, digest, make_update

BITS = 14
"""Values are quantised as ours are."""


def _add(x: Any, y: Any) -> Any:
    return x + y


def main() -> None:
    options = arguments(__doc__).parse_args()
    update = make_update(options.params)
    top = 2**BITS - 1
    bound = float(np.abs(update).max())
    values = np.rint((update / bound + 1) / 2 * top).astype(np.int64)

    compiler = fhe.Compiler(_add, {"x": "encrypted", "y": "encrypted"})
    circuit = compiler.compile([(np.zeros_like(values),) * 2, (np.full_like(values, top),) * 2])
    circuit.keygen()
    clock, upload, total = Clock(), b"", b""
    for _ in clock.runs_after_warm_up(options.repeats):
        with clock.time("encrypt"):
            upload = circuit.encrypt(values, None)[0].serialize()
        other = circuit.encrypt(None, values)[1].serialize()
        with clock.time("add"):
            parts = (fhe.Value.deserialize(part) for part in (upload, other))
            total = circuit.run(*parts).serialize()
        with clock.time("decrypt"):
            opened = circuit.decrypt(fhe.Value.deserialize(total))
    error = np.abs((opened / top * 2 - 2) * bound - 2 * update.astype(np.float64)).max()
    result = clock.medians() | {
        "bytes": len(upload),
        "error": float(error),
        "update_sha256": digest(update),
        "version": f"concrete-python {version('concrete-python')}, {circuit.configuration.security_level.value}-bit",
    }
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
