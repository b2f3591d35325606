"""Hospital-level privacy and masks on real nodes: what is opened, what it costs, and who knows it afterwards."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opacus.accountants import PRVAccountant, RDPAccountant

import node
from node.ledger import read_entries
from node.privacy.account import HospitalAccount, releases_of
from node.privacy.accountant import ORDERS
from node.privacy.arrange import budget
from node.published import load_model
from tests.end_to_end.commands import FULL, run_study
from tests.end_to_end.watched import Watched, watched
from topology import quorum_met

pytestmark = pytest.mark.confined

STUDIES = Path(node.__file__).parent / "studies"
HEART = (STUDIES / "heart.toml").read_text()
STUDY = """\
[study]
name = "private"
rounds = {rounds}
seed = 1
[task]
class = "synthetic"
[task.options]
params = 20000
seconds = {seconds}
[aggregation]
segment_ciphertexts = 1
min_hidden = 3
[privacy]
mode = "hospital"
epsilon = 8.0
delta = 1e-5
clip = 5.0
values = 20000
{more}
[deadlines]
round_seconds = 25.0
join_seconds = 25.0
[debug]
check_sums = true
"""
ADAPTIVE = "[privacy.adaptive]\ncount_noise = 8.0\nlowest = 0.1\nhighest = 100.0\n"


def charged(nodes: Watched, name: str) -> list[dict[str, Any]]:
    return nodes.ledger(name, "privacy")


def check_account(nodes: Watched) -> None:
    """What the key room charged before it opened is what every node has in its state, and in its ledger; it is that of
    the guaranteed shares, and never less than what the listed sets' noise is worth."""
    study = nodes.federation.study
    opened = [entry for entry in nodes.openings() if entry["what"] == "privacy"]
    assert {entry["round"] for entry in opened} >= nodes.closed().keys()
    assert all(quorum_met(entry["listed"], 3) for entry in opened)
    account, arrived, published = (HospitalAccount(budget(study.privacy)) for _ in range(3))
    for entry in opened:
        releases = releases_of(entry)
        assert {release.shares for release in releases} == {3}, "m: what min_hidden = 3 guarantees"
        account.charge(*releases)
        assert entry["epsilon"] == account.epsilon()
        if entry["round"] in nodes.closed():
            published.charge(*releases)
        arrived.charge(*(type(each)(**{**vars(each), "shares": len(entry["listed"]) - 1}) for each in releases))
    assert arrived.epsilon() <= account.epsilon() <= 8.0
    for name in nodes.names:
        model = load_model(nodes.federation.home(name) / "model.npz")
        assert HospitalAccount.from_state(budget(study.privacy), model.course.account).epsilon() == published.epsilon()
        epsilons = [entry["epsilon"] for entry in charged(nodes, name)]
        assert epsilons == sorted(epsilons)
        assert epsilons[-1] == published.epsilon()


def test_a_party_that_drops_out_and_a_key_holder_that_is_killed_give_no_privacy_back(tmp_path: Path) -> None:
    with watched(tmp_path, study=STUDY.format(rounds=4, more=ADAPTIVE, seconds=1.2), parties=5, rounds=4) as nodes:
        nodes.start()
        nodes.until_told(nodes.leaf, "round", what="opened", round=1)
        nodes.kill_room(nodes.leaf, "enclave")
        nodes.until_told(nodes.key_holder, "ciphertext", round=3, segment=0)
        nodes.kill(nodes.key_holder)
        nodes.start(nodes.key_holder)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1][0] == nodes.everyone - {nodes.leaf}
        check_account(nodes)
        assert {1, 2, 4} <= {entry["round"] for entry in nodes.openings()}
        clips = {load_model(nodes.federation.home(name) / "model.npz").course.clip for name in nodes.names}
        assert len(clips) == 1
        assert nodes.record.sums_exact()
        assert {codes[-1] for codes in nodes.codes.values()} == {0}


def test_below_m_nothing_is_opened_and_a_node_that_comes_back_knows_what_was_spent(tmp_path: Path) -> None:
    """Of five parties four must contribute, so that each hides among three others: with two lost nothing is opened, nor
    charged. One that was away for a round gets clip, account and model from its parent."""
    with watched(tmp_path, study=STUDY.format(rounds=5, more=ADAPTIVE, seconds=1.2), parties=5, rounds=5) as nodes:
        others = [name for name in nodes.names if name not in (nodes.key_holder, nodes.apex)]
        nodes.start()
        nodes.until_told(nodes.key_holder, "round", what="closed", round=1)
        nodes.until_told(nodes.leaf, "round", what="opened", round=2)
        for name in others[:2]:
            nodes.kill_room(name, "enclave")
        nodes.until_told(nodes.leaf, "round", what="opened", round=3)
        nodes.kill(nodes.leaf)
        nodes.until_told(nodes.key_holder, "round", what="closed", round=3)
        nodes.start(nodes.leaf)
        nodes.finish()
        closed = nodes.closed()
        assert 2 not in closed
        assert closed[3][0] == nodes.everyone - {nodes.leaf}
        check_account(nodes)
        assert 3 not in {entry["round"] for entry in charged(nodes, nodes.leaf)}, "it was away"
        assert {entry["round"] for entry in nodes.openings()} == set(closed)
        assert {codes[-1] for codes in nodes.codes.values()} == {0}


def test_the_report_says_what_was_spent_of_which_budget(tmp_path: Path) -> None:
    """Of noise enough for two rounds."""
    more = "noise_multiplier = 2.0\n"
    study = (
        STUDY.format(rounds=2, more=more, seconds=0.0)
        .replace("epsilon = 8.0", "epsilon = 3.4")
        .replace("min_hidden = 3", "")
    )
    report = run_study(tmp_path, study, "--parties", 4)
    assert report["privacy_spent"]["everyone"]["epsilon"] <= 3.4
    assert report["privacy_spent"]["everyone"]["unit"] == "hospital"
    assert "unit: hospital" in (tmp_path / "run" / "report.html").read_text()


def test_the_epsilon_in_a_hospitals_ledger_is_that_of_opacus_own_accountants(tmp_path: Path) -> None:
    """Record level: one account over all rounds, in each hospital's own ledger and nowhere else."""
    study = HEART.replace("rounds = 10", "rounds = 2").replace(
        "local_epochs = 5", 'local_epochs = 1\nscaling = "range"'
    )
    study += '\n[privacy]\nmode = "record"\nepsilon = 4.0\ndelta = 1e-4\nclip = 1.0\n'
    report = run_study(tmp_path, study, "--data", STUDIES / "heart.data.toml")
    for name, told in report["privacy_spent"].items():
        entries = [line["entry"] for line in read_entries(tmp_path / "run" / "homes" / name / "ledger.jsonl")]
        spent = [entry for entry in entries if entry["what"] == "privacy"]
        assert [entry["round"] for entry in spent] == [1, 2]
        assert {entry["unit"] for entry in spent} == {"record"}
        history = [tuple(each) for each in json.loads(spent[-1]["account"])["history"]]
        assert spent[-1]["steps"] == sum(steps for _, _, steps in history)
        renyi, random_variables = RDPAccountant(), PRVAccountant()
        renyi.history = random_variables.history = history
        opacus = renyi.get_epsilon(delta=1e-4, alphas=list(ORDERS))
        assert spent[-1]["epsilon"] == told["epsilon"] == pytest.approx(opacus, rel=1e-12)
        assert random_variables.get_epsilon(delta=1e-4, eps_error=0.05) <= opacus + 0.05, "the tighter of two bounds"
        assert 3.9 < spent[-1]["epsilon"] <= 4.0


MASKS = {
    "random": 'mask = "random"\ndensity = 0.3\nblock = 4',
    "cyclic": 'mask = "cyclic"\ndensity = 0.3',
    "top": 'mask = "top"\ndensity = 0.3\nblock = 4\nschedule = "moving"\nwarm_up = 3',
    "energy": 'mask = "energy"\ndensity = 0.3\nblock = 4',
}


@pytest.mark.parametrize("mask", MASKS if FULL else ["top", "energy"])
def test_a_sparse_study_learns_what_a_dense_one_does(tmp_path: Path, mask: str) -> None:
    study = HEART.replace("rounds = 10", "rounds = 8").replace("local_epochs = 5", "local_epochs = 2")
    study += f"\n[evaluation]\nevery = 8\n[compression]\n{MASKS[mask]}\n"
    report = run_study(tmp_path, study, "--data", STUDIES / "heart.data.toml")
    assert report["evaluations"][-1]["auc"] > 0.84
    assert report["sums_exact"] is True
    models = [load_model(home / "model.npz") for home in sorted((tmp_path / "run" / "homes").iterdir())]
    digests = {model.digest(b"") for model in models}
    assert len(digests) == 1
    assert np.count_nonzero(models[0].parameters) > 0.9 * models[0].parameters.size


def test_a_sparse_round_is_as_much_smaller_on_the_sockets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = (
        '[study]\nname = "bytes"\nrounds = 1\nseed = 1\n[task]\nclass = "synthetic"\noptions = { params = 400000 }\n'
    )
    sent = {}
    for name, table in (("dense", ""), ("sparse", '[compression]\nmask = "random"\ndensity = 0.05\nblock = 64\n')):
        (tmp_path / name).mkdir()
        report = run_study(tmp_path / name, study + table, "--parties", 4)
        sent[name] = sum(link["to_parent"] + link["to_children"] for link in report["bytes"].values())
    with capsys.disabled():
        print(f"\nbytes on the sockets, one round of 400,000 parameters: {sent} ({sent['sparse'] / sent['dense']:.4f})")
    assert sent["sparse"] < 0.07 * sent["dense"]
