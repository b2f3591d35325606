"""What follows from a ceremony's acts, one after the other: pure rules, no files and no clock.

The history knows the manifest in force, what is proposed, whose keys were revoked, who holds shares of which
secret key, and which secret keys are gone. An act that does not fit what came before is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from keys.canonical import unhex
from keys.errors import WardtreeError
from keys.identity import Card, verify
from keys.manifest import DOMAIN, Manifest, Signed, check_signatures, check_succession, check_successor
from keys.statement import KEYS_LOST, Statement

MEMBER, APPROVAL = "member", "approval"
"""As whom a party signs a manifest: as a member of its roster, or of the version before, to let that one end."""


class HistoryError(WardtreeError):
    """An act that does not fit what came before it."""


@dataclass(frozen=True)
class ShareSet:
    """The key of a sealed secret key, in shares: any ``needed`` of ``holders`` can give it together.

    ``shares`` are the digests of the shares, in the order of the holders.
    """

    name: str
    public_key: str
    needed: int
    holders: tuple[Card, ...]
    shares: tuple[str, ...]

    @classmethod
    def from_statement(cls, statement: Statement) -> ShareSet:
        """Raises HistoryError, FormatError or IdentityError unless the split makes sense."""
        content = statement.content
        holders = tuple(Card.from_dict(card) for card in content["holders"])
        shares = tuple(content["shares"])
        for share in shares:
            unhex(share, 32, "split: shares")
        if len({card.name for card in holders}) < len(holders) or len(shares) != len(holders):
            raise HistoryError("split: expected one share for each of some holders of different names")
        if len({key for card in holders for key in card.keys}) < 3 * len(holders):
            raise HistoryError("split: two of the holders have equal keys")
        if not 2 <= content["needed"] <= len(holders):
            raise HistoryError(f"split: needed: expected 2 to {len(holders)} of the holders, came {content['needed']}")
        return cls(content["set"], content["public_key"], content["needed"], holders, shares)

    def holder(self, name: str) -> Card:
        """Raises HistoryError if ``name`` holds no share of this set."""
        for card in self.holders:
            if card.name == name:
                return card
        raise HistoryError(
            f"{name!r} holds no share of the set {self.name}; the holders are "
            f"{', '.join(card.name for card in self.holders)}"
        )

    def share_of(self, name: str) -> str:
        return self.shares[self.holders.index(self.holder(name))]


@dataclass
class History:
    """Everything that is in force. ``heads`` is the hash of every entry so far; the transcript keeps it."""

    agreed: list[Manifest] = field(default_factory=list)
    pending: Manifest | None = None
    revoked: dict[str, Statement] = field(default_factory=dict)
    lost: set[bytes] = field(default_factory=set)
    sets: dict[str, ShareSet] = field(default_factory=dict)
    destroyed_shares: set[tuple[str, str]] = field(default_factory=set)
    destroyed: dict[str, Statement] = field(default_factory=dict)
    heads: set[str] = field(default_factory=set)
    _signatures: dict[str, dict[str, bytes]] = field(default_factory=lambda: {MEMBER: {}, APPROVAL: {}})

    @property
    def in_force(self) -> Manifest | None:
        """The version that was agreed last, revoked or not."""
        return self.agreed[-1] if self.agreed else None

    def keys_of(self, name: str) -> list[bytes]:
        """The signing keys under which ``name`` may write now: a member's, or else a share holder's of that name."""
        members = [card for manifest in (self.in_force, self.pending) if manifest for card in manifest.cards]
        holders = [card for each in self.sets.values() for card in each.holders]
        cards = [card for card in members if card.name == name] or [card for card in holders if card.name == name]
        return [card.signing_key for card in cards if card.signing_key not in self.lost]

    def open_sets(self, public_key: str) -> list[dict[str, Any]]:
        """The share sets of a secret key from which it could still be had: who holds shares, how many it takes."""
        result = []
        for each in self.sets.values():
            left = [card.name for card in each.holders if (each.name, card.name) not in self.destroyed_shares]
            if each.public_key == public_key and len(left) >= each.needed:
                result.append({"holders": left, "needed": each.needed, "set": each.name})
        return result

    def key_holder(self, public_key: str) -> Card:
        """Who holds the secret key of ``public_key``. Raises HistoryError if no manifest has this key."""
        for manifest in (self.pending, *reversed(self.agreed)):
            if manifest and manifest.public_key_digest == public_key:
                return manifest.card(manifest.key_holder)
        raise HistoryError(f"no manifest in this record has the public key {public_key}")

    # ---- acts -------------------------------------------------------------------------------------------

    def propose(self, manifest: Manifest) -> None:
        """A proposal takes the place of the one that was pending."""
        if self.in_force:
            check_successor(self.in_force, manifest)
        elif manifest.version != 1:
            raise HistoryError(f"proposal: the record must begin with version 1, came version {manifest.version}")
        self.pending = manifest
        self._signatures = {MEMBER: {}, APPROVAL: {}}

    def sign(self, name: str, role: str, signature: bytes) -> None:
        """A signature over the pending proposal."""
        roster = {MEMBER: self.pending, APPROVAL: self.in_force}.get(role)
        if self.pending is None or roster is None:
            raise HistoryError(f"signature of {name!r}: there is no proposal that it could be for, as {role!r}")
        if not verify(roster.card(name).signing_key, DOMAIN, self.pending.body_bytes, signature):
            raise HistoryError(f"signature of {name!r}: false, or over another manifest")
        if name in self._signatures[role]:
            raise HistoryError(f"signature of {name!r}: a second one, expected one of each member")
        self._signatures[role][name] = signature

    def agree(self, digest: str) -> None:
        """The pending proposal comes into force, if everyone signed who must."""
        if self.pending is None or self.pending.digest != digest:
            raise HistoryError("agreement: on another manifest than the one that was proposed last")
        signed = Signed(self.pending, self._signatures[MEMBER], self._signatures[APPROVAL])
        check_signatures(signed)
        if self.in_force:
            check_succession(self.in_force, signed, self.lost)
        self.agreed.append(self.pending)
        self.pending, self.revoked = None, {}

    def state(self, statement: Statement) -> None:
        """A statement takes effect, if it is of whoever may make it."""
        self._STATES[statement.kind](self, statement)

    def _revoke(self, statement: Statement) -> None:
        manifest = self.in_force
        if manifest is None or manifest.digest != statement.content["manifest"]:
            raise HistoryError(f"revocation by {statement.by}: of another manifest than the one in force")
        key = manifest.card(statement.by).signing_key
        statement.check(key)
        self.revoked[statement.by] = statement
        if statement.content["reason"] == KEYS_LOST:
            self.lost.add(key)

    def _split(self, statement: Statement) -> None:
        self._check_key_holder(statement)
        shares = ShareSet.from_statement(statement)
        if shares.public_key in self.destroyed or shares.name in self.sets:
            raise HistoryError(f"split: the set {shares.name} exists already, or its secret key does not any more")
        self.sets[shares.name] = shares

    def _recombine(self, statement: Statement) -> None:
        self._check_key_holder(statement)
        shares = self._set(statement)
        for name in statement.content["holders"]:
            shares.holder(name)

    def _destroy(self, statement: Statement) -> None:
        self._check_key_holder(statement)
        content = statement.content
        if content["transcript"] not in self.heads:
            raise HistoryError("destruction: refers to an entry that is not in this record")
        listed = {each["set"]: set(each["holders"]) for each in content["open_sets"]}
        for each in self.open_sets(content["public_key"]):
            if not set(each["holders"]) <= listed.get(each["set"], set()):
                raise HistoryError(f"destruction: does not tell of the shares of the set {each['set']}")
        self.destroyed[content["public_key"]] = statement

    def _destroy_share(self, statement: Statement) -> None:
        shares = self._set(statement)
        statement.check(shares.holder(statement.by).signing_key)
        if statement.content["share"] != shares.share_of(statement.by):
            raise HistoryError(f"share-destruction by {statement.by}: of another share than it holds")
        self.destroyed_shares.add((shares.name, statement.by))

    def _set(self, statement: Statement) -> ShareSet:
        name = statement.content["set"]
        if name not in self.sets:
            raise HistoryError(f"{statement.kind}: no share set {name} in this record")
        return self.sets[name]

    def _check_key_holder(self, statement: Statement) -> None:
        holder = self.key_holder(statement.content["public_key"])
        if holder.name != statement.by:
            raise HistoryError(f"{statement.kind} by {statement.by}: this secret key is {holder.name}'s")
        statement.check(holder.signing_key)

    _STATES: ClassVar[Mapping[str, Callable[[History, Statement], None]]] = {
        "revocation": _revoke,
        "split": _split,
        "recombination": _recombine,
        "destruction": _destroy,
        "share-destruction": _destroy_share,
    }
