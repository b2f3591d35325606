"""The supervisor: one small process a node, from which all its rooms are forked.

Order matters. The template of the enclaves is forked first, before there is a passphrase in memory; then
the key room (at the key holder) and the relay, which open what they need of the sealed files themselves.
When the relay ends, or the supervisor is told to, everything else is ended too.

Each room is confined by the first line that it runs (``node/sandbox``), before it imports what it needs, and the
supervisor, when all of them are there: what is left to do is to wait, and to end them. If that cannot be done as the
manifest asks, no room starts, and the exit code is 69.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from keys.errors import WardtreeError
from node.channel import Channel
from node.home import MODEL, RELAY, STATUS, Home, HomeError, Options, load_home, lock_home
from node.nursery import Nursery
from node.operate.loopback import address, listen
from node.process import ENDED_FROM_OUTSIDE, name_process, reap, spawn
from node.sandbox import policy
from node.sandbox.enter import enter
from node.sandbox.kernel import EXIT_UNAVAILABLE, SandboxError, conceal
from node.sandbox.machine import detect, require
from node.sandbox.names import resolve
from node.telemetry import Telemetry

if TYPE_CHECKING:  # what each room imports stays out of this process
    from node.enclave import EnclaveSettings


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
        The exit code: 0 the study is complete, 1 it failed, 2 this node could not start or go on, 69 the kernel did
        not confine a room, 75 a process of it was killed and it goes on when it is started again.

    Raises:
        SandboxError: this machine lacks what the manifest asks for.
        EndedFromOutsideError: that process was the relay.
        WardtreeError: the home is not ready.
    """
    options = options or Options()
    home = _in_posture(load_home(path, datetime.now(UTC)), options)
    lock = lock_home(path)
    conceal()
    name_process(f"node {home.name}")
    children: list[int] = []
    telemetry = Telemetry(channel, home.name)
    try:
        _make_files(home, options)
        if options.status_port is not None or home.status_port is not None:
            children.append(_start_page(home, options, telemetry))
        telemetry.tell("posture", text=home.posture.text)
        relay = _start_rooms(home, passphrase, telemetry, options, nursery, children)
        enter(policy.supervisor(children), home.posture, [lock, *telemetry.descriptors])
        code = reap(relay)
        children.remove(relay)
        return _exit_code(home, code)
    finally:
        for child in children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                reap(child)
        os.close(lock)


def _in_posture(home: Home, options: Options) -> Home:
    """The home, with what confines its rooms on this machine; whoever is below the manifest's minimum ends here."""
    asked = options.policy or home.policy
    if asked == "off" and not options.insecure_development:
        raise HomeError(f"{home.name}: the sandbox is off only with --insecure-development")
    posture = detect(asked)
    require(posture, home.minimum, home.name)
    return replace(home, posture=posture)


def _make_files(home: Home, options: Options) -> None:
    """What a confined room may write must exist before: only in its own folder can the relay make files."""
    try:
        for file in (home.ledger, *([home.openings] if home.is_key_holder else [])):
            os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        home.relay_folder.mkdir(0o700, exist_ok=True)
        status = home.relay_folder / STATUS
        status.unlink(missing_ok=True)  # that of a life before this one
        if options.status:
            status.parent.mkdir(0o700, exist_ok=True)
        model = home.path / MODEL
        if not model.is_symlink():
            if model.exists():  # a copy of a home may have a file in the link's place
                os.replace(model, home.relay_folder / MODEL)
            model.symlink_to(Path(RELAY) / MODEL)
        if options.history:
            options.history.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HomeError(f"{error.filename}: cannot be written: {error.strerror}") from error


def _start_rooms(
    home: Home,
    passphrase: Callable[[], str],
    telemetry: Telemetry,
    options: Options,
    nursery: Nursery | None,
    children: list[int],
) -> int:
    """Fork them, each of which goes into ``children``; gives the relay."""
    # What each room imports stays out of this process: the rooms are forked from it.
    control, template_control = socket.socketpair()
    keyroom_jobs, template_jobs = socket.socketpair() if home.is_key_holder else (None, None)
    sockets = [s for s in (control, template_control, keyroom_jobs, template_jobs) if s]
    if nursery:
        nursery.fork_template(home, [end for end in (template_control, template_jobs) if end])
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
    return relay


def _exit_code(home: Home, code: int) -> int:
    """The node's, from the relay's."""
    if code < 0:
        raise EndedFromOutsideError(
            f"{home.name}: the relay was ended by signal {-code}; start this node again, and it goes on"
        )
    if code not in (0, 1, 2, ENDED_FROM_OUTSIDE, EXIT_UNAVAILABLE):
        raise WardtreeError(f"{home.name}: the relay ended with {code}; see its message above")
    return code


def _start_page(home: Home, options: Options, telemetry: Telemetry) -> int:
    """The page process, before there is a passphrase: it gets the one socket that it has, and reads one folder."""
    port = options.status_port if options.status_port is not None else home.status_port
    assert port is not None
    with listen(port) as listening:
        telemetry.tell("page", address=address(listening))
        return spawn(signal.SIGKILL, _page, home, listening)


def _page(home: Home, listening: socket.socket) -> None:
    enter(policy.page(home), home.posture, [listening.fileno()])
    from node.operate.page import run_page

    run_page(listening, home.relay_folder / STATUS, home.name)


def _close_others(sockets: list[socket.socket], keep: tuple[socket.socket | None, ...]) -> None:
    """Python's own objects too: one that is forgotten later would close a number that by then is another's."""
    for end in sockets:
        if end not in keep:
            end.close()


def _template(home: Home, control: socket.socket, jobs: socket.socket | None, sockets: list[socket.socket]) -> None:
    _close_others(sockets, (control, jobs))
    room = policy.template(home.path, home.task_source, home.readable)
    enter(room, home.posture, [end.fileno() for end in (control, jobs) if end])
    from node.enclave import run_template

    run_template(control, jobs, enclave_settings(home))


def enclave_settings(home: Home) -> EnclaveSettings:
    """What the enclaves of a node are told."""
    from node.enclave import EnclaveSettings

    return EnclaveSettings(
        party=home.name,
        study=home.study,
        data=home.data,
        home=home.path,
        weights=home.manifest.weights,
        plan=home.plan,
        quorum=home.manifest.quorum,
        is_key_holder=home.is_key_holder,
        posture=home.posture,
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
    enter(policy.keyroom(home), home.posture, [*channel.descriptors, jobs.fileno()])
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
    keep = [control.fileno(), *telemetry.descriptors, *(keyroom.descriptors if keyroom else ())]
    others = {card.name: card.endpoint for card in home.manifest.cards if card.endpoint and card != home.card}
    try:
        addresses, unknown = resolve({} if home.is_key_holder else others)
        for name in unknown:
            telemetry.tell("warning", text=f"{name}: {others[name]} has no address; this node cannot dial it")
        home = replace(home, addresses=addresses)
        enter(policy.relay(home, options.history), home.posture, keep)
    except WardtreeError as error:
        telemetry.tell("stopped", error=str(error))
        telemetry.flush()
        raise SystemExit(EXIT_UNAVAILABLE if isinstance(error, SandboxError) else 2) from error
    from node.relay import run_relay

    run_relay(home, passphrase, control, keyroom, telemetry, options)
