"""One node per institution: the ceremony typed as people would type it, then a node for each, by itself."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from keys import ceremony
from keys.canonical import digest
from keys.errors import WardtreeError
from keys.vault import FAST
from node.address import free_ports, join
from node.federation import plan_for, propose
from node.home import MODEL, load_home
from node.keyroom import make_key
from node.published import load_model
from node.study import parse_study
from tests.end_to_end.commands import OWN_GAPS, at_descriptor, has_ipv6, wait_until, wardtree

pytestmark = pytest.mark.confined

NAMES = ("lund", "umea", "uppsala")
STUDY = """\
[study]
name = "three"
rounds = 2
seed = 1
[task]
class = "synthetic"
[task.options]
params = 3000
[deadlines]
join_seconds = 30.0
round_seconds = 20.0
"""


def make_homes(
    folder: Path, study_text: str = STUDY, days: float = 1, key_holder: str = "uppsala", host: str = "127.0.0.1"
) -> dict[str, int]:
    """Three homes that have joined one manifest; gives their ports. Passphrases are the parties' names."""
    now = datetime.now(UTC)
    ports = dict(zip(NAMES, free_ports(len(NAMES), host), strict=True))
    cards = []
    for name, port in ports.items():
        ceremony.create_identity(folder / name, name, name, FAST)
        cards.append(folder / f"{name}.card.json")
        ceremony.make_card(folder / name, name, join(host, port), 0, cards[-1])
    study = parse_study(study_text, "study")
    make_key(folder / key_holder, key_holder, plan_for(study), folder / "public.key", FAST)
    created = now - timedelta(days=10)
    public_key = digest((folder / "public.key").read_bytes()).hex()
    propose(
        study_text, study, "study", [ceremony.read_card(card) for card in cards], public_key, key_holder, created,
        now + timedelta(days=days), folder / "proposal.json", OWN_GAPS,
    )  # fmt: skip
    signatures = [folder / f"{name}.signature.json" for name in NAMES]
    for name, signature in zip(NAMES, signatures, strict=True):
        ceremony.sign(folder / name, name, folder / "proposal.json", signature)
    moment = min(now, created + timedelta(hours=1))
    ceremony.combine(ceremony.collect(folder / "proposal.json", signatures), folder / "manifest.json", moment)
    for name in NAMES:
        ceremony.join(folder / name, folder / "manifest.json", folder / "public.key", moment)
    return ports


@contextlib.contextmanager
def nodes(homes: dict[str, Path]) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start `wardtree node` for each home (the passphrase is the party's name); end them at the end."""
    running = {}
    for label, home in homes.items():
        with at_descriptor(home.name) as (read,):
            running[label] = subprocess.Popen(
                [sys.executable, "-m", "node", "node", "--home", str(home), "--passphrase-fd", str(read)],
                pass_fds=[read], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
            )  # fmt: skip
    try:
        yield running
    finally:
        for process in running.values():
            process.kill()
            process.communicate()


def test_a_node_that_is_started_again_after_the_end_has_nothing_to_do(tmp_path: Path) -> None:
    make_homes(tmp_path)
    with nodes({name: tmp_path / name for name in NAMES}) as running:
        assert [process.wait(60) for process in running.values()] == [0, 0, 0]
    rounds = (tmp_path / "uppsala" / "ledger.jsonl").read_text().count('"what":"training"')
    again = wardtree("node", "--home", tmp_path / "uppsala", passphrase="uppsala")
    assert again.returncode == 0, again.stderr
    assert "the study is complete" in again.stdout
    assert (tmp_path / "uppsala" / "ledger.jsonl").read_text().count('"what":"training"') == rounds


@has_ipv6
def test_a_study_over_ipv6(tmp_path: Path) -> None:
    """In the sandbox, as ever. The apex listens on all addresses, as it does where its endpoint is not loopback."""
    ports = make_homes(tmp_path, host="::1")
    apex = load_home(tmp_path / "uppsala", datetime.now(UTC)).tree.apex
    assert load_home(tmp_path / apex, datetime.now(UTC)).bind == f"[::1]:{ports[apex]}"
    (tmp_path / apex / "node.toml").write_text(f'[network]\nbind = "[::]:{ports[apex]}"\n')
    with nodes({name: tmp_path / name for name in NAMES}) as running:
        assert [process.wait(60) for process in running.values()] == [0, 0, 0]
    models = {name: load_model(tmp_path / name / MODEL) for name in NAMES}
    assert {model.round for model in models.values()} == {2}
    assert len({model.digest(b"") for model in models.values()}) == 1


def test_a_port_in_use(tmp_path: Path) -> None:
    ports = make_homes(tmp_path)
    with socket.socket() as squatter:
        squatter.bind(("127.0.0.1", ports["uppsala"]))
        squatter.listen()
        result = wardtree("node", "--home", tmp_path / "uppsala", passphrase="uppsala")
    assert result.returncode == 2
    assert result.stderr.strip() == f"stopped: cannot listen on 127.0.0.1:{ports['uppsala']}: Address already in use"


def test_an_expired_manifest(tmp_path: Path) -> None:
    make_homes(tmp_path, days=-1)
    result = wardtree("node", "--home", tmp_path / "uppsala", passphrase="uppsala")
    assert result.returncode == 2
    assert "expired" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_false_signature_in_an_installed_manifest(tmp_path: Path) -> None:
    make_homes(tmp_path)
    manifest = tmp_path / "lund" / "manifest.json"
    text = manifest.read_text()
    place = text.index('"signatures"') + 40
    manifest.write_text(text[:place] + ("0" if text[place] != "0" else "1") + text[place + 1 :])
    result = wardtree("node", "--home", tmp_path / "lund", passphrase="lund")
    assert result.returncode == 2
    assert "signature" in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_public_key_file_that_carries_a_secret_key(tmp_path: Path) -> None:
    from keys.ckks import PUBLIC_KEY_MAGIC, generate_keys

    make_homes(tmp_path)
    poisoned = tmp_path / "poisoned.key"
    poisoned.write_bytes(PUBLIC_KEY_MAGIC + generate_keys(plan_for(parse_study(STUDY, "study")))[1])
    with pytest.raises(WardtreeError, match="not the public key that was signed") as refused:
        ceremony.join(tmp_path / "lund", tmp_path / "manifest.json", poisoned, datetime.now(UTC))
    assert "\n" not in str(refused.value)


def test_a_wrong_passphrase(tmp_path: Path) -> None:
    make_homes(tmp_path)
    result = wardtree("node", "--home", tmp_path / "lund", passphrase="wrong")
    assert result.returncode == 2
    assert "wrong passphrase" in result.stderr
    assert "Traceback" not in result.stderr


def test_two_nodes_from_one_home(tmp_path: Path) -> None:
    make_homes(tmp_path)
    with nodes({"first": tmp_path / "lund"}) as running:
        wait_until(lambda: (tmp_path / "lund" / "ledger.jsonl").exists() or running["first"].poll() is not None)
        second = wardtree("node", "--home", tmp_path / "lund", passphrase="lund")
    assert second.returncode == 2
    assert "another node is running from this home" in second.stderr


def test_two_nodes_with_one_identity_on_two_machines(tmp_path: Path) -> None:
    """A copied home: the parent lets the first speak and refuses the second, which ends with a message."""
    ports = make_homes(tmp_path)

    from node.home import load_home

    tree = load_home(tmp_path / "lund", datetime.now(UTC)).tree
    leaf = next(name for name in NAMES if not tree.children[name])
    parent = tree.parent[leaf]
    copy = tmp_path / "copy" / leaf
    shutil.copytree(tmp_path / leaf, copy)
    (elsewhere,) = free_ports(1)
    (copy / "node.toml").write_text(f'[network]\nbind = "127.0.0.1:{elsewhere}"\n')  # as on a second machine
    with nodes({"parent": tmp_path / parent, "first": tmp_path / leaf}) as running:
        wait_until(lambda: _connected(ports[parent]), 30)
        with nodes({"second": copy}) as late:
            _, stderr = late["second"].communicate(timeout=60)
            assert late["second"].returncode == 2
            assert "another node with the identity of" in stderr
        assert running["first"].poll() is None, "the first goes on"


def _connected(port: int) -> bool:
    import psutil

    links = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_ESTABLISHED]
    return any(link.laddr.port == port for link in links)
