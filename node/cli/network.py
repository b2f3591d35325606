"""``wardtree check-network``: whether this node can reach those that it must, before the study."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from keys.ceremony import load_identity
from node.apart import NoAnswerError, call_apart
from node.channel import Channel
from node.cli.passphrase import Descriptor, read_passphrase
from node.home import Home, HomeError, load_home
from node.operate.reachability import Check, NetworkReport
from node.sandbox import policy
from node.sandbox.enter import enter
from node.sandbox.kernel import EXIT_UNAVAILABLE
from node.sandbox.machine import detect
from node.sandbox.names import resolve
from node.settings import printable


def check_network(
    home: Annotated[Path | None, typer.Option(help="The node's home folder, which has joined a manifest.")] = None,
    listen: Annotated[
        float, typer.Option(metavar="SECONDS", help="Also wait so long for those who may dial this node.", min=0)
    ] = 0.0,
    passphrase_fd: Descriptor = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of --json.")] = False,
) -> None:
    """Try the network of a node before the study: every party that it may have to dial when others drop out.

    Names what is wrong with each: a wrong port, a firewall that drops packets, a wrong server key, a key of ours that
    is not let in, another manifest, a clock that is off. Both sides can do it at once, with --listen; a node that
    runs already answers as well. The JSON is described in docs/check-network.schema.json.

    Exit code 0: all is good. 1: something is wrong, and named.

    Examples:

        wardtree check-network --home /srv/wardtree/uppsala

        wardtree check-network --home /srv/wardtree/uppsala --listen 300 --json
    """
    if schema:
        typer.echo(json.dumps(NetworkReport.model_json_schema(), indent=2))
        return
    if home is None:
        raise typer.BadParameter("expected a node's home folder, came none", param_hint="--home")
    loaded = load_home(home, datetime.now(UTC))
    others = {card.name: card.endpoint for card in loaded.manifest.cards if card.endpoint and card != loaded.card}
    ladder = () if loaded.is_key_holder else loaded.placement.ladder(loaded.name)
    if not ladder and not listen:
        raise HomeError(f"{loaded.name}: the key holder dials nobody; give --listen, and let the others check as well")
    addresses, _ = resolve({name: others[name] for name in ladder if name in others})
    secret = read_passphrase(passphrase_fd, str(home))
    if listen and not as_json:
        bind = f" on {loaded.bind}" if loaded.bind else ""
        Console(stderr=True).print(f"Listening{bind} for {listen:.0f} s, or until all is good; Ctrl-C ends it.")
    report = _apart(loaded, addresses, secret, listen)
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        Console().print(_shown(report))
    raise typer.Exit(0 if report.ok else 1)


def _apart(home: Home, addresses: dict[str, str], secret: str, listen: float) -> NetworkReport:
    """Run the check in a process that is confined as the relay is: it has the relay's keys, and its ports."""
    # Who dials whom is by number from here on: inside there is no DNS.
    home = replace(home, addresses=addresses)

    def work(channel: Channel) -> str:
        enter(policy.relay(home, None), detect(home.policy), channel.descriptors)
        return Check(home, load_identity(home.path, secret), bool(listen)).run(listen).model_dump_json()

    try:
        return NetworkReport.model_validate_json(call_apart(work))
    except NoAnswerError as error:
        raise typer.Exit(EXIT_UNAVAILABLE if error.code == EXIT_UNAVAILABLE else os.EX_SOFTWARE) from error


def _shown(report: NetworkReport) -> Group:
    table = Table("party", "", "endpoint", "state", "clock", box=box.SIMPLE_HEAD)
    for each in report.findings:
        offset = "–" if each.clock_seconds is None else f"{each.clock_seconds:+.1f} s"
        way = "we dial it" if each.side == "above" else "it dials us"
        style = "green" if each.is_good else "bold red"
        table.add_row(Text(each.party), way, Text(each.endpoint or "–"), Text(each.state, style), offset)
    lines = [
        Text.assemble((f"{each.party}: ", "bold red"), f"{each.found}. To do: {each.remedy}.")
        for each in report.findings
        if not each.is_good
    ]
    notes = [Text(f"note: {printable(note)}", "yellow") for note in report.notes]
    verdict = "The network is ready." if report.ok else "The network is not ready."
    return Group(table, *lines, *notes, Text(f"\n{verdict}", "bold green" if report.ok else "bold red"))
