"""``wardtree ceremony identity``: one's own keys and card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony
from keys.ceremony import Step
from keys.vault import MAX_SEALED, STANDARD, naming, read_bounded, read_lock
from node.cli.common import Home, Json, Out, tell
from node.cli.passphrase import NEW_CREDENTIAL, Descriptor, NewDescriptor, read_passphrase

app = typer.Typer(no_args_is_help=True, help="One's own keys: make, show, put on a card, seal under a new passphrase.")


@app.command(epilog="Example: [bold]wardtree ceremony identity new --home uppsala --name uppsala[/bold]")
def new(
    home: Home,
    name: Annotated[str, typer.Option(help="The party's name: a-z, 0-9 and -, at most 40.")],
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Make an identity, sealed under a passphrase."""
    tell(ceremony.create_identity(home, name, read_passphrase(passphrase_fd, name, new=True), STANDARD), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony identity card --home uppsala --endpoint "
             "ward.uppsala.example:7100 --examples 1200 --out uppsala.card.json[/bold]")  # fmt: skip
def card(
    home: Home,
    out: Out,
    endpoint: Annotated[
        str | None,
        typer.Option(help="host:port at which others reach this node, IPv6 in brackets; leave out to only dial out."),
    ] = None,
    examples: Annotated[int, typer.Option(help="About how many examples; published as a power of two.")] = 0,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Make the public card that goes to the coordinator."""
    passphrase = read_passphrase(passphrase_fd, str(home))
    tell(ceremony.make_card(home, passphrase, endpoint, examples, out), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony identity show --home uppsala[/bold]")
def show(home: Home, as_json: Json = False) -> None:
    """Show the words to read out over the telephone, and what else is public. Asks for no passphrase."""
    own = ceremony.read_card(home / ceremony.CARD)
    manifest = ceremony.read_installed(home)
    path = home / ceremony.IDENTITY
    data = read_bounded(path, MAX_SEALED)
    with naming(path):
        cost = read_lock(data).cost
    assert cost is not None
    version = manifest.version if manifest else None
    if as_json:
        typer.echo(json.dumps(own.to_dict() | {"words": own.fingerprint, "version": version}))
        return
    typer.echo(f"{own.name}: {' '.join(own.fingerprint)}")
    typer.echo(f"  reached at {own.endpoint or 'nowhere, dials out only'}; declares {own.examples or 'no'} examples")
    typer.echo(f"  follows {f'version {version} of its manifest' if version else 'no manifest yet'}")
    mebibytes = cost.memory_bytes >> 20
    typer.echo(f"  a guess at the passphrase costs {cost.operations} passes over {mebibytes} MiB (argon2id)")
    if (cost.operations, cost.memory_bytes) < (STANDARD.operations, STANDARD.memory_bytes):
        typer.echo(f"  the standard is {STANDARD.memory_bytes >> 20} MiB: identity change-passphrase raises it")


@app.command(epilog="Example: [bold]wardtree ceremony identity change-passphrase --home uppsala[/bold]")
def change_passphrase(
    home: Home,
    passphrase_fd: Descriptor = None,
    new_passphrase_fd: NewDescriptor = None,
    as_json: Json = False,
) -> None:
    """Seal identity and secret keys under another passphrase, at today's standard cost of a guess."""
    from node.keyroom import in_keyroom

    old = read_passphrase(passphrase_fd, str(home))
    fresh = read_passphrase(new_passphrase_fd, f"{home}, the new one", new=True, credential=NEW_CREDENTIAL)
    did, wrote, after = in_keyroom(_change, home, old, fresh, folders=[home])
    tell(Step(did, tuple(map(Path, wrote)), after), as_json)


def _change(home: Path, old: str, fresh: str) -> list[object]:
    step = ceremony.change_passphrase(home, old, fresh, STANDARD)
    return [step.did, [str(path) for path in step.wrote], step.next]
