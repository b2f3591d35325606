"""The ceremony: from nothing to a manifest signed by all, by files that people carry.

Every step reads files, writes files (never over a person's), and says what it did and what comes next:

    each party    create_identity -> make_card
    coordinator   propose                        (cards and the key holder's public key in, proposal out)
    each party    review -> sign                 (digests and fingerprints compared over the telephone)
    coordinator   combine
    each party    join                           (verifies everything, then installs it in its home)
"""

import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.errors import WardtreeError
from keys.identity import MAX_CARD, SIGNATURE_BYTES, Card, Identity
from keys.manifest import (
    DOMAIN,
    MAX_MANIFEST,
    Manifest,
    check_successor,
    format_time,
    signed_bytes,
    verify_signatures,
    verify_signed,
)
from keys.vault import (
    STANDARD,
    KdfCost,
    naming,
    open_file,
    read_bounded,
    seal_file,
    write_public,
)

# A party's home.
IDENTITY = "identity.sealed"
CARD = "card.json"
SECRET_KEY = "secret-key.sealed"  # the key holder's only
MANIFEST = "manifest.json"
PUBLIC_KEY = "public.key"

IDENTITY_KIND = "identity"
MAX_PUBLIC_KEY = 16 * 2**20  # bytes

_SIGNATURE_FORMAT = "wardtree-signature/1"
_SIGNATURE = {"format": (str,), "manifest": (str,), "name": (str,), "signature": (str,)}


class CeremonyError(WardtreeError):
    """A step of the ceremony that does not fit the steps before it."""


@dataclass(frozen=True)
class Step:
    """What a step did, which files it wrote, and what comes next, for whom."""

    did: str
    wrote: tuple[Path, ...]
    next: str


def create_identity(home: Path, name: str, passphrase: str, cost: KdfCost = STANDARD) -> Step:
    """Make a new identity, sealed in ``home``. Raises IdentityError, or VaultError if there is one."""
    path = home / IDENTITY
    seal_file(path, IDENTITY_KIND, Identity.create(name).to_bytes(), passphrase, cost)
    return Step(f"Made the identity of {name}, sealed under your passphrase.", (path,), f"{name}: make your card.")


def load_identity(home: Path, passphrase: str) -> Identity:
    """The identity sealed in ``home``. Raises VaultError or FormatError, which name the file."""
    path = home / IDENTITY
    secret = open_file(path, IDENTITY_KIND, passphrase)
    with naming(path):
        return Identity.from_bytes(secret)


def make_card(home: Path, passphrase: str, endpoint: str | None, examples: int, out: Path | None = None) -> Step:
    """Sign this party's card into ``home`` (in place of an earlier one), with a copy in the new file ``out``.

    ``endpoint`` is "host:port", None for a party that can only dial out; ``examples`` is declared rounded to
    a power of two, 0 for not at all. Raises IdentityError or VaultError.
    """
    card = load_identity(home, passphrase).card(endpoint, examples)
    wrote = (home / CARD,) if out is None else (out, home / CARD)
    if out is not None:
        write_public(out, card.to_json())
    write_public(home / CARD, card.to_json(), replace=True)
    return Step(
        f"Made the card of {card.name}. Fingerprint: {card.fingerprint}",
        wrote,
        f"{card.name}: give the card to the coordinator, and read the fingerprint out over the telephone.",
    )


def read_card(path: Path) -> Card:
    """The card in ``path``, verified. Raises WardtreeErrors that name the file."""
    data = read_bounded(path, MAX_CARD)
    with naming(path):
        return Card.from_json(data)


def read_proposal(path: Path) -> Manifest:
    """The proposed, unsigned manifest in ``path``. Raises WardtreeErrors that name the file."""
    data = read_bounded(path, MAX_MANIFEST)
    with naming(path):
        return Manifest.from_bytes(data)


def propose(
    *,
    cards: Sequence[Path],
    public_key: Path,
    key_holder: str,
    study: str,
    plan: Mapping[str, object],
    task_digest: str,
    weights: Mapping[str, int],
    created: datetime,
    expires: datetime,
    out: Path,
    min_hidden: int = 2,
    allow_two_parties: bool = False,
    sandbox_gaps: Iterable[str] = (),
    debug: Iterable[str] = (),
    tree_seed: str | None = None,
    previous: Manifest | None = None,
) -> Step:
    """Write the proposal ``out``: version 1 of a new federation, or the version after ``previous``.

    The fields are the Manifest's; ``tree_seed`` is drawn if None. Raises WardtreeErrors.
    """
    manifest = Manifest(
        federation=previous.federation if previous else secrets.token_hex(16),
        version=previous.version + 1 if previous else 1,
        previous=previous.digest if previous else None,
        key_holder=key_holder,
        cards=tuple(sorted(map(read_card, cards), key=lambda card: card.name)),
        study=study,
        plan=plan,
        public_key_digest=digest(read_bounded(public_key, MAX_PUBLIC_KEY)).hex(),
        tree_seed=tree_seed or secrets.token_hex(32),
        min_hidden=min_hidden,
        allow_two_parties=allow_two_parties,
        weights=weights,
        created=format_time(created),
        expires=format_time(expires),
        sandbox_gaps=tuple(sorted(set(sandbox_gaps))),
        debug=tuple(sorted(set(debug))),
        task_digest=task_digest,
    )
    write_public(out, manifest.body_bytes)
    return Step(
        f"Proposed version {manifest.version} for {len(manifest.cards)} members. Digest: {manifest.digest}",
        (out,),
        f"{', '.join(manifest.names)}: review the proposal and sign it.",
    )


def review(proposal: Path) -> str:
    """The proposal in plain words, for the person who is to sign it. Raises WardtreeErrors."""
    manifest = read_proposal(proposal)
    hours = f"from {manifest.created} until {manifest.expires}"
    hidden = f"every published total hides each party among at least {manifest.min_hidden} others"
    if len(manifest.cards) == 2:
        hidden = "NOT AT ALL: of two members, each learns the other's update by subtraction"
    lines = [
        f"Proposal: version {manifest.version} of federation {manifest.federation}, {hours}",
        f"Follows: {manifest.previous or 'nothing, it is the first version'}",
        "",
        f"Key holder: {manifest.key_holder}. It alone has the secret key; it receives only the sum of the others.",
        f"Members: {len(manifest.cards)}",
    ]
    for card in manifest.cards:
        lines += [
            f"  {card.name}",
            f"    fingerprint  {card.fingerprint}",
            f"    reached at   {card.endpoint or 'nowhere, it dials out only'}",
            f"    declares     {f'about {card.examples} examples' if card.examples else 'no number of examples'}",
            f"    weight       {manifest.weights[card.name]}",
        ]
    lines += [
        "",
        f"Hidden: {hidden}",
        f"Two parties: {'allowed' if manifest.allow_two_parties else 'refused'}",
        f"Sandbox gaps allowed: {', '.join(manifest.sandbox_gaps) or 'none'}",
        f"Debug modes: {', '.join(manifest.debug) or 'none'}",
        f"Public key: {manifest.public_key_digest}",
        f"Task code: {manifest.task_digest}",
        f"Tree seed: {manifest.tree_seed}",
        f"CKKS plan: {', '.join(f'{name} = {value}' for name, value in sorted(manifest.plan.items()))}",
        "",
        "Study:",
        *(f"  | {line}" for line in manifest.study.split("\n")),
        "",
        # The whole digest: its author could make two proposals that agree in any short part of it.
        "Read out, and compare with the others before you sign:",
        f"  {' '.join(re.findall('....', manifest.digest))}",
    ]
    return "\n".join(lines) + "\n"


def sign(home: Path, passphrase: str, proposal: Path, out: Path) -> Step:
    """Sign the proposal into the new file ``out``, if this home's card is in it as it is here.

    Raises CeremonyError otherwise, and other WardtreeErrors for files that are not what they must be.
    """
    manifest, own = read_proposal(proposal), read_card(home / CARD)
    _check_own_card(manifest, own, proposal)
    identity = load_identity(home, passphrase)
    if identity.card(own.endpoint, own.examples) != own:
        raise CeremonyError(f"{home / CARD}: not the card of the identity beside it; make the card again")
    signature = identity.sign(DOMAIN, manifest.body_bytes)
    content = {
        "format": _SIGNATURE_FORMAT,
        "manifest": manifest.digest,
        "name": own.name,
        "signature": signature.hex(),
    }
    write_public(out, canonical(content))
    return Step(
        f"{own.name} signed version {manifest.version}, digest {manifest.digest}",
        (out,),
        f"{own.name}: give the signature to the coordinator, who combines them when all are there.",
    )


def combine(proposal: Path, signatures: Sequence[Path], out: Path, now: datetime) -> Step:
    """Put the signatures to the proposal: the signed manifest ``out``, which is verified before it is written.

    Raises CeremonyError, ManifestError (signatures missing, false, of strangers) or other WardtreeErrors.
    """
    manifest = read_proposal(proposal)
    collected: dict[str, bytes] = {}
    for path in signatures:
        name, signature = _read_signature(path, manifest)
        if name in collected:
            raise CeremonyError(f"{path}: a second signature of {name!r}, expected one of each member")
        collected[name] = signature
    data = signed_bytes(manifest, collected)
    verify_signed(data, now)
    write_public(out, data)
    return Step(
        f"Combined the signatures of all {len(collected)} members: version {manifest.version} is valid.",
        (out,),
        f"{', '.join(manifest.names)}: join with this manifest and the public key.",
    )


def verify(manifest_path: Path, now: datetime) -> Manifest:
    """The signed manifest in ``manifest_path``, wholly verified. Raises WardtreeErrors that name the file."""
    data = read_bounded(manifest_path, MAX_MANIFEST)
    with naming(manifest_path):
        return verify_signed(data, now)


def join(home: Path, manifest: Path, public_key: Path, now: datetime) -> Step:
    """Install the signed manifest and the public key in ``home``, if all of it is right for this party.

    An installed version is followed only by its successor; the same version again is a repair. Raises
    CeremonyError, ManifestError or other WardtreeErrors. That the public key carries no secret key is for
    the code that loads it: here it is bytes with a digest.
    """
    data = read_bounded(manifest, MAX_MANIFEST)
    with naming(manifest):
        new = verify_signed(data, now)
    own = read_card(home / CARD)
    _check_own_card(new, own, manifest)
    key = read_bounded(public_key, MAX_PUBLIC_KEY)
    if digest(key).hex() != new.public_key_digest:
        raise CeremonyError(
            f"{public_key}: not the public key that was signed (expected SHA-256 {new.public_key_digest})"
        )
    installed = home / MANIFEST
    if installed.exists():
        installed_data = read_bounded(installed, MAX_MANIFEST)
        with naming(installed):
            old = verify_signatures(installed_data)
        if old.digest != new.digest:
            with naming(manifest):
                check_successor(old, new)
    # The manifest last: if this stops half-way, the digest in the old one refuses the new key.
    write_public(home / PUBLIC_KEY, key, replace=True)
    write_public(installed, data, replace=True)
    return Step(
        f"{own.name} joined version {new.version} with {len(new.cards)} members.",
        (home / PUBLIC_KEY, installed),
        f"{own.name}: start your node when the others are ready.",
    )


def _check_own_card(manifest: Manifest, own: Card, path: Path) -> None:
    with naming(path):
        listed = manifest.card(own.name)
    if listed != own:
        raise CeremonyError(
            f"{path}: has another card of {own.name!r} (fingerprint {listed.fingerprint}) "
            f"than this home (fingerprint {own.fingerprint})"
        )


def _read_signature(path: Path, manifest: Manifest) -> tuple[str, bytes]:
    data = read_bounded(path, MAX_CARD)
    with naming(path):
        values = fields(parse(data, MAX_CARD), "signature file", _SIGNATURE)
        if values["format"] != _SIGNATURE_FORMAT:
            raise CeremonyError(f"expected the format {_SIGNATURE_FORMAT!r}, came {values['format']!r}")
        if values["manifest"] != manifest.digest:
            raise CeremonyError(f"{values['name']!r} signed another manifest than this proposal")
        return values["name"], unhex(values["signature"], SIGNATURE_BYTES, "signature")
