"""The manifest: what all parties of a federation agree on, signed by every one of them.

Pure rules: bytes and a time in, a trusted Manifest or a ManifestError out. A Manifest that exists keeps
every rule that needs neither a signature nor a clock; ``verify_signed`` adds those two.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from datetime import UTC, datetime, timedelta
from functools import cached_property
from types import MappingProxyType
from typing import Any, TypeVar

from keys.canonical import MAX_INTEGER, canonical, digest, fields, hidden_letter, parse, unhex
from keys.errors import WardtreeError
from keys.identity import NAME, SIGNATURE_BYTES, Card, verify

FORMAT = "wardtree-manifest/1"
TWO_PARTIES = "two-parties"  # the debug name under which two members agree to hide nothing from each other
DOMAIN = "manifest"  # of the signatures over a manifest's body
MAX_MANIFEST = 2**20  # bytes of a manifest's file, signed or not
CLOCK_SKEW = timedelta(minutes=10)  # how far ahead the coordinator's clock may be

_BODY = {
    "format": (str,),
    "federation": (str,),
    "version": (int,),
    "previous": (str, type(None)),
    "key_holder": (str,),
    "cards": (list,),
    "study": (str,),
    "plan": (dict,),
    "public_key_digest": (str,),
    "tree_seed": (str,),
    "min_hidden": (int,),
    "threshold": (int,),
    "base": (str, type(None)),
    "allow_two_parties": (bool,),
    "weights": (dict,),
    "created": (str,),
    "expires": (str,),
    "sandbox_gaps": (list,),
    "debug": (list,),
    "task_digest": (str,),
}
_SIGNED = {"manifest": (dict,), "signatures": (dict,), "approvals": (dict,)}
T = TypeVar("T")
_TIME = "%Y-%m-%dT%H:%M:%SZ"


class ManifestError(WardtreeError):
    """A manifest that no node may follow."""


def format_time(moment: datetime) -> str:
    """``moment`` (aware) as "2026-11-21T10:00:00Z": UTC, whole seconds, rounded down."""
    return moment.astimezone(UTC).strftime(_TIME)


def parse_time(text: str) -> datetime:
    """The aware UTC time in ``text``, in the one spelling of ``format_time``. Raises ManifestError."""
    try:
        moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    except ValueError:
        moment = None
    if moment is None or format_time(moment) != text:
        raise ManifestError(f"manifest: expected a time like '2026-11-21T10:00:00Z', came {text!r}")
    return moment


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a federation's agreement. Digests, seeds and identifiers are lower-case hex.

    Attributes:
        federation: 16 random bytes that all versions share.
        version: 1, then one more for each successor.
        previous: ``digest`` of the version before; None for version 1.
        key_holder: the member that keeps the secret key.
        cards: the roster, sorted by name.
        study: the whole TOML text of the study.
        plan: the CKKS plan (integers, texts, lists of integers); not interpreted here.
        public_key_digest: SHA-256 of the public key's file.
        tree_seed: 32 bytes from which every node computes the same trees.
        min_hidden: among how many others a published total hides each party, at least 2.
        threshold: how many of this roster must sign the version after this one, beside all of its own roster.
        base: digest of the published model that this version goes on from, as the version before names it;
            None to begin anew.
        weights: for every member, an integer from 1.
        created, expires: as ``format_time`` writes them.
        sandbox_gaps, debug: sorted names of what is allowed to be missing, or to be on.
        task_digest: SHA-256 of the code that will touch the data.
    """

    federation: str
    version: int
    previous: str | None
    key_holder: str
    cards: tuple[Card, ...]
    study: str
    plan: Mapping[str, object]
    public_key_digest: str
    tree_seed: str
    min_hidden: int
    threshold: int
    base: str | None
    allow_two_parties: bool
    weights: Mapping[str, int]
    created: str
    expires: str
    sandbox_gaps: tuple[str, ...]
    debug: tuple[str, ...]
    task_digest: str

    def __post_init__(self) -> None:
        """Raises ManifestError or FormatError, which name the field or the parties."""
        object.__setattr__(self, "plan", MappingProxyType(dict(self.plan)))
        object.__setattr__(self, "weights", MappingProxyType(dict(self.weights)))
        _check_values(self)
        _check_roster(self)

    @property
    def names(self) -> tuple[str, ...]:
        """All members, sorted."""
        return tuple(card.name for card in self.cards)

    @property
    def quorum(self) -> int:
        """Among how many others a published set must hide each party: ``min_hidden``; 1 only for two members who
        both signed that each learns the other's update: one with noise of its own, or in an experiment. (Which of them
        it is, the study says, and the node checks.)"""
        return 1 if len(self.cards) == 2 and self.allow_two_parties else self.min_hidden

    @property
    def signing_keys(self) -> dict[str, bytes]:
        """Each member's Ed25519 public key."""
        return {card.name: card.signing_key for card in self.cards}

    def card(self, name: str) -> Card:
        """The member's card. Raises ManifestError if there is none of that name."""
        for card in self.cards:
            if card.name == name:
                return card
        raise ManifestError(f"manifest: {name!r} is not a member; the members are {', '.join(self.names)}")

    @cached_property
    def body_bytes(self) -> bytes:
        """The canonical bytes that are signed; a proposal's file is just these."""
        return canonical(self.to_dict())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of ``body_bytes``, in hex."""
        return digest(self.body_bytes).hex()

    def to_dict(self) -> dict[str, Any]:
        body = {each.name: getattr(self, each.name) for each in dataclass_fields(self)}
        return body | {
            "format": FORMAT,
            "cards": [card.to_dict() for card in self.cards],
            "plan": dict(self.plan),
            "weights": dict(self.weights),
            "sandbox_gaps": list(self.sandbox_gaps),
            "debug": list(self.debug),
        }

    @classmethod
    def from_dict(cls, value: object) -> "Manifest":
        """Raises ManifestError, FormatError or IdentityError unless ``value`` is a manifest's body."""
        values = fields(value, "manifest", _BODY)
        if (came := values["format"]) != FORMAT:
            raise ManifestError(f"manifest: format: expected {FORMAT!r}, came {came!r}")
        body = {name: each for name, each in values.items() if name != "format"}
        return cls(
            **body
            | {
                "cards": tuple(Card.from_dict(card) for card in values["cards"]),
                "sandbox_gaps": tuple(values["sandbox_gaps"]),
                "debug": tuple(values["debug"]),
            }
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "Manifest":
        """The unsigned manifest in a proposal's file. Raises as ``from_dict`` does."""
        return cls.from_dict(parse(data, MAX_MANIFEST))


@dataclass(frozen=True)
class Signed:
    """A manifest with what was put to it, not yet judged: see :func:`check_signatures` and :func:`check_succession`.

    ``approvals`` are of members of the version before, under the keys that they had there.
    """

    manifest: Manifest
    signatures: Mapping[str, bytes]
    approvals: Mapping[str, bytes]

    def to_bytes(self) -> bytes:
        """The file of a signed manifest: the body, and the signatures over ``body_bytes``."""
        texts = [{name: each.hex() for name, each in some.items()} for some in (self.signatures, self.approvals)]
        return canonical({"manifest": self.manifest.to_dict(), "signatures": texts[0], "approvals": texts[1]})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Signed":
        """Raises ManifestError, FormatError or IdentityError unless ``data`` has the form of a signed manifest."""
        values = fields(parse(data, MAX_MANIFEST), "signed manifest", _SIGNED)
        manifest = Manifest.from_dict(values["manifest"])
        signatures, approvals = (
            {name: unhex(text, SIGNATURE_BYTES, f"{what} of {name!r}") for name, text in values[field].items()}
            for field, what in (("signatures", "signature"), ("approvals", "approval"))
        )
        return cls(manifest, signatures, approvals)


def verify_signed(data: bytes, now: datetime) -> Manifest:
    """The manifest in ``data``, if every member (and nobody else) signed it and ``now`` is in its time.

    Raises ManifestError, FormatError or IdentityError, which say by name what is wrong.
    """
    manifest = verify_signatures(data)
    check_time(manifest, now)
    return manifest


def verify_signatures(data: bytes) -> Manifest:
    """``verify_signed`` without the clock: for comparing with a version that may have expired."""
    signed = Signed.from_bytes(data)
    check_signatures(signed)
    return signed.manifest


def verify_next(old: Manifest, data: bytes, now: datetime, lost: Iterable[bytes] = ()) -> Manifest:
    """As ``verify_signed``, if it also follows ``old`` by ``check_succession``."""
    signed = Signed.from_bytes(data)
    check_successor(old, signed.manifest)
    check_signatures(signed)
    check_succession(old, signed, lost)
    check_time(signed.manifest, now)
    return signed.manifest


def check_signatures(signed: Signed) -> None:
    """Raises ManifestError unless every member, and nobody else, signed."""
    manifest = signed.manifest
    _refuse(signed.signatures.keys() - set(manifest.names), "signed by a stranger")
    _refuse(set(manifest.names) - signed.signatures.keys(), "signature missing")
    _refuse(_false(manifest, manifest.signing_keys, signed.signatures), "signature false")


def check_succession(old: Manifest, new: Signed, lost: Iterable[bytes] = ()) -> None:
    """Raises ManifestError unless ``old.threshold`` members of ``old`` signed under the keys that they had in it.

    A member of both rosters under one key signs once. Of whoever revoked a key in ``lost``, no signature of that
    key counts, and no new card may bring it back. Raises also for approvals that are false or a stranger's.
    """
    taken = frozenset(lost)
    _refuse((card.name for card in new.manifest.cards if card.signing_key in taken), "a revoked key")
    keys = {name: key for name, key in old.signing_keys.items() if key not in taken}
    _refuse(new.approvals.keys() - set(old.names), "approved by a stranger to the version before")
    _refuse(_false(new.manifest, old.signing_keys, new.approvals), "approval false")
    both = {name for name, key in keys.items() if new.manifest.signing_keys.get(name) == key}
    consent = (new.approvals.keys() | (both & new.signatures.keys())) & keys.keys()
    if len(consent) < old.threshold:
        raise ManifestError(
            f"manifest: version {new.manifest.version}: {old.threshold} of the {len(old.names)} members of version "
            f"{old.version} must sign it under the keys that they had there, came {len(consent)}"
            f"{' (' + ', '.join(sorted(consent)) + ')' if consent else ''}; "
            f"missing {', '.join(sorted(set(old.names) - consent))}"
        )


def check_time(manifest: Manifest, now: datetime) -> None:
    """Raises ManifestError unless the aware time ``now`` is in the manifest's (a naive one: ValueError)."""
    if now.tzinfo is None:
        raise ValueError("a time without a zone")
    if now < parse_time(manifest.created) - CLOCK_SKEW:
        raise ManifestError(f"manifest: not yet valid: created {manifest.created}, now {format_time(now)}")
    if now >= parse_time(manifest.expires):
        raise ManifestError(f"manifest: expired {manifest.expires}, now {format_time(now)}")


def check_successor(old: Manifest, new: Manifest) -> None:
    """Raises ManifestError unless ``new`` is the version right after ``old`` in the same federation."""
    if new.federation != old.federation:
        raise ManifestError(f"manifest: expected the federation {old.federation}, came another one, {new.federation}")
    if new.version <= old.version:
        raise ManifestError(f"manifest: rollback refused: version {old.version} is in force, came {new.version}")
    if new.version != old.version + 1:
        raise ManifestError(f"manifest: expected version {old.version + 1} next, came {new.version}")
    if new.previous != old.digest:
        raise ManifestError(
            f"manifest: version {new.version} follows another version {old.version} than the one in force"
        )


def _check_values(manifest: Manifest) -> None:
    for name, length in (("federation", 16), ("public_key_digest", 32), ("tree_seed", 32), ("task_digest", 32)):
        unhex(getattr(manifest, name), length, f"manifest: {name}")
    if not 1 <= manifest.version <= MAX_INTEGER:
        raise ManifestError(f"manifest: version: expected 1 or more, came {manifest.version}")
    if (manifest.previous is None) != (manifest.version == 1):
        raise ManifestError("manifest: previous: expected null for version 1, a digest for any other")
    if manifest.previous is not None:
        unhex(manifest.previous, 32, "manifest: previous")
    if manifest.base is not None:
        unhex(manifest.base, 32, "manifest: base")
        if manifest.version == 1:
            raise ManifestError("manifest: base: expected null for version 1, there is no model to go on from")
    if parse_time(manifest.created) >= parse_time(manifest.expires):
        raise ManifestError(f"manifest: expected a time after {manifest.created} as expires, came {manifest.expires}")
    for what, names in (("sandbox_gaps", manifest.sandbox_gaps), ("debug", manifest.debug)):
        if not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
            raise ManifestError(f"manifest: {what}: expected names of a-z, 0-9 and '-', came others")
        if list(names) != sorted(set(names)):
            raise ManifestError(f"manifest: {what}: expected sorted names, each once, came {', '.join(names)}")
    for name, value in manifest.plan.items():
        numbers = value if isinstance(value, list) else [value]
        if type(value) is not str and not all(type(number) is int for number in numbers):
            raise ManifestError(f"manifest: plan: {name!r}: expected an integer, text or a list of integers")
    # Whoever reviews must see what they sign: no character may hide or reorder others on a terminal.
    texts = itertools.chain([manifest.study], manifest.plan, manifest.plan.values())
    if hidden := next(filter(None, (hidden_letter(str(text)) for text in texts)), None):
        raise ManifestError(f"manifest: expected plain text in study and plan, came the character U+{ord(hidden):04X}")


def _check_roster(manifest: Manifest) -> None:
    names = manifest.names
    _refuse(_repeated(names), "two members of one name")
    if list(names) != sorted(names):
        raise ManifestError(f"manifest: cards: expected to be sorted by name, came {', '.join(names)}")
    if len(names) < 2:
        raise ManifestError(f"manifest: expected 2 members or more, came {len(names)}")
    if len(names) == 2 and not manifest.allow_two_parties:
        raise ManifestError(
            "manifest: two members learn each other's update by subtraction: refused without allow_two_parties"
        )
    equal = _repeated(key for card in manifest.cards for key in card.keys)
    _refuse((card.name for card in manifest.cards if equal.intersection(card.keys)), "equal keys")
    crowded = _repeated(card.endpoint for card in manifest.cards if card.endpoint)
    _refuse((card.name for card in manifest.cards if card.endpoint in crowded), "equal endpoints")
    if manifest.key_holder not in names:
        raise ManifestError(f"manifest: key_holder: {manifest.key_holder!r} is not a member")
    if manifest.card(manifest.key_holder).endpoint is None:
        raise ManifestError(f"manifest: key_holder: {manifest.key_holder!r} has no endpoint to be dialled at")
    if manifest.min_hidden < 2:
        raise ManifestError(f"manifest: min_hidden: expected 2 or more, came {manifest.min_hidden}")
    if len(names) > 2 and manifest.min_hidden >= len(names):
        raise ManifestError(
            f"manifest: min_hidden: {len(names)} members can hide each other among {len(names) - 1} at most, "
            f"came {manifest.min_hidden}"
        )
    if not 1 <= manifest.threshold <= len(names):
        raise ManifestError(f"manifest: threshold: expected 1 to {len(names)} members, came {manifest.threshold}")
    _refuse(manifest.weights.keys() - set(names), "weight for a stranger")
    _refuse(set(names) - manifest.weights.keys(), "weight missing")
    wrong = (name for name in names if type(weight := manifest.weights[name]) is not int or weight < 1)
    _refuse(wrong, "weight not an integer from 1")


def _false(manifest: Manifest, keys: Mapping[str, bytes], signatures: Mapping[str, bytes]) -> list[str]:
    """Whose signature over the manifest is not of the key that it should be of."""
    body = manifest.body_bytes
    return [name for name, each in signatures.items() if name in keys and not verify(keys[name], DOMAIN, body, each)]


def _refuse(names: Iterable[str], why: str) -> None:
    if wrong := sorted(names):
        quoted = (name if NAME.fullmatch(name) else repr(name) for name in wrong)
        raise ManifestError(f"manifest: {why}: {', '.join(quoted)}")


def _repeated(values: Iterable[T]) -> set[T]:
    return {value for value, count in Counter(values).items() if count > 1}
