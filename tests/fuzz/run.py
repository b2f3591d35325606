"""Coverage-guided fuzzing with atheris (libFuzzer): ``python -m tests.fuzz.run TARGET [libFuzzer options]``.

    python -m tests.fuzz.run decoder -runs=10000000
    python -m tests.fuzz.run decoder crash-0123abcd        # what happened there

Targets are in ``targets.py``. Seeds are made at the start; ``--corpus FOLDER`` keeps what was found for the
next time. The exit code is 0 when every input was handled, 77 when one was not: its bytes are in ``crash-*``.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path

import atheris

INSTRUMENTED = ["node.protocol", "node.channel", "node.published", "keys.segments", "topology"]

with atheris.instrument_imports(include=INSTRUMENTED):
    from tests.fuzz.targets import TARGETS


def main() -> None:
    program, name, *options = sys.argv
    target = TARGETS[name]
    folder = tempfile.mkdtemp(prefix=f"fuzz-{name}-")
    if "--corpus" in options:
        at = options.index("--corpus")
        folder = options[at + 1]
        del options[at : at + 2]
        Path(folder).mkdir(parents=True, exist_ok=True)
    inputs = [option for option in options if not option.startswith("-")]
    if not inputs:  # else these are to be run once more
        for seed in target.seeds():
            (Path(folder) / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        options.append(folder)
    atheris.Setup([program, f"-max_len={target.longest}", "-timeout=20", *options], target.run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
