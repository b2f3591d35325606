"""``wardtree ceremony``: identities, keys and a manifest that all parties sign, file by file."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony, steps, transcript
from keys.canonical import digest
from keys.ceremony import CeremonyError, Step
from keys.identity import Identity
from keys.manifest import Manifest
from keys.plan import Plan
from keys.statement import KEYS_LOST, WITHDRAWN, Statement
from keys.vault import STANDARD
from node.cli import custody, identity, verify
from node.cli.common import Days, Home, Json, Out, Record, Threshold, check_public_key, now, tell
from node.cli.passphrase import Descriptor, read_passphrase
from node.cli.sandbox import AllowGap
from node.federation import Succession, install_base, next_base, next_cards, plan_for, propose
from node.study import parse_study, read_study

app = typer.Typer(
    no_args_is_help=True,
    help="Make identities, keys and the manifest that all parties sign. Files only; nothing to host.",
    epilog="In order: identity new, identity card (every party); key (key holder); propose (coordinator); review, "
    "verify --by-voice, sign (every party); combine (coordinator); join (every party). Then: wardtree node. "
    "A walkthrough is in docs/ceremony.md.",
)
app.add_typer(identity.app, name="identity")
app.command("verify", epilog=verify.EPILOG)(verify.verify)
for command in (custody.split, custody.release, custody.recombine, custody.destroy):
    app.command(command.__name__, epilog=custody.EPILOGS[command.__name__])(command)

Proposal = Annotated[Path, typer.Argument(help="The proposal.")]


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
    who = ceremony.load_identity(home, passphrase := read_passphrase(passphrase_fd, str(home)))
    sealed = make_key(home, passphrase, plan, out, STANDARD)
    did = f"{who.name} made the key pair in a key room of its own, which has ended; the secret key is sealed."
    tell(Step(did, (sealed, out), "the coordinator: propose with this public key."), as_json)


@app.command("propose", epilog="Example: [bold]wardtree ceremony propose --home lund --study study.toml --public-key "
             "public.key --key-holder uppsala --out proposal.json --transcript transcript.jsonl "
             "*.card.json[/bold]")  # fmt: skip
def propose_command(
    cards: Annotated[list[Path], typer.Argument(help="The card of every party.")],
    home: Home,
    study: Annotated[Path, typer.Option(help="The study.")],
    public_key: Annotated[Path, typer.Option(help="The key holder's public key file.")],
    key_holder: Annotated[str, typer.Option(help="The name of the key holder.")],
    out: Out,
    record: Record,
    days: Days = 90,
    threshold: Threshold = None,
    allow_gap: AllowGap = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The coordinator: put study, cards and public key into a proposal for all to sign."""
    checked = read_study(study)
    text = study.read_text(encoding="utf-8")
    public = digest(check_public_key(public_key, plan_for(checked))).hex()
    coordinator = _identity(home, passphrase_fd)
    read = [ceremony.read_card(path) for path in cards]
    moment = now()
    expires, gaps = moment + timedelta(days=days), allow_gap or ()
    step = propose(text, checked, str(study), read, public, key_holder, moment, expires, out, gaps, threshold)
    _proposed(home, coordinator, step, out, record, moment, as_json)


@app.command(epilog="Example: [bold]wardtree ceremony rotate --home lund --study study.toml --leave umea --out "
             "proposal-2.json --transcript transcript.jsonl[/bold]")  # fmt: skip
def rotate(
    home: Home,
    out: Out,
    record: Record,
    study: Annotated[Path | None, typer.Option(help="Another study. [default: the same]")] = None,
    public_key: Annotated[Path | None, typer.Option(help="A new key pair's public key. [default: the same]")] = None,
    key_holder: Annotated[str | None, typer.Option(help="Another key holder, with a new key.")] = None,
    card: Annotated[list[Path] | None, typer.Option(help="The card of a new party, or a party's new card.")] = None,
    leave: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Who is no member any longer.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin with a new model instead of the published one.")
    ] = False,
    days: Days = 90,
    threshold: Threshold = None,
    allow_gap: AllowGap = None,
    no_gaps: Annotated[
        bool, typer.Option("--no-gaps", help="No part of the sandbox may be missing any longer.")
    ] = False,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The coordinator: propose the next version: a new key, another roster, another study, or a later expiry.

    Whatever is not named stays. The study goes on from the model that was published last.
    """
    old = _installed(home)
    coordinator = _identity(home, passphrase_fd)
    text = study.read_text(encoding="utf-8") if study else old.study
    checked = read_study(study) if study else parse_study(old.study, "the study in force")
    holder, plan = key_holder or old.key_holder, plan_for(checked)
    if public_key:
        public = digest(check_public_key(public_key, plan)).hex()
    elif holder != old.key_holder or plan != Plan.from_dict(old.plan):
        what = "another key holder" if holder != old.key_holder else "a study with another encryption plan"
        raise CeremonyError(f"{what} needs a new key: `wardtree ceremony key`, then --public-key")
    elif fresh and next_base(home, old):
        raise CeremonyError("--fresh needs a new key: this one has opened these rounds already, and opens none twice")
    else:
        public = old.public_key_digest
    cards = next_cards(old, map(ceremony.read_card, card or ()), leave or ())
    gaps: Iterable[str] = () if no_gaps else [*old.sandbox_gaps, *(allow_gap or ())]
    succession = Succession(old, None if fresh else next_base(home, old))
    moment = now()
    expires = moment + timedelta(days=days)
    source = str(study or "the study")
    step = propose(
        text, checked, source, cards, public, holder, moment, expires, out, gaps, threshold, succession
    )  # fmt: skip
    _proposed(home, coordinator, step, out, record, moment, as_json)


@app.command(epilog="Example: [bold]wardtree ceremony review --home uppsala proposal.json[/bold]")
def review(
    proposal: Proposal,
    home: Annotated[
        Path | None, typer.Option(help="The party's home folder, to see what changes against its version.")
    ] = None,
) -> None:
    """Every party: read in plain words what one is about to sign."""
    from node import review as words

    previous = ceremony.read_installed(home) if home else None
    base = next_base(home, previous) if home and previous else None
    typer.echo(words.review(ceremony.read_proposal(proposal), previous, base), nl=False)


@app.command(epilog="Example: [bold]wardtree ceremony sign --home uppsala --out uppsala.signature.json "
             "proposal.json[/bold]")  # fmt: skip
def sign(
    proposal: Proposal,
    home: Home,
    out: Out,
    approve: Annotated[
        bool, typer.Option("--approve", help="Sign only as a member of the version before, say with the old keys.")
    ] = False,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Every party: sign the proposal, after review."""
    passphrase = read_passphrase(passphrase_fd, str(home))
    tell(ceremony.sign(home, passphrase, proposal, out, approve=approve), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony combine --home lund --proposal proposal.json --out manifest.json "
             "--transcript transcript.jsonl *.signature.json[/bold]")  # fmt: skip
def combine(
    signatures: Annotated[list[Path], typer.Argument(help="The signature of every party.")],
    home: Home,
    proposal: Annotated[Path, typer.Option(help="The proposal.")],
    out: Out,
    record: Record,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """The coordinator: put proposal and signatures together; names whose are missing or false."""
    coordinator = _identity(home, passphrase_fd)
    tell(steps.agree(home, coordinator, proposal, signatures, record, out, now()), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony join --home uppsala --public-key public.key --transcript "
             "transcript.jsonl manifest.json[/bold]")  # fmt: skip
def join(
    manifest: Annotated[Path, typer.Argument(help="The signed manifest.")],
    home: Home,
    public_key: Annotated[Path, typer.Option(help="The key holder's public key file.")],
    record: Annotated[Path, typer.Option("--transcript", help="The transcript of the ceremony.")],
    model: Annotated[
        Path | None, typer.Option(help="The model that the study goes on from, if this home has it not.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Every party: check everything and install manifest, public key and transcript in one's home."""
    moment = now()
    new = ceremony.verify(manifest, moment)
    check_public_key(public_key, Plan.from_dict(new.plan))
    base = install_base(home, new, model)
    step = steps.join(home, manifest, public_key, record, moment)
    tell(Step(step.did, (*step.wrote, *([base] if base else [])), step.next), as_json)


@app.command(epilog="Example: [bold]wardtree ceremony revoke --home umea --reason withdrawn --out umea.revocation.json "
             "--transcript transcript.jsonl[/bold]")  # fmt: skip
def revoke(
    home: Home,
    reason: Annotated[
        str, typer.Option(help=f'"{KEYS_LOST}": others may have one\'s keys; "{WITHDRAWN}": one no longer agrees.')
    ],
    out: Out,
    record: Record,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Any party: take back one's signature. No node that knows of it runs under this version again."""
    tell(steps.revoke(home, _identity(home, passphrase_fd), reason, record, out, now()), as_json)


@app.command("transcript", epilog="Example: [bold]wardtree ceremony transcript --home uppsala transcript.jsonl[/bold]")
def transcript_command(
    path: Annotated[Path, typer.Argument(metavar="TRANSCRIPT", help="The transcript.")],
    home: Annotated[
        Path | None, typer.Option(help="Take the transcript over into this home, which its node then obeys.")
    ] = None,
    add: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="A signed statement to add first; needs --home.")
    ] = None,
    passphrase_fd: Descriptor = None,
    as_json: Json = False,
) -> None:
    """Anyone: read what happened. With --home: take it over; with --add: record what others signed."""
    moment = now()
    if home is None:
        if add:
            raise CeremonyError("--add: the entry is signed by whoever adds it: give --home too")
        verify.show_transcript(transcript.read_transcript(path, moment), as_json)
        return
    if add:
        statements = [Statement.read(each) for each in add]
        steps.note(home, _identity(home, passphrase_fd), path, statements, moment)
        did, wrote = " ".join(statement.facts for statement in statements), [path, home / transcript.TRANSCRIPT]
    else:
        known = transcript.keep(home, path, moment)
        did, wrote = f"Took over the transcript, {len(known.entries)} entries.", [home / transcript.TRANSCRIPT]
    tell(Step(did, tuple(wrote), "the others: take over the transcript too (transcript --home)."), as_json)


def _identity(home: Path, descriptor: int | None) -> Identity:
    return ceremony.load_identity(home, read_passphrase(descriptor, str(home)))


def _installed(home: Path) -> Manifest:
    manifest = ceremony.read_installed(home)
    if manifest is None:
        raise CeremonyError(f"{home}: has joined no manifest yet; the first version is made by propose")
    return manifest


def _proposed(
    home: Path, coordinator: Identity, step: Step, out: Path, record: Path, moment: datetime, as_json: bool
) -> None:
    steps.note_proposal(home, coordinator, out, record, moment.astimezone(UTC))
    tell(Step(step.did, (*step.wrote, record), step.next), as_json)
