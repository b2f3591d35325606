"""``wardtree ceremony verify``: check any file of a ceremony, offline, and by voice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony
from keys.canonical import FormatError, parse
from keys.canonical import Json as JsonValue
from keys.ceremony import CeremonyError
from keys.identity import Card
from keys.manifest import MAX_MANIFEST
from keys.statement import Statement
from keys.transcript import MAX_TRANSCRIPT, Transcript, read_home, read_transcript, story, summary, ways_left
from keys.vault import naming, read_bounded
from keys.words import FINGERPRINT, WordsError, difference, understand
from node.cli.common import Json, now

EPILOG = (
    "Examples: [bold]wardtree ceremony verify transcript.jsonl[/bold]; [bold]wardtree ceremony verify --by-voice "
    "--home uppsala proposal.json[/bold]; [bold]wardtree ceremony verify --transcript transcript.jsonl "
    "certificate.json[/bold]"
)
TRIES = 3


def verify(
    path: Annotated[
        Path, typer.Argument(metavar="FILE", help="A transcript, manifest, proposal, card, or signed statement.")
    ],
    by_voice: Annotated[
        bool, typer.Option("--by-voice", help="Ask for the words that the other parties read out by telephone.")
    ] = False,
    home: Annotated[
        Path | None, typer.Option(help="One's own home: a transcript must continue the one that is there.")
    ] = None,
    record: Annotated[
        Path | None, typer.Option("--transcript", help="The transcript that knows who may sign a statement.")
    ] = None,
    on: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Judge the expiry as of this day instead of today.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Anyone: check a file of the ceremony, with nothing else at hand (a statement: with the transcript)."""
    moment = now()
    judged = on.replace(tzinfo=UTC) if on else moment
    kind = _kind(path)
    cards: Iterable[Card] = ()
    match kind:
        case "transcript":
            cards = _transcript(path, home, moment, judged, as_json)
        case "manifest":
            manifest = ceremony.verify(path, judged)
            _tell(
                f"{path}: version {manifest.version}, signed by all of {', '.join(manifest.names)}, valid until "
                f"{manifest.expires}",
                as_json, kind=kind, digest=manifest.digest, version=manifest.version, names=manifest.names,
            )  # fmt: skip
            cards = manifest.cards
        case "proposal":
            proposal = ceremony.read_proposal(path)
            _tell(
                f"{path}: a proposal of version {proposal.version}; nobody's signature is in it",
                as_json, kind=kind, digest=proposal.digest, version=proposal.version, names=proposal.names,
            )  # fmt: skip
            cards = proposal.cards
        case "card":
            card = ceremony.read_card(path)
            _tell(
                f"{path}: the card of {card.name}: {' '.join(card.fingerprint)}",
                as_json, kind=kind, name=card.name, words=card.fingerprint,
            )  # fmt: skip
            cards = [card]
        case _:
            _statement(path, record, moment, as_json)
    if by_voice:
        own = ceremony.read_card(home / ceremony.CARD).name if home else None
        _listen([card for card in cards if card.name != own])


def show_transcript(transcript: Transcript, as_json: bool) -> None:
    """What happened, and what is in force."""
    lines, end = list(story(transcript)), list(summary(transcript))
    if as_json:
        typer.echo(json.dumps({"kind": "transcript", "entries": lines, "in_force": end, "digest": transcript.head}))
        return
    for line in lines:
        typer.echo(line)
    typer.echo("")
    for line in end:
        typer.echo(line)


def _transcript(path: Path, home: Path | None, moment: datetime, judged: datetime, as_json: bool) -> Iterable[Card]:
    transcript = read_transcript(path, moment)
    with naming(path):
        if home and (known := read_home(home, moment)):
            transcript.check_continues(known)
    show_transcript(transcript, as_json)
    with naming(path):
        transcript.check_fresh(judged)
    manifest = transcript.history.in_force
    return manifest.cards if manifest else ()


def _statement(path: Path, record: Path | None, moment: datetime, as_json: bool) -> None:
    statement = Statement.read(path)
    if record is None:
        raise CeremonyError(f"{path}: a {statement.kind}; give --transcript, which knows who may sign it")
    transcript = read_transcript(record, moment)
    recorded = [
        entry.number
        for entry in transcript.entries
        if entry.what == "statement" and entry.content["statement"] == statement.to_dict()
    ]
    if not recorded:
        with naming(path):
            transcript.history.state(statement)  # whether it could be recorded
    now_left = ways_left(transcript.history, statement.content["public_key"]) if statement.kind == "destruction" else ""
    where = f"entry {recorded[0]} of {record}" if recorded else f"true, and not yet recorded in {record}"
    _tell(f"{statement.text}\n{path}: signed by {statement.by}; {where}", as_json, kind=statement.kind, where=where)
    if now_left and not as_json:
        typer.echo(f"By the last entry of {record}, {now_left}.")
    if statement.text != statement.facts:
        typer.echo(f"Its text is not in the words of this program. Its facts are: {statement.facts}")


def _listen(cards: list[Card]) -> None:
    """Ask for each party's words until they are right, at most three times each."""
    for card in cards:
        typer.echo(f"Telephone {card.name}, at a number that you did not get with these files.")
        typer.echo(f"  {card.name} runs `wardtree ceremony identity show` and reads its {FINGERPRINT} words out.")
        _ask(card)
    names = ", ".join(card.name for card in cards)
    typer.echo(f"The keys in this file are those of {names}. What they signed is theirs.")


def _ask(card: Card) -> None:
    for _ in range(TRIES):
        heard = typer.prompt(f"Words of {card.name}")
        try:
            wrong = difference(understand(heard), card.fingerprint)
        except WordsError as error:
            wrong = str(error)
        if wrong is None:
            typer.echo("  The same.")
            return
        typer.echo(f"  {wrong}")
    raise CeremonyError(
        f"the words of {card.name} are not those of the card in this file: somebody may have put other keys in its "
        "place. Sign nothing; compare the cards"
    )


def _tell(text: str, as_json: bool, **facts: object) -> None:
    typer.echo(json.dumps(facts) if as_json else text)


def _kind(path: Path) -> str:
    """What a file is, by its form alone; whether it is a good one shows when it is read."""
    data = read_bounded(path, MAX_TRANSCRIPT)
    with naming(path):
        try:
            value = parse(data, 2 * MAX_MANIFEST)
        except FormatError:
            value = parse(data.partition(b"\n")[0], 2 * MAX_MANIFEST)  # a transcript has one value on each line
        for kind, fits in _FORMS.items():
            if isinstance(value, dict) and fits(value):
                return kind
        raise CeremonyError("expected a file of a ceremony, came something else")


def _format(name: str) -> Callable[[dict[str, JsonValue]], bool]:
    return lambda value: str(value.get("format")).startswith(f"wardtree-{name}/")


_FORMS: dict[str, Callable[[dict[str, JsonValue]], bool]] = {
    "transcript": _format("transcript"),
    "manifest": lambda value: "signatures" in value,
    "proposal": _format("manifest"),
    "card": _format("card"),
    "statement": _format("statement"),
}
