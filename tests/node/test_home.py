"""A node's home folder: what is right is read whole, and each thing that is wrong has its one line."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from keys.ceremony import CARD, MANIFEST, PUBLIC_KEY, SECRET_KEYS, create_identity, make_card
from keys.errors import WardtreeError
from keys.plan import Plan
from keys.vault import FAST
from node.channel import Channel
from node.home import LOCK, SETTINGS, HomeError, lock_home, read_settings
from node.process import reap, spawn
from tests.node.homes import EXPIRES, NAMES, PASSPHRASE, Federation, make_federation
from topology import TopologyError


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return make_federation(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def federation(whole: Federation, tmp_path: Path) -> Federation:
    """A copy that a test may spoil."""
    shutil.copytree(whole.folder, tmp_path / "copy")
    return Federation(tmp_path / "copy")


def one_line(error: BaseException, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert PASSPHRASE not in text
    assert all(word in text for word in words), text


def test_every_partys_home_gives_the_same_federation(whole: Federation) -> None:
    homes = [whole.home(name) for name in NAMES]
    assert [home.name for home in homes] == list(NAMES)
    assert [home.is_key_holder for home in homes] == [True, False, False, False]
    first = homes[0]
    assert all((home.digest, home.tree, home.plan) == (first.digest, first.tree, first.plan) for home in homes)
    assert first.tree.children["ada"] == (first.tree.apex,)
    assert (first.bind, first.share, first.rules.schedule.last) == ("127.0.0.1:5000", 1.0, 2)


# ---- what is wrong --------------------------------------------------------------------------------------


def _another_card(path: Path) -> None:
    """A stranger's identity and card, under a member's name, in a member's home."""
    for name in ("identity.sealed", CARD):
        (path / name).unlink()
    create_identity(path, path.name, PASSPHRASE, FAST)
    make_card(path, PASSPHRASE, "127.0.0.1:5001", 0)


def _strangers_card(path: Path) -> None:
    for name in ("identity.sealed", CARD):
        (path / name).unlink()
    create_identity(path, "mallory", PASSPHRASE, FAST)
    make_card(path, PASSPHRASE, "127.0.0.1:6666", 0)


def _change(name: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        data = bytearray((path / name).read_bytes())
        data[len(data) // 2] ^= 1
        (path / name).write_bytes(data)

    return change


def _write(text: str) -> Callable[[Path], object]:
    return lambda path: (path / SETTINGS).write_text(text)


BAD: dict[str, tuple[str, Callable[[Path], object], tuple[str, ...]]] = {
    "no folder": ("bo", shutil.rmtree, ("home folder was expected",)),
    "manifest missing": ("bo", lambda path: (path / MANIFEST).unlink(), (MANIFEST, "cannot be read")),
    "manifest changed": ("bo", _change(MANIFEST), (MANIFEST,)),
    "card missing": ("bo", lambda path: (path / CARD).unlink(), (CARD, "cannot be read")),
    "another card of the name": ("bo", _another_card, ("card of bo", "not the one in the manifest")),
    "a stranger's card": ("bo", _strangers_card, ("card of mallory", "not the one in the manifest")),
    "public key missing": ("bo", lambda path: (path / PUBLIC_KEY).unlink(), (PUBLIC_KEY, "cannot be read")),
    "public key changed": (
        "bo",
        _change(PUBLIC_KEY),
        (PUBLIC_KEY, "not the public key whose digest all parties signed"),
    ),
    "secret key missing": (
        "ada",
        lambda path: next(path.glob(SECRET_KEYS)).unlink(),
        ("key holder", "secret-key-", "missing"),
    ),
    "unknown table": ("bo", _write("[dat]\ncsv = 1\n"), (SETTINGS, "[data]", "'dat'")),
    "a value for a table": ("bo", _write("data = 3\n"), (SETTINGS, "[data]", "'data'")),
    "unknown key": ("bo", _write('[network]\nbnd = "x:1"\n'), (SETTINGS, "bind", "bnd = 'x:1'")),
    "a number to bind": ("bo", _write("[network]\nbind = 5000\n"), (SETTINGS, "bind", "5000")),
    "a host alone to bind": ("bo", _write('[network]\nbind = "10.0.0.5"\n'), (SETTINGS, "host:port", "10.0.0.5")),
    "IPv6 without brackets to bind": ("bo", _write('[network]\nbind = "::1:7100"\n'), (SETTINGS, "host:port", "::1")),
    "a port that is none": (
        "bo",
        _write("[operation]\nstatus_port = 0\n"),
        (SETTINGS, "status_port = 1 to 65535", "0"),
    ),
    "another operation": ("bo", _write("[operation]\nport = 8080\n"), (SETTINGS, "status_port", "port = 8080")),
    "no TOML": ("bo", _write("[data\n"), (SETTINGS, "TOML")),
    "settings of other bytes": ("bo", lambda path: (path / SETTINGS).write_bytes(b"\xff"), (SETTINGS, "TOML")),
}


@pytest.mark.parametrize(("name", "spoil", "words"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_in_a_home_is_one_line_that_names_it(
    federation: Federation, name: str, spoil: Callable[[Path], object], words: tuple[str, ...]
) -> None:
    spoil(federation.path(name))
    with pytest.raises(WardtreeError) as caught:
        federation.home(name)
    one_line(caught.value, str(federation.path(name)), *words)
    federation.home("cy")  # one party's trouble is not another's


def test_a_manifest_holds_until_it_expires(whole: Federation) -> None:
    whole.home("bo", EXPIRES - timedelta(seconds=1))
    with pytest.raises(WardtreeError) as caught:
        whole.home("bo", EXPIRES)
    one_line(caught.value, MANIFEST, "expired")


def test_a_task_whose_code_is_not_the_signed_code_is_refused(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, task_digest="ab" * 32)
    with pytest.raises(HomeError) as caught:
        federation.home("bo")
    one_line(caught.value, "task synthetic", "not the code that all parties signed")


def test_a_plan_for_fewer_parties_than_there_are_is_refused(tmp_path: Path) -> None:
    """Its digits would overflow: signed by all or not, such sums are not exact."""
    federation = make_federation(tmp_path, plan=Plan(max_parties=3))
    with pytest.raises(HomeError) as caught:
        federation.home("bo")
    one_line(caught.value, "plan", "3", "4")


def test_members_that_cannot_all_be_placed_are_refused(tmp_path: Path) -> None:
    federation = make_federation(tmp_path, dial_only=("bo", "cy", "di"))
    with pytest.raises(TopologyError) as caught:
        federation.home("bo")
    one_line(caught.value, "1 listening member is missing")


# ---- settings and the lock ------------------------------------------------------------------------------


def test_settings_are_the_hospitals_own(federation: Federation) -> None:
    assert federation.home("bo").data == {}
    _write('[data]\ncsv = "patients.csv"\n[network]\nbind = "0.0.0.0:7000"\n')(federation.path("bo"))
    home = federation.home("bo")
    assert (home.data, home.bind, home.status_port) == ({"csv": "patients.csv"}, "0.0.0.0:7000", None)
    _write('[network]\nbind = "[::]:7000"\n')(federation.path("bo"))
    assert federation.home("bo").bind == "[::]:7000"
    _write("[operation]\nstatus_port = 8080\n")(federation.path("bo"))
    assert federation.home("bo").status_port == 8080
    assert read_settings(federation.path("cy") / SETTINGS) == {}


def test_two_nodes_never_run_from_one_home(tmp_path: Path) -> None:
    ours, theirs = Channel.pair()

    def other() -> None:
        ours.close()
        lock_home(tmp_path)
        theirs.send("locked")
        theirs.receive(30)

    child = spawn(signal.SIGKILL, other)
    theirs.close()
    assert ours.receive(30) == {"kind": "locked"}
    with pytest.raises(HomeError) as caught:
        lock_home(tmp_path)
    one_line(caught.value, str(tmp_path), "another node is running from this home")
    os.kill(child, signal.SIGKILL)
    reap(child)
    ours.close()
    os.close(lock_home(tmp_path))  # a node that was killed leaves no lock behind


def test_a_lock_that_cannot_be_taken_is_one_line(tmp_path: Path) -> None:
    (tmp_path / LOCK).mkdir()
    with pytest.raises(HomeError) as caught:
        lock_home(tmp_path)
    one_line(caught.value, str(tmp_path), LOCK)
