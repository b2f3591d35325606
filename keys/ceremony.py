"""The ceremony: from nothing to a manifest signed by all, by files that people carry.

Every step reads files, writes files (never over a person's), and says what it did and what comes next:

    each party    create_identity -> make_card
    coordinator   propose                        (cards and the key holder's public key in, proposal out)
    each party    review -> sign                 (fingerprints compared over the telephone)
    coordinator   combine
    each party    join                           (verifies everything, then installs it in its home)

A version that follows another goes the same way. What the coordinator does is written into the transcript
as well (``keys/transcript.py``); who keeps the secret key, and its end: ``keys/custody.py``.
"""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from keys.canonical import canonical, digest, fields, parse, unhex
from keys.errors import WardtreeError
from keys.history import APPROVAL, MEMBER
from keys.identity import MAX_CARD, SIGNATURE_BYTES, Card, Identity
from keys.manifest import (
    DOMAIN,
    MAX_MANIFEST,
    Manifest,
    Signed,
    check_signatures,
    check_succession,
    check_successor,
    check_time,
    format_time,
    verify_next,
    verify_signatures,
    verify_signed,
)
from keys.vault import (
    MAX_SEALED,
    STANDARD,
    KdfCost,
    VaultError,
    naming,
    open_file,
    read_bounded,
    read_lock,
    replace_file,
    seal,
    seal_file,
    unseal,
    write_public,
)

# A party's home.
IDENTITY = "identity.sealed"
CARD = "card.json"
MANIFEST = "manifest.json"
PUBLIC_KEY = "public.key"
SECRET_KEYS = "secret-key-*.sealed"  # the key holder's only, one for each public key

IDENTITY_KIND = "identity"
SECRET_KIND = "ckks-secret-key"
MAX_PUBLIC_KEY = 16 * 2**20  # bytes

_SIGNATURE_FORMAT = "wardtree-signature/1"
_SIGNATURE = {"format": (str,), "manifest": (str,), "name": (str,), "role": (str,), "signature": (str,)}


class CeremonyError(WardtreeError):
    """A step of the ceremony that does not fit the steps before it."""


@dataclass(frozen=True)
class Step:
    """What a step did, which files it wrote, and what comes next, for whom."""

    did: str
    wrote: tuple[Path, ...]
    next: str


def secret_key_file(public_key_digest: str) -> str:
    """The name of the sealed secret key that belongs to a public key, in the key holder's home."""
    return SECRET_KEYS.replace("*", public_key_digest[:16])


def create_identity(home: Path, name: str, passphrase: str, cost: KdfCost = STANDARD) -> Step:
    """Make a new identity, sealed in ``home``. Raises IdentityError, or VaultError if there is one."""
    path, identity = home / IDENTITY, Identity.create(name)
    seal_file(path, IDENTITY_KIND, identity.to_bytes(), passphrase, cost)
    fingerprint = " ".join(identity.card(None, 0).fingerprint)
    return Step(
        f"Made the identity of {name}, sealed under your passphrase. Its words: {fingerprint}",
        (path,),
        f"{name}: write the seven words down, and make your card (identity card).",
    )


def change_passphrase(home: Path, old: str, new: str, cost: KdfCost = STANDARD) -> Step:
    """Seal everything in ``home`` that is under the passphrase ``old`` anew, under ``new`` and at ``cost``.

    The files that were there are overwritten. A change that was interrupted goes on where it was. Raises
    VaultError for a wrong passphrase, before anything is changed.
    """
    sealed = {}
    for path in [*sorted(home.glob(SECRET_KEYS)), home / IDENTITY]:
        data = read_bounded(path, MAX_SEALED)
        with naming(path):
            lock = read_lock(data)
            if lock.cost is None:
                continue  # in the custody of share holders: there is no passphrase to change
            try:
                secret = unseal(data, lock.kind, old)
            except VaultError as error:
                try:
                    unseal(data, lock.kind, new)
                except VaultError:
                    raise error from None
                continue
        sealed[path] = seal(lock.kind, secret, new, cost)
    for path, data in sealed.items():
        replace_file(path, data)
    return Step(
        f"Sealed {len(sealed)} file{'s' if len(sealed) != 1 else ''} anew, under the new passphrase.",
        tuple(sealed),
        "destroy older copies of these files, such as backups: the old passphrase still opens those.",
    )


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
        f"Made the card of {card.name}. Its words: {' '.join(card.fingerprint)}",
        wrote,
        f"{card.name}: give the card to whoever asked for it; read the words out when others telephone for them.",
    )


def read_card(path: Path) -> Card:
    """The card in ``path``, verified. Raises WardtreeErrors that name the file."""
    data = read_bounded(path, MAX_CARD)
    with naming(path):
        return Card.from_json(data)


def read_public_key(path: Path) -> bytes:
    """The bytes of a public key's file. Raises VaultError."""
    return read_bounded(path, MAX_PUBLIC_KEY)


def read_proposal(path: Path) -> Manifest:
    """The proposed, unsigned manifest in ``path``. Raises WardtreeErrors that name the file."""
    data = read_bounded(path, MAX_MANIFEST)
    with naming(path):
        return Manifest.from_bytes(data)


def propose(
    *,
    cards: Sequence[Card],
    public_key_digest: str,
    key_holder: str,
    study: str,
    plan: Mapping[str, object],
    task_digest: str,
    weights: Mapping[str, int],
    created: datetime,
    expires: datetime,
    out: Path,
    min_hidden: int = 2,
    threshold: int | None = None,
    base: str | None = None,
    allow_two_parties: bool = False,
    sandbox_gaps: Iterable[str] = (),
    debug: Iterable[str] = (),
    tree_seed: str | None = None,
    previous: Manifest | None = None,
) -> Step:
    """Write the proposal ``out``: version 1 of a new federation, or the version after ``previous``.

    The fields are the Manifest's; ``tree_seed`` is drawn if None, ``threshold`` a majority. Raises WardtreeErrors.
    """
    roster = tuple(sorted(cards, key=lambda card: card.name))
    manifest = Manifest(
        federation=previous.federation if previous else secrets.token_hex(16),
        version=previous.version + 1 if previous else 1,
        previous=previous.digest if previous else None,
        key_holder=key_holder,
        cards=roster,
        study=study,
        plan=plan,
        public_key_digest=public_key_digest,
        tree_seed=tree_seed or secrets.token_hex(32),
        min_hidden=min_hidden,
        threshold=threshold or len(roster) // 2 + 1,
        base=base,
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
        f"{', '.join(signers(manifest, previous))}: review the proposal, verify it by voice, and sign it.",
    )


def signers(manifest: Manifest, previous: Manifest | None) -> list[str]:
    """Everyone who may have to sign: the roster, and the members of the version before."""
    return sorted({*manifest.names, *(previous.names if previous else ())})


def sign(home: Path, passphrase: str, proposal: Path, out: Path, *, approve: bool = False) -> Step:
    """Sign the proposal into the new file ``out``, if this home's card is in it as it is here.

    With ``approve``, or when the party leaves, it signs as a member of the version that is installed in
    ``home``, which the proposal then replaces. Raises CeremonyError where that does not fit, and other
    WardtreeErrors for files that are not what they must be.
    """
    manifest, own = read_proposal(proposal), read_card(home / CARD)
    installed = read_installed(home)
    if installed and installed.digest != manifest.digest:
        with naming(proposal):
            check_successor(installed, manifest)
    role = APPROVAL if approve or (installed and own.name not in manifest.names) else MEMBER
    if role == MEMBER:
        _check_own_card(manifest, own, proposal)
    elif installed is None:
        raise CeremonyError(f"{home}: has joined no version yet, so it has none to let end")
    identity = load_identity(home, passphrase)
    if identity.card(own.endpoint, own.examples) != own:
        raise CeremonyError(f"{home / CARD}: not the card of the identity beside it; make the card again")
    signature = identity.sign(DOMAIN, manifest.body_bytes)
    content = {
        "format": _SIGNATURE_FORMAT,
        "manifest": manifest.digest,
        "name": own.name,
        "role": role,
        "signature": signature.hex(),
    }
    write_public(out, canonical(content))
    did = f"{own.name} signed version {manifest.version}, digest {manifest.digest}"
    if role == APPROVAL:
        did += f", as a member of version {manifest.version - 1}"
    return Step(
        did, (out,), f"{own.name}: give the signature to the coordinator, who combines them when all are there."
    )


def collect(proposal: Path, signatures: Sequence[Path]) -> Signed:
    """The proposal with the signatures in these files, each of which must be over it; not judged further.

    Raises CeremonyError, or other WardtreeErrors that name the file.
    """
    manifest = read_proposal(proposal)
    collected: dict[str, dict[str, bytes]] = {MEMBER: {}, APPROVAL: {}}
    for path in signatures:
        name, role, signature = _read_signature(path, manifest)
        if name in collected[role]:
            raise CeremonyError(f"{path}: a second signature of {name!r}, expected one of each member")
        collected[role][name] = signature
    return Signed(manifest, collected[MEMBER], collected[APPROVAL])


def combine(
    signed: Signed, out: Path, now: datetime, previous: Manifest | None = None, lost: Iterable[bytes] = ()
) -> Step:
    """Write the signed manifest ``out``, if it may be followed: ``previous`` is the version before it.

    Raises CeremonyError, ManifestError (signatures missing, false, of strangers; too few of the version before)
    or other WardtreeErrors.
    """
    manifest = signed.manifest
    check_signatures(signed)
    if previous:
        check_successor(previous, manifest)
        check_succession(previous, signed, lost)
    elif manifest.version > 1:
        raise CeremonyError(f"version {manifest.version} follows another, which is needed to judge it")
    check_time(manifest, now)
    write_public(out, signed.to_bytes())
    return Step(
        f"Combined the signatures of all {len(manifest.cards)} members: version {manifest.version} is valid.",
        (out,),
        f"{', '.join(manifest.names)}: join with this manifest and the public key.",
    )


def verify(manifest_path: Path, now: datetime) -> Manifest:
    """The signed manifest in ``manifest_path``, wholly verified. Raises WardtreeErrors that name the file."""
    data = read_bounded(manifest_path, MAX_MANIFEST)
    with naming(manifest_path):
        return verify_signed(data, now)


def read_installed(home: Path) -> Manifest | None:
    """The manifest that ``home`` has joined, perhaps expired; None before the first. Raises WardtreeErrors."""
    path = home / MANIFEST
    if not path.exists():
        return None
    data = read_bounded(path, MAX_MANIFEST)
    with naming(path):
        return verify_signatures(data)


def join(home: Path, manifest: Path, public_key: Path, now: datetime, lost: Iterable[bytes] = ()) -> Step:
    """Install the signed manifest and the public key in ``home``, if all of it is right for this party.

    An installed version is followed only by its successor; the same version again is a repair. ``lost`` are
    signing keys that were revoked. Raises CeremonyError, ManifestError or other WardtreeErrors. That the public
    key carries no secret key is for the code that loads it: here it is bytes with a digest.
    """
    data = read_bounded(manifest, MAX_MANIFEST)
    old = read_installed(home)
    with naming(manifest):
        new = verify_signed(data, now)
        if old and old.digest != new.digest:
            verify_next(old, data, now, lost)
    own = read_card(home / CARD)
    _check_own_card(new, own, manifest)
    key = read_public_key(public_key)
    if digest(key).hex() != new.public_key_digest:
        raise CeremonyError(
            f"{public_key}: not the public key that was signed (expected SHA-256 {new.public_key_digest})"
        )
    installed = home / MANIFEST
    # The manifest last: if this stops half-way, the digest in the old one refuses the new key.
    write_public(home / PUBLIC_KEY, key, replace=True)
    write_public(installed, data, replace=True)
    return Step(
        f"{own.name} joined version {new.version} with {len(new.cards)} members; its public key is the one that all "
        "signed.",
        (home / PUBLIC_KEY, installed),
        f"{own.name}: start your node when the others are ready.",
    )


def _check_own_card(manifest: Manifest, own: Card, path: Path) -> None:
    with naming(path):
        listed = manifest.card(own.name)
    if listed != own:
        raise CeremonyError(
            f"{path}: has another card of {own.name!r} ({' '.join(listed.fingerprint)}) "
            f"than this home ({' '.join(own.fingerprint)})"
        )


def _read_signature(path: Path, manifest: Manifest) -> tuple[str, str, bytes]:
    data = read_bounded(path, MAX_CARD)
    with naming(path):
        values = fields(parse(data, MAX_CARD), "signature file", _SIGNATURE)
        if values["format"] != _SIGNATURE_FORMAT:
            raise CeremonyError(f"expected the format {_SIGNATURE_FORMAT!r}, came {values['format']!r}")
        if values["role"] not in (MEMBER, APPROVAL):
            raise CeremonyError(f"expected the role {MEMBER!r} or {APPROVAL!r}, came {values['role']!r}")
        if values["manifest"] != manifest.digest:
            raise CeremonyError(f"{values['name']!r} signed another manifest than this proposal")
        return values["name"], values["role"], unhex(values["signature"], SIGNATURE_BYTES, "signature")
