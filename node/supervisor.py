"""The supervisor: one small process a node, from which all its rooms are forked.

Order matters. The template of the enclaves is forked first, before there is a passphrase in memory; then
the key room (at the key holder) and the relay, which open what they need of the sealed files themselves.
When the relay ends, or the supervisor is told to, everything else is ended too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from keys.errors import WardtreeError
from node.channel import Channel
from node.home import Home, Options, load_home, lock_home
from node.process import ENDED_FROM_OUTSIDE, name_process, reap, spawn
from node.telemetry import Telemetry

if TYPE_CHECKING:  # what each room imports stays out of this process
    from node.enclave import EnclaveSettings
    from node.warm import Nursery


class EndedFromOutsideError(WardtreeError):
    """A process of this node was killed."""


def run_node(
    path: Path,
    passphrase: Callable[[], str],
    channel: Channel | None,
    options: Options | None = None,
    nursery: Nursery | None = None,
) -> int:
    """Run one node from its home until the study ends.

    Args:
        path: the home folder.
        passphrase: called once, after the template is forked.
        channel: where telemetry goes.
        options: see :class:`Options`.
        nursery: a process that forks the template instead of this one, in a local run.

    Returns:
        The exit code: 0 the study is complete, 1 it failed, 2 this node could not start or go on, 75 a process of
        it was killed and it goes on when it is started again.

    Raises:
        EndedFromOutsideError: that process was the relay.
        WardtreeError: the home is not ready.
    """
    home = load_home(path, datetime.now(UTC))
    lock = lock_home(path)
    name_process(f"node {home.name}")
    children: list[int] = []
    telemetry = Telemetry(channel, home.name)
    try:
        return _run(home, passphrase, telemetry, options or Options(), nursery, children)
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                reap(child)
        os.close(lock)


def _run(
    home: Home,
    passphrase: Callable[[], str],
    telemetry: Telemetry,
    options: Options,
    nursery: Nursery | None,
    children: list[int],
) -> int:
    # What each room imports stays out of this process: the rooms are forked from it.
    control, template_control = socket.socketpair()
    keyroom_jobs, template_jobs = socket.socketpair() if home.is_key_holder else (None, None)
    sockets = [s for s in (control, template_control, keyroom_jobs, template_jobs) if s]
    if nursery:
        nursery.fork_template(home.path, [end for end in (template_control, template_jobs) if end])
    else:
        children.append(spawn(signal.SIGKILL, _template, home, template_control, template_jobs, sockets))
    secret = passphrase()
    relay_end: Channel | None = None
    if keyroom_jobs:
        relay_end, keyroom_end = Channel.pair()
        children.append(spawn(signal.SIGKILL, _keyroom, home, secret, keyroom_end, keyroom_jobs, relay_end, sockets))
        keyroom_end.close()
    relay = spawn(signal.SIGKILL, _relay, home, secret, control, relay_end, telemetry, options, sockets)
    children.append(relay)
    for end in sockets:
        end.close()
    if relay_end:
        relay_end.close()
    code = reap(relay)
    children.remove(relay)
    if code < 0:
        raise EndedFromOutsideError(
            f"{home.name}: the relay was ended by signal {-code}; start this node again, and it goes on"
        )
    if code not in (0, 1, 2, ENDED_FROM_OUTSIDE):
        raise WardtreeError(f"{home.name}: the relay ended with {code}; see its message above")
    return code


def _close_others(sockets: list[socket.socket], keep: tuple[socket.socket | None, ...]) -> None:
    for end in sockets:
        if end not in keep:
            end.close()


def _template(home: Home, control: socket.socket, jobs: socket.socket | None, sockets: list[socket.socket]) -> None:
    _close_others(sockets, (control, jobs))
    from node.enclave import run_template

    run_template(control, jobs, enclave_settings(home))


def enclave_settings(home: Home) -> EnclaveSettings:
    """What the enclaves of a node are told."""
    from node.enclave import EnclaveSettings

    return EnclaveSettings(
        party=home.name,
        task=home.study.task.class_name,
        options=home.study.task.options,
        data=home.data,
        seed=home.study.seed,
        home=home.path,
        rounds=home.study.rounds,
        clip=home.study.aggregation.clip,
        share=home.share,
        plan=home.plan,
        is_key_holder=home.is_key_holder,
    )


def _keyroom(
    home: Home,
    passphrase: str,
    channel: Channel,
    jobs: socket.socket,
    relay_end: Channel,
    sockets: list[socket.socket],
) -> None:
    relay_end.close()
    _close_others(sockets, (jobs,))
    from node.keyroom import run_keyroom

    run_keyroom(channel, jobs, home, passphrase)


def _relay(
    home: Home,
    passphrase: str,
    control: socket.socket,
    keyroom: Channel | None,
    telemetry: Telemetry,
    options: Options,
    sockets: list[socket.socket],
) -> None:
    _close_others(sockets, (control,))
    from node.relay import run_relay

    run_relay(home, passphrase, control, keyroom, telemetry, options)
