"""The record of a study: what follows from signed ledgers, what is found when one lies, and what a reader is told."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from keys.ceremony import load_identity
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import Manifest, Signed
from keys.statement import Statement
from keys.transcript import Transcript, agreed, proposed, record, stated
from node.audit.derive import RecordError, derive
from node.audit.facts import Record
from node.audit.page import render
from node.audit.record import RECORD, make_record, read_record, verify_record, write_record
from node.home import LEDGER, roster_of
from node.ledger import Ledger, read_entries
from node.protocol.codec import Codec
from node.protocol.messages import Close
from tests.node.homes import KEY_HOLDER, NOW, PASSPHRASE, STUDY, Federation, make_federation

SCHEMA = Path(__file__).parents[2] / "docs" / "record.schema.json"
TIME = int(NOW.timestamp())
ALL = ("ada", "bo", "cy", "di")
EVALUATED = STUDY + "[evaluation]\nevery = 2\n"


class World:
    """A federation that has run, as its ledgers tell it: rounds 0 to 3, without di in round 2."""

    def __init__(self, folder: Path, study: str = EVALUATED) -> None:
        self.federation: Federation = make_federation(folder, study=study)
        self.identities = {name: load_identity(self.federation.path(name), PASSPHRASE) for name in ALL}
        signed = Signed.from_bytes((self.federation.table / "manifest").read_bytes())
        self.manifest: Manifest = signed.manifest
        home = self.federation.path("bo")
        self.file = self.federation.table / "transcript.jsonl"
        self.transcript: Transcript = record(
            self.file, self.identities["bo"], [proposed(self.manifest), *agreed(signed)], NOW, home
        )
        for name in ALL:
            self.write(name, self.federation.path(name) / LEDGER)

    def write(self, name: str, path: Path, sets: Mapping[int, tuple[str, ...]] | None = None, rounds: int = 4) -> None:
        """What ``name``'s relay would have written."""
        sets = {2: ("ada", "bo", "cy"), **(sets or {})}
        ledger = Ledger(path, self.identities[name].sign)
        ledger.append(what="started", manifest=self.manifest.digest, posture="required landlock=7 gaps=", time=TIME)
        ledger.note(what="wiped", round=-1, ciphertext_bytes=0, total_bytes=0, enclave_bytes=10**6, time=TIME)
        for number in range(rounds):
            contributors = sets.get(number, ALL)
            if name in contributors:
                ledger.append(what="training", round=number, segment=0, contributors=[])
            if name == KEY_HOLDER:
                ledger.append(what="opening", round=number, segment=0, contributors=list(contributors))
            ledger.append(**self.closed(name, number, contributors))
            room = {"enclave_bytes": 10**6} if name in contributors else {}
            ledger.note(what="wiped", round=number, ciphertext_bytes=500, total_bytes=36, **room, time=TIME + number)
        ledger.close()

    def closed(self, name: str, number: int, contributors: tuple[str, ...], signer: str = KEY_HOLDER) -> dict[str, Any]:
        state = bytes([number + 1]) * 32
        close = Close(number, bytes([number]) * 32, frozenset(contributors), 1, state)
        codec = Codec(bytes.fromhex(self.manifest.digest), roster_of(self.manifest), {}, lambda *_: True)
        frame = codec.encode(close, signer, "", self.identities[signer].sign).envelope.hex()
        return {
            "what": "closed", "round": number, "contributors": sorted(contributors), "segments": 1,
            "state": state.hex(), "left_out": name not in contributors, "frame": frame, "time": TIME + number,
        }  # fmt: skip

    def ledger(self, name: str) -> Path:
        return self.federation.path(name) / LEDGER

    def lines(self, *names: str) -> dict[str, list[dict[str, Any]]]:
        return {name: list(read_entries(self.ledger(name))) for name in names}

    def make(self, home: str = "bo", *others: Path) -> Record:
        return make_record(self.federation.path(home), self.transcript, others, NOW)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("world"))


def test_a_record_says_what_the_ledgers_say(world: World) -> None:
    facts = world.make("bo", *(world.ledger(name) for name in ("ada", "cy", "di"))).facts
    assert facts.differences == ()
    assert [own.party for own in facts.ledgers] == list(ALL)
    assert [(each.round, each.purpose, each.integers) for each in facts.rounds] == [
        (0, "statistics", 9), (1, "train", 9), (2, "train", 9), (3, "evaluate", 9)
    ]  # fmt: skip
    assert facts.rounds[2].contributors == ("ada", "bo", "cy")
    assert facts.rounds[2].left_out == ("di",)
    assert all(each.known_to == ALL for each in facts.rounds)
    (agreement,) = facts.agreements
    assert (agreement.manifest, agreement.study_toml) == (world.manifest.digest, EVALUATED)
    assert {(each.name, each.role) for each in agreement.signatures} == {(name, "member") for name in ALL}
    own = {each.party: each for each in facts.ledgers}
    assert own["di"].took_part == {"evaluate": 1, "statistics": 1, "train": 1}
    assert own["ada"].openings == 4
    assert own["bo"].openings == 0
    assert own["bo"].not_wiped == ()
    learnt = {each.who: " ".join(each.sentences) for each in facts.learnt}
    assert "in 4 published sums" in learnt["bo"]
    assert "of 2 of them in the smallest round" in learnt["bo"]
    assert "in 3 published sums; it was left out of 1 round" in learnt["di"]
    assert "of 3 of them in the smallest round" in learnt["di"]
    assert "held the secret key" in learnt["ada"]
    assert "held the secret key" not in learnt["bo"]


def test_a_record_proves_itself_with_any_transcript_that_goes_on(world: World, tmp_path: Path) -> None:
    made = world.make("bo", world.ledger("ada"))
    wrote = write_record(made, tmp_path / "record")
    read = read_record(wrote[0])
    assert read == made
    verify_record(read, world.transcript, NOW)
    longer = tmp_path / "longer.jsonl"
    longer.write_bytes(world.file.read_bytes())
    identity = world.identities["bo"]
    content = {"manifest": world.manifest.digest, "reason": "withdrawn"}
    revoked = Statement.make(identity, "revocation", content, NOW)
    after = record(longer, identity, [stated(revoked)], NOW, tmp_path)
    assert verify_record(read, after, NOW).acts == ()  # as it was when the record was made
    assert make_record(world.federation.path("bo"), after, [], NOW).facts.acts[0].kind == "revocation"
    short = Transcript.parse(b"".join(entry.line for entry in world.transcript.entries[:-1]), NOW)
    with pytest.raises(RecordError, match="this one does not have that entry"):
        verify_record(read, short, NOW)
    with pytest.raises(WardtreeError, match="exists already"):
        write_record(made, tmp_path / "record")


def test_a_record_takes_the_ledgers_of_another_record(world: World, tmp_path: Path) -> None:
    write_record(world.make("ada", world.ledger("cy")), tmp_path / "theirs")
    both = world.make("bo", tmp_path / "theirs" / RECORD)
    assert [own.party for own in both.facts.ledgers] == ["ada", "bo", "cy"]
    assert both.facts == world.make("bo", world.ledger("cy"), world.ledger("ada")).facts


def test_the_documented_schema_is_the_programs_own(world: World) -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    assert schema == Record.model_json_schema(), "wardtree ledger verify --schema > docs/record.schema.json"
    made = json.loads(world.make().model_dump_json())
    jsonschema.validate(made, schema, cls=jsonschema.Draft202012Validator)


def _leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [leaf for key, each in value.items() for leaf in _leaves(each, (*path, key))]
    if isinstance(value, list):
        return [leaf for index, each in enumerate(value) for leaf in _leaves(each, (*path, index))]
    return [path]


def test_nothing_of_a_record_can_be_changed(world: World, tmp_path: Path) -> None:
    """Every single value of the file, one after the other, but for when it was made."""
    table = json.loads(world.make("di").model_dump_json())
    places = _leaves(table)
    assert len(places) > 150
    path = tmp_path / "changed.json"
    for place in places:
        if place == ("made",):
            continue
        changed = json.loads(json.dumps(table))
        at = changed
        for step in place[:-1]:
            at = at[step]
        at[place[-1]] = _another(at[place[-1]])
        path.write_text(json.dumps(changed))
        with pytest.raises(WardtreeError) as caught:
            verify_record(read_record(path), world.transcript, NOW)
        assert "\n" not in str(caught.value)


def _another(value: Any) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return "0" * len(value) if isinstance(value, str) and value and set(value) != {"0"} else "1"


def test_a_key_holder_that_told_two_parties_different_things_is_found(world: World, tmp_path: Path) -> None:
    other = tmp_path / "ledger.jsonl"
    world.write("cy", other, {1: ("ada", "cy", "di")})
    facts = world.make("bo", other).facts
    (difference,) = facts.differences
    assert difference.startswith("round 1 of version 1: the key holder signed two closes with different sets")
    assert difference.endswith("one is in the ledger of bo, one in that of cy")
    assert "contradict" in render(world.make("bo", other))


def test_a_contributor_that_says_it_did_not_work_is_found(world: World, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger(path, world.identities["di"].sign)
    ledger.append(what="started", manifest=world.manifest.digest, posture="required", time=TIME)
    ledger.append(**world.closed("di", 0, ALL))
    ledger.close()
    facts = world.make("bo", path).facts
    assert "lists di among its contributors, and di's own ledger does not say that it worked" in facts.differences[0]
    assert len(facts.differences) == 3, "rounds 0, 1 and 3"


def test_a_ledger_that_ends_early_shows_beside_another(world: World, tmp_path: Path) -> None:
    short = tmp_path / "ledger.jsonl"
    short.write_bytes(b"".join(world.ledger("ada").read_bytes().splitlines(keepends=True)[:6]))
    made = world.make("bo", short)
    assert [each.known_to for each in made.facts.rounds] == [("ada", "bo"), ("bo",), ("bo",), ("bo",)]
    assert made.facts.differences, "ada contributed to round 1 as bo's ledger says, and its own does not say so"
    whole = world.make("bo", short, world.ledger("ada"))
    assert len(whole.ledgers["ada"]) > 6


def _stranger(world: World, path: Path) -> None:
    ledger = Ledger(path, Identity.create("eve").sign)
    ledger.append(what="started", manifest=world.manifest.digest, posture="", time=TIME)
    ledger.close()


def _two_hands(world: World, path: Path) -> None:
    world.write("cy", path, rounds=1)
    lines = path.read_bytes()
    ledger = Ledger(path)  # chained on, but signed by nobody
    ledger.append(what="wiped", round=9)
    ledger.close()
    assert path.read_bytes().startswith(lines)


def _unknown_manifest(world: World, path: Path) -> None:
    ledger = Ledger(path, world.identities["cy"].sign)
    ledger.append(what="started", manifest="ab" * 32, posture="", time=TIME)
    ledger.close()


def _close_of(signer: str, **change: Any) -> Callable[[World, Path], None]:
    def write(world: World, path: Path) -> None:
        ledger = Ledger(path, world.identities["cy"].sign)
        ledger.append(what="started", manifest=world.manifest.digest, posture="", time=TIME)
        ledger.append(**world.closed("cy", 0, ALL, signer) | change)
        ledger.close()

    return write


def _changed(world: World, path: Path) -> None:
    path.write_bytes(world.ledger("cy").read_bytes().replace(b'"segments":1', b'"segments":2', 1))


def _another_past(world: World, path: Path) -> None:
    world.write("bo", path, {1: ("ada", "bo", "di")})


@pytest.mark.parametrize(
    ("write", "why"),
    [
        (_stranger, "line 1 is not signed by any member"),
        (_two_hands, "is not signed by cy, as line 1 is"),
        (_unknown_manifest, "under a manifest that was not agreed in this transcript"),
        (_close_of("cy"), "expected closes of ada"),
        (_close_of("ada", segments=2), "its entry is not what the key holder signed"),
        (_close_of("ada", left_out=True), "its entry is not what the key holder signed"),
        (_close_of("ada", frame="00"), "ledger of cy"),
        (_close_of("ada", frame=None), "without the key holder's signed word"),
        (_changed, "the ledger was changed"),
        (_another_past, "two copies part from each other"),
        (lambda world, path: path.write_bytes(b""), "no entry yet"),
        (lambda world, path: path.write_bytes(b'{"format": "wardtree-record/1"}'), "expected a record"),
        (lambda world, path: path.write_bytes(b"[" * 10000 + b"\n"), "line 1"),
    ],
)
def test_a_ledger_that_is_none_is_refused_in_one_line(
    world: World, tmp_path: Path, write: Callable[[World, Path], None], why: str
) -> None:
    path = tmp_path / "ledger.jsonl"
    write(world, path)
    with pytest.raises(WardtreeError, match=why) as caught:
        world.make("bo", path)
    assert "\n" not in str(caught.value)


ODD = (None, "x", -1, 10**30, 1.5, [], {"a": 1}, True, "\ud800")


def test_odd_entries_of_a_member_are_an_error_and_never_a_bug(world: World, tmp_path: Path) -> None:
    """Each field of each kind of entry, signed by a member, with values of every kind."""
    at = {"round": 1, "time": TIME}
    good: list[dict[str, Any]] = [
        {"what": "started", "manifest": world.manifest.digest, "posture": "required", "time": TIME},
        {"what": "training", "round": 1, "segment": 0, "contributors": []},
        {"what": "opening", "round": 1, "segment": 0, "contributors": []},
        world.closed("cy", 1, ALL),
        {"what": "wiped", **at, "ciphertext_bytes": 1, "total_bytes": 4, "enclave_bytes": 1, "keyroom_bytes": 1},
        {"what": "privacy", "round": 1, "unit": "hospital", "epsilon": 0.5, "delta": 1e-5},
        {"what": "skipped", "round": 1, "segment": 0, "contributors": []},
    ]
    places = [(number, key, odd) for number, entry in enumerate(good) for key in entry for odd in ODD]
    refusals: list[str] = []
    for number, key, odd in places:
        ledger = Ledger(tmp_path / "ledger.jsonl", world.identities["cy"].sign)
        for index, entry in enumerate(good):
            ledger.note(**entry | ({key: odd} if index == number else {}))
        ledger.close()
        try:
            render(world.make("bo", ledger.path))
        except WardtreeError as error:
            refusals.append(str(error))
        ledger.path.unlink()
    assert len(refusals) > len(places) / 2
    assert not any("\n" in text for text in refusals)


def test_spent_privacy_is_what_the_ledger_says(world: World, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    world.write("cy", path)
    ledger = Ledger(path, world.identities["cy"].sign)
    for number, epsilon in ((1, 0.25), (2, 0.375)):
        ledger.append(what="privacy", unit="hospital", round=number, epsilon=epsilon, delta=1e-5)
    ledger.close()
    facts = derive(world.transcript, {"cy": list(read_entries(path))})
    spent = [(each.unit, each.round, each.epsilon, each.delta) for each in facts.ledgers[0].privacy]
    assert spent == [("hospital", 1, 0.25, 1e-5), ("hospital", 2, 0.375, 1e-5)]
    assert world.make("bo").facts.ledgers[0].privacy is None
    shown = render(world.make("bo", path))
    assert "0.375" in shown
    ledger = Ledger(path, world.identities["cy"].sign)
    ledger.append(what="privacy", unit="hospital", round=3, epsilon="much", delta=1e-5)
    ledger.close()
    with pytest.raises(RecordError, match="does not know"):
        derive(world.transcript, {"cy": list(read_entries(path))})


def test_the_page_has_every_section_and_nothing_that_runs(world: World) -> None:
    page = render(world.make("bo", world.ledger("ada")))
    for heading in ("Purpose limitation", "Data and storage minimisation", "Information symmetry", "does not"):
        assert heading in page
    assert world.manifest.digest in page
    assert "@media print" in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    assert "http" not in page.replace('http-equiv="Content-Security-Policy"', "")
    assert "no certificate of destruction" in page


def test_no_text_of_a_study_becomes_markup(tmp_path: Path) -> None:
    page = render(World(tmp_path, EVALUATED.replace('"test"', '"<script>alert(1)</script>"')).make("bo"))
    assert "<script" not in page
    assert "&lt;script&gt;" in page
