"""Who keeps the secret key, and its end: custody by officers in m-of-n shares, and destruction.

    key holder    split                 the sealed key goes under a key that only the shares give
    officer       release               hands its share to the key holder, sealed for it alone
    key holder    recombine             enough shares: the key is under the key holder's passphrase again
    officer       destroy_share         erases its share, and signs that
    key holder    destroy_key           erases the sealed key, wrapped key first, and signs the certificate

An officer is anyone with an identity and a card. Every share comes with a copy of the sealed key, so that m
officers can restore it when the key holder's disk is lost, and so that the shares are a way to the key of
their own: the certificate of destruction names those that are left. It protects the key at rest; while a
study runs, the key room has it.
"""

from __future__ import annotations

import base64
import binascii
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from nacl.exceptions import CryptoError
from nacl.public import PrivateKey, PublicKey, SealedBox

from keys.canonical import canonical, fields, parse, unhex
from keys.ceremony import CARD, SECRET_KIND, CeremonyError, Step, load_identity, read_card, secret_key_file
from keys.errors import WardtreeError
from keys.history import History, ShareSet
from keys.identity import Card, Identity, check_name
from keys.shares import KEY_BYTES, combine, share_digest, split
from keys.statement import Statement
from keys.vault import (
    MAX_SEALED,
    STANDARD,
    KdfCost,
    erase_file,
    naming,
    open_file,
    read_bounded,
    read_lock,
    refuse_existing,
    replace_file,
    seal,
    seal_file,
    seal_for_shares,
    unseal_with_shares,
    write_private,
    write_public,
)

MAX_SHARE = 4 * MAX_SEALED  # bytes of a share's file
SPLITS = "split-*.json"  # in the key holder's home: every split it ever made
CERTIFICATE = "destruction-*.json"  # in the key holder's home

_FILE_FORMAT = "wardtree-share/1"
_FILE = {"box": (str,), "format": (str,), "from": (str,), "set": (str,), "to": (str,)}
_INSIDE = {"holder": (str,), "sealed": (str,), "share": (str,), "split": (dict,)}


class CustodyError(CeremonyError):
    """Shares or a key that are not what they must be."""


WithStatement = Callable[..., tuple[Step, Statement]]
"""A step that has the secret key in hand, and is recorded."""


@dataclass(frozen=True)
class Share:
    """One holder's share, with the split that it belongs to and a copy of the sealed key."""

    holder: str
    share: bytes
    sealed: bytes
    statement: Statement
    share_set: ShareSet

    @property
    def index(self) -> int:
        """From 1, the place of its holder in the split."""
        return [card.name for card in self.share_set.holders].index(self.holder) + 1

    def to_bytes(self, sender: str, to: Card) -> bytes:
        """The file that only ``to`` can open."""
        inside = {
            "holder": self.holder,
            "sealed": base64.b64encode(self.sealed).decode(),
            "share": self.share.hex(),
            "split": self.statement.to_dict(),
        }
        box = SealedBox(PublicKey(to.box_key)).encrypt(canonical(inside))
        text = base64.b64encode(box).decode()
        return canonical(
            {"box": text, "format": _FILE_FORMAT, "from": sender, "set": self.share_set.name, "to": to.name}
        )


def read_share(path: Path, identity: Identity) -> Share:
    """The share in a file that is sealed for ``identity``; whether its value is right is for ``check_share``.

    Raises WardtreeErrors that name the file.
    """
    data = read_bounded(path, MAX_SHARE)
    with naming(path):
        values = fields(parse(data, MAX_SHARE), "share", _FILE)
        if values["format"] != _FILE_FORMAT:
            raise CustodyError(f"share: format: expected {_FILE_FORMAT!r}, came {values['format']!r}")
        if values["to"] != identity.name:
            raise CustodyError(f"share: sealed for {check_name(values['to'])}, not for {identity.name}")
        try:
            box = base64.b64decode(values["box"], validate=True)
            inside = SealedBox(PrivateKey(identity.box_secret)).decrypt(box)
        except (binascii.Error, CryptoError):
            raise CustodyError(f"share: not sealed for {identity.name}'s keys, or the file was changed") from None
        opened = fields(parse(inside, MAX_SHARE), "share", _INSIDE)
        statement = Statement.from_dict(opened["split"])
        if statement.kind != "split":
            raise CustodyError(f"share: expected the split that it is of, came a {statement.kind}")
        share_set = ShareSet.from_statement(statement)
        share_set.holder(opened["holder"])
        share = unhex(opened["share"], KEY_BYTES, "share")
        try:
            sealed = base64.b64decode(opened["sealed"], validate=True)
        except binascii.Error:
            raise CustodyError("share: sealed: expected base64") from None
        return Share(opened["holder"], share, sealed, statement, share_set)


def check_share(share: Share, key_holder: Card) -> None:
    """Raises CustodyError unless the key holder signed the split, and this is the share that it made."""
    if share.statement.by != key_holder.name:
        raise CustodyError(f"share: {share.statement.by} made it, not {key_holder.name}")
    share.statement.check(key_holder.signing_key)
    expected = share.share_set.share_of(share.holder)
    if share_digest(share.share_set.name, share.index, share.share) != expected:
        raise CustodyError(f"the share of {share.holder} is corrupted: not the one that {key_holder.name} made")


def split_key(
    home: Path, passphrase: str, public_key: str, holders: Sequence[Path], needed: int, folder: Path, now: datetime
) -> tuple[Step, Statement]:
    """Put the secret key of ``public_key`` (a digest) under a key in shares, one file for each holder's card.

    Raises CustodyError, ShareError or other WardtreeErrors; the sealed key is replaced last.
    """
    identity = load_identity(home, passphrase)
    cards = sorted((read_card(path) for path in holders), key=lambda card: card.name)
    path = home / secret_key_file(public_key)
    secret = open_file(path, SECRET_KIND, passphrase)
    wrapping_key, name = secrets.token_bytes(KEY_BYTES), secrets.token_hex(8)
    shares = split(wrapping_key, needed, len(cards))
    content = {
        "public_key": public_key,
        "set": name,
        "needed": needed,
        "holders": [card.to_dict() for card in cards],
        "shares": [share_digest(name, index, share) for index, share in enumerate(shares, start=1)],
    }
    statement = Statement.make(identity, "split", content, now)
    share_set = ShareSet.from_statement(statement)
    sealed = seal_for_shares(SECRET_KIND, secret, wrapping_key, name, needed)
    last = dict(enumerate(shares, start=1))
    again = combine({index: last[index] for index in sorted(last)[-needed:]})
    if unseal_with_shares(sealed, SECRET_KIND, again) != secret:  # before the only other way to it is gone
        raise CustodyError("the shares do not give the key back; nothing was changed")
    wrote = [folder / f"{card.name}.share" for card in cards]
    for card, share, out in zip(cards, shares, wrote, strict=True):
        write_private(out, Share(card.name, share, sealed, statement, share_set).to_bytes(identity.name, card))
    kept = home / SPLITS.replace("*", name)
    write_public(kept, statement.to_json())
    replace_file(path, sealed)
    return Step(
        statement.facts, (*wrote, kept, path), "every holder: take your share, and keep it apart from the others."
    ), statement


def release(home: Path, passphrase: str, share: Path, to: Path, out: Path) -> Step:
    """Hand a share to the key holder whose card is in ``to``: into the new file ``out``, sealed for it alone.

    Raises CustodyError if the share is not of this key holder, or other WardtreeErrors.
    """
    identity, key_holder = load_identity(home, passphrase), read_card(to)
    own = read_share(share, identity)
    with naming(share):
        check_share(own, key_holder)
    write_private(out, own.to_bytes(identity.name, key_holder))
    return Step(
        f"{identity.name} released its share of the set {own.share_set.name} to {key_holder.name}, "
        f"who needs {own.share_set.needed} of {len(own.share_set.holders)}.",
        (out,),
        f"{identity.name}: give this file to {key_holder.name}, who recombines.",
    )


def recombine(
    home: Path, passphrase: str, released: Sequence[Path], now: datetime, cost: KdfCost = STANDARD
) -> tuple[Step, Statement]:
    """Put the secret key under the key holder's passphrase again, from enough released shares, which are erased.

    Raises CustodyError: shares of different sets, too few (by name), a corrupted one (by name); or other
    WardtreeErrors.
    """
    identity = load_identity(home, passphrase)
    own = read_card(home / CARD)
    shares = {}
    for path in released:
        share = read_share(path, identity)
        with naming(path):
            check_share(share, own)
        shares[share.holder] = share
    sets = {share.share_set.name: share.share_set for share in shares.values()}
    if len(sets) != 1:
        raise CustodyError(f"expected shares of one set, came shares of {len(sets)}: {', '.join(sorted(sets))}")
    (share_set,) = sets.values()
    if len(shares) < share_set.needed:
        elsewhere = sorted({card.name for card in share_set.holders} - shares.keys())
        raise CustodyError(
            f"set {share_set.name}: expected {share_set.needed} shares, came {len(shares)}, "
            f"of {', '.join(sorted(shares))}; the others are with {', '.join(elsewhere)}"
        )
    path = home / secret_key_file(share_set.public_key)
    copies = [share.sealed for share in shares.values()]
    if path.exists():
        copies.insert(0, read_bounded(path, MAX_SEALED))
        if read_lock(copies[0]).cost is not None:
            raise CustodyError(f"{path}: is under a passphrase already")
    enough = sorted(shares.values(), key=lambda share: share.index)[: share_set.needed]
    secret = _open_a_copy(copies, combine({share.index: share.share for share in enough}))
    if path.exists():
        replace_file(path, seal(SECRET_KIND, secret, passphrase, cost))
    else:
        seal_file(path, SECRET_KIND, secret, passphrase, cost)
    for each in released:
        erase_file(each)  # with these files the key holder could do it again alone
    content = {"public_key": share_set.public_key, "set": share_set.name, "holders": [share.holder for share in enough]}
    statement = Statement.make(identity, "recombination", content, now)
    return Step(
        statement.facts,
        (path,),
        f"{identity.name}: start your node. Split again when the study is done, or destroy the key.",
    ), statement


def _open_a_copy(copies: Sequence[bytes], key: bytes) -> bytes:
    """The secret key in the first copy of the sealed file that the key opens: a holder may have spoilt its own."""
    for copy in copies:
        with suppress(WardtreeError):
            return unseal_with_shares(copy, SECRET_KIND, key)
    raise CustodyError("no copy of the sealed key opens with these shares: all of them were changed or damaged")


def destroy_key(
    home: Path,
    identity: Identity,
    public_key: str,
    history: History,
    head: str,
    no_copies: bool,
    out: Path,
    now: datetime,
) -> tuple[Step, Statement]:
    """Erase the secret key of ``public_key`` (a digest), and write the certificate ``out``.

    Args:
        history: of the transcript whose last entry has the hash ``head``; it must know every split of this home.
        no_copies: whether the key holder declares that it kept no copy of the sealed file.

    Raises:
        CustodyError, HistoryError: the key is another's, is not here, or the transcript is not complete; nothing is
            erased then. Other WardtreeErrors likewise.
    """
    path = home / secret_key_file(public_key)
    if not path.exists():
        raise CustodyError(f"{path}: there is no such secret key here, so nothing that could be destroyed")
    if history.key_holder(public_key).name != identity.name:
        raise CustodyError(f"this secret key is {history.key_holder(public_key).name}'s, not {identity.name}'s")
    for known in sorted(home.glob(SPLITS)):
        made = Statement.read(known).content
        if made["public_key"] == public_key and made["set"] not in history.sets:
            raise CustodyError(f"{known}: this split is not in the transcript; add it first")
    kept = home / CERTIFICATE.replace("*", public_key[:16])
    for target in (out, kept):
        refuse_existing(target)
    content: dict[str, Any] = {
        "public_key": public_key,
        "transcript": head,
        "open_sets": history.open_sets(public_key),
        "no_copies": no_copies,
    }
    statement = Statement.make(identity, "destruction", content, now)
    erase_file(path)
    for target in (kept, out):
        write_public(target, statement.to_json())
    holders = sorted({name for each in content["open_sets"] for name in each["holders"]})
    after = f"{', '.join(holders)}: destroy your shares; each signs that. " if holders else ""
    return Step(
        statement.text, (kept, out), f"{after}Everyone: take over the transcript, which now has the certificate."
    ), statement


def destroy_share(home: Path, passphrase: str, share: Path, out: Path, now: datetime) -> Step:
    """Erase a share, and sign that it is gone, into the new file ``out``. Raises WardtreeErrors."""
    identity = load_identity(home, passphrase)
    own = read_share(share, identity)
    refuse_existing(out)
    content = {"set": own.share_set.name, "share": own.share_set.share_of(identity.name)}
    statement = Statement.make(identity, "share-destruction", content, now)
    erase_file(share)
    write_public(out, statement.to_json())
    return Step(
        statement.text,
        (out,),
        f"{identity.name}: destroy every other copy of the share, and give this file to {own.statement.by} for the "
        "transcript.",
    )
