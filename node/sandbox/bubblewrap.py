"""bubblewrap in place of Landlock, on kernels without it: the whole node sees its own files, and no others.

All rooms then share one view (the gap ``shared-files``); the filters of system calls stay each room's own.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from node.sandbox.kernel import SandboxError
from node.sandbox.landlock import covers
from node.sandbox.machine import BUBBLEWRAP
from node.sandbox.policy import python_reach

if TYPE_CHECKING:
    from node.home import Home

_NAMES = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/host.conf", "/etc/gai.conf", "/etc/passwd")
"""What looking up the other parties takes, before the relay is confined."""
_ISOLATE = ("--unshare-pid", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try", "--die-with-parent")
_TRY = (*("--unshare-pid", "--die-with-parent", "--ro-bind", "/", "/", "--proc", "/proc"), "true")


def enter_view(home: Home, program: Iterable[str]) -> None:
    """Start ``program`` in place of this process, in a view of the home, what its enclaves read, and Python.

    Inherited descriptors stay open, the one with the passphrase say.

    Raises:
        SandboxError: bubblewrap is not installed, or this machine does not let it work.
    """
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise SandboxError(f"{home.name}: policy bubblewrap: bwrap is not installed (package bubblewrap)")
    tried = subprocess.run([bwrap, *_TRY], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if tried.returncode:
        why = (tried.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SandboxError(f"{home.name}: policy bubblewrap: this machine does not let it work: {why}")
    sys.stdout.flush()
    os.execv(bwrap, [bwrap, *view(home), *program])


def view(home: Home) -> list[str]:
    """bubblewrap's options: everything read-only but the home, nothing of the rest of the machine."""
    reach = python_reach(home.task_source)
    below = ("/proc", "/dev", "/sys")
    read = [path for path in (*reach.read, *reach.list, *map(Path, _NAMES)) if not str(path).startswith(below)]
    programs = [path.absolute() for path in map(Path, (sys.base_prefix, sys.prefix, sys.executable))]
    options = [*_ISOLATE, "--cap-drop", "ALL", "--proc", "/proc", "--dev", "/dev", "--dir", "/tmp"]
    options += ["--ro-bind-try", "/sys/devices/system/cpu", "/sys/devices/system/cpu"]
    seen: list[Path] = []
    for path in dict.fromkeys([*read, *programs, *home.readable]):
        if not covers(seen, path):  # inside of another view it may be a link to what is not in view yet
            options += ["--ro-bind-try", str(path), str(path)]
            seen.append(path)
    own = str(home.path.resolve())
    ours = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH"))))
    options += ["--bind", own, own, "--symlink", "bubblewrap", BUBBLEWRAP, "--setenv", "PYTHONPATH", ours]
    return [*options, "--chdir", "/", "--"]
