"""Which manifests are followed: a table of rosters, signatures, versions and times, and its result."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.canonical import canonical
from keys.errors import WardtreeError
from keys.identity import Card, Identity
from keys.manifest import (
    Manifest,
    ManifestError,
    Signed,
    check_successor,
    format_time,
    parse_time,
    verify_signed,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAMES = ("cleveland", "hungary", "switzerland", "va-long-beach")


def identity(name: str, number: int) -> Identity:
    return Identity(name, bytes([number] * 32), bytes([number + 1] * 32), bytes([number + 2] * 32))


PARTIES = {name: identity(name, 10 * number) for number, name in enumerate(NAMES, 1)}
CARDS = {name: party.card(f"10.0.0.1:{5000 + i}", 300) for i, (name, party) in enumerate(PARTIES.items())}
STRANGER = identity("denmark", 90)

MANIFEST = Manifest(
    federation="0f" * 16,
    version=1,
    previous=None,
    key_holder="cleveland",
    cards=tuple(CARDS.values()),
    study='[study]\nname = "heart – vårdträd"\n',
    plan={"poly_modulus_degree": 4096, "prime_bits": [60, 30], "security": "tc128"},
    public_key_digest="aa" * 32,
    tree_seed="bb" * 32,
    min_hidden=2,
    threshold=3,
    base=None,
    allow_two_parties=False,
    weights=dict.fromkeys(NAMES, 256),
    created="2026-11-21T10:00:00Z",
    expires="2026-12-21T10:00:00Z",
    sandbox_gaps=("landlock-tcp",),
    debug=("check-sums",),
    task_digest="cc" * 32,
)
GOLDEN_DIGEST = "db4b03f31042a54edae00d234221b44258b7285c73dd4693f0845204b05784b7"
GOLDEN_HEAD = b'{"allow_two_parties":false,"base":null,"cards":[{"box_key":"'
GOLDEN_TAIL = (
    '"created":"2026-11-21T10:00:00Z","debug":["check-sums"],"expires":"2026-12-21T10:00:00Z"'
    ',"federation":"0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f","format":"wardtree-manifest/1","key_hol'
    'der":"cleveland","min_hidden":2,"plan":{"poly_modulus_degree":4096,"prime_bits":[60,30],'
    '"security":"tc128"},"previous":null,"public_key_digest":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'
    'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa","sandbox_gaps":["landlock-tcp"],"study":"[study]\\nnam'
    'e = \\"heart – vårdträd\\"\\n","task_digest":"ccccccccccccccccccccccccccccccccccccccccccccc'
    'ccccccccccccccccccc","threshold":3,"tree_seed":"bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb'
    'bbbbbbbbbb","version":1,"weights":{"cleveland":256,"hungary":256,"switzerland":256,"va-l'
    'ong-beach":256}}'
)

Document = dict[str, Any]


def document(body: Document, parties: Mapping[str, Identity] = PARTIES) -> Document:
    """The signed manifest of any body, good or bad, with true signatures over just that body."""
    signatures = {name: party.sign("manifest", canonical(body)).hex() for name, party in parties.items()}
    return {"manifest": dict(body), "signatures": signatures, "approvals": {}}


def signed(change: Document, parties: Mapping[str, Identity] = PARTIES) -> Document:
    """As ``document``, for the good body with some fields changed."""
    return document(MANIFEST.to_dict() | change, parties)


def roster(*cards: Card, **change: Any) -> Document:
    """A body with these cards, signed by the members of those names, weights to match."""
    holders = {card.name: PARTIES.get(card.name, STRANGER) for card in cards}
    weights = {card.name: 1 for card in cards}
    return signed({"cards": [card.to_dict() for card in cards], "weights": weights} | change, holders)


def without(name: str) -> Document:
    body = MANIFEST.to_dict()
    del body[name]
    return document(body)


def signatures(**change: str | None) -> Document:
    """The good manifest with some signatures replaced or (None) left out."""
    result = signed({})
    merged = result["signatures"] | {name.replace("_", "-"): each for name, each in change.items()}
    return result | {"signatures": {name: each for name, each in merged.items() if each is not None}}


def signature_of(name: str, domain: str = "manifest", message: bytes = MANIFEST.body_bytes) -> str:
    return (PARTIES | {"denmark": STRANGER})[name].sign(domain, message).hex()


def crossed(name: str, **secret: bytes) -> Card:
    """The party's card, with one of its secret keys taken from elsewhere."""
    return replace(PARTIES[name], **secret).card(CARDS[name].endpoint, 300)  # type: ignore[arg-type]


C, H, S, V = CARDS.values()
HOLDER = PARTIES["cleveland"]
MINUTE = timedelta(minutes=1)
CREATED, EXPIRES = parse_time(MANIFEST.created), parse_time(MANIFEST.expires)
SUCCESSOR = {"version": 2, "previous": MANIFEST.digest}

# What is signed, when it is looked at, and the end of the refusal (None: it is followed).
TABLE: dict[str, tuple[Document, datetime, str | None]] = {
    "all signed": (signed({}), NOW, None),
    "three members": (roster(C, H, S), NOW, None),
    "two members, allowed": (roster(C, H, allow_two_parties=True, threshold=2), NOW, None),
    "second version": (signed(SUCCESSOR), NOW, None),
    "one dials out only": (roster(C, H, PARTIES["switzerland"].card(None, 0)), NOW, None),
    "last second": (signed({}), EXPIRES - timedelta(seconds=1), None),
    "coordinator's clock 10 minutes ahead": (signed({}), CREATED - 10 * MINUTE, None),
    # signatures
    "one missing": (signatures(hungary=None), NOW, "signature missing: hungary"),
    "all that are missing": (
        signatures(hungary=None, va_long_beach=None),
        NOW,
        "signature missing: hungary, va-long-beach",
    ),
    "none at all": (signed({}, {}), NOW, f"signature missing: {', '.join(NAMES)}"),
    "false": (signatures(hungary="00" * 64), NOW, "signature false: hungary"),
    "another's": (signatures(hungary=signature_of("cleveland")), NOW, "signature false: hungary"),
    "two false": (
        signatures(hungary=signature_of("cleveland"), switzerland=signature_of("cleveland")),
        NOW,
        "signature false: hungary, switzerland",
    ),
    "for another purpose": (signatures(hungary=signature_of("hungary", "card")), NOW, "signature false: hungary"),
    "of another manifest": (
        signatures(hungary=signature_of("hungary", message=canonical(MANIFEST.to_dict() | SUCCESSOR))),
        NOW,
        "signature false: hungary",
    ),
    "too short": (signatures(hungary="00"), NOW, "signature of 'hungary': expected 128 lower-case hex digits"),
    "not text": (signatures(hungary=7), NOW, "signature of 'hungary': expected 128 lower-case hex"),  # type: ignore[arg-type]
    "a stranger's besides": (
        signatures(denmark=signature_of("denmark")),
        NOW,
        "signed by a stranger: denmark",
    ),
    "a stranger's with a strange name": (signatures(**{"a\x1b[2J": "00" * 64}), NOW, "stranger: 'a\\x1b[2J'"),
    "changed after signing": (
        signed({}) | {"manifest": MANIFEST.to_dict() | {"min_hidden": 3}},
        NOW,
        f"signature false: {', '.join(NAMES)}",
    ),
    # time
    "expired": (signed({}), EXPIRES, "expired 2026-12-21T10:00:00Z, now 2026-12-21T10:00:00Z"),
    "not yet": (signed({}), CREATED - 11 * MINUTE, "not yet valid: created 2026-11-21T10:00:00Z"),
    "ends before it begins": (signed({"expires": "2026-11-21T10:00:00Z"}), NOW, "as expires"),
    "no time": (signed({"expires": "tomorrow"}), NOW, "expected a time like '2026-11-21T10:00:00Z'"),
    "another spelling of a time": (signed({"expires": "2026-12-1T10:00:00Z"}), NOW, "expected a time like"),
    # roster
    "one name twice": (roster(C, H, H, S), NOW, "two members of one name: hungary"),
    "not sorted": (roster(H, C, S), NOW, "expected to be sorted by name"),
    "alone": (roster(C), NOW, "expected 2 members or more, came 1"),
    "nobody": (roster(), NOW, "expected 2 members or more, came 0"),
    "two members": (roster(C, H), NOW, "refused without allow_two_parties"),
    "one signing key": (
        roster(C, crossed("hungary", signing_seed=HOLDER.signing_seed), S),
        NOW,
        "equal keys: cleveland, hungary",
    ),
    "one curve key": (
        roster(C, crossed("hungary", curve_secret=HOLDER.curve_secret), S),
        NOW,
        "equal keys: cleveland, hungary",
    ),
    "one box key": (
        roster(C, crossed("hungary", box_secret=HOLDER.box_secret), S),
        NOW,
        "equal keys: cleveland, hungary",
    ),
    "curve key of one, box key of another": (
        roster(C, crossed("hungary", curve_secret=HOLDER.box_secret), S),
        NOW,
        "equal keys: cleveland, hungary",
    ),
    "curve key and box key of one": (
        roster(C, H, crossed("switzerland", curve_secret=PARTIES["switzerland"].box_secret)),
        NOW,
        "equal keys: switzerland",
    ),
    "one endpoint": (
        roster(C, PARTIES["hungary"].card(C.endpoint, 300), S),
        NOW,
        "equal endpoints: cleveland, hungary",
    ),
    "a card changed": (
        signed({"cards": [C.to_dict(), H.to_dict() | {"examples": 1}, S.to_dict(), V.to_dict()]}),
        NOW,
        "card of 'hungary': its own signature is false",
    ),
    "key holder a stranger": (signed({"key_holder": "denmark"}), NOW, "key_holder: 'denmark' is not a member"),
    "key holder not to be reached": (
        roster(PARTIES["cleveland"].card(None, 0), H, S),
        NOW,
        "'cleveland' has no endpoint",
    ),
    # fields
    "unknown field": (signed({"colour": "red"}), NOW, "unknown field 'colour'"),
    "unknown field outside": (signed({}) | {"note": ""}, NOW, "signed manifest: unknown field 'note'"),
    "unsigned": ({"manifest": MANIFEST.to_dict(), "approvals": {}}, NOW, "signed manifest: missing field 'signatures'"),
    "another format": (signed({"format": "wardtree-manifest/2"}), NOW, "came 'wardtree-manifest/2'"),
    "a number as text": (signed({"version": "1"}), NOW, "version: expected an integer, came text"),
    "a truth as number": (signed({"min_hidden": True}), NOW, "min_hidden: expected an integer, came true"),
    "version 0": (signed({"version": 0, "previous": "aa" * 32}), NOW, "version: expected 1 or more, came 0"),
    "first version with a previous one": (signed({"previous": "aa" * 32}), NOW, "previous: expected null"),
    "second version without": (signed({"version": 2}), NOW, "previous: expected null for version 1"),
    "half a digest": (signed({"public_key_digest": "aa"}), NOW, "public_key_digest: expected 64 lower-case"),
    "hides among one": (signed({"min_hidden": 1}), NOW, "min_hidden: expected 2 or more, came 1"),
    "threshold 0": (signed({"threshold": 0}), NOW, "threshold: expected 1 to 4 members, came 0"),
    "threshold above all": (signed({"threshold": 5}), NOW, "threshold: expected 1 to 4 members, came 5"),
    "first version that goes on": (signed({"base": "aa" * 32}), NOW, "base: expected null for version 1"),
    "half a base": (signed(SUCCESSOR | {"base": "aa"}), NOW, "base: expected 64 lower-case"),
    "hides among all": (signed({"min_hidden": 4}), NOW, "4 members can hide each other among 3 at most, came 4"),
    "weight missing": (signed({"weights": dict.fromkeys(NAMES[1:], 1)}), NOW, "weight missing: cleveland"),
    "weight of a stranger": (
        signed({"weights": dict.fromkeys((*NAMES, "denmark"), 1)}),
        NOW,
        "weight for a stranger: denmark",
    ),
    "weight 0": (
        signed({"weights": dict(MANIFEST.weights) | {"hungary": 0}}),
        NOW,
        "weight not an integer from 1: hungary",
    ),
    "weight of text": (
        signed({"weights": dict(MANIFEST.weights) | {"hungary": "1"}}),
        NOW,
        "weight not an integer from 1: hungary",
    ),
    "gaps not sorted": (signed({"sandbox_gaps": ["b", "a"]}), NOW, "sandbox_gaps: expected sorted names"),
    "gap twice": (signed({"sandbox_gaps": ["a", "a"]}), NOW, "sandbox_gaps: expected sorted names"),
    "debug not a name": (signed({"debug": [["a"]]}), NOW, "debug: expected names of a-z"),
    "nested plan": (signed({"plan": {"a": {}}}), NOW, "plan: 'a': expected an integer"),
    "study that hides a line": (signed({"study": "a = 1 \x1b[1A\n"}), NOW, "came the character U+001B"),
    "study that overwrites a line": (signed({"study": "a = 1\rb = 2\n"}), NOW, "came the character U+000D"),
    "study that turns a line round": (signed({"study": "a = '\u202e'\n"}), NOW, "came the character U+202E"),
    "plan that hides": (signed({"plan": {"a": "\u200b"}}), NOW, "came the character U+200B"),
}


@pytest.mark.parametrize("row", TABLE)
def test_table(row: str) -> None:
    document, now, refusal = TABLE[row]
    data = canonical(document)
    if refusal is None:
        manifest = verify_signed(data, now)
        assert manifest.to_dict() == document["manifest"]
        return
    with pytest.raises(WardtreeError) as caught:
        verify_signed(data, now)
    assert refusal in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(MANIFEST.to_dict()))
def test_every_field_must_be_there_and_of_its_type(name: str) -> None:
    with pytest.raises(WardtreeError, match=f"manifest: missing field '{name}'"):
        verify_signed(canonical(without(name)), NOW)
    wrong: object = {} if name in ("cards", "sandbox_gaps", "debug") else []
    with pytest.raises(WardtreeError, match=f"manifest: {name}: expected .*, came (a list|an object)"):
        verify_signed(canonical(signed({name: wrong})), NOW)


def test_the_bytes_of_a_manifest_are_pinned() -> None:
    assert MANIFEST.digest == GOLDEN_DIGEST
    assert MANIFEST.body_bytes.startswith(GOLDEN_HEAD)
    assert MANIFEST.body_bytes.endswith(GOLDEN_TAIL.encode())


def test_a_signed_manifest_comes_back_and_reads_as_it_should() -> None:
    given_signatures = {name: party.sign("manifest", MANIFEST.body_bytes) for name, party in PARTIES.items()}
    data = Signed(MANIFEST, given_signatures, {}).to_bytes()
    manifest = verify_signed(data, NOW)
    assert manifest == MANIFEST == Manifest.from_bytes(MANIFEST.body_bytes)
    assert (manifest.names, manifest.digest) == (NAMES, MANIFEST.digest)
    assert manifest.card("hungary") == H
    assert manifest.signing_keys["hungary"] == H.signing_key
    with pytest.raises(ManifestError, match="'denmark' is not a member; the members are cleveland, hungary"):
        manifest.card("denmark")


def test_white_space_in_the_file_changes_nothing() -> None:
    data = canonical(signed({})).replace(b",", b",\n ").replace(b"\n ]", b"]")
    assert verify_signed(data, NOW).digest == MANIFEST.digest


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_changes_nothing(data: st.DataObject) -> None:
    changed = bytearray(canonical(signed({})))
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] = data.draw(st.integers(0, 255))
    try:
        manifest = verify_signed(bytes(changed), NOW)
    except WardtreeError:
        return
    assert manifest == MANIFEST


def test_what_a_manifest_holds_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        MANIFEST.weights["hungary"] = 1  # type: ignore[index]
    with pytest.raises(AttributeError):
        MANIFEST.min_hidden = 3  # type: ignore[misc]


def test_a_time_without_a_zone_is_our_bug() -> None:
    with pytest.raises(ValueError, match="zone"):
        verify_signed(canonical(signed({})), NOW.replace(tzinfo=None))


@given(st.datetimes(datetime(1970, 1, 1), datetime(9998, 1, 1), timezones=st.timezones()))
def test_times_come_back_to_the_second(moment: datetime) -> None:
    back = parse_time(format_time(moment))
    assert timedelta(0) <= moment - back < timedelta(seconds=1)
    assert format_time(back) == format_time(moment)


@pytest.mark.parametrize(
    ("old", "change", "refusal"),
    [
        (MANIFEST, SUCCESSOR, None),
        (MANIFEST, {}, "rollback refused: version 1 is in force, came 1"),
        (replace(MANIFEST, version=3, previous="aa" * 32), SUCCESSOR, "rollback refused: version 3"),
        (MANIFEST, {"version": 3, "previous": "aa" * 32}, "expected version 2 next, came 3"),
        (MANIFEST, {"version": 2, "previous": "aa" * 32}, "follows another version 1"),
        (MANIFEST, SUCCESSOR | {"federation": "0e" * 16}, "expected the federation 0f0f"),
    ],
)
def test_only_the_next_version_follows(old: Manifest, change: dict[str, Any], refusal: str | None) -> None:
    new = replace(MANIFEST, **change)
    if refusal is None:
        check_successor(old, new)
        return
    with pytest.raises(ManifestError, match=refusal):
        check_successor(old, new)
