"""What lies around a room when somebody tries to get out of it, and what an attempt is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SUPERVISOR, RELAY, ENCLAVE, KEYROOM, PAGE = ROOMS = ("supervisor", "relay", "enclave", "key room", "page")
SECRET = b"patient 4711"


@dataclass(frozen=True)
class Scene:
    """What lies around, prepared outside any room.

    Attributes:
        home, other: the node's own home, and another party's on the same machine.
        openings: the key room's ledger.
        secret_key: the key holder's sealed secret key.
        data: the hospital's file that ``[data]`` names.
        outside: a folder of the same user's, with the file ``note``.
        free, parent, stranger: TCP ports: the relay's own, which nobody uses yet, its parent's, somebody else's.
        datagrams: a UDP port that somebody listens on.
        unix, abstract: addresses of listening unix sockets.
        victim: another process of the same user, which its user may trace; ``SECRET`` lies at ``secret_at``.
        terminal: a descriptor of the terminal from which the node was started, inherited.
    """

    home: Path
    other: Path
    openings: Path
    secret_key: Path
    data: Path
    outside: Path
    free: int
    parent: int
    stranger: int
    datagrams: int
    unix: str
    abstract: str
    victim: int
    secret_at: int
    terminal: int

    @property
    def folder(self) -> Path:
        """The relay's own."""
        return self.home / "relay"

    @property
    def spare(self) -> Path:
        """A file of the node that an attempt may destroy."""
        return self.home / "spare"

    def fresh(self) -> Path:
        """A path in the relay's folder where nothing is yet."""
        return self.folder / f"made-{os.getpid()}"


@dataclass(frozen=True)
class Attempt:
    """``works_in``: the rooms whose work it is; in all others it must be refused."""

    group: str
    name: str
    act: Callable[[Scene], object]
    works_in: frozenset[str]
    needs_root: bool
