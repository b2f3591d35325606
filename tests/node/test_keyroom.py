"""The key room as a real process behind real pipes: what it opens, what it refuses, and that it never forgets."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from keys.canaries import round_key
from keys.ceremony import PUBLIC_KEY, SECRET_KIND, load_identity
from keys.ckks import Sealer, generate_keys
from keys.vault import open_file
from node.channel import Channel
from node.course import Regime
from node.federation import plan_for
from node.home import Home
from node.keyroom import run_keyroom
from node.process import reap, spawn
from node.protocol.messages import TRAIN
from node.sandbox import policy
from node.sandbox.enter import enter
from node.sandbox.machine import detect
from node.study import parse_study
from node.update import merge, seal_segments
from tests.node.homes import KEY_HOLDER, NAMES, PASSPHRASE, STUDY, Federation, make_federation

BASE = b"b" * 32
LENGTH = 1000
OTHERS = ("bo", "cy", "di")
Integers = NDArray[np.int64]


@dataclass
class Party:
    """What the other parties and the key holder's relay do, in this process."""

    home: Home
    sealers: dict[str, Sealer] = field(default_factory=dict)
    box_secrets: dict[str, bytes] = field(default_factory=dict)

    def part(self, name: str, integers: Integers, round_: int) -> bytes:
        """One party's first segment."""
        card = self.home.manifest.card(KEY_HOLDER)
        key = round_key(self.box_secrets[name], card.box_key, self.home.digest, round_, BASE)
        return next(seal_segments(integers, self.sealers[name], key))

    def total(self, updates: dict[str, Integers], round_: int) -> bytes:
        parts = tuple(self.part(name, integers, round_) for name, integers in updates.items())
        return merge(self.home.plan, parts)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("keyroom"))


@pytest.fixture(scope="module")
def parties(federation: Federation) -> Party:
    home = federation.home(KEY_HOLDER)
    public = (home.path / PUBLIC_KEY).read_bytes()
    made = Party(home)
    for name in OTHERS:
        made.sealers[name] = Sealer(home.plan, public)
        made.box_secrets[name] = load_identity(federation.path(name), PASSPHRASE).box_secret
    return made


@pytest.fixture
def home(federation: Federation, tmp_path: Path) -> Home:
    """The key holder's home, as it was before any round."""
    shutil.copytree(federation.folder, tmp_path / "copy")
    return replace(Federation(tmp_path / "copy").home(KEY_HOLDER), posture=detect())


def updates(seed: int) -> dict[str, Integers]:
    """Everybody's integers; the key holder's own among them."""
    generator = np.random.default_rng(seed)
    return {name: generator.integers(-8191, 8191, LENGTH, endpoint=True) for name in NAMES}


def summed(each: dict[str, Integers]) -> list[int]:
    return list(np.sum([*each.values()], axis=0))


class Room:
    """A living key room, and our ends of its pipes."""

    def __init__(self, relay: Channel, template: socket.socket) -> None:
        self._relay, self._template = relay, template
        self.said: list[bytes] = []
        self.ended: list[int] = []

    def round(self) -> Channel:
        """A new round begins: the pipe over which the enclave's own integers go."""
        read, write = os.pipe()
        socket.send_fds(self._template, [b"job"], [read])
        os.close(read)
        return Channel(None, write)

    def close_round(self) -> None:
        self._relay.send("close")

    def hear(self) -> dict[str, Any]:
        while (message := self._relay.receive(30))["kind"] == "ended":
            self.ended.append(message["peak_memory"])
        self.said.append(repr(message).encode() + b"".join(v for v in message.values() if isinstance(v, bytes)))
        return message

    def open(self, ciphertexts: bytes, round_: int, **change: Any) -> dict[str, Any]:
        request = {"round": round_, "segment": 0, "base": BASE, "others": list(OTHERS), "own": None}
        request |= {"length": LENGTH, "whole": LENGTH, "ciphertexts": ciphertexts}
        self._relay.send("open", **(request | change))
        return self.hear()


@contextmanager
def living(home: Home, passphrase: str = PASSPHRASE) -> Iterator[Room]:
    (ours, theirs), (template, their_template) = Channel.pair(), socket.socketpair()

    def run() -> None:
        ours.close()
        template.close()
        home.openings.touch()
        enter(policy.keyroom(home), home.posture, [*theirs.descriptors, their_template.fileno()])
        run_keyroom(theirs, their_template, home, passphrase)

    process = spawn(signal.SIGKILL, run)
    theirs.close()
    their_template.close()
    try:
        yield Room(ours, template)
    finally:
        os.kill(process, signal.SIGKILL)
        reap(process)
        ours.close()
        template.close()


def refused(answer: dict[str, Any]) -> bool:
    """The same answer to everyone, whatever the reason: not one word more."""
    return set(answer) == {"kind", "round", "segment"} and answer["kind"] == "refused"


def opened(answer: dict[str, Any]) -> list[int]:
    assert answer["kind"] == "opened"
    return list(np.frombuffer(answer["integers"], "<i4"))


# ---- what it does ---------------------------------------------------------------------------------------


def test_an_honest_total_opens_exactly_with_and_without_the_key_holders_own(home: Home, parties: Party) -> None:
    with living(home) as room:
        for round_ in (0, 1):
            each = updates(round_)
            own = each.pop(KEY_HOLDER)
            enclave = room.round()
            if round_:
                enclave.send("own", round=round_, segment=0, integers=own.astype("<i4").tobytes())
            answer = room.open(parties.total(each, round_), round_, own=KEY_HOLDER if round_ else None)
            assert opened(answer) == summed(each | ({KEY_HOLDER: own} if round_ else {}))
            assert (answer["round"], answer["segment"]) == (round_, 0)
            room.close_round()
            enclave.close()
    entries = [json.loads(line)["entry"] for line in home.openings.read_bytes().splitlines()]
    assert [(entry["what"], entry["round"], entry["listed"]) for entry in entries] == [
        ("opening", 0, list(OTHERS)),
        ("opening", 1, list(NAMES)),
    ]


def test_the_secret_key_is_never_in_what_it_says(home: Home, parties: Party) -> None:
    secret = open_file(home.secret_key, SECRET_KIND, PASSPHRASE)
    assert len(secret) > 10_000
    with living(home) as room:
        room.round()
        each = {name: integers for name, integers in updates(1).items() if name != KEY_HOLDER}
        opened(room.open(parties.total(each, 1), 1))
        assert refused(room.open(parties.total(each, 1), 1))
        assert refused(room.open(b"garbage", 2))
    said = b"".join(room.said)
    assert not any(secret[at : at + 16] in said for at in range(0, len(secret) - 16, 16))


# ---- what it refuses ------------------------------------------------------------------------------------


def test_one_opening_per_round_and_segment_and_never_an_earlier_one(home: Home, parties: Party) -> None:
    each = {name: integers for name, integers in updates(2).items() if name != KEY_HOLDER}
    total = parties.total(each, 3)
    with living(home) as room:
        room.round()
        opened(room.open(total, 3))
        assert refused(room.open(total, 3)), "the same once more"
        without_one = {name: integers for name, integers in updates(2).items() if name in ("bo", "cy")}
        assert refused(room.open(parties.total(without_one, 3), 3, others=["bo", "cy"])), "in whatever set"
        assert refused(room.open(parties.total(each, 2), 2)), "an earlier round"
        room.close_round()
    with living(home) as room:  # its ledger remembers
        room.round()
        assert refused(room.open(total, 3)), "after a restart"
        assert refused(room.open(total, 3, segment=1)), "nor what is left of a round that was begun before it"
        assert opened(room.open(parties.total(each, 4), 4)) == summed(each), "that retires no key"


@pytest.mark.parametrize(
    ("others", "own"),
    [([], None), (["bo"], None), (["bo", "cy"], None), (["bo"], KEY_HOLDER), ([], KEY_HOLDER)],
    ids=["nobody", "one", "two", "one and the key holder", "the key holder alone"],
)
def test_a_set_that_does_not_hide_everyone_is_refused_and_is_no_opening(
    home: Home, parties: Party, others: list[str], own: str | None
) -> None:
    """Two others are needed for each to hide among: three contributors."""
    each = updates(3)
    mine = each.pop(KEY_HOLDER)
    few = {name: each[name] for name in others} or {"bo": each["bo"]}
    with living(home) as room:
        enclave = room.round()
        if own:
            enclave.send("own", round=1, segment=0, integers=mine.astype("<i4").tobytes())
        assert refused(room.open(parties.total(few, 1), 1, others=others, own=own))
        assert opened(room.open(parties.total(each, 1), 1)) == summed(each), "it costs nothing"


def _of_another_key(parties: Party, each: dict[str, Integers]) -> bytes:
    stranger = Sealer(parties.home.plan, generate_keys(parties.home.plan)[0])
    return merge(parties.home.plan, tuple(stranger.seal(integers) for integers in each.values()))


FALSE_TOTALS = {
    "garbage": lambda parties, each: b"garbage",
    "under another key": _of_another_key,
    "one party's alone, claimed for all": lambda parties, each: parties.part("bo", each["bo"], 1),
    "one left out": lambda parties, each: parties.total({name: each[name] for name in ("bo", "cy")}, 1),
    "one counted twice": lambda parties, each: merge(
        parties.home.plan, (parties.total(each, 1), parties.part("bo", each["bo"], 1))
    ),
    "of another round": lambda parties, each: parties.total(each, 0),
}


@pytest.mark.parametrize("make", FALSE_TOTALS.values(), ids=FALSE_TOTALS.keys())
def test_one_failed_check_retires_the_key_for_ever(home: Home, parties: Party, make: Any) -> None:
    each = {name: integers for name, integers in updates(4).items() if name != KEY_HOLDER}
    with living(home) as room:
        room.round()
        assert refused(room.open(make(parties, each), 1))
        assert refused(room.open(parties.total(each, 2), 2)), "in this round's process"
        room.close_round()
        room.round()
        assert refused(room.open(parties.total(each, 3), 3)), "in the next one's"
    with living(home) as room:
        room.round()
        assert refused(room.open(parties.total(each, 4), 4)), "after a restart"
    entries = [json.loads(line)["entry"]["what"] for line in home.openings.open()]
    assert entries == ["opening", "retired"], "and nothing was opened after it"


def test_without_the_key_holders_own_integers_nothing_opens_in_its_name(home: Home, parties: Party) -> None:
    each = {name: integers for name, integers in updates(5).items() if name != KEY_HOLDER}
    total = parties.total(each, 1)
    with living(home) as room:
        room.round().close()
        assert room.open(total, 1, own=KEY_HOLDER)["kind"] == "own lost", "its enclave has died"
        room.close_round()
        room.round().send("own", round=0, segment=0, integers=bytes(4 * LENGTH))
        assert room.open(total, 1, own=KEY_HOLDER)["kind"] == "own lost", "they are another round's"
        assert opened(room.open(total, 1)) == summed(each)


# ---- its start ------------------------------------------------------------------------------------------


def test_a_wrong_passphrase_is_one_line_without_it(home: Home) -> None:
    with living(home, "wrong horse") as room:
        message = room.hear()
    assert message["kind"] == "error"
    assert "wrong passphrase" in message["text"]
    assert "horse" not in message["text"]
    assert "\n" not in message["text"]


def test_a_changed_ledger_of_openings_opens_nothing(home: Home, parties: Party) -> None:
    """Whoever removes the line of an opening to have it twice is found out."""
    each = {name: integers for name, integers in updates(6).items() if name != KEY_HOLDER}
    with living(home) as room:
        room.round()
        for round_ in (1, 2):
            opened(room.open(parties.total(each, round_), round_))
    path = home.openings
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[1])
    with living(home) as room:
        room.round()
        assert room.hear()["kind"] == "error"


# ---- what it costs --------------------------------------------------------------------------------------

PRIVATE = STUDY + '[privacy]\nmode = "hospital"\nepsilon = 8.0\ndelta = 1e-5\nclip = 2.0\nvalues = 2000\n'


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Party]:
    """Four parties, two rounds within the budget, and room for the noise."""
    study = parse_study(PRIVATE, "study")
    made = make_federation(tmp_path_factory.mktemp("private"), plan=plan_for(study), study=PRIVATE)
    home = made.home(KEY_HOLDER)
    party = Party(home)
    for name in OTHERS:
        party.sealers[name] = Sealer(home.plan, (home.path / PUBLIC_KEY).read_bytes())
        party.box_secrets[name] = load_identity(made.path(name), PASSPHRASE).box_secret
    return made, party


def entries(home: Home, what: str) -> list[dict[str, Any]]:
    lines = [json.loads(line)["entry"] for line in home.openings.read_bytes().splitlines()]
    return [entry for entry in lines if entry["what"] == what]


def test_the_budget_is_charged_before_an_opening_and_outlives_the_process(
    private: tuple[Federation, Party], tmp_path: Path
) -> None:
    """Neither a restart nor a round that failed after its opening gives anything back; what is too much stays closed,
    with a reason that everyone may know, and the key is not retired."""
    shutil.copytree(private[0].folder, tmp_path / "copy")
    home = replace(Federation(tmp_path / "copy").home(KEY_HOLDER), posture=detect())
    parties = private[1]
    spent = []
    for round_ in (1, 2):
        each = updates(round_)
        each.pop(KEY_HOLDER)
        with living(home) as room:
            room.round().close()
            assert opened(room.open(parties.total(each, round_), round_)) == summed(each)
        spent.append(entries(home, "privacy")[-1]["epsilon"])
    assert [entry["what"] for entry in map(_entry, home.openings.read_bytes().splitlines())] == [
        "privacy", "opening", "privacy", "opening",
    ]  # fmt: skip
    asked = Regime.of(home.study, home.plan, home.manifest.quorum)
    arranged = asked.of_length(TRAIN, LENGTH)
    assert arranged is not None
    account = asked.account(asked.begin())
    assert spent == [account.spend(*arranged.releases) for _ in (1, 2)]
    assert spent[-1] == pytest.approx(8.0, rel=1e-3)
    assert [release["shares"] for release in entries(home, "privacy")[0]["releases"]] == [2], "of three that arrived"
    with living(home) as room:
        room.round().close()
        each = updates(3)
        each.pop(KEY_HOLDER)
        answer = room.open(parties.total(each, 3), 3)
    assert (answer["kind"], answer["reason"]) == ("withheld", "privacy budget: nothing was opened")
    assert not entries(home, "retired")
    assert len(entries(home, "opening")) == 2


def test_what_was_not_charged_is_not_opened(private: tuple[Federation, Party], tmp_path: Path) -> None:
    """A round is charged for the integers that it is said to sum: none beyond them is opened."""
    shutil.copytree(private[0].folder, tmp_path / "copy")
    home = replace(Federation(tmp_path / "copy").home(KEY_HOLDER), posture=detect())
    each = updates(1)
    each.pop(KEY_HOLDER)
    total = private[1].total(each, 1)
    with living(home) as room:
        room.round().close()
        assert refused(room.open(total, 1, whole=LENGTH - 1))
        assert opened(room.open(total, 1)) == summed(each)
        assert refused(room.open(total, 1, segment=1))  # the round had one segment
        assert refused(room.open(total, 1, segment=1, whole=10 * LENGTH))
    assert len(entries(home, "privacy")) == len(entries(home, "opening")) == 1


def _entry(line: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = json.loads(line)["entry"]
    return entry
