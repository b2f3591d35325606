"""What ``wardtree doctor`` finds out: facts of this machine, rooms really entered, and what a manifest asks for."""

from __future__ import annotations

import os
import platform
import select
import shutil
import signal
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from node.home import Home
from node.process import harden
from node.protocol.posture import ADVISORY, NO_GAPS, Posture
from node.sandbox import calls, policy
from node.sandbox.enter import enter, narrow
from node.sandbox.kernel import SandboxError
from node.sandbox.machine import REMEDIES, detect, facts, meaning

SECONDS = 10.0


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Part):
    """One fact of this machine."""

    name: str = Field(description="The gap's name, as manifests and ledgers write it.")
    state: Literal["good", "gap", "allowed gap", "advice"] = Field(
        description="gap: refused. allowed gap: the manifest, or the default, lets it be. advice: it is only advised "
        "against, and no study demands it."
    )
    found: str = Field(description="What was found.")
    meaning: str = Field(description="What the gap is.")
    remedy: str | None = Field(description="What closes it; null where there is nothing to close.")


class RoomInForce(_Part):
    """A room that was entered for this report, as its process is in the kernel's tables."""

    name: str
    confined: bool
    error: str | None = Field(description="Why it could not be entered.")
    seccomp_filters: int | None = Field(description="Filters of system calls; null where the kernel does not count.")
    no_new_privileges: bool
    capabilities: str = Field(description="Effective capabilities, in hexadecimal; 0 is none.")


class Report(_Part):
    """What ``wardtree doctor --json`` prints."""

    wardtree: str
    kernel: str
    architecture: str
    python: str
    policy: str = Field(description="required, bubblewrap, external or off.")
    posture: str = Field(description="As it goes into the hello and the ledgers.")
    bubblewrap: str | None = Field(description="Where bwrap is installed.")
    home: str | None = Field(description="The node whose manifest was asked; null: none was.")
    ok: bool = Field(description="Whether a node starts here.")
    checks: tuple[Check, ...]
    rooms: tuple[RoomInForce, ...]


def examine(home: Home | None, asked: str | None) -> Report:
    """Look at everything, and enter every room once.

    Args:
        home: whose manifest and settings count; None: the strictest manifest.
        asked: a policy, instead of the home's or "required".
    """
    chosen = asked or (home.policy if home else "required")
    minimum = home.minimum if home else NO_GAPS
    posture = detect(chosen)
    refused = minimum.refused(posture)
    checks = tuple(
        Check(
            name=fact.gap,
            state=_state(fact.gap, refused) if fact.is_gap else "good",
            found=fact.found,
            meaning=meaning(fact.gap),
            remedy=REMEDIES[fact.gap] if fact.is_gap else None,
        )
        for fact in facts(chosen)
    )
    rooms = tuple(_enter(name, walls, posture) for name, walls in _rooms(home).items()) if chosen != "off" else ()
    return Report(
        wardtree=_version(),
        kernel=platform.release(),
        architecture=platform.machine(),
        python=sys.executable,
        policy=chosen,
        posture=posture.text,
        bubblewrap=shutil.which("bwrap"),
        home=str(home.path) if home else None,
        ok=not refused and all(room.confined for room in rooms),
        checks=checks,
        rooms=rooms,
    )


def _state(gap: str, refused: tuple[str, ...]) -> Literal["gap", "allowed gap", "advice"]:
    if gap in refused:
        return "gap"
    return "advice" if gap in ADVISORY else "allowed gap"


def _version() -> str:
    try:
        return version("wardtree")
    except PackageNotFoundError:
        return "not installed"


# ---- rooms, really entered --------------------------------------------------------------------------------


def _rooms(home: Home | None) -> dict[str, tuple[policy.Room, policy.Room]]:
    """The rooms of a node, with what narrows them; without a home, ones that reach Python and nothing else."""
    supervisor = policy.supervisor([os.getpid()])
    if home:
        template = policy.template(home.path, home.task_source, home.readable)
        rooms = {"supervisor": (supervisor, supervisor), "relay": (policy.relay(home, None), policy.listening_relay())}
        rooms |= {"enclave": (template, policy.enclave())}
        rooms |= {"key room": (policy.keyroom(home), policy.keyroom_child())} if home.is_key_holder else {}
        return rooms | {"page": (policy.page(home), policy.page(home))}
    bare = policy.python_reach()
    return {
        "supervisor": (supervisor, supervisor),
        "relay": (policy.Room("relay", replace(bare, signals=True), calls.relay), policy.listening_relay()),
        "enclave": (policy.Room("template", bare, calls.template), policy.enclave()),
        "key room": (policy.Room("key room", bare, calls.keyroom), policy.keyroom_child()),
        "page": (policy.Room("page", bare, calls.page), policy.Room("page", None, calls.page)),
    }


def _enter(name: str, walls: tuple[policy.Room, policy.Room], posture: Posture) -> RoomInForce:
    room, narrower = walls
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        _wait_inside(room, narrower, posture, write)
    os.close(write)
    try:
        said = os.read(read, 2000).decode() if select.select([read], [], [], SECONDS)[0] else "it did not answer"
        status = _status(child)
    finally:
        os.close(read)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    entered = said == "entered"
    filters = status.get("Seccomp_filters")
    return RoomInForce(
        name=name,
        confined=entered,
        error=None if entered else said or "its process ended",
        seccomp_filters=int(filters) if filters else None,
        no_new_privileges=status.get("NoNewPrivs") == "1",
        capabilities=status.get("CapEff", "unknown").lstrip("0") or "0",
    )


def _wait_inside(room: policy.Room, narrower: policy.Room, posture: Posture, say: int) -> None:
    try:
        harden()
        enter(room, posture, [say])
        narrow(narrower, posture)
        os.write(say, b"entered")
        signal.pause()
    except SandboxError as error:
        os.write(say, str(error).encode())
    finally:
        os._exit(0)


def _status(process: int) -> dict[str, str]:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
