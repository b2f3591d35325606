"""What this machine offers: the posture that a node can take here, and what to do about each gap."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from node.protocol.posture import ADVISORY, REQUIRED, Minimum, Posture
from node.sandbox.kernel import SandboxError, has_seccomp
from node.sandbox.landlock import PORTS_FROM, TRUNCATE_FROM, landlock_version

POLICIES = ("required", "bubblewrap", "external", "off")

BUBBLEWRAP = "/wardtree-bubblewrap"
"""A link in the root of a view of :mod:`node.sandbox.bubblewrap`; outside only the machine's root could make one."""

REMEDIES = {
    "core-pattern": "the rooms leave no cores; for all else on this machine: sysctl kernel.core_pattern=core",
    "external": 'let the kernel confine the rooms: policy = "required"',
    "hibernation": "systemctl mask hibernate.target hybrid-sleep.target suspend-then-hibernate.target",
    "init-on-free": "boot the kernel with init_on_free=1",
    "landlock": "Linux 5.13 or newer with CONFIG_SECURITY_LANDLOCK, and landlock in the kernel's lsm= list",
    "landlock-tcp": "Linux 6.7 or newer; Debian 13, Ubuntu 24.04, RHEL 9.6 have it",
    "landlock-truncate": "Linux 6.2 or newer",
    "no-sandbox": "leave --insecure-development away",
    "ptrace": "the rooms cannot be traced; for all else on this machine: sysctl kernel.yama.ptrace_scope=1",
    "root": "run the node as a user of its own",
    "seccomp": "a kernel with CONFIG_SECCOMP_FILTER, in no container that forbids it",
    "shared-files": 'a kernel with Landlock, and policy = "required"',
    "swap": "swapoff -a; or MemorySwapMax=0 for this service alone, as in deploy/wardtree-node@.service",
}
"""What closes each gap."""


@dataclass(frozen=True)
class Fact:
    """One thing that was looked at: the gap that it would be, whether it is one, and what was found."""

    gap: str
    is_gap: bool
    found: str


def facts(policy: str = "required") -> tuple[Fact, ...]:
    """Everything that this machine's kernel, configuration and this user say about a sandbox."""
    return (*_kernel(policy), *_configuration())


def detect(policy: str = "required") -> Posture:
    """The posture that a node has on this machine under a policy."""
    version = 0 if policy == "off" else landlock_version()
    return Posture(policy, version, frozenset(fact.gap for fact in facts(policy) if fact.is_gap))


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
    remedy = REMEDIES.get(gap, "install a newer version of wardtree")
    return f"sandbox gap {gap!r}: {meaning(gap)}. To close it: {remedy}"


def meaning(gap: str) -> str:
    """What a gap is, in a few words."""
    return (REQUIRED | ADVISORY).get(gap, "unknown to this version")


def is_root() -> bool:
    """Whether this is the machine's root, and not the root of a user namespace only."""
    if os.geteuid() != 0:
        return False
    inside, outside = _text("/proc/self/uid_map").split()[:2] or ("0", "0")
    return inside == outside == "0"


def _kernel(policy: str) -> Iterator[Fact]:
    if policy == "off":
        yield Fact("no-sandbox", True, "off")
    else:
        version = landlock_version()
        found = f"version {version}" if version else "none"
        shared = version < 1 and policy == "bubblewrap" and os.path.islink(BUBBLEWRAP)
        yield Fact("landlock", version < 1 and not shared, found)
        if policy == "bubblewrap":
            yield Fact("shared-files", shared, "bubblewrap" if shared else "each room its own")
        yield Fact("landlock-truncate", 0 < version < TRUNCATE_FROM, found)
        yield Fact("landlock-tcp", version < PORTS_FROM, found)
        filters = has_seccomp()
        yield Fact("seccomp", not filters, "filters" if filters else "none")
    if policy == "external":
        yield Fact("external", True, "vouched for in node.toml, or on the command line")
    yield Fact("root", is_root(), f"user {os.geteuid()}")


def _configuration() -> Iterator[Fact]:
    """What the rooms cannot do themselves, and only the machine's administrator can."""
    devices = [line.split()[0] for line in _text("/proc/swaps").splitlines()[1:]]
    on_disk = [device for device in devices if not device.startswith("/dev/zram")]
    limit = _cgroup("memory.swap.max")
    found = ", ".join(devices) or "none"
    yield Fact("swap", bool(on_disk) and limit != "0", f"{found}, and none for this service" if limit == "0" else found)
    states = _text("/sys/power/state").split()
    yield Fact("hibernation", "disk" in states, " ".join(states) or "none")
    pattern = _text("/proc/sys/kernel/core_pattern").strip()
    yield Fact("core-pattern", pattern.startswith("|"), pattern or "unknown")
    cleared = _clears_freed_pages()
    yield Fact("init-on-free", not cleared, "on" if cleared else "off")
    scope = _text("/proc/sys/kernel/yama/ptrace_scope").strip()
    yield Fact("ptrace", scope in ("", "0"), f"yama {scope}" if scope else "no yama")


def _clears_freed_pages() -> bool:
    """By the kernel's command line, or as it was built where that can be read."""
    options = _text("/proc/cmdline").split()
    built = "CONFIG_INIT_ON_FREE_DEFAULT_ON=y" in _text(f"/boot/config-{os.uname().release}").splitlines()
    return "init_on_free=1" in options or (built and "init_on_free=0" not in options)


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
