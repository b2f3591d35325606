"""``wardtree node``: one institution's node."""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from node.channel import Channel, ChannelClosedError
from node.cli.passphrase import Descriptor, read_passphrase
from node.cli.sandbox import check_policy
from node.home import Options, load_home
from node.process import name_process, reap, spawn
from node.sandbox.bubblewrap import enter_view
from node.sandbox.landlock import landlock_version
from node.sandbox.machine import BUBBLEWRAP
from node.supervisor import run_node


def node(
    home: Annotated[Path, typer.Option(help="The node's home folder, made by the ceremony.")],
    passphrase_fd: Descriptor = None,
    sandbox: Annotated[
        str | None,
        typer.Option(
            metavar="POLICY", help="required, bubblewrap, external or off, instead of what node.toml says or required."
        ),
    ] = None,
    insecure_development: Annotated[bool, typer.Option("--insecure-development", help="Let --sandbox off be.")] = False,
    status_port: Annotated[
        int | None,
        typer.Option(
            help="Serve the live page and metrics on this port, to this machine only; 0: any free one.",
            min=0,
            max=65_535,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for what happens.")] = False,
) -> None:
    """Run one institution's node until the study ends.

    The home must have joined a manifest (`wardtree ceremony join`). The node dials its parent in the tree and
    waits for its children; where each sits follows from the manifest.

    Its rooms are confined by the kernel. Exit code 69: this machine lacks a part of that, and the manifest does
    not allow the gap by name; `wardtree doctor --home HOME` says more.

    Examples:

        wardtree node --home /srv/wardtree/uppsala

        wardtree node --home /srv/wardtree/uppsala --passphrase-fd 3 3< /run/keys/uppsala

        wardtree node --home /srv/wardtree/uppsala --status-port 8080
    """
    options = Options(
        policy=check_policy(sandbox),
        insecure_development=insecure_development,
        status=True,
        status_port=status_port,
    )
    _enter_view(home, options)
    ours, theirs = Channel.pair()
    # The reader is forked before there is a passphrase in this process.
    reader = spawn(signal.SIGKILL, _show, ours, theirs, as_json)
    ours.close()
    try:
        code = run_node(home, lambda: read_passphrase(passphrase_fd, str(home)), theirs, options)
    finally:
        theirs.close()
        reap(reader)
    raise typer.Exit(code)


def _enter_view(home: Path, options: Options) -> None:
    """Where bubblewrap stands in for Landlock, start this program anew in its view of files."""
    if not home.is_dir() or landlock_version() or os.path.islink(BUBBLEWRAP):
        return
    loaded = load_home(home, datetime.now(UTC))
    if (options.policy or loaded.policy) == "bubblewrap":
        given = ["--home", str(loaded.path.resolve())]
        enter_view(loaded, [sys.executable, "-m", "node", *sys.argv[1:], *given])


def _show(channel: Channel, other: Channel, as_json: bool) -> None:
    other.close()
    name_process("wardtree log")
    try:
        while True:
            event = channel.receive()
            line = json.dumps(event) if as_json else _in_words(event)
            if line:
                print(line, flush=True, file=sys.stderr if event.get("error") and not as_json else sys.stdout)
    except ChannelClosedError:
        return


def _in_words(event: dict[str, Any]) -> str:
    match event:
        case {"kind": "posture", "text": text}:
            return f"sandbox: {text}"
        case {"kind": "ready", "parameters": parameters}:
            return f"ready: {parameters} parameters; waiting for the others"
        case {"kind": "round", "what": what, "round": number, "contributors": names}:
            return f"round {number}: {what} {', '.join(names)}".rstrip()
        case {"kind": "applied", "round": number, "seconds": seconds}:
            return f"round {number}: model updated after {seconds:.1f} s"
        case {"kind": "dropped", "who": who, "expected": expected, "came": came, "times": times}:
            return f"dropped: {who}: expected {expected}, came {came}" + (f" ({times} times)" if times > 1 else "")
        case {"kind": "lost", "peer": peer}:
            return f"{peer} is not there any more"
        case {"kind": "page", "address": address}:
            return f"live page: {address}"
        case {"kind": "warning", "text": text}:
            return f"warning: {text}"
        case {"kind": "stopped", "error": error}:
            return f"stopped: {error}" if error else "the study is complete; model.npz is in the home"
    return ""
