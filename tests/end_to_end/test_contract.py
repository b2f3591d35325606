"""Design section 1, one test per row: what everyone may know, and what nobody may."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import numpy as np
import pytest

from keys import ceremony
from keys.ckks import KeyFileError, Opener, OpeningFailed
from keys.plan import Plan
from node.cli.local import SYNTHETIC
from node.home import load_home
from node.ledger import read_entries
from node.local import Outcome, run_federation
from node.protocol.messages import Close, Finish, Gone, Joined, Open, Partial, Total
from node.protocol.posture import parse_posture
from node.published import load_model
from node.simulation import Federation, simulated_parties
from node.study import parse_study
from node.wiping import PREPARE
from tests.node.network import Network
from topology import quorum_met

pytestmark = pytest.mark.confined

PARTIES = 6


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Federation, Outcome]:
    """Six parties on real sockets."""
    text = SYNTHETIC.format(params=10_000, max_parties=64)
    parties, key_holder = simulated_parties(PARTIES, {})
    out = tmp_path_factory.mktemp("contract") / "run"
    federation = Federation(text, parse_study(text, "study"), parties, key_holder, out)
    outcome = run_federation(federation, lambda record: None)
    assert set(outcome.codes.values()) == {0}, outcome.record.errors
    return federation, outcome


def test_everyone_knows_study_tree_and_roster_from_the_signed_manifest(run: tuple[Federation, Outcome]) -> None:
    federation, outcome = run
    homes = [load_home(federation.home(name), datetime.now(UTC)) for name in federation.names]
    assert len({home.manifest.digest for home in homes}) == 1
    assert all(home.tree == outcome.tree for home in homes), "a pure function of the manifest"
    assert all(home.manifest.study == federation.study_text for home in homes)
    assert all(home.roster.names == federation.names for home in homes)


def test_each_party_at_the_end_has_its_own_data_and_the_final_model(run: tuple[Federation, Outcome]) -> None:
    federation, _ = run
    models = [load_model(federation.home(name) / "model.npz") for name in federation.names]
    assert all(np.array_equal(model.parameters, models[0].parameters) for model in models)
    for name in federation.names:
        kept = {path.name for path in federation.home(name).iterdir()}
        secret = {path for path in kept if path.startswith(("secret-key-", "openings-"))}
        assert kept - secret == {
            "identity.sealed", "card.json", "manifest.json", "public.key", "node.toml", "ledger.jsonl", "lock",
            "transcript.jsonl", "model.npz", "relay",
        }  # fmt: skip
        assert {path.name for path in (federation.home(name) / "relay").iterdir()} == {"model.npz"}


def test_every_ledger_says_what_confined_the_nodes_and_what_each_round_left_behind(
    run: tuple[Federation, Outcome],
) -> None:
    """One line a round, when its processes have ended; nothing of the last round is left when the node ends."""
    federation, outcome = run
    postures = outcome.record.postures
    assert {parse_posture(text).policy for text in postures.values()} == {"required"}  # type: ignore[union-attr]
    for name in federation.names:
        home = load_home(federation.home(name), datetime.now(UTC))
        entries = [line["entry"] for line in read_entries(home.ledger)]
        assert entries[0]["what"] == "started"
        assert entries[0]["posture"] == postures[name]
        wiped = {entry["round"]: entry for entry in entries if entry["what"] == "wiped"}
        assert sorted(wiped) == [PREPARE, *sorted(outcome.record.rounds)]
        assert all(entry["enclave_bytes"] > 1e6 for entry in wiped.values())
        assert all(entry["ciphertext_bytes"] > 0 for round_, entry in wiped.items() if round_ > 0)
        assert all(("keyroom_bytes" in entry) == (home.is_key_holder and r >= 0) for r, entry in wiped.items())
        joined = {e["contributors"][0]: e["posture"] for e in entries if e["what"] == "joined"}
        assert joined == ({n: p for n, p in postures.items() if n != name} if home.is_key_holder else {})


def test_each_party_each_round_receives_sums_of_its_own_subtree_and_the_global_update() -> None:
    """Every frame that reaches a party, in a network without faults: nothing else is ever sent to it."""
    network = Network(9, seed=1)
    assert network.run()
    tree, allowed = network.tree, (Open, Total, Close, Finish)
    for frame in network.frames.values():
        if isinstance(frame.message, Partial):
            assert frame.recipient == tree.parent[frame.sender]
            assert frame.message.contributors <= tree.subtree(frame.sender)
        elif isinstance(frame.message, Joined | Gone):
            assert frame.recipient == tree.key_holder
        else:
            assert isinstance(frame.message, allowed)
            assert (frame.sender, frame.recipient) == (tree.key_holder, "")


def test_the_key_holder_alone_has_the_secret_key(run: tuple[Federation, Outcome]) -> None:
    federation, _ = run
    with_secret = [name for name in federation.names if list(federation.home(name).glob(ceremony.SECRET_KEYS))]
    assert with_secret == [federation.key_holder]
    for path in federation.out.rglob("*.key"):
        with pytest.raises(KeyFileError):
            Opener(Plan(), path.read_bytes())


def test_nobody_gets_anothers_update_in_a_form_that_it_can_decrypt(run: tuple[Federation, Outcome]) -> None:
    """The key holder's inbound log on real sockets: sums over all others, never one party's ciphertext."""
    federation, outcome = run
    log = outcome.record.ciphertexts[federation.key_holder]
    assert sorted((entry["round"], entry["segment"]) for entry in log) == [(1, 0), (2, 0), (3, 0)]
    for entry in log:
        assert entry["peer"] == outcome.tree.apex
        assert set(entry["contributors"]) == set(federation.names) - {federation.key_holder}
        assert quorum_met({*entry["contributors"], federation.key_holder}, 2)
    for name in set(federation.names) - {federation.key_holder}:
        children = set(outcome.tree.children[name])
        assert {entry["peer"] for entry in outcome.record.ciphertexts[name]} == children
    ledgers = "".join(path.read_text() for path in federation.out.rglob("*.jsonl"))
    assert not json.loads(ledgers.splitlines()[0])["entry"].keys() & {"update", "integers"}


def test_an_outsiders_key_opens_nothing(run: tuple[Federation, Outcome]) -> None:
    from keys.ckks import Sealer, generate_keys

    federation, _ = run
    plan = Plan()
    public = (federation.home(federation.names[1]) / "public.key").read_bytes()
    sealed = Sealer(plan, public).seal(np.arange(100))
    with pytest.raises(OpeningFailed):
        Opener(plan, generate_keys(plan)[1]).open(sealed, 100, 64)
