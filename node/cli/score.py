"""``wardtree score``: scores in the clear, or encrypted with another party."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from keys import ceremony
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import MAX_MANIFEST, verify_signatures
from keys.scoring_files import BATCH, MODEL, SCORES, ScoringFile, read_scoring_file
from keys.scoring_layout import MAX_PATIENTS, ScoringError
from keys.vault import MAX_SEALED, erase_file, naming, read_bounded, refuse_existing, write_private, write_public
from node import scoring
from node.cli.common import Out
from node.cli.passphrase import Descriptor, read_passphrase
from node.exported import CARD, read_card, verify_export
from node.keyroom import in_keyroom
from node.study import parse_study
from node.tasks.loader import task_source
from node.telemetry import Stopwatch

app = typer.Typer(
    no_args_is_help=True,
    help="Score patients: in the clear in one's own rooms, or encrypted: patients at a host that sees none of them, or "
    "the model where the patients are.",
    epilog="Encrypted patients: the client runs [bold]encrypt[/bold], the host [bold]host[/bold], the client "
    "[bold]open[/bold]. Encrypted model: its owner runs [bold]encrypt-model[/bold], who has the patients "
    "[bold]apply[/bold], the owner [bold]open[/bold]. docs/scoring.md says who learns what.",
)

Data = Annotated[Path, typer.Option(help="The patients: a CSV table as in training, or features as a .npy array.")]
Model = Annotated[Path, typer.Option(help="The folder of an exported model.")]
Card = Annotated[Path, typer.Option("--card", help=f"The model's {CARD}: what features it takes.")]
Batch = Annotated[Path, typer.Option(help="The file with the encrypted patients.")]
EncryptedModel = Annotated[Path, typer.Option(help="The file with the encrypted model.")]
Key = Annotated[Path, typer.Option(help="The file with the key of this batch or model, sealed.")]
Largest = Annotated[
    float, typer.Option("--range", help="What all features lie within, in absolute value; known to both sides.")
]
ManifestFile = Annotated[
    Path | None, typer.Option("--manifest", help="A manifest that both sides have: the other side must be a member.")
]
OwnHome = Annotated[Path | None, typer.Option("--home", help="One's home, to sign with its identity.")]
Unsigned = Annotated[
    bool, typer.Option("--unsigned", help="No signatures: the way that the files come must vouch for them.")
]


@dataclass(frozen=True)
class Trust:
    """Whose files are taken, and with what ours are signed; both None where all of it is unsigned."""

    keys: Mapping[str, bytes] | None
    home: Path | None

    @classmethod
    def of(cls, manifest: Path | None, home: Path | None, unsigned: bool) -> Trust:
        """Raises ScoringError unless it was said which."""
        if unsigned:
            if manifest or home:
                raise ScoringError("expected --unsigned alone, or --manifest and --home, came both")
            return cls(None, None)
        if manifest is None and home is not None:
            manifest = home / ceremony.MANIFEST
        if manifest is None:
            raise ScoringError("expected --home or --manifest, so that files are signed and checked, or --unsigned")
        data = read_bounded(manifest, MAX_MANIFEST)
        with naming(manifest):
            return cls(verify_signatures(data).signing_keys, home)

    def identity(self, passphrase: str) -> Identity | None:
        """Who signs."""
        if self.keys is None:
            return None
        if self.home is None:
            raise ScoringError("expected --home, whose identity signs, or --unsigned")
        return ceremony.load_identity(self.home, passphrase)


@app.command(epilog="Example: [bold]wardtree score clear --model model --data patients.csv --out scores.csv[/bold]")
def clear(model: Model, data: Data, out: Out) -> None:
    """Score patients in the clear, in a room of one's own that reaches no network."""
    refuse_existing(out)
    exported = verify_export(model)
    card = dict(exported.card)
    read = _readable(card, data)
    layer = scoring.last_layer(exported).to_bytes()
    patients, table, seconds = in_keyroom(scoring.room_clear, card, str(data.resolve()), *layer, read=read)
    write_private(out, table)
    _tell(f"Scored {patients} patients in the clear", patients, seconds, wrote=out)


@app.command(epilog="Example: [bold]wardtree score encrypt --card model-card.json --data patients.csv --out batch.enc "
             "--key batch.key --home lund[/bold]")  # fmt: skip
def encrypt(
    card_file: Card,
    data: Data,
    out: Out,
    key: Key,
    largest: Largest = scoring.FEATURE_RANGE,
    home: OwnHome = None,
    unsigned: Unsigned = False,
    passphrase_fd: Descriptor = None,
) -> None:
    """Client: encrypt patients' features under a fresh key, which is for this batch alone."""
    for path in (out, key):
        refuse_existing(path)
    trust = Trust.of(None, home, unsigned)
    card = read_card(card_file)
    _check_range(largest)
    outputs = card["tensors"][-1][1][0]
    passphrase = read_passphrase(passphrase_fd, str(home or key), new=home is None)
    identity = trust.identity(passphrase)
    arguments = (card, str(data.resolve()), outputs, largest, passphrase)
    patients, features, body, step, sealed, seconds = in_keyroom(
        scoring.room_encrypt, *arguments, read=_readable(card, data)
    )
    facts = {"patients": patients, "features": features, "outputs": outputs}
    facts |= {"model": card["state"], "feature_step": step.hex()}
    file = ScoringFile(BATCH, identity.name if identity else None, facts, body)
    write_private(key, sealed)
    write_public(out, file.to_bytes(identity))
    _tell(f"Encrypted {features} features of {patients} patients", patients, seconds, len(body), out)
    typer.echo(f"  wrote {key}, which opens this batch's scores once, and then goes")
    typer.echo("Next: the host runs `wardtree score host` on the batch.")


@app.command(epilog="Example: [bold]wardtree score host --model model --batch batch.enc --out scores.enc "
             "--home uppsala[/bold]")  # fmt: skip
def host(
    model: Model,
    batch: Batch,
    out: Out,
    manifest: ManifestFile = None,
    home: OwnHome = None,
    unsigned: Unsigned = False,
    passphrase_fd: Descriptor = None,
) -> None:
    """Host: compute the scores of encrypted patients; nothing is decrypted here, and nothing could be."""
    from keys.scoring import Scorer

    refuse_existing(out)
    trust = Trust.of(manifest, home, unsigned)
    exported = verify_export(model)
    file = read_scoring_file(batch, BATCH, trust.keys)
    _same_model(file, exported.card["state"], batch)
    identity = trust.identity(read_passphrase(passphrase_fd, str(home))) if trust.keys is not None else None
    layer = scoring.last_layer(exported)
    step = file.step("feature_step")
    weights, biases, weight_step = layer.whole(file.layout, step)
    watch = Stopwatch()
    with naming(batch):
        body = Scorer().score_patients(file.body, file.layout, weights, biases)
    facts = dict(file.facts) | {"of": file.digest, "weight_step": weight_step.hex()}
    scores = ScoringFile(SCORES, identity.name if identity else None, facts, body)
    write_public(out, scores.to_bytes(identity))
    _tell(f"Scored {file.facts['patients']} encrypted patients", file.facts["patients"], watch.seconds, len(body), out)
    typer.echo("Next: the client runs `wardtree score open` on the scores.")


@app.command(epilog="Example: [bold]wardtree score encrypt-model --model model --out model.enc --key model.key --home "
             "uppsala[/bold]")  # fmt: skip
def encrypt_model(
    model: Model,
    out: Out,
    key: Key,
    largest: Largest = scoring.FEATURE_RANGE,
    home: OwnHome = None,
    unsigned: Unsigned = False,
    passphrase_fd: Descriptor = None,
) -> None:
    """Owner: encrypt the model's last layer under a fresh key, for one batch of up to 8,192 patients who are elsewhere.

    The owner is who will learn the scores. Who has the patients gets the file and model-card.json.
    """
    for path in (out, key):
        refuse_existing(path)
    trust = Trust.of(None, home, unsigned)
    _check_range(largest)
    exported = verify_export(model)
    passphrase = read_passphrase(passphrase_fd, str(home or key), new=home is None)
    identity = trust.identity(passphrase)
    features, outputs, body, step, weight_step, sealed, seconds = in_keyroom(
        scoring.room_encrypt_model, *scoring.last_layer(exported).to_bytes(), largest, passphrase
    )
    facts = {"patients": MAX_PATIENTS, "features": features, "outputs": outputs, "model": exported.card["state"]}
    facts |= {"feature_step": step.hex(), "weight_step": weight_step.hex()}
    file = ScoringFile(MODEL, identity.name if identity else None, facts, body)
    write_private(key, sealed)
    write_public(out, file.to_bytes(identity))
    typer.echo(f"Encrypted {outputs} x {features} weights: {seconds:.2f} s, {len(body) / 1e6:.1f} MB")
    typer.echo(f"  wrote {out}\n  wrote {key}, which opens the scores of one batch, and then goes")
    typer.echo("Next: who has the patients runs `wardtree score apply` on the encrypted model.")


@app.command(epilog="Example: [bold]wardtree score apply --encrypted-model model.enc --card model-card.json --data "
             "patients.csv --out scores.enc --manifest manifest.json[/bold]")  # fmt: skip
def apply(
    encrypted_model: EncryptedModel,
    card_file: Card,
    data: Data,
    out: Out,
    manifest: ManifestFile = None,
    home: OwnHome = None,
    unsigned: Unsigned = False,
    passphrase_fd: Descriptor = None,
) -> None:
    """Who has the patients: their encrypted scores under an encrypted model. Its owner will learn the scores.

    Patients are read in a room that reaches no network; see docs/scoring.md for what an owner can find out. Without a
    home the answer is unsigned: with --manifest the owner's signature is checked all the same.
    """
    refuse_existing(out)
    trust = Trust.of(manifest, home, unsigned)
    card = read_card(card_file)
    file = read_scoring_file(encrypted_model, MODEL, trust.keys)
    _same_model(file, card["state"], encrypted_model)
    identity = trust.identity(read_passphrase(passphrase_fd, str(home))) if home is not None else None
    shape = [file.facts[name] for name in ("features", "outputs")]
    arguments = (card, str(data.resolve()), file.body, shape, file.step("feature_step"))
    patients, body, seconds = in_keyroom(scoring.room_apply, *arguments, read=_readable(card, data))
    facts = dict(file.facts) | {"of": file.digest, "patients": patients}
    scores = ScoringFile(SCORES, identity.name if identity else None, facts, body)
    write_public(out, scores.to_bytes(identity))
    _tell(f"Scored {patients} patients under an encrypted model", patients, seconds, len(body), out)
    unsigned_answer = "" if identity else ", --unsigned"
    typer.echo(f"Next: the owner runs `wardtree score open` on the scores{unsigned_answer}.")


@app.command(name="open", epilog="Examples: [bold]wardtree score open --key batch.key --batch batch.enc --scores "
             "scores.enc --out scores.csv --home lund[/bold]; [bold]wardtree score open --key model.key "
             "--encrypted-model model.enc --scores scores.enc --out scores.csv --unsigned[/bold]")  # fmt: skip
def open_scores(
    key: Key,
    scores: Annotated[Path, typer.Option(help="The file with the encrypted scores.")],
    out: Out,
    batch: Annotated[Path | None, typer.Option(help="The encrypted patients that were sent to the host.")] = None,
    encrypted_model: Annotated[Path | None, typer.Option(help="Or the encrypted model that was sent.")] = None,
    manifest: ManifestFile = None,
    home: OwnHome = None,
    unsigned: Unsigned = False,
    passphrase_fd: Descriptor = None,
) -> None:
    """Who encrypted, patients or a model: open the scores. The key is erased then, and also when a check fails."""
    refuse_existing(out)
    trust = Trust.of(manifest, home, unsigned)
    if batch is not None and encrypted_model is None:
        sent, free = read_scoring_file(batch, BATCH, None), "weight_step"
    elif encrypted_model is not None and batch is None:
        sent, free = read_scoring_file(encrypted_model, MODEL, None), "patients"
    else:
        raise ScoringError("expected the file that was sent, --batch or --encrypted-model, came both or neither")
    answer = read_scoring_file(scores, SCORES, trust.keys)
    if answer.facts != dict(sent.facts) | {"of": sent.digest, free: answer.facts[free]}:
        raise ScoringError(f"{scores}: these are not the scores of {batch or encrypted_model}")
    passphrase = read_passphrase(passphrase_fd, str(home or key))
    sealed = read_bounded(key, MAX_SEALED)
    patients = answer.facts["patients"]
    shape = [sent.facts[name] for name in ("patients", "features", "outputs")]
    step = answer.step("feature_step") * answer.step("weight_step")
    try:
        table, seconds = in_keyroom(scoring.room_open, sealed, passphrase, answer.body, shape, patients, step)
    except WardtreeError as error:
        if str(error) != "failed":
            raise
        erase_file(key)
        raise ScoringError(
            f"{scores}: failed: this is no sum that an honest host gives. Nothing was opened, and {key} is erased"
        ) from None
    write_private(out, table)
    erase_file(key)
    _tell(f"Opened the scores of {patients} patients", patients, seconds, wrote=out)
    typer.echo(f"  erased {key}")


def _readable(card: Mapping[str, object], data: Path) -> list[Path]:
    """What the room may read: the patients, and the code of the task."""
    study = parse_study(str(card["study_toml"]), "the study in the card")
    read = [data.resolve()]
    with contextlib.suppress(WardtreeError):  # features as an array need no task
        read.append(task_source(study.task.class_name, study.task.options))
    return read


def _check_range(largest: float) -> None:
    if not 1e-6 <= largest <= 1e6:
        raise ScoringError(f"--range: expected a number from 1e-6 to 1e6, came {largest:g}")


def _same_model(file: ScoringFile, state: str, path: Path) -> None:
    if file.facts["model"] != state:
        raise ScoringError(f"{path}: made for the model {file.facts['model'][:16]}, the one here is {state[:16]}")


def _tell(did: str, patients: int, seconds: float, size: int = 0, wrote: Path | None = None) -> None:
    traffic = f", {size / patients / 1e3:.1f} kB a patient" if size else ""
    typer.echo(f"{did}: {1e3 * seconds / patients:.2f} ms a patient{traffic}")
    if wrote:
        typer.echo(f"  wrote {wrote}")
