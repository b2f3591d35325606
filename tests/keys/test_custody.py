"""Custody in shares and destruction, file by file, and what each step refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from keys import ceremony, custody, steps
from keys.ceremony import SECRET_KIND, load_identity, secret_key_file
from keys.custody import CustodyError
from keys.errors import WardtreeError
from keys.identity import Identity
from keys.manifest import DOMAIN, Signed
from keys.statement import Statement
from keys.transcript import Transcript, agreed, proposed, read_transcript, record
from keys.vault import KdfCost, VaultError, open_file, read_lock, seal, seal_file, unseal
from tests.keys.test_succession import manifest

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LEAST = KdfCost(2, 19 * 2**20)
OFFICERS = ("anna", "bill", "cleo")
SECRET = bytes(range(256)) * 40
PUBLIC_KEY = "aa" * 32


@dataclass(frozen=True)
class Custody:
    """A federation of three whose key holder is ada, three officers, and a table for files."""

    folder: Path

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def card(self, name: str) -> Path:
        return self.folder / f"{name}.card.json"

    def share(self, name: str) -> Path:
        return self.folder / f"{name}.share"

    @property
    def sealed(self) -> Path:
        return self.home("ada") / secret_key_file(PUBLIC_KEY)

    @property
    def transcript(self) -> Path:
        return self.folder / "transcript.jsonl"

    def identity(self, name: str) -> Identity:
        return load_identity(self.home(name), name)

    def read(self) -> Transcript:
        return read_transcript(self.transcript, NOW)

    def note(self, *statements: Statement) -> None:
        steps.note(self.home("ada"), self.identity("ada"), self.transcript, statements, NOW)

    def split(self, needed: int = 2, officers: tuple[str, ...] = OFFICERS) -> Statement:
        cards = [self.card(name) for name in officers]
        _, statement = custody.split_key(self.home("ada"), "ada", PUBLIC_KEY, cards, needed, self.folder, NOW)
        return statement

    def release(self, name: str, to: str = "ada", share: Path | None = None) -> Path:
        out = self.folder / f"{name}.released"
        custody.release(self.home(name), name, share or self.share(name), self.card(to), out)
        return out

    def recombine(self, *names: str) -> Statement:
        released = [self.release(name) for name in names]
        return custody.recombine(self.home("ada"), "ada", released, NOW, LEAST)[1]

    def destroy(self, no_copies: bool = True) -> Statement:
        out = self.folder / "certificate.json"
        steps.destroy(self.home("ada"), self.identity("ada"), PUBLIC_KEY, self.transcript, no_copies, out, NOW)
        return Statement.read(out)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Custody:
    result = Custody(tmp_path_factory.mktemp("custody"))
    for name in ("ada", "bo", "cy", *OFFICERS):
        ceremony.create_identity(result.home(name), name, name, LEAST)
        ceremony.make_card(result.home(name), name, f"{name}.example:7000", 0, result.card(name))
    members = [result.identity(name) for name in ("ada", "bo", "cy")]
    body = manifest(members, public_key_digest=PUBLIC_KEY)
    signed = Signed(body, {each.name: each.sign(DOMAIN, body.body_bytes) for each in members}, {})
    record(result.transcript, members[0], [proposed(body), *agreed(signed)], NOW, result.home("ada"))
    seal_file(result.sealed, SECRET_KIND, SECRET, "ada", LEAST)
    return result


@pytest.fixture
def table(made: Custody, tmp_path: Path) -> Custody:
    """A copy that a test may spoil."""
    shutil.copytree(made.folder, tmp_path / "table")
    return Custody(tmp_path / "table")


def test_enough_officers_give_the_key_back(table: Custody) -> None:
    before = table.sealed.read_bytes()
    table.note(table.split())
    assert before != table.sealed.read_bytes()
    with pytest.raises(VaultError, match="2 share holders keep the key of this file"):
        open_file(table.sealed, SECRET_KIND, "ada")
    assert read_lock(table.sealed.read_bytes()).needed == 2
    table.note(table.recombine("cleo", "anna"))
    assert open_file(table.sealed, SECRET_KIND, "ada") == SECRET
    told = [Statement.from_dict(entry.content["statement"]).kind for entry in table.read().entries[-2:]]
    assert told == ["split", "recombination"]
    assert not list(table.folder.glob("*.released")), "with these the key holder could do it again alone"


def test_officers_restore_the_key_when_the_key_holders_disk_is_lost(table: Custody) -> None:
    table.split()
    table.sealed.unlink()
    table.recombine("bill", "cleo")
    assert open_file(table.sealed, SECRET_KIND, "ada") == SECRET


def test_no_file_has_the_key_or_a_share_in_clear(table: Custody) -> None:
    table.split()
    share = custody.read_share(table.share("anna"), table.identity("anna"))
    table.release("anna")
    for path in (path for path in table.folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert SECRET[:64] not in data
        assert share.share not in data, path
        assert share.share.hex().encode() not in data, path


# ---- what is refused ------------------------------------------------------------------------------------


def test_too_few_shares_are_counted_and_the_others_named(table: Custody) -> None:
    table.split(needed=3)
    with pytest.raises(CustodyError, match="expected 3 shares, came 2, of anna, cleo; the others are with bill"):
        table.recombine("anna", "cleo")
    path = table.folder / "anna.released"
    with pytest.raises(CustodyError, match="expected 3 shares, came 1, of anna"):
        custody.recombine(table.home("ada"), "ada", [path, path], NOW, LEAST)


def test_shares_of_different_sets_are_refused(table: Custody) -> None:
    table.split()
    first = table.release("anna")
    table.release("bill").unlink()
    again = custody.recombine(table.home("ada"), "ada", [first, table.release("cleo")], NOW, LEAST)
    assert again
    for name in OFFICERS:
        table.share(name).rename(table.folder / f"{name}.old")
    table.split()
    mixed = [table.release("anna"), table.release("bill", share=table.folder / "bill.old")]
    with pytest.raises(CustodyError, match="expected shares of one set, came shares of 2"):
        custody.recombine(table.home("ada"), "ada", mixed, NOW, LEAST)


def test_a_corrupted_share_is_named(table: Custody) -> None:
    """Whoever hands in another value than it was given, say to stop the key holder, is found out."""
    table.split()
    own = custody.read_share(table.share("bill"), table.identity("bill"))
    wrong = replace(own, share=bytes([own.share[0] ^ 1]) + own.share[1:])
    forged = table.folder / "bill.released"
    forged.write_bytes(wrong.to_bytes("bill", ceremony.read_card(table.card("ada"))))
    with pytest.raises(CustodyError, match=r"bill\.released: the share of bill is corrupted"):
        custody.recombine(table.home("ada"), "ada", [table.release("anna"), forged], NOW, LEAST)


def test_a_spoilt_copy_of_the_sealed_key_stops_nobody(table: Custody) -> None:
    table.split()
    released = [table.release("anna"), table.release("bill")]
    own = custody.read_share(table.share("anna"), table.identity("anna"))
    spoilt = replace(own, sealed=own.sealed[:-1] + bytes([own.sealed[-1] ^ 1]))
    released[0].write_bytes(spoilt.to_bytes("anna", ceremony.read_card(table.card("ada"))))
    table.sealed.unlink()
    custody.recombine(table.home("ada"), "ada", released, NOW, LEAST)
    assert open_file(table.sealed, SECRET_KIND, "ada") == SECRET


def test_a_changed_file_is_refused(table: Custody) -> None:
    table.split()
    values = json.loads(table.share("anna").read_bytes())
    for change, why in (
        ({"box": values["box"][:-8] + "AAAAAAA="}, "not sealed for anna's keys, or the file was changed"),
        ({"box": "?"}, "not sealed for anna's keys, or the file was changed"),
        ({"to": "bill"}, "sealed for bill, not for anna"),
        ({"format": "x"}, "format: expected"),
    ):
        table.share("anna").write_text(json.dumps(values | change))
        with pytest.raises(CustodyError, match=why):
            table.release("anna")
    table.share("anna").write_text(json.dumps(values)[:-30])
    with pytest.raises(WardtreeError, match=r"anna\.share: expected JSON"):
        table.release("anna")


def test_a_share_is_released_to_nobody_but_the_key_holder_who_made_it(table: Custody) -> None:
    table.split()
    with pytest.raises(CustodyError, match=r"anna\.share: share: ada made it, not bo"):
        table.release("anna", to="bo")
    impostor = table.folder / "impostor"
    ceremony.create_identity(impostor, "ada", "x", LEAST)
    ceremony.make_card(impostor, "x", None, 0, table.folder / "false.card.json")
    table.card("ada").unlink()
    (table.folder / "false.card.json").rename(table.card("ada"))
    with pytest.raises(WardtreeError, match=r"anna\.share: split by ada: its signature is not of the key"):
        table.release("anna")
    assert not (table.folder / "anna.released").exists()


def test_another_officer_cannot_open_a_share(table: Custody) -> None:
    table.split()
    values = json.loads(table.share("anna").read_bytes()) | {"to": "bill"}
    table.share("anna").write_text(json.dumps(values))
    with pytest.raises(CustodyError, match="not sealed for bill's keys"):
        custody.read_share(table.share("anna"), table.identity("bill"))


def test_a_split_that_makes_no_sense_changes_nothing(table: Custody) -> None:
    before = table.sealed.read_bytes()
    for needed, officers, why in (
        (1, OFFICERS, "came 1 of 3"),
        (4, OFFICERS, "came 4 of 3"),
        (2, ("anna", "anna"), "holders of different names"),
    ):
        with pytest.raises(WardtreeError, match=why):
            table.split(needed, officers)
    cards = [table.card(name) for name in OFFICERS]
    with pytest.raises(VaultError, match="wrong passphrase"):
        custody.split_key(table.home("ada"), "wrong", PUBLIC_KEY, cards, 2, table.folder, NOW)
    assert table.sealed.read_bytes() == before
    assert not list(table.folder.glob("*.share"))


def test_a_key_under_its_passphrase_is_not_recombined(table: Custody) -> None:
    table.split()
    released = [table.release("anna"), table.release("bill")]
    custody.recombine(table.home("ada"), "ada", released, NOW, LEAST)
    with pytest.raises(CustodyError, match="is under a passphrase already"):
        table.recombine("anna", "bill")


# ---- the end --------------------------------------------------------------------------------------------


def opens(path: Path) -> bool:
    try:
        return unseal(path.read_bytes(), SECRET_KIND, "ada") == SECRET
    except WardtreeError:
        return False


def test_after_destroy_no_file_gives_the_key_and_old_shares_are_the_one_way(table: Custody) -> None:
    table.note(table.split())
    table.note(table.recombine("anna", "bill"))
    inode = table.sealed.stat().st_ino
    keeper = table.folder / "link"
    keeper.hardlink_to(table.sealed)  # the same blocks of the disk, by another name
    sealed = table.sealed.read_bytes()
    certificate = table.destroy()
    assert not table.sealed.exists()
    assert keeper.stat().st_ino == inode
    left = keeper.read_bytes()
    assert len(left) == len(sealed)
    assert not any(sealed[at : at + 8] in left for at in range(0, len(sealed) - 8, 8)), "overwritten in place"
    assert not any(opens(path) for path in table.folder.rglob("*") if path.is_file())
    assert (
        "One way to the secret key remains: `wardtree ceremony recombine` with 2 of the 3 shares that anna, bill, cleo "
        "still hold" in certificate.text
    )
    assert "ada declares that no copy of the sealed file or of a released share" in certificate.text
    assert table.read().history.destroyed == {PUBLIC_KEY: certificate}

    table.recombine("cleo", "anna")  # the way that the certificate names
    assert open_file(table.sealed, SECRET_KIND, "ada") == SECRET


def test_when_holders_destroy_their_shares_no_way_is_left_and_each_signs(table: Custody) -> None:
    table.note(table.split())
    table.note(table.recombine("anna", "bill"))
    for name in ("anna", "cleo"):
        out = table.folder / f"{name}.destroyed.json"
        step = custody.destroy_share(table.home(name), name, table.share(name), out, NOW)
        assert f"{name} destroyed its share" in step.did
        assert not table.share(name).exists()
        table.note(Statement.read(out))
    certificate = table.destroy(no_copies=False)
    assert "No set of shares is left from which it could be recombined." in certificate.text
    assert "ada does not declare that no copy" in certificate.text
    with pytest.raises(CustodyError, match="expected 2 shares, came 1, of bill; the others are with anna, cleo"):
        table.recombine("bill")


def test_destroy_refuses_before_anything_is_gone(table: Custody) -> None:
    split = table.split()
    with pytest.raises(CustodyError, match="this split is not in the transcript; add it first"):
        table.destroy()
    table.note(split)
    (table.folder / "certificate.json").write_text("x")
    with pytest.raises(VaultError, match="exists already"):
        table.destroy()
    (table.folder / "certificate.json").unlink()
    lines = table.transcript.read_bytes().splitlines(keepends=True)
    table.transcript.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(WardtreeError, match="rolled back or cut short"):
        table.destroy()
    table.transcript.write_bytes(b"".join(lines))
    assert table.sealed.exists()
    out = table.folder / "bo.json"
    with pytest.raises(CustodyError, match="there is no such secret key here"):
        steps.destroy(table.home("bo"), table.identity("bo"), PUBLIC_KEY, table.transcript, True, out, NOW)
    table.destroy()
    with pytest.raises(CustodyError, match="there is no such secret key here"):
        table.destroy()


def test_a_new_passphrase_and_a_higher_cost_for_all_that_is_sealed(table: Custody) -> None:
    home = table.home("ada")
    other = home / secret_key_file("bb" * 32)
    seal_file(other, SECRET_KIND, b"another", "ada", LEAST)
    higher = KdfCost(3, 20 * 2**20)
    with pytest.raises(VaultError, match="wrong passphrase"):
        ceremony.change_passphrase(home, "wrong", "new", higher)
    step = ceremony.change_passphrase(home, "ada", "new", higher)
    assert len(step.wrote) == 3
    for path in step.wrote:
        assert read_lock(path.read_bytes()).cost == higher
    assert open_file(table.sealed, SECRET_KIND, "new") == SECRET
    assert load_identity(home, "new").name == "ada"
    other.write_bytes(seal(SECRET_KIND, b"another", "ada", LEAST))  # as if it had been interrupted
    assert ceremony.change_passphrase(home, "ada", "new", higher).wrote == (other,)
    assert open_file(other, SECRET_KIND, "new") == b"another"
