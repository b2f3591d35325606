"""``wardtree ceremony``: identities, keys and a manifest that all parties sign, file by file."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony
from keys.ceremony import Step
from keys.plan import Plan
from keys.vault import STANDARD, naming, read_bounded
from node.cli.passphrase import Descriptor, read_passphrase
from node.cli.sandbox import AllowGap
from node.federation import plan_for, propose
from node.study import read_study

app = typer.Typer(
    no_args_is_help=True,
    help="Make identities, keys and the manifest that all parties sign. Files only; nothing to host.",
    epilog="In order: identity, card (every party); key (key holder); propose (coordinator); review, sign "
    "(every party); combine (coordinator); join (every party). Then: wardtree node.",
)
Home = Annotated[Path, typer.Option(help="The party's home folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print what was done as JSON.")]
Out = Annotated[Path, typer.Option(help="The file to write; it must not exist.")]


def _tell(step: Step, as_json: bool) -> None:
    wrote = [str(path) for path in step.wrote]
    if as_json:
        typer.echo(json.dumps({"did": step.did, "wrote": wrote, "next": step.next}))
    else:
        typer.echo(step.did)
        for path in wrote:
            typer.echo(f"  wrote {path}")
        typer.echo(f"Next: {step.next}")


@app.command(epilog="Example: [bold]wardtree ceremony identity --home uppsala --name uppsala[/bold]")
def identity(
    home: Home,
    name: Annotated[str, typer.Option(help="The party's name: a-z, 0-9 and -, at most 40.")],
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Every party: make an identity, sealed under a passphrase."""
    _tell(ceremony.create_identity(home, name, read_passphrase(passphrase_fd, name, new=True), STANDARD), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony card --home uppsala --endpoint ward.uppsala.example:7100 "
             "--examples 1200 --out uppsala.card.json[/bold]")  # fmt: skip
def card(
    home: Home,
    out: Out,
    endpoint: Annotated[
        str | None, typer.Option(help="host:port at which others reach this node; leave out to only dial out.")
    ] = None,
    examples: Annotated[int, typer.Option(help="About how many examples; published as a power of two.")] = 0,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Every party: make the public card that goes to the coordinator."""
    passphrase = read_passphrase(passphrase_fd, str(home))
    _tell(ceremony.make_card(home, passphrase, endpoint, examples, out), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony key --home uppsala --study study.toml --out public.key[/bold]")
def key(
    home: Home,
    study: Annotated[Path, typer.Option(help="The study, for its precision and number of parties.")],
    out: Out,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The key holder: make the CKKS key pair. The secret key is sealed into its home and never leaves it."""
    from node.keyroom import make_key

    plan = plan_for(read_study(study))
    identity = ceremony.load_identity(home, passphrase := read_passphrase(passphrase_fd, str(home)))
    make_key(home, passphrase, plan, out, STANDARD)
    did = f"{identity.name} made the key pair; the secret key is sealed."
    _tell(Step(did, (home / ceremony.SECRET_KEY, out), "the coordinator: propose with this public key."), as_json)


@app.command("propose", epilog="Example: [bold]wardtree ceremony propose --study study.toml "
             "--public-key public.key --key-holder uppsala --out proposal.json *.card.json[/bold]")  # fmt: skip
def propose_command(
    cards: Annotated[list[Path], typer.Argument(help="The card of every party.")],
    study: Annotated[Path, typer.Option(help="The study.")],
    public_key: Annotated[Path, typer.Option(help="The key holder's public key file.")],
    key_holder: Annotated[str, typer.Option(help="The name of the key holder.")],
    out: Out,
    days: Annotated[int, typer.Option(help="Days until the manifest expires.", min=1, max=3650)] = 90,
    allow_gap: AllowGap = None,
    as_json: Json = False,
) -> None:
    """The coordinator: put study, cards and public key into a proposal for all to sign."""
    checked = read_study(study)
    text = study.read_text(encoding="utf-8")
    _check_public_key(public_key, plan_for(checked))
    now = datetime.now(UTC)
    expires, gaps = now + timedelta(days=days), allow_gap or ()
    _tell(propose(text, checked, str(study), cards, public_key, key_holder, now, expires, out, gaps), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony review proposal.json[/bold]")
def review(proposal: Annotated[Path, typer.Argument(help="The proposal.")]) -> None:
    """Every party: read in plain words what one is about to sign."""
    typer.echo(ceremony.review(proposal), nl=False)


@app.command(epilog="Example: [bold]wardtree ceremony sign --home uppsala --out uppsala.signature.json "
             "proposal.json[/bold]")  # fmt: skip
def sign(
    proposal: Annotated[Path, typer.Argument(help="The proposal.")],
    home: Home,
    out: Out,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Every party: sign the proposal, after review."""
    _tell(ceremony.sign(home, read_passphrase(passphrase_fd, str(home)), proposal, out), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony combine --proposal proposal.json --out manifest.json "
             "*.signature.json[/bold]")  # fmt: skip
def combine(
    signatures: Annotated[list[Path], typer.Argument(help="The signature of every party.")],
    proposal: Annotated[Path, typer.Option(help="The proposal.")],
    out: Out,
    as_json: Json = False,
) -> None:
    """The coordinator: put proposal and signatures together; names whose are missing or false."""
    _tell(ceremony.combine(proposal, signatures, out, datetime.now(UTC)), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony verify manifest.json[/bold]")
def verify(
    manifest: Annotated[Path, typer.Argument(help="The signed manifest.")],
    as_json: Json = False,
) -> None:
    """Anyone: check a signed manifest."""
    checked = ceremony.verify(manifest, datetime.now(UTC))
    if as_json:
        typer.echo(json.dumps({"digest": checked.digest, "version": checked.version, "names": checked.names}))
    else:
        names = ", ".join(checked.names)
        typer.echo(f"{manifest}: version {checked.version}, signed by all of {names}, valid until {checked.expires}")


@app.command(epilog="Example: [bold]wardtree ceremony join --home uppsala --public-key public.key "
             "manifest.json[/bold]")  # fmt: skip
def join(
    manifest: Annotated[Path, typer.Argument(help="The signed manifest.")],
    home: Home,
    public_key: Annotated[Path, typer.Option(help="The key holder's public key file.")],
    as_json: Json = False,
) -> None:
    """Every party: check everything and install manifest and public key in one's home."""
    now = datetime.now(UTC)
    _check_public_key(public_key, Plan.from_dict(ceremony.verify(manifest, now).plan))
    _tell(ceremony.join(home, manifest, public_key, now), as_json)


def _check_public_key(path: Path, plan: Plan) -> None:
    """Refuse a public key file that carries a secret key before anyone signs or installs it."""
    from keys.ckks import Sealer

    data = read_bounded(path, ceremony.MAX_PUBLIC_KEY)
    with naming(path):
        Sealer(plan, data)
