"""The whole ceremony, file by file, and what each step refuses."""

import json
import shutil
import stat
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from keys import ceremony
from keys.canonical import digest
from keys.ceremony import CARD, IDENTITY, MANIFEST, PUBLIC_KEY, CeremonyError
from keys.errors import WardtreeError
from keys.manifest import ManifestError, Signed
from keys.vault import KdfCost, VaultError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
NAMES = ("cleveland", "denmark", "hungary", "switzerland", "va-long-beach")
LEAST = KdfCost(2, 19 * 2**20)
STUDY = '[study]\nname = "heart"\nrounds = 10\n'


@dataclass(frozen=True)
class Table:
    """The files on the coordinator's table, and every party's home."""

    folder: Path

    def home(self, name: str) -> Path:
        return self.folder / "homes" / name

    def card(self, name: str) -> Path:
        return self.folder / f"{name}.card.json"

    def signature(self, name: str) -> Path:
        return self.folder / f"{name}.signature.json"

    @property
    def proposal(self) -> Path:
        return self.folder / "proposal.json"

    @property
    def signed(self) -> Path:
        return self.folder / "signed.json"

    @property
    def key(self) -> Path:
        return self.folder / "public.key"

    def propose(self, out: Path | None = None, **change: Any) -> ceremony.Step:
        arguments = {
            "cards": [ceremony.read_card(self.card(name)) for name in reversed(NAMES)],
            "public_key_digest": digest(self.key.read_bytes()).hex(),
            "key_holder": "cleveland",
            "study": STUDY,
            "plan": {"poly_modulus_degree": 4096, "prime_bits": [60, 30]},
            "task_digest": "cc" * 32,
            "weights": {name: 2**power for power, name in enumerate(NAMES)},
            "created": NOW,
            "expires": NOW + timedelta(days=30),
            "debug": ["check-sums"],
        }
        return ceremony.propose(**(arguments | change), out=out or self.proposal)  # type: ignore[arg-type]

    def sign_all(self) -> list[Path]:
        for name in NAMES:
            ceremony.sign(self.home(name), f"pass {name}", self.proposal, self.signature(name))
        return [self.signature(name) for name in NAMES]

    def collect(self, *names: str) -> Signed:
        return ceremony.collect(self.proposal, [self.signature(name) for name in names or NAMES])

    def join(self, name: str) -> ceremony.Step:
        return ceremony.join(self.home(name), self.signed, self.key, NOW)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """The table after ``combine``: five homes with cards, a proposal, five signatures, a manifest."""
    table = Table(tmp_path_factory.mktemp("ceremony"))
    for number, name in enumerate(NAMES):
        made = ceremony.create_identity(table.home(name), name, f"pass {name}", LEAST)
        assert made.wrote == (table.home(name) / IDENTITY,)
        endpoint = None if name == "denmark" else f"127.0.0.1:{5000 + number}"
        carded = ceremony.make_card(table.home(name), f"pass {name}", endpoint, 300, table.card(name))
        assert carded.wrote == (table.card(name), table.home(name) / CARD)
        words = " ".join(ceremony.read_card(table.card(name)).fingerprint)
        assert words in made.did
        assert words in carded.did
    table.key.write_bytes(b"a public key")
    table.propose()
    table.sign_all()
    ceremony.combine(table.collect(), table.signed, NOW)
    return table


@pytest.fixture
def table(finished: Table, tmp_path: Path) -> Table:
    """A copy that a test may spoil."""
    shutil.copytree(finished.folder, tmp_path / "table")
    return Table(tmp_path / "table")


def test_five_parties_join_what_all_of_them_signed(table: Table) -> None:
    manifest = ceremony.verify(table.signed, NOW)
    assert manifest == ceremony.read_proposal(table.proposal)
    assert manifest.names == NAMES
    assert manifest.public_key_digest == digest(b"a public key").hex()
    for name in NAMES:
        home = table.home(name)
        step = table.join(name)
        assert step.wrote == (home / PUBLIC_KEY, home / MANIFEST)
        assert name in step.did
        assert name in step.next
        assert ceremony.verify(home / MANIFEST, NOW) == manifest
        assert (home / PUBLIC_KEY).read_bytes() == b"a public key"
        assert sorted(path.name for path in home.iterdir()) == sorted([IDENTITY, CARD, MANIFEST, PUBLIC_KEY])
        assert stat.S_IMODE((home / IDENTITY).stat().st_mode) == 0o600
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert table.join(name) == step  # a repair


def test_every_step_says_what_comes_next_and_for_whom(table: Table) -> None:
    proposed = table.propose(table.folder / "again.json")
    assert proposed.next == f"{', '.join(NAMES)}: review the proposal, verify it by voice, and sign it."
    assert ceremony.read_proposal(table.folder / "again.json").digest in proposed.did
    signed = ceremony.sign(table.home("hungary"), "pass hungary", table.proposal, table.folder / "s")
    assert signed.next.startswith("hungary: ")
    assert (table.folder / "s").read_bytes() == table.signature("hungary").read_bytes()


def test_no_secret_is_in_any_file_but_the_sealed_one(table: Table) -> None:
    identity = ceremony.load_identity(table.home("hungary"), "pass hungary")
    secrets = [identity.signing_seed, identity.curve_secret, identity.box_secret]
    table.join("hungary")
    for path in (path for path in table.folder.rglob("*") if path.is_file()):
        data = path.read_bytes()
        assert not any(secret in data or secret.hex().encode() in data for secret in secrets), path


def test_nothing_of_a_persons_is_overwritten(table: Table) -> None:
    before = {path: path.read_bytes() for path in table.folder.rglob("*") if path.is_file()}
    home = table.home("hungary")
    with pytest.raises(VaultError, match="exists already"):
        ceremony.create_identity(home, "hungary", "pass", LEAST)
    with pytest.raises(VaultError, match="exists already"):
        ceremony.make_card(home, "pass hungary", None, 0, table.card("hungary"))
    with pytest.raises(VaultError, match="exists already"):
        table.propose()
    with pytest.raises(VaultError, match="exists already"):
        ceremony.sign(home, "pass hungary", table.proposal, table.signature("hungary"))
    with pytest.raises(VaultError, match="exists already"):
        ceremony.combine(table.collect(), table.signed, NOW)
    assert {path: path.read_bytes() for path in table.folder.rglob("*") if path.is_file()} == before


def test_sign_refuses_a_proposal_without_ones_own_card(table: Table) -> None:
    others = [name for name in NAMES if name != "hungary"]
    out = table.folder / "without.json"
    table.propose(
        out, cards=[ceremony.read_card(table.card(name)) for name in others], weights=dict.fromkeys(others, 1)
    )
    with pytest.raises(ManifestError, match=r"without\.json: manifest: 'hungary' is not a member"):
        ceremony.sign(table.home("hungary"), "pass hungary", out, table.folder / "s")
    assert not (table.folder / "s").exists()


def test_sign_refuses_another_card_of_ones_name(table: Table) -> None:
    ceremony.make_card(table.home("hungary"), "pass hungary", "127.0.0.1:9000", 300)
    with pytest.raises(CeremonyError, match="has another card of 'hungary'"):
        ceremony.sign(table.home("hungary"), "pass hungary", table.proposal, table.folder / "s")


def test_sign_refuses_when_the_card_in_the_home_is_of_another_identity(table: Table) -> None:
    home = table.home("hungary")
    (home / IDENTITY).unlink()
    ceremony.create_identity(home, "hungary", "pass hungary", LEAST)
    with pytest.raises(CeremonyError, match="not the card of the identity beside it"):
        ceremony.sign(home, "pass hungary", table.proposal, table.folder / "s")


def test_sign_refuses_a_wrong_passphrase(table: Table) -> None:
    with pytest.raises(VaultError, match=r"identity\.sealed: wrong passphrase"):
        ceremony.sign(table.home("hungary"), "pass denmark", table.proposal, table.folder / "s")


def test_combine_names_what_is_missing_and_writes_nothing(table: Table) -> None:
    out = table.folder / "incomplete.json"
    with pytest.raises(ManifestError, match="signature missing: denmark, va-long-beach"):
        ceremony.combine(table.collect("cleveland", "hungary", "switzerland"), out, NOW)
    assert not out.exists()


def test_combine_refuses_signatures_that_do_not_fit(table: Table) -> None:
    paths = [table.signature(name) for name in NAMES]
    out = table.folder / "out.json"
    with pytest.raises(CeremonyError, match="a second signature of 'cleveland'"):
        ceremony.collect(table.proposal, [*paths, paths[0]])
    table.propose(table.folder / "other.json")
    with pytest.raises(CeremonyError, match=r"cleveland\.signature\.json: 'cleveland' signed another manifest"):
        ceremony.collect(table.folder / "other.json", paths)
    with pytest.raises(ManifestError, match="expired"):
        ceremony.combine(table.collect(), out, NOW + timedelta(days=31))
    values = json.loads(paths[0].read_bytes())
    paths[0].write_text(json.dumps(values | {"signature": "00" * 64}))
    with pytest.raises(ManifestError, match="signature false: cleveland"):
        ceremony.combine(table.collect(), out, NOW)
    paths[0].write_text(json.dumps(values | {"role": "guest"}))
    with pytest.raises(CeremonyError, match="expected the role 'member' or 'approval'"):
        table.collect()
    paths[0].write_text(json.dumps(values | {"format": "x"}))
    with pytest.raises(CeremonyError, match="expected the format"):
        table.collect()
    assert not out.exists()


def test_propose_refuses_what_no_node_would_follow(table: Table) -> None:
    out = table.folder / "out.json"
    with pytest.raises(ManifestError, match="'nobody' is not a member"):
        table.propose(out, key_holder="nobody")
    with pytest.raises(ManifestError, match="'denmark' has no endpoint"):
        table.propose(out, key_holder="denmark")
    with pytest.raises(ManifestError, match="two members of one name: hungary"):
        table.propose(out, cards=[ceremony.read_card(table.card(name)) for name in (*NAMES, "hungary")])
    table.card("hungary").write_bytes(table.card("hungary").read_bytes().replace(b"256", b"512"))
    with pytest.raises(WardtreeError, match=r"hungary\.card\.json: card of 'hungary': its own signature is false"):
        table.propose(out)
    assert not out.exists()


def test_join_refuses_and_installs_nothing(table: Table) -> None:
    home = table.home("hungary")
    with pytest.raises(ManifestError, match=r"signed\.json: manifest: expired"):
        ceremony.join(home, table.signed, table.key, NOW + timedelta(days=31))
    with pytest.raises(WardtreeError, match=r"proposal\.json: signed manifest: unknown field"):
        ceremony.join(home, table.proposal, table.key, NOW)
    table.key.write_bytes(b"another public key")
    with pytest.raises(CeremonyError, match=r"public\.key: not the public key that was signed"):
        table.join("hungary")
    ceremony.make_card(home, "pass hungary", "127.0.0.1:9000", 300)
    with pytest.raises(CeremonyError, match="another card of 'hungary'"):
        table.join("hungary")
    assert not (home / MANIFEST).exists()
    assert not (home / PUBLIC_KEY).exists()


def second_version(table: Table, **change: Any) -> None:
    """Put the successor of the table's manifest, signed by all, in its place; the old files end in .v1."""
    manifest = ceremony.verify(table.signed, NOW)
    for path in [table.signed, table.proposal, *(table.signature(name) for name in NAMES)]:
        path.rename(path.with_suffix(".v1"))
    table.key.write_bytes(b"the next public key")
    table.propose(previous=manifest, **change)
    table.sign_all()
    ceremony.combine(table.collect(), table.signed, NOW, manifest)


def test_a_successor_is_installed_and_a_rollback_refused(table: Table) -> None:
    table.join("hungary")
    second_version(table)
    table.join("hungary")
    home = table.home("hungary")
    installed = (home / MANIFEST).read_bytes()
    assert ceremony.verify(home / MANIFEST, NOW).version == 2
    assert (home / PUBLIC_KEY).read_bytes() == b"the next public key"
    table.key.write_bytes(b"a public key")
    with pytest.raises(ManifestError, match=r"signed\.v1: manifest: rollback refused: version 2 is in force, came 1"):
        ceremony.join(home, table.signed.with_suffix(".v1"), table.key, NOW)
    assert (home / MANIFEST).read_bytes() == installed
    assert (home / PUBLIC_KEY).read_bytes() == b"the next public key"


def test_a_manifest_of_another_federation_does_not_replace_the_installed_one(table: Table) -> None:
    table.join("hungary")
    for path in [table.signed, table.proposal, *(table.signature(name) for name in NAMES)]:
        path.unlink()
    table.propose()
    with pytest.raises(ManifestError, match="expected the federation"):
        table.sign_all()  # hungary has joined the other one
    installed = (table.home("hungary") / MANIFEST).rename(table.folder / "installed")
    for name in NAMES:
        table.signature(name).unlink(missing_ok=True)
    table.sign_all()
    ceremony.combine(table.collect(), table.signed, NOW)
    installed.rename(table.home("hungary") / MANIFEST)
    with pytest.raises(ManifestError, match="expected the federation"):
        table.join("hungary")


def test_an_expired_version_is_followed_by_its_successor(table: Table) -> None:
    table.join("hungary")
    second_version(table, expires=NOW + timedelta(days=60))
    step = ceremony.join(table.home("hungary"), table.signed, table.key, NOW + timedelta(days=40))
    assert step.did.startswith("hungary joined version 2 with 5 members")


def test_a_damaged_installed_manifest_is_named_and_kept(table: Table) -> None:
    installed = table.home("hungary") / MANIFEST
    installed.write_bytes(b"{}")
    with pytest.raises(WardtreeError, match=r"hungary/manifest\.json: signed manifest: missing field"):
        table.join("hungary")
    assert installed.read_bytes() == b"{}"
