"""The steps of a ceremony that the transcript records: what the coordinator and the key holder do in the CLI.

Each writes its files and its entries, or neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from keys import ceremony
from keys.ceremony import CeremonyError, Step
from keys.custody import destroy_key
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import Manifest
from keys.statement import KEYS_LOST, WITHDRAWN, Statement
from keys.transcript import TRANSCRIPT, Transcript, agreed, keep, proposed, read_home, read_transcript, record, stated
from keys.vault import naming, write_public


def note_proposal(home: Path, identity: Identity, proposal: Path, transcript: Path, now: datetime) -> None:
    """Record a proposal that was just written; it is removed again if the transcript does not take it."""
    with _undoing(proposal):
        record(transcript, identity, [proposed(ceremony.read_proposal(proposal))], now, home)


def agree(
    home: Path,
    identity: Identity,
    proposal: Path,
    signatures: Sequence[Path],
    transcript: Path,
    out: Path,
    now: datetime,
) -> Step:
    """Combine the signatures into the signed manifest ``out``, and record each of them and the agreement.

    Raises:
        WardtreeError: signatures are missing or false, by name; nothing is written then.
    """
    signed = ceremony.collect(proposal, signatures)
    history = read_transcript(transcript, now).history
    step = ceremony.combine(signed, out, now, history.in_force, history.lost)
    with _undoing(out):
        record(transcript, identity, agreed(signed), now, home)
    return Step(step.did, (*step.wrote, transcript), f"{step.next} They take over the transcript with it.")


def join(home: Path, manifest: Path, public_key: Path, transcript: Path, now: datetime) -> Step:
    """Install manifest, public key and transcript, if all three are right and fit what the home has.

    Raises:
        WardtreeError: the first thing that is wrong; nothing is installed then.
    """
    current = read_transcript(transcript, now)
    newest = current.history.in_force
    signed = ceremony.verify(manifest, now)
    with naming(transcript):
        if known := read_home(home, now):
            current.check_continues(known)
        current.check_fresh(now)
        if newest is None or newest.digest != signed.digest:
            raise CeremonyError(f"the manifest in force here is {newest and newest.digest}, not {manifest}")
    step = ceremony.join(home, manifest, public_key, now, current.history.lost)
    keep(home, transcript, now)
    return Step(step.did, (*step.wrote, home / TRANSCRIPT), step.next)


def note(
    home: Path, identity: Identity, transcript: Path, statements: Sequence[Statement], now: datetime
) -> Transcript:
    """Record statements, one's own or others', in the transcript and in the home's copy of it."""
    record(transcript, identity, [stated(statement) for statement in statements], now, home)
    return keep(home, transcript, now)


def check_record(home: Path, transcript: Path, now: datetime) -> Transcript:
    """The transcript, if it continues the one in the home: to know that before something is done for ever.

    Raises:
        WardtreeError: it does not.
    """
    current = read_transcript(transcript, now)
    if known := read_home(home, now):
        with naming(transcript):
            current.check_continues(known)
    return current


def revoke(home: Path, identity: Identity, reason: str, transcript: Path, out: Path, now: datetime) -> Step:
    """Take back one's signature of the manifest that the home follows: into the file ``out``, and the transcript.

    ``reason`` is "keys-lost" or "withdrawn". Raises WardtreeErrors.
    """
    manifest = _installed(home)
    if reason not in (KEYS_LOST, WITHDRAWN):
        raise CeremonyError(f"revoke: reason: expected {KEYS_LOST!r} or {WITHDRAWN!r}, came {reason!r}")
    statement = Statement.make(identity, "revocation", {"manifest": manifest.digest, "reason": reason}, now)
    write_public(out, statement.to_json())
    with _undoing(out):
        note(home, identity, transcript, [statement], now)
    others = ", ".join(name for name in manifest.names if name != identity.name)
    how = "a new identity for it, or without it" if reason == KEYS_LOST else f"or without {identity.name}"
    return Step(
        statement.text,
        (out, transcript),
        f"{others}: take over the transcript at once (`wardtree ceremony transcript --home`), which stops your nodes "
        f"at the next start; then agree on a new version, with {how}.",
    )


def destroy(
    home: Path,
    identity: Identity,
    public_key: str | None,
    transcript: Path,
    no_copies: bool,
    out: Path,
    now: datetime,
) -> Step:
    """Destroy the secret key of ``public_key`` (a digest; None for the manifest's), certify and record it.

    Raises:
        WardtreeError: nothing was destroyed.
    """
    current = check_record(home, transcript, now)
    digest = public_key or _installed(home).public_key_digest
    step, statement = destroy_key(home, identity, digest, current.history, current.head, no_copies, out, now)
    note(home, identity, transcript, [statement], now)
    return Step(step.did, (*step.wrote, transcript), step.next)


def _installed(home: Path) -> Manifest:
    manifest = ceremony.read_installed(home)
    if manifest is None:
        raise CeremonyError(f"{home}: has joined no manifest yet")
    return manifest


@contextmanager
def _undoing(out: Path) -> Iterator[None]:
    """Remove a file that was just written if what must come with it fails."""
    try:
        yield
    except WardtreeError:
        out.unlink(missing_ok=True)
        raise
