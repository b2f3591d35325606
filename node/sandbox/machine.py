"""What this machine offers: the posture that a node can take here, and what to do about each gap."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from node.protocol.posture import ADVISORY, REQUIRED, Minimum, Posture
from node.sandbox.kernel import SandboxError, has_seccomp
from node.sandbox.landlock import PORTS_FROM, TRUNCATE_FROM, landlock_version

POLICIES = ("required", "bubblewrap", "external", "off")

ADVICE = {
    "core-pattern": "the rooms leave no cores; to be sure of all else: sysctl kernel.core_pattern=core",
    "external": 'confine the rooms by the kernel: policy = "required"',
    "hibernation": "mask hibernation: systemctl mask hibernate.target hybrid-sleep.target",
    "init-on-free": "boot the kernel with init_on_free=1",
    "landlock": "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm= list",
    "landlock-tcp": "Linux 6.7 or newer (Ubuntu 24.04, Debian 13, RHEL 9.6)",
    "landlock-truncate": "Linux 6.2 or newer",
    "no-sandbox": "leave --insecure-development away",
    "ptrace": "the rooms cannot be traced; to be sure of all else: sysctl kernel.yama.ptrace_scope=1 or higher",
    "root": "run the node as a user of its own",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, and no container that forbids it",
    "shared-files": 'a kernel with Landlock, and policy = "required"',
    "swap": "swapoff -a; or for this service alone MemorySwapMax=0, as deploy/wardtree-node@.service says",
}
"""What closes each gap."""


def detect(policy: str = "required") -> Posture:
    """The posture that a node has on this machine under a policy."""
    version = 0 if policy == "off" else landlock_version()
    gaps = {name for name, there in _ADVISORY_CHECKS.items() if there()}
    if is_root():
        gaps.add("root")
    if policy == "off":
        return Posture(policy, 0, frozenset(gaps | {"no-sandbox"}))
    if not has_seccomp():
        gaps.add("seccomp")
    if version < 1:
        gaps.add("shared-files" if policy == "bubblewrap" else "landlock")
    elif version < TRUNCATE_FROM:
        gaps.add("landlock-truncate")
    if version < PORTS_FROM:
        gaps.add("landlock-tcp")
    if policy == "external":
        gaps.add("external")
    return Posture(policy, version, frozenset(gaps))


BY_MANIFEST = "all parties sign a manifest that allows it by name"


def require(posture: Posture, minimum: Minimum, who: str, otherwise: str = BY_MANIFEST) -> None:
    """Refuse to start below the minimum of the manifest.

    Raises:
        SandboxError: one line for each gap: what is missing, what closes it, and how it could be allowed.
    """
    refused = minimum.refused(posture)
    if refused:
        raise SandboxError("\n".join(f"{who}: {explain(gap)}. Or {otherwise}" for gap in refused))


def explain(gap: str) -> str:
    """A gap and what closes it, in one line."""
    what = (REQUIRED | ADVISORY).get(gap, "unknown to this version")
    remedy = ADVICE.get(gap, "install a newer version of wardtree")
    return f"sandbox gap {gap!r}: {what}. To close it: {remedy}"


def is_root() -> bool:
    """Whether this is the machine's root, and not the root of a user namespace only."""
    if os.geteuid() != 0:
        return False
    inside, outside = _text("/proc/self/uid_map").split()[:2] or ("0", "0")
    return inside == outside == "0"


# ---- what only advice can be given for --------------------------------------------------------------------


def swap() -> bool:
    """Whether this process's memory may be written to a swap device that survives a power cut."""
    devices = [line.split()[0] for line in _text("/proc/swaps").splitlines()[1:]]
    on_disk = [device for device in devices if not device.startswith("/dev/zram")]
    return bool(on_disk) and _cgroup("memory.swap.max") != "0"


def core_pattern() -> bool:
    return _text("/proc/sys/kernel/core_pattern").startswith("|")


def hibernation() -> bool:
    return "disk" in _text("/sys/power/state").split()


def init_on_free() -> bool:
    """Whether freed pages keep what they held. A command line says it; a kernel built to do it does not tell."""
    options = _text("/proc/cmdline").split()
    return "init_on_free=1" not in options


def ptrace() -> bool:
    scope = _text("/proc/sys/kernel/yama/ptrace_scope").strip()
    return scope in ("", "0")


_ADVISORY_CHECKS: dict[str, Callable[[], bool]] = {
    "core-pattern": core_pattern,
    "hibernation": hibernation,
    "init-on-free": init_on_free,
    "ptrace": ptrace,
    "swap": swap,
}


def _cgroup(limit: str) -> str:
    """A limit of our own control group, "" where there is none."""
    for line in _text("/proc/self/cgroup").splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return _text(f"/sys/fs/cgroup{path}/{limit}").strip()
    return ""


def _text(path: str) -> str:
    with contextlib.suppress(OSError):
        return Path(path).read_text(encoding="utf-8", errors="replace")
    return ""
