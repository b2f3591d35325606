"""Which versions follow which: a table of rosters, keys, thresholds, signatures and versions, and its result."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from keys.canonical import digest
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import DOMAIN, Manifest, Signed, verify_next
from keys.statement import Statement
from keys.transcript import Transcript, agreed, proposed, stated

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CREATED, EXPIRES = "2026-11-21T10:00:00Z", "2026-12-21T10:00:00Z"


def identity(name: str, generation: int = 0) -> Identity:
    return Identity(name, *(digest(f"{name} {generation} {number}".encode()) for number in range(3)))


OLD = {name: identity(name) for name in ("ada", "bo", "cy", "di", "eve")}
NEW = {name: identity(name, 1) for name in (*OLD, "fay", "gus")}
"""The same names, and two more, under other keys."""


def manifest(parties: Iterable[Identity], **change: Any) -> Manifest:
    cards = sorted((each.card(f"{each.name}.example:7000", 0) for each in parties), key=lambda card: card.name)
    fields: dict[str, Any] = {
        "federation": "0f" * 16,
        "version": 1,
        "previous": None,
        "key_holder": cards[0].name,
        "cards": tuple(cards),
        "study": "[study]\n",
        "plan": {},
        "public_key_digest": "aa" * 32,
        "tree_seed": "bb" * 32,
        "min_hidden": 2,
        "threshold": min(3, len(cards)),
        "base": None,
        "allow_two_parties": True,
        "weights": {card.name: 1 for card in cards},
        "created": CREATED,
        "expires": EXPIRES,
        "sandbox_gaps": (),
        "debug": (),
        "task_digest": "cc" * 32,
    }
    return Manifest(**(fields | change))


ALL = tuple(OLD)


@dataclass(frozen=True)
class Row:
    """One case: a version 1 of ada to eve, and what is put forward as the version after it.

    Attributes:
        threshold: of version 1.
        keys: who is in the new version, under the old keys ...
        renewed: ... and under new ones.
        signs: who of the new version signs it, each under its key in it; None for all.
        approves: who of version 1 signs it under the old key besides.
        lost: whose old keys were revoked.
        change: fields of the new manifest.
        forged: signatures or approvals that are over something else: (table, name).
        refusal: the end of the message; None: it is followed.
    """

    refusal: str | None
    threshold: int = 3
    keys: tuple[str, ...] = ALL
    renewed: tuple[str, ...] = ()
    signs: tuple[str, ...] | None = None
    approves: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    change: dict[str, Any] = field(default_factory=dict)
    forged: tuple[tuple[str, str], ...] = ()
    now: datetime = NOW

    def old(self) -> Manifest:
        return manifest(OLD.values(), threshold=self.threshold)

    def new(self) -> Signed:
        parties = [OLD[name] for name in self.keys] + [NEW[name] for name in self.renewed]
        old = self.old()
        body = manifest(parties, **{"version": 2, "previous": old.digest} | self.change)
        other = replace(body, study="[study]\nrounds = 1000\n")
        signing = [each for each in parties if self.signs is None or each.name in self.signs]

        def over(table: str, name: str) -> bytes:
            return (other if (table, name) in self.forged else body).body_bytes

        signatures = {each.name: each.sign(DOMAIN, over("signatures", each.name)) for each in signing}
        approvals = {name: {**NEW, **OLD}[name].sign(DOMAIN, over("approvals", name)) for name in self.approves}
        return Signed(body, signatures, approvals)


def days(number: int) -> dict[str, Any]:
    return {"now": NOW + timedelta(days=number)}


FEW = "{} of the 5 members of version 1 must sign it under the keys that they had there, came {}"
TABLE: dict[str, Row] = {
    # the same roster
    "all, all sign": Row(None),
    "threshold 1": Row(None, threshold=1),
    "threshold of all": Row(None, threshold=5),
    "one signature missing, though the threshold is met": Row("signature missing: eve", signs=ALL[:4]),
    "two missing": Row("signature missing: di, eve", signs=ALL[:3]),
    "none": Row("signature missing: ada, bo, cy, di, eve", signs=()),
    "one false": Row("signature false: cy", forged=(("signatures", "cy"),)),
    "approved besides": Row(None, approves=ALL),
    "approved besides, and one of them falsely": Row(
        "approval false: bo", approves=ALL, forged=(("approvals", "bo"),)
    ),
    "approved by a stranger": Row("approved by a stranger to the version before: fay", approves=("fay",)),
    # members leave
    "one leaves, the four are enough": Row(None, keys=ALL[:4]),
    "one leaves, of a threshold of all": Row(FEW.format(5, 4), threshold=5, keys=ALL[:4]),
    "one leaves, of a threshold of all, and agrees": Row(None, threshold=5, keys=ALL[:4], approves=("eve",)),
    "two leave, three are enough": Row(None, keys=ALL[:3]),
    "two leave, four are needed": Row(FEW.format(4, 3) + " (ada, bo, cy); missing di, eve", threshold=4, keys=ALL[:3]),
    "two leave, four are needed, one of them agrees": Row(None, threshold=4, keys=ALL[:3], approves=("di",)),
    "two leave, five are needed, one of them agrees": Row(
        FEW.format(5, 4) + " (ada, bo, cy, di); missing eve", threshold=5, keys=ALL[:3], approves=("di",)
    ),
    "three leave and outvote nobody": Row(FEW.format(3, 2), keys=ALL[:2]),
    "three leave, one of them agrees": Row(None, keys=ALL[:2], approves=("eve",)),
    "who left agreed to something else": Row(
        "approval false: di", threshold=4, keys=ALL[:3], approves=("di",), forged=(("approvals", "di"),)
    ),
    # members come
    "one comes": Row(None, renewed=("fay",)),
    "one comes and did not sign": Row("signature missing: fay", renewed=("fay",), signs=ALL),
    "who comes does not count for the version before": Row(
        FEW.format(3, 2), keys=ALL[:2], renewed=("fay", "gus")
    ),
    "all leave, others come": Row(FEW.format(3, 0) + "; missing ada, bo, cy, di, eve", keys=(), renewed=("fay", "gus")),
    "all leave and agree, others come": Row(None, keys=(), renewed=("fay", "gus"), approves=ALL[:3]),
    "all leave, one too few agrees": Row(
        FEW.format(3, 2) + " (ada, bo)", keys=(), renewed=("fay", "gus"), approves=ALL[:2]
    ),
    # members change their keys
    "one renews its keys": Row(None, keys=ALL[:4], renewed=("eve",)),
    "three renew, and sign with the new ones only": Row(
        FEW.format(3, 2) + " (ada, bo)", keys=ALL[:2], renewed=("cy", "di", "eve")
    ),
    "three renew, one signs with the old key too": Row(
        None, keys=ALL[:2], renewed=("cy", "di", "eve"), approves=("cy",)
    ),
    "all renew, three sign with the old keys too": Row(None, keys=(), renewed=ALL, approves=ALL[2:]),
    "all renew, two sign with the old keys too": Row(
        FEW.format(3, 2) + " (di, eve)", keys=(), renewed=ALL, approves=ALL[3:]
    ),
    "somebody takes a name over": Row(FEW.format(5, 4), threshold=5, keys=ALL[:4], renewed=("eve",)),
    "who signed with the old key only, renewed": Row(
        "signature missing: eve", keys=ALL[:4], renewed=("eve",), signs=ALL[:4], approves=("eve",)
    ),
    "once under each key counts once": Row(
        FEW.format(5, 4), threshold=5, keys=ALL[:4], renewed=("eve",), approves=ALL[:4]
    ),
    # revoked keys
    "a revoked key is left out": Row(None, keys=ALL[:4], lost=("eve",)),
    "a revoked key stays in": Row("a revoked key: eve", lost=("eve",)),
    "a revoked key does not count": Row(FEW.format(5, 4), threshold=5, keys=ALL[:4], approves=("eve",), lost=("eve",)),
    "a revoked key is renewed": Row(None, keys=ALL[:4], renewed=("eve",), lost=("eve",)),
    "three revoked keys leave too few": Row(
        FEW.format(3, 2), keys=ALL[:2], renewed=ALL[2:], approves=ALL[2:], lost=ALL[2:]
    ),
    # version, federation, time
    "the same version again": Row(
        "rollback refused: version 1 is in force, came 1", change={"version": 1, "previous": None}
    ),
    "a version is left out": Row("expected version 2 next, came 3", change={"version": 3}),
    "follows another version 1": Row("follows another version 1", change={"previous": "dd" * 32}),
    "another federation": Row("came another one", change={"federation": "1e" * 16}),
    "expired": Row("expired 2026-12-21T10:00:00Z", **days(40)),
    "not yet": Row("not yet valid", **days(-1)),
    "no threshold": Row("threshold: expected 1 to 5 members, came 0", change={"threshold": 0}),
    "a threshold that nobody could meet": Row("threshold: expected 1 to 5 members, came 6", change={"threshold": 6}),
    "the threshold that counts is the old one": Row(None, threshold=1, keys=ALL[:2], change={"threshold": 2}),
    "goes on from a model": Row(None, change={"base": "ee" * 32}),
    "goes on from something": Row("base: expected 64 lower-case", change={"base": "e"}),
}  # fmt: skip


def test_the_table_is_as_long_as_was_promised() -> None:
    assert len(TABLE) >= 40


@pytest.mark.parametrize("row", TABLE)
def test_table(row: str) -> None:
    case = TABLE[row]
    old, lost = case.old(), [OLD[name].card(None, 0).signing_key for name in case.lost]
    if case.refusal is None:
        signed = case.new()
        assert verify_next(old, signed.to_bytes(), case.now, lost) == signed.manifest
        return
    with pytest.raises(WardtreeError) as caught:
        verify_next(old, case.new().to_bytes(), case.now, lost)
    assert case.refusal in str(caught.value)
    assert "\n" not in str(caught.value)


def first_version(case: Row) -> Transcript:
    """A transcript in which version 1 is in force, and revoked keys are."""
    old = case.old()
    signed = Signed(old, {name: each.sign(DOMAIN, old.body_bytes) for name, each in OLD.items()}, {})
    transcript = Transcript.parse(b"", NOW).extended(OLD["ada"], [proposed(old), *agreed(signed)], NOW)
    for name in case.lost:
        content = {"manifest": old.digest, "reason": "keys-lost"}
        transcript = transcript.extended(
            OLD[name], [stated(Statement.make(OLD[name], "revocation", content, NOW))], NOW
        )
    return transcript


@pytest.mark.parametrize("row", [name for name, case in TABLE.items() if case.now == NOW])
def test_a_transcript_judges_every_row_alike(row: str) -> None:
    """Without a clock, for an expired version was in force once."""
    case = TABLE[row]
    if case.refusal is None:
        signed = case.new()
        transcript = first_version(case).extended(OLD["ada"], [proposed(signed.manifest), *agreed(signed)], NOW)
        assert transcript.history.in_force == signed.manifest
        return

    def put_forward() -> None:
        signed = case.new()
        first_version(case).extended(OLD["ada"], [proposed(signed.manifest), *agreed(signed)], NOW)

    with pytest.raises(WardtreeError) as caught:
        put_forward()
    message = str(caught.value)
    assert case.refusal in message or "false, or over another manifest" in message or "is not a member" in message
