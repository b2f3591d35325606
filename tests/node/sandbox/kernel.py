"""What this machine's kernel lets the tests show."""

from __future__ import annotations

import pytest

from node.sandbox.kernel import has_seccomp
from node.sandbox.landlock import PORTS_FROM, landlock_version

needs_landlock = pytest.mark.skipif(
    landlock_version() < PORTS_FROM or not has_seccomp(),
    reason=f"this kernel has no seccomp, or not Landlock {PORTS_FROM}: it has {landlock_version()}",
)
