"""Tests that start nodes are skipped where the kernel cannot confine a node, and say what it lacks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import settings

from node.protocol.posture import NO_GAPS
from node.sandbox.machine import detect, meaning

torch.set_num_threads(1)
"""Some tests start nodes as forks of this process, and what OpenMP's threads held then would be held for ever."""

settings.register_profile("wardtree", deadline=None)  # machines are noisy: speed is measured in benchmarks
settings.load_profile("wardtree")

BEING_ROOT = frozenset({"root"})
"""The one gap that a test's manifest can allow: it is of who runs the tests, not of the kernel."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = [gap for gap in NO_GAPS.refused(detect()) if gap not in BEING_ROOT]
    if missing:
        reason = "; ".join(f"{gap}: {meaning(gap)}" for gap in missing)
        for item in items:
            if item.get_closest_marker("confined"):
                item.add_marker(pytest.mark.skip(reason=reason))
