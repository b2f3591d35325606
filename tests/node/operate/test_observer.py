"""What the relay's observer writes: of a machine in a known state, and at what cost."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from node.home import Home
from node.operate import observer as observers
from node.operate.observer import Observer
from node.operate.status import Status, StatusError, is_running, read_report, read_status
from node.protocol import events as ev
from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import Gone, Joined, Open
from node.protocol.party import Party, State
from node.protocol.posture import Posture
from tests.end_to_end.commands import FULL
from tests.node.homes import KEY_HOLDER, Federation, make_federation

BASE = bytes(32)
POSTURE = Posture("required", 7, frozenset()).text


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    made = make_federation(tmp_path_factory.mktemp("homes"))
    for name in ("ada", "bo", "cy", "di"):
        (made.path(name) / "relay" / "status").mkdir(parents=True)
    return made


class Node:
    """A round machine, and who looks on."""

    def __init__(self, home: Home, entries: list[dict[str, Any]] | None = None) -> None:
        self.home, self.entries = home, entries or []
        self.curve: tuple[tuple[str, ...], list[list[float]]] = (), []
        kind = KeyHolder if home.is_key_holder else Contributor
        self.machine: Party = kind(home.name, home.placement, home.rules)
        self.observer = Observer(home, self.machine, self.entries, lambda: 5.0, lambda: self.curve)
        self.machine.handle(ev.Ready(BASE, {"train": 10, "statistics": 0, "evaluate": 0}, 100, 100, POSTURE))

    def look(self) -> Status:
        """As it would be written: valid, and with no key that the schema has not."""
        return Status.model_validate_json(json.dumps(self.observer.look(time.time())))

    def standing(self) -> dict[str, str]:
        return {party.name: party.standing for party in self.look().parties}

    def joins(self, name: str, parent: str) -> None:
        message = Joined(0, BASE, 0, 0, parent, POSTURE)
        via = name if name in self.machine.up else next(iter(self.machine.up))
        self.machine.handle(ev.Received(via, name, KEY_HOLDER, message))

    def closes(self, number: int, contributors: list[str]) -> None:
        left_out = self.home.name not in contributors
        self.entries.append(
            {"what": "closed", "round": number, "contributors": contributors, "segments": 1, "state": "ab" * 32,
             "left_out": left_out, "frame": "c0ffee", "time": 7}
        )  # fmt: skip


def at_key_holder(federation: Federation) -> tuple[Node, str, list[str]]:
    node = Node(federation.home(KEY_HOLDER))
    tree = node.home.tree
    node.machine.handle(ev.Up(tree.apex))
    return node, tree.apex, [name for name in tree.parent if name != tree.apex]


def test_the_key_holder_knows_who_joined_and_who_is_gone(federation: Federation) -> None:
    node, apex, others = at_key_holder(federation)
    assert node.standing() == {KEY_HOLDER: "here", apex: "awaited", **dict.fromkeys(others, "awaited")}
    node.joins(apex, KEY_HOLDER)
    for name in others:
        node.joins(name, apex)
    assert set(node.standing().values()) == {"here"}
    assert node.look().state == "gathering", "all are there: the first round was opened"
    node.machine.handle(ev.Received(apex, apex, KEY_HOLDER, Gone(BASE, others[0])))
    assert node.standing()[others[0]] == "gone"
    status = node.look()
    gone = next(party for party in status.parties if party.name == others[0])
    assert (gone.place, gone.parent) == (apex, None)
    assert status.role == "key holder"
    assert status.round is not None
    assert (status.round.segments, status.round.sealed, status.round.opened) == (1, 0, 0)
    node.machine.handle(ev.Down(apex))
    assert node.standing()[apex] == "gone"
    node.machine.handle(ev.Up(apex))
    node.joins(apex, KEY_HOLDER)
    assert node.standing()[apex] == "here", "it came back"


def test_another_node_knows_the_openings_set_and_its_own_links(federation: Federation) -> None:
    home = federation.home(federation.home(KEY_HOLDER).tree.apex)
    node = Node(home)
    leaves = list(home.tree.children[home.name])
    assert node.standing() == {home.name: "here", KEY_HOLDER: "awaited", **dict.fromkeys(leaves, "awaited")}
    for peer in (KEY_HOLDER, *leaves):
        node.machine.handle(ev.Up(peer))
    opening = Open(1, BASE, frozenset(home.roster.names), "train", 10, True, 1000)
    node.machine.handle(ev.Received(KEY_HOLDER, KEY_HOLDER, "", opening))
    node.observer.take("round", {"what": "opened", "round": 1, "contributors": []})
    status = node.look()
    assert (status.role, status.parent, status.children) == ("apex", KEY_HOLDER, tuple(sorted(leaves)))
    assert status.state == "gathering"
    node.observer.take("lost", {"peer": leaves[0]})
    node.machine.handle(ev.Down(leaves[0]))
    assert node.standing()[leaves[0]] == "gone"
    # Openings that go on listing it say that it has another parent.
    for number in (2, 3):
        node.machine.handle(ev.Received(KEY_HOLDER, KEY_HOLDER, "", replace(opening, round=number)))
    assert node.standing()[leaves[0]] == "here"


def test_rounds_come_from_the_ledger_also_those_before_this_start(federation: Federation) -> None:
    home = federation.home(KEY_HOLDER)
    before = [{"what": "started", "manifest": "another", "time": 1}]
    node = Node(home, before)
    node.closes(1, [KEY_HOLDER, "bo"])
    node.entries.append({"what": "started", "manifest": home.manifest.digest, "posture": POSTURE, "time": 2})
    assert node.look().closed == (), "that was another manifest's"
    for number, names in ((1, ["ada", "bo", "cy"]), (2, ["bo", "cy", "di"]), (3, ["ada", "bo", "cy"])):
        if number == 3:
            node.observer.take("applied", {"round": 3, "seconds": 0.5, "state": "ab" * 32, "contributors": names})
        node.closes(number, names)
    status = node.look()
    assert [(each.round, each.left_out, each.seconds) for each in status.closed] == [
        (1, False, None), (2, True, None), (3, False, 0.5),
    ]  # fmt: skip
    assert (status.left_out, status.left_out_count) == ((2,), 1)
    assert status.ledger[-1].model_dump() == {
        "what": "closed", "round": 3, "contributors": 3, "time": 7,
    }, "no frame, no signature"  # fmt: skip
    assert {party.name: party.contributed for party in status.parties} == {
        "ada": True, "bo": True, "cy": True, "di": False,
    }  # fmt: skip


def test_events_are_counted(federation: Federation) -> None:
    node = Node(federation.home(KEY_HOLDER))
    for seconds in (1.0, 2.0):
        node.observer.take("stage", {"stage": "train", "round": 1, "seconds": seconds})
    node.observer.take("dropped", {"who": "x", "expected": "y", "came": "z", "times": 3})
    node.curve = ("loss", "auc"), [[1.0, 0.7, 0.5], [4.0, 0.6, math.nan]]
    for number in range(9):
        node.observer.take("warning", {"text": f"warning {number}"})
    node.observer.take("fingerprints", {"round": 1, "values": [271828182845]})
    node.observer.take("ciphertext", {"peer": "bo", "bytes": 271828182845})
    status = node.look()
    assert status.stages["train"].model_dump() == {"count": 2, "seconds": 3.0, "last": 2.0}
    assert status.refused == 3
    assert [(each.round, each.metrics) for each in status.evaluations] == [
        (1, {"loss": 0.7, "auc": 0.5}),
        (4, {"loss": 0.6}),
    ]
    assert status.warnings == tuple(f"warning {number}" for number in range(4, 9))
    assert "271828182845" not in status.model_dump_json(), "nothing else that is told goes into it"


def test_it_writes_a_few_times_a_second_at_most_and_only_what_is_new(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(federation.home(KEY_HOLDER))
    file = node.home.relay_folder / "status" / "status.json"
    written = []
    monkeypatch.setattr(node.observer, "look", lambda *_: written.append(1) or {})
    monkeypatch.setattr(observers, "WRITE_SECONDS", 0.1)
    began = time.monotonic()
    while time.monotonic() - began < 0.55:
        node.observer.take("dropped", {"times": 1})
        node.observer.write_if_due()
    assert 4 <= len(written) <= 6
    time.sleep(0.11)
    node.observer.write_if_due()
    made = len(written)
    time.sleep(0.11)
    node.observer.write_if_due()
    assert len(written) == made, "nothing was new"
    node.observer.beat()
    node.observer.write_if_due()
    assert len(written) == made + 1
    assert file.read_text() == "{}"
    assert [each.name for each in file.parent.iterdir()] == ["status.json"]


def test_the_end_is_written_at_once_with_its_error(federation: Federation) -> None:
    node = Node(federation.home("bo"))
    node.observer.write()
    node.observer.take("stopped", {"error": "the disk is full"})
    report = read_status(node.home.relay_folder / "status" / "status.json", running=True)
    assert (report.state, report.error, report.running, report.is_well) == ("ended", "the disk is full", "no", False)


def test_in_the_end_who_leaves_is_not_gone(federation: Federation) -> None:
    node, apex, others = at_key_holder(federation)
    node.joins(apex, KEY_HOLDER)
    for name in others:
        node.joins(name, apex)
    before = node.standing()
    node.machine.state = State.ENDING
    node.machine.handle(ev.Down(apex, left=True))
    assert node.standing() == before


def test_a_full_disk_ends_no_node(federation: Federation, tmp_path: Path) -> None:
    node = Node(replace(federation.home("cy"), path=tmp_path))  # there is no folder for it
    node.observer.write()
    node.observer.write()
    (warning,) = node.look().warnings
    assert warning.startswith("the status cannot be written")


def test_a_home_without_a_status_says_why(federation: Federation) -> None:
    home = federation.path("di")
    assert not is_running(home)
    with pytest.raises(StatusError, match="no node has run from this home yet"):
        read_report(home)


def test_a_status_costs_little(tmp_path: Path) -> None:
    """Of a round, with three writes a second: well below a millisecond each. The bound is for a busy machine."""
    count = 64 if FULL else 8
    names = (KEY_HOLDER, *(f"party-{number:02}" for number in range(1, count)))
    made = make_federation(tmp_path, names=names, ports=range(6000, 6000 + count))
    home = made.home(KEY_HOLDER)
    (home.relay_folder / "status").mkdir(parents=True)
    node = Node(home)
    node.machine.handle(ev.Up(home.tree.apex))
    for name in sorted(home.tree.parent, key=home.tree.depth):
        node.joins(name, home.tree.parent[name])
    for number in range(200):
        node.closes(number, list(names))
    best = min(timed(node.observer.write) for _ in range(50))
    print(f"one write with {count} parties and 100 rounds: {1000 * best:.2f} ms")
    assert best < 0.02


def timed(action: Any) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began
