"""What each room of a node may reach: files, ports, system calls.

room       files                                                   network                                    forks
relay      its own folder, the ledger; reads the identity          TCP: its port, ports of listening parties  no
template   reads the data, the task's source, the public key       no                                         yes
enclave    the same                                                no                                         no
sealer     none of the node's                                      no                                         no
key room   its ledger of openings; reads identity, secret key      no                                         yes
page       the folder of the node's status                         TCP: a socket that listens on loopback     no
ceremony   the home, and files that its command line names         no                                         no
supervisor none of the node's, once the rooms are there            no                                         no

Every room reads Python and its libraries. So the relay can read neither data nor the sealed secret key, and
an enclave none of the node's keys, and of the hospital's files those alone that ``node.toml`` names.
"""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from keys.ceremony import IDENTITY, PUBLIC_KEY
from node.home import BASE, STATUS
from node.sandbox import calls, seccomp
from node.sandbox.kernel import SandboxError
from node.sandbox.landlock import Reach, covers
from node.sandbox.seccomp import Rules

if TYPE_CHECKING:
    from node.home import Home

_LIBRARIES = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/lib", "/lib64", "/nix/store", "/gnu/store")
_LOADER = ("/etc/ld.so.cache", "/etc/ld.so.preload", "/etc/localtime", "/usr/share/zoneinfo")
_MACHINE = ("/proc/cpuinfo", "/proc/meminfo", "/proc/sys/vm/overcommit_memory", "/sys/devices/system/cpu")
_DEVICES = ("/dev/urandom", "/dev/random", "/dev/zero")
_OURS = ("topology", "keys", "node")


@dataclass(frozen=True)
class Room:
    """A room's walls.

    Attributes:
        reach: files and ports; None: no less than the process that forked it.
        rules: called in the room's own process.
    """

    name: str
    reach: Reach | None
    rules: Callable[[], Rules]


def supervisor(rooms: Sequence[int]) -> Room:
    """The process from which the rooms were forked, when all of them were: it has had the passphrase."""
    return Room("supervisor", replace(python_reach(), signals=True), partial(calls.supervisor, rooms))


def relay(home: Home, history: Path | None) -> Room:
    """The one room with sockets. At the key holder nobody is dialled; Landlock knows ports, but no addresses."""
    reach = python_reach()
    reach = replace(
        reach,
        read=(*reach.read, home.path / IDENTITY, home.path / BASE, Path("/proc/self")),  # the last: how much it takes
        write=(home.ledger,),
        replace=(home.relay_folder, *([history] if history else [])),
        bind=(port_of(home.bind),) if home.bind else (),
        connect=() if home.is_key_holder else _listening(home),
        signals=True,  # to enclaves, by the descriptors that the template passes: the only ones it can use
    )
    return Room("relay", reach, calls.relay)


def listening_relay() -> Room:
    """The relay once its sockets are made: it listens where it does already, and nowhere else.

    A socket that listens without a port gets one from the kernel, and Landlock is not asked.
    """
    return Room("relay", None, calls.listening_relay)


def template(home: Path, task_source: Path, readable: Iterable[Path]) -> Room:
    """Where enclaves are forked; what they may read, it may."""
    reach = python_reach(task_source)
    return Room("template", replace(reach, read=(*reach.read, home / PUBLIC_KEY, *readable)), calls.template)


def enclave() -> Room:
    """Within the template's reach, and without another process."""
    return Room("enclave", None, calls.alone)


def sealer() -> Room:
    """Within an enclave's reach, and without the data."""
    return Room("sealer", python_reach(), calls.alone)


def before_forks() -> None:
    """Find out where Python lies, and compile the filter, once for all processes that will be forked."""
    python_reach()
    with suppress(SandboxError):  # no filter on this machine: whoever needs one will say so
        seccomp.compiled(frozenset(calls.alone().items()))


def keyroom(home: Home) -> Room:
    """The one room that has the secret key."""
    reach = python_reach()
    read = (*reach.read, home.path / IDENTITY, home.path / BASE, home.secret_key)
    return Room("key room", replace(reach, read=read, write=(home.openings,)), calls.keyroom)


def page(home: Home) -> Room:
    """Where the status is shown: it got its socket from the supervisor, and can make none."""
    reach = python_reach()
    return Room("page", replace(reach, read=(*reach.read, (home.relay_folder / STATUS).parent)), calls.page)


def keyroom_child() -> Room:
    """Within the key room's reach, and without another process."""
    return Room("key room", None, calls.alone)


def ceremony(read: Iterable[Path], folders: Iterable[Path]) -> Room:
    """Where a ceremony handles the secret key; ``folders`` is where its files are made."""
    reach = python_reach()
    return Room("key room", replace(reach, read=(*reach.read, *read), replace=tuple(folders)), calls.ceremony)


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def _listening(home: Home) -> tuple[int, ...]:
    endpoints = {card.endpoint for card in home.manifest.cards if card.endpoint and card != home.card}
    return tuple(sorted({port_of(endpoint) for endpoint in endpoints}))


@cache
def python_reach(task_source: Path | None = None) -> Reach:
    """What running Python needs: its library, installed packages, shared libraries; and one task's source.

    Of a folder on Python's path that is no place for packages (the working folder, say) only our own
    packages and the task's source are read: what else lies there is nobody's business.
    """
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    on_path = [Path(entry).absolute() for entry in sys.path if entry]
    installed += [path for path in on_path if path.name in ("site-packages", "dist-packages") or path.suffix == ".zip"]
    installed += [Path(prefix) / name for prefix in (sys.base_prefix, sys.prefix) for name in ("lib", "lib64")]
    sources = [folder for name in _OURS for folder in _folders(name)] + ([task_source] if task_source else [])
    read = dict.fromkeys([*installed, *map(Path, (*_LIBRARIES, *_LOADER, *_MACHINE, *_DEVICES))])
    outside = [source for source in sources if not covers(read, source)]
    folders = [path for path in on_path if any(covers([path], source) for source in outside)]
    return Reach(list=tuple(folders), read=(*read, *outside), write=(Path("/dev/null"),))


def _folders(package: str) -> Iterable[Path]:
    spec = importlib.util.find_spec(package)
    return map(Path, spec.submodule_search_locations or ()) if spec else ()
