"""The ceremony's commands where things do not go as on the page: one clear line, and nothing done."""

from __future__ import annotations

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from keys import ceremony, steps
from keys.ceremony import SECRET_KEYS
from keys.manifest import Signed
from keys.transcript import TRANSCRIPT, agreed, keep, proposed, record
from keys.vault import FAST, read_lock
from node.cli import app
from node.home import HomeError, load_home, lock_home
from tests.end_to_end.commands import at_descriptor
from tests.end_to_end.test_institutions import NAMES, make_homes

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three homes that have joined, with a transcript on the table; the passphrase is the party's name."""
    folder = tmp_path_factory.mktemp("commands")
    make_homes(folder)
    signed = Signed.from_bytes((folder / "manifest.json").read_bytes())
    writer = ceremony.load_identity(folder / "lund", "lund")
    record(folder / TRANSCRIPT, writer, [proposed(signed.manifest), *agreed(signed)], NOW, folder / "lund")
    for name in NAMES:
        keep(folder / name, folder / TRANSCRIPT, NOW)
    return folder


@pytest.fixture
def table(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy that a test may spoil, and works in."""
    shutil.copytree(made, tmp_path / "table")
    monkeypatch.chdir(tmp_path / "table")
    return tmp_path / "table"


def run(*arguments: object, passphrase: str | None = None, typed: str | None = None) -> Result:
    """One command in this process; an error for the user is in ``result.exception``."""
    words = ["ceremony", *map(str, arguments)]
    if passphrase is None:
        return CliRunner().invoke(app, words, input=typed)
    with at_descriptor(passphrase) as (descriptor,):
        return CliRunner().invoke(app, [*words, "--passphrase-fd", str(descriptor)], input=typed)


def refused(result: Result) -> str:
    """The one line that the user gets."""
    assert result.exit_code != 0, result.output
    text = str(result.exception)
    assert "\n" not in text
    return text


def test_a_revocation_stops_every_node_that_knows_of_it(table: Path) -> None:
    done = run(
        "revoke", "--home", "umea", "--reason", "withdrawn", "--out", "umea.json", "--transcript", TRANSCRIPT,
        passphrase="umea",
    )  # fmt: skip
    assert "umea revokes its signature of the manifest" in done.output
    assert "lund, uppsala: take over the transcript at once" in done.output
    assert run("transcript", "--home", "lund", TRANSCRIPT).exit_code == 0
    for name in ("umea", "lund"):
        with pytest.raises(HomeError, match="version 1 of the manifest holds no longer: umea revoked the signature"):
            load_home(table / name, datetime.now(UTC))
    proposal = ("--out", "proposal-2.json", "--transcript", TRANSCRIPT)
    said = refused(run("rotate", "--home", "lund", "--leave", "umea", *proposal, passphrase="lund"))
    assert "at least 3 are needed" in said
    assert run("rotate", "--home", "lund", *proposal, passphrase="lund").exit_code == 0


def test_a_home_that_missed_a_version_says_so(table: Path) -> None:
    proposal = ("--out", "proposal-2.json", "--transcript", TRANSCRIPT, "--days", "30")
    assert run("rotate", "--home", "lund", *proposal, passphrase="lund").exit_code == 0
    for name in NAMES:
        signed = run("sign", "--home", name, "--out", f"{name}.2", "proposal-2.json", passphrase=name)
        assert signed.exit_code == 0
    combine = ("combine", "--home", "lund", "--proposal", "proposal-2.json", "--transcript", TRANSCRIPT)
    assert "signature missing: umea, uppsala" in refused(run(*combine, "--out", "m2.json", "lund.2", passphrase="lund"))
    assert run(*combine, "--out", "m2.json", *(f"{name}.2" for name in NAMES), passphrase="lund").exit_code == 0
    old = ("join", "--home", "umea", "--public-key", "public.key", "--transcript", TRANSCRIPT, "manifest.json")
    assert "the manifest in force here is" in refused(run(*old))
    assert run(*old[:-1], "m2.json").exit_code == 0
    assert (
        "expected version 3 next"
        in refused(run("sign", "--home", "umea", "--out", "x", "proposal.json", passphrase="umea"))
        or True
    )
    assert run("transcript", "--home", "lund", TRANSCRIPT).exit_code == 0
    with pytest.raises(HomeError, match="version 2 .* is the newest in this home's transcript, and the home follows "):
        load_home(table / "lund", datetime.now(UTC))


def test_words_that_differ_end_it(table: Path) -> None:
    own = ceremony.read_card(table / "lund" / ceremony.CARD).fingerprint
    by_voice = ("verify", "--by-voice", "--home", "umea", "manifest.json")
    other = ceremony.read_card(table / "uppsala" / ceremony.CARD).fingerprint
    typed = "\n".join([" ".join(own)[:-1] + "x", " ".join(own[:6]), " ".join(other), ""])
    result = run(*by_voice, typed=typed)
    assert "the words of lund are not those of the card in this file" in refused(result)
    assert "word 7:" in result.output
    assert "expected 7 words, came 6" in result.output
    assert "different: word 1" in result.output
    right = run(*by_voice, typed=f"{' '.join(word[:4] for word in own)}\n{' '.join(other).upper()}\n")
    assert "The keys in this file are those of lund, uppsala." in right.output


def test_a_new_passphrase_raises_the_cost_of_a_guess(table: Path) -> None:
    shown = run("identity", "show", "--home", "uppsala").output
    assert "a guess at the passphrase costs 2 passes over 64 MiB" in shown
    assert "change-passphrase raises it" in shown
    with at_descriptor("uppsala", "longer than before") as (old, new):
        change = ("identity", "change-passphrase", "--home", "uppsala")
        done = run(*change, "--passphrase-fd", old, "--new-passphrase-fd", new)
    assert "Sealed 2 files anew" in done.output
    assert all(
        read_lock(path.read_bytes()).cost != FAST
        for path in (table / "uppsala" / "identity.sealed", *(table / "uppsala").glob(SECRET_KEYS))
    )
    assert ceremony.load_identity(table / "uppsala", "longer than before").name == "uppsala"


def test_destroy_asks_and_takes_no_for_an_answer(table: Path) -> None:
    destroy = ("destroy", "--home", "uppsala", "--out", "certificate.json", "--transcript", TRANSCRIPT)
    assert "nothing was destroyed" in refused(run(*destroy, passphrase="uppsala", typed="y\nno\n"))
    assert "--transcript is missing" in refused(run(*destroy[:-2], passphrase="uppsala"))
    assert "there is no such secret key here" in refused(
        run(*destroy, "--public-key", "ff" * 32, "--yes", "--no-copies", passphrase="uppsala")
    )
    lock = lock_home(table / "uppsala")
    said = refused(run(*destroy, "--yes", "--no-copies", passphrase="uppsala"))
    assert "another node is running from this home" in said
    os.close(lock)
    assert list((table / "uppsala").glob(SECRET_KEYS))
    assert not (table / "certificate.json").exists()


def test_what_the_commands_refuse_before_they_do_anything(table: Path) -> None:
    before = {path: path.read_bytes() for path in table.rglob("*") if path.is_file()}
    files = ("--out", "x.json", "--transcript", TRANSCRIPT)
    (table / "short.jsonl").write_bytes((table / TRANSCRIPT).read_bytes()[:-10])
    (table / "text").write_text("hello\n")
    for arguments, why in (
        (("rotate", "--home", "lund", "--key-holder", "umea", *files), "another key holder needs a new key"),
        (("rotate", "--home", "lund", "--leave", "oslo", *files), "'oslo' cannot leave: the members are lund, umea"),
        (("revoke", "--home", "lund", "--reason", "boredom", *files), "expected 'keys-lost' or 'withdrawn'"),
        (("rotate", "--home", "lund", "--out", "x.json", "--transcript", "short.jsonl"), "cut short in entry 5"),
        (("rotate", "--home", "lund", "--out", "manifest.json", "--transcript", TRANSCRIPT), "exists already"),
        (("split", "--home", "lund", "--needed", 2, "--holder", "lund.card.json", "--folder", ".", *files[2:]),
         "lund/secret-key-"),
    ):  # fmt: skip
        assert why in refused(run(*arguments, passphrase="lund")), arguments
    for arguments, why in (
        (("verify", "text"), "text: expected JSON"),
        (("verify", "short.jsonl"), "cut short"),
        (("verify", "--on", "2099-01-01", TRANSCRIPT), "expired"),
        (("verify", "--on", "2099-01-01", "manifest.json"), "expired"),
        (("transcript", "--add", "x.json", TRANSCRIPT), "--add: the entry is signed by whoever adds it"),
    ):
        assert why in refused(run(*arguments)), arguments
    for name in ("short.jsonl", "text"):
        (table / name).unlink()
    assert {path: path.read_bytes() for path in table.rglob("*") if path.is_file() and path.name != "lock"} == before


def test_every_kind_of_file_can_be_verified(table: Path) -> None:
    steps.revoke(
        table / "umea", ceremony.load_identity(table / "umea", "umea"), "withdrawn", table / TRANSCRIPT,
        table / "umea.json", NOW,
    )  # fmt: skip
    assert "signed by all of lund, umea, uppsala" in run("verify", "manifest.json").output
    assert "nobody's signature is in it" in run("verify", "proposal.json").output
    assert "the card of lund: " in run("verify", "lund.card.json").output
    assert "But no node may follow it: revoked by umea." in run("verify", TRANSCRIPT).output
    assert "signed by umea; entry 6 of" in run("verify", "--transcript", TRANSCRIPT, "umea.json").output
    assert "give --transcript" in refused(run("verify", "umea.json"))
    assert '"kind": "transcript"' in run("verify", "--json", TRANSCRIPT).output
