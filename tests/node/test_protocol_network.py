"""The real round machines and links under a seeded in-memory network: what must hold in every order."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol.messages import Absent, Joined, Partial
from tests.node.network import FakeFrame, Network
from topology import quorum_met


def check_contract(network: Network) -> None:
    """Whatever happened: each opened total is the sum over its listed set, nobody twice, all hidden, once."""
    seen = set()
    sets: dict[bytes, frozenset[str]] = {}
    for opening in network.openings:
        assert opening.held == sorted(opening.listed), "the total holds just the parties that it lists"
        assert quorum_met(opening.listed, 2)
        assert (opening.round, opening.segment) not in seen, "one opening per round and segment"
        seen.add((opening.round, opening.segment))
        assert sets.setdefault(opening.base, opening.listed) == opening.listed, "one set on one base model"
    for node in network.nodes.values():
        assert not node.staged or not node.alive, "every living node ends wiped"
    histories = sorted((node.history for node in network.nodes.values()), key=len)
    for shorter, longer in itertools.pairwise(histories):
        assert longer[: len(shorter)] == shorter, "models are identical, round by round"
    for (sender, _), queue in network.wires.items():
        assert not queue or not network.nodes[sender].alive


def key_holder_inbox(network: Network) -> list[FakeFrame]:
    apex = network.tree.apex
    return [f for f in network.frames.values() if f.sender == apex and f.recipient == network.tree.key_holder]


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 12), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 45))
def test_without_faults_every_round_is_complete(parties: int, seed: int, window: int, length: int) -> None:
    network = Network(parties, seed, window=window, length=length)
    assert network.run()
    check_contract(network)
    everyone = frozenset(network.roster.names)
    assert all(node.stopped and node.error is None for node in network.nodes.values())
    assert all(len(node.history) == 3 for node in network.nodes.values()), "statistics and two rounds"
    assert all(opening.listed == everyone for opening in network.openings)
    assert len(network.openings) == 1 + 2 * -(-length // 10)
    assert not any(node.drops for node in network.nodes.values())


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 9), st.integers(0, 2**32), st.integers(1, 3))
def test_broken_connections_lose_and_double_nothing(parties: int, seed: int, window: int) -> None:
    network = Network(parties, seed, window=window)
    assert network.run(cuts=0.05)
    check_contract(network)
    assert all(node.stopped and node.error is None for node in network.nodes.values())
    assert all(opening.listed == frozenset(network.roster.names) for opening in network.openings)


@settings(max_examples=150, deadline=None)
@given(st.integers(3, 10), st.integers(0, 2**32), st.data())
def test_deaths_and_lost_updates_never_break_the_contract(parties: int, seed: int, data: st.DataObject) -> None:
    network = Network(parties, seed)
    names = network.roster.names
    network.lose_own = data.draw(st.sets(st.tuples(st.sampled_from(names), st.integers(0, 2)), max_size=4))
    victims = data.draw(st.lists(st.sampled_from(names[1:]), max_size=2, unique=True))
    for victim in victims:
        network.run(limit=data.draw(st.integers(1, 150)))
        network.kill(victim)
    assert network.run()
    check_contract(network)
    for name, node in network.nodes.items():
        assert node.stopped or name in victims, "everyone ends, with a model or a clear error"


def test_a_lost_update_costs_only_itself() -> None:
    network = Network(7, seed=1)
    loser = next(name for name in network.roster.names if not network.tree.children[name])
    network.lose_own = {(loser, 1)}
    assert network.run()
    check_contract(network)
    everyone = frozenset(network.roster.names)
    assert {o.listed for o in network.openings if o.round == 1} == {everyone - {loser}}
    assert {o.listed for o in network.openings if o.round != 1} == {everyone}
    assert network.nodes[loser].error is None, "it still has the model"


def test_a_dead_subtree_is_left_out_at_the_deadline() -> None:
    network = Network(9, seed=2, rounds=1)
    inner = next(c for c in network.tree.children[network.tree.apex] if network.tree.children[c])
    network.kill(inner)
    assert network.run()
    gone = network.tree.subtree(inner)
    check_contract(network)
    assert {o.listed for o in network.openings} == {frozenset(network.roster.names) - gone}


def test_below_the_quorum_nothing_is_opened_and_everyone_hears_it() -> None:
    network = Network(3, seed=3)
    network.lose_own = {("p01", 1)}
    assert network.run()
    check_contract(network)
    assert {o.round for o in network.openings} == {0}
    assert all("below the quorum" in (node.error or "") for node in network.nodes.values())


def test_the_apex_is_the_gate() -> None:
    network = Network(4, seed=3, min_hidden=3)
    network.lose_own = {("p01", 0)}
    assert network.run()
    assert not network.openings
    assert not [f for f in key_holder_inbox(network) if isinstance(f.message, Partial)], "nothing went up"
    assert [f for f in key_holder_inbox(network) if isinstance(f.message, Absent)]


@pytest.mark.parametrize("parties", [3, 8, 17])
def test_the_key_holder_receives_one_aggregate_per_segment_and_no_other_ciphertext(parties: int) -> None:
    network = Network(parties, seed=4)
    assert network.run()
    partials = [f.message for f in key_holder_inbox(network) if isinstance(f.message, Partial)]
    assert sorted((p.round, p.segment) for p in partials) == [(0, 0)] + [(r, s) for r in (1, 2) for s in range(3)]
    assert all(p.contributors == frozenset(network.roster.names[1:]) for p in partials)
    to_key_holder = {a for (a, b) in network.wires if b == network.tree.key_holder}
    assert to_key_holder == {network.tree.apex}


def test_a_node_with_another_model_stops_the_study_by_name() -> None:
    network = Network(5, seed=5, bases={"p03": b"\1" * 32})
    assert network.run()
    assert not network.openings
    assert "p03 holds another model" in (network.nodes["p00"].error or "")
    assert all(node.stopped for node in network.nodes.values())
    assert any(isinstance(f.message, Joined) for f in network.frames.values())
