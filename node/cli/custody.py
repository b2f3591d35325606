"""``wardtree ceremony split``, ``release``, ``recombine`` and ``destroy``: who keeps the secret key, and its end."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony, custody, steps
from keys.canonical import parse
from keys.ceremony import CeremonyError, Step
from keys.statement import MAX_STATEMENT, Statement
from node.cli.common import Home, Json, Out, Record, now, tell
from node.cli.passphrase import Descriptor, read_passphrase
from node.home import lock_home

EPILOGS = {
    "split": "Example: [bold]wardtree ceremony split --home uppsala --needed 2 --holder anna.card.json --holder "
    "bo.card.json --holder cleo.card.json --folder shares --transcript transcript.jsonl[/bold]",
    "release": "Example: [bold]wardtree ceremony release --home anna --share anna.share --to uppsala.card.json --out "
    "anna.released[/bold]",
    "recombine": "Example: [bold]wardtree ceremony recombine --home uppsala --transcript transcript.jsonl "
    "anna.released cleo.released[/bold]",
    "destroy": "Examples: [bold]wardtree ceremony destroy --home uppsala --out certificate.json --transcript "
    "transcript.jsonl[/bold] (the key holder); [bold]wardtree ceremony destroy --home anna --share anna.share --out "
    "anna.destroyed.json[/bold] (a share's holder)",
}


def split(
    home: Home,
    needed: Annotated[int, typer.Option(help="How many of the holders it takes.", min=2)],
    holder: Annotated[list[Path], typer.Option(help="The card of somebody who is to hold a share; once for each.")],
    folder: Annotated[Path, typer.Option(help="The folder for the shares' files.")],
    record: Record,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The key holder: put the secret key into the custody of several people, none of whom can start it alone."""
    public_key = _public_key(home)
    passphrase = read_passphrase(passphrase_fd, str(home))
    try:
        folder.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise CeremonyError(f"{folder}: cannot be made: {error.strerror}") from error
    arguments = (home, passphrase, public_key, holder, needed, folder)
    _apart(home, passphrase, record, as_json, holder, [home, folder], custody.split_key, *arguments)


def release(
    home: Home,
    share: Annotated[Path, typer.Option(help="The share that one holds.")],
    to: Annotated[Path, typer.Option(help="The key holder's card.")],
    out: Out,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """A share's holder: hand the share to the key holder, sealed for it alone."""
    tell(custody.release(home, read_passphrase(passphrase_fd, str(home)), share, to, out), as_json)


def recombine(
    released: Annotated[list[Path], typer.Argument(help="The released shares.")],
    home: Home,
    record: Record,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The key holder: take the secret key out of custody, with enough released shares."""
    passphrase = read_passphrase(passphrase_fd, str(home))
    folders = [home, *(path.parent for path in released)]  # released shares are erased
    _apart(home, passphrase, record, as_json, (), folders, custody.recombine, home, passphrase, released)


def destroy(
    home: Home,
    out: Out,
    record: Annotated[
        Path | None, typer.Option("--transcript", help="The transcript, for the certificate of a secret key.")
    ] = None,
    share: Annotated[Path | None, typer.Option(help="A share to destroy, by its holder, instead of the key.")] = None,
    public_key: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Another secret key than the manifest's: its public key.")
    ] = None,
    no_copies: Annotated[
        bool | None,
        typer.Option("--no-copies/--copies", help="Whether one declares that no backup of the sealed key is left."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether one is sure.")] = False,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The key holder: destroy the secret key and certify it. A share's holder: destroy the share and sign that."""
    what = f"the share {share}" if share else f"the secret key in {home}"
    passphrase = read_passphrase(passphrase_fd, str(home))
    if not share and record is None:
        raise CeremonyError("destroy: --transcript is missing: the certificate is part of it")
    if not share and no_copies is None:
        no_copies = typer.confirm("Do you declare that no copy of the sealed key (backup, snapshot) is left?")
    if not yes and typer.prompt(f"This destroys {what} for ever. Type destroy to go on") != "destroy":
        raise CeremonyError("nothing was destroyed")
    if share:
        tell(custody.destroy_share(home, passphrase, share, out, now()), as_json)
        return
    assert record is not None
    with _not_running(home):
        who = ceremony.load_identity(home, passphrase)
        tell(steps.destroy(home, who, public_key, record, bool(no_copies), out, now()), as_json)


def _public_key(home: Path) -> str:
    manifest = ceremony.read_installed(home)
    if manifest is None:
        raise CeremonyError(f"{home}: has joined no manifest yet; a key is split when it is in use")
    return manifest.public_key_digest


def _apart(
    home: Path,
    passphrase: str,
    record: Path,
    as_json: bool,
    read: Iterable[Path],
    folders: Iterable[Path],
    function: custody.WithStatement,
    *arguments: object,
) -> None:
    """Let a process of its own handle the secret key, and record what it did."""
    from node.keyroom import in_keyroom

    moment = now()
    with _not_running(home):
        identity = ceremony.load_identity(home, passphrase)
        steps.check_record(home, record, moment)
        did, wrote, after, statement = in_keyroom(_call, function, arguments, moment, read=read, folders=folders)
        steps.note(home, identity, record, [Statement.from_dict(parse(statement, MAX_STATEMENT))], moment)
    tell(Step(did, (*map(Path, wrote), record), after), as_json)


@contextmanager
def _not_running(home: Path) -> Iterator[None]:
    """Keep a node from running from this home in the meantime. Raises HomeError if one does."""
    lock = lock_home(home)
    try:
        yield
    finally:
        os.close(lock)


def _call(function: custody.WithStatement, arguments: tuple[object, ...], moment: datetime) -> list[object]:
    step, statement = function(*arguments, moment)
    return [step.did, [str(path) for path in step.wrote], step.next, statement.to_json()]
