"""The real round machines and links under a seeded in-memory network: what must hold in every order."""

from __future__ import annotations

import math
import os
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import EVALUATE, TRAIN, Absent, Gone, Joined, Partial
from tests.node.faults import ViolationError, check, run_with_faults
from tests.node.mutants import MUTANTS, ForeignSubtree, Liar
from tests.node.network import FakeFrame, Network

FULL = os.environ.get("WARDTREE_FULL") == "1"
ROUNDS = 50_000 if FULL else 2_000


def key_holder_inbox(network: Network) -> list[FakeFrame]:
    return [f for f in network.frames.values() if f.recipient == network.key_holder and f.sender == network.tree.apex]


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 12), st.integers(0, 2**32), st.integers(1, 4), st.integers(1, 45), st.integers(0, 3))
def test_without_faults_every_round_is_complete(
    parties: int, seed: int, window: int, length: int, dial_out: int
) -> None:
    network = Network(parties, seed, window=window, length=length, dial_out=min(dial_out, (parties - 1) // 2))
    assert network.run()
    check(network)
    everyone = frozenset(network.names)
    assert all(node.error is None for node in network.nodes.values())
    assert all(len(disk.history) == 3 for disk in network.disks.values()), "statistics and two rounds"
    assert all(opening.listed == everyone for opening in network.openings)
    assert len(network.openings) == 1 + 2 * -(-length // 10)
    assert not network.drops


@settings(max_examples=40, deadline=None)
@given(st.integers(3, 9), st.integers(0, 2**32), st.integers(1, 3), st.integers(1, 30))
def test_broken_connections_lose_and_double_nothing(parties: int, seed: int, window: int, breaks: int) -> None:
    network = Network(parties, seed, window=window)
    network.doubled = 0.05
    for _ in range(breaks):
        network.plan(network.random.uniform(0.0, 15.0), network.flicker)
    assert network.run()
    check(network)
    assert all(node.error is None for node in network.nodes.values())
    assert all(opening.listed == frozenset(network.names) for opening in network.openings)


def test_rounds_with_faults_break_no_invariant() -> None:
    rounds: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    finished, seed = 0, 0
    while sum(rounds.values()) < ROUNDS:
        parties = 3 + seed % 31 if seed % 8 == 0 else 3 + seed % 9
        options = {"every": seed % 4, "sample": 0.6 if seed % 5 == 0 else 1.0}
        network, outcome = run_with_faults(parties, seed, rounds=4, window=1 + seed % 3, **options)
        rounds += outcome.rounds
        faults += outcome.faults
        finished += network.nodes[network.key_holder].error is None
        seed += 1
    print(
        f"\n{seed} studies, {sum(rounds.values())} rounds: {dict(rounds)}; faults: {dict(faults)}; finished: {finished}"
    )
    assert rounds["complete"] > rounds["failed"]
    assert all(faults[kind] > ROUNDS / 100 for kind in ("killed", "restarted", "stopped", "cut"))
    assert finished > 0.9 * seed, "faults that end do not end studies"


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 12), st.integers(0, 2**32), st.floats(0.2, 0.9), st.integers(1, 3))
def test_a_sample_trains_and_everyone_evaluates(parties: int, seed: int, share: float, every: int) -> None:
    network = Network(parties, seed, rounds=6, every=every, sample=share)
    assert network.run()
    check(network)
    assert all(node.error is None for node in network.nodes.values())
    everyone, schedule = frozenset(network.names), network.rules.schedule
    for opening in network.openings:
        is_training = schedule.purpose(opening.round) == TRAIN
        assert len(opening.listed) == (max(math.ceil(share * parties), 3) if is_training else parties)
    drawn = {opening.listed for opening in network.openings} - {everyone}
    assert len(drawn) > 1 or share * parties <= 3 or len(everyone) <= max(math.ceil(share * parties), 3) + 1
    assert all(len(disk.history) == schedule.last + 1 for disk in network.disks.values())


@settings(max_examples=30, deadline=None)
@given(st.integers(3, 9), st.integers(0, 2**32), st.integers(2, 8))
def test_a_state_that_ends_the_study_ends_it_for_everyone(parties: int, seed: int, ends_after: int) -> None:
    network = Network(parties, seed, rounds=8, every=2, ends_after=ends_after)
    assert network.run()
    check(network)
    assert all(node.error is None for node in network.nodes.values())
    assert all(len(disk.history) == ends_after for disk in network.disks.values())


def test_after_a_departure_no_evaluation_tells_of_who_left() -> None:
    """Beside an evaluation over everyone, one over all but one would be that one's own."""
    network = Network(7, 3, rounds=6, every=1)
    gone = next(name for name in network.names[1:] if not network.tree.children[name])
    network.plan(15.0, lambda: network.kill(gone))
    network.run(400)
    check(network)
    evaluated = [o.listed for o in network.openings if network.rules.schedule.purpose(o.round) == EVALUATE]
    trained = [o.listed for o in network.openings if network.rules.schedule.purpose(o.round) == TRAIN]
    assert gone in trained[0]
    assert gone not in trained[-1], "training goes on without it"
    assert evaluated
    assert all(gone in listed for listed in evaluated)
    assert any("would tell of too few" in report.what for _, report in network.reports)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_machine_without_one_rule_is_caught(name: str) -> None:
    rounds = 0
    for seed in range(1_000):
        try:
            _, outcome = run_with_faults(4 + seed % 8, seed, MUTANTS[name], rounds=4, window=1 + seed % 3)
        except ViolationError:
            return
        rounds += sum(outcome.rounds.values())
        assert rounds <= 1_000, f"{name}: not caught in {rounds} rounds"


def lie(children: type[Contributor], seed: int) -> Network:
    """Seven parties, of whom an inner node that is not the apex claims somebody who is not below it."""
    network = Network(7, seed, machines=(KeyHolder, children), rounds=1)
    inner = next(name for name in network.tree.children[network.tree.apex] if network.tree.children[name])
    network.machines = (KeyHolder, type("Lying", (Liar, children), {}))
    network.start(inner)
    network.run()
    return network


def test_a_child_is_not_believed_about_parties_that_are_not_below_it() -> None:
    network = lie(Contributor, 1)
    check(network)
    assert any("subtree" in drop.expected for _, drop in network.drops)


def test_without_that_rule_it_would_be() -> None:
    networks = [lie(ForeignSubtree, seed) for seed in range(20)]
    with pytest.raises(ViolationError):
        [check(network) for network in networks]


# ---- what one death costs -------------------------------------------------------------------------------


def run_and_kill(parties: int, seed: int, victim: str, when: float, back_after: float | None = None) -> Network:
    """Three rounds; ``victim`` is killed so many seconds after the key holder opened round 1."""
    network = Network(parties, seed, rounds=3)

    def kill() -> None:
        if any(node.machine.state.name in ("ENDING", "ENDED") for node in network.nodes.values()):
            return  # nobody may be there any more to say the last word again
        network.kill(victim)
        if back_after is not None:
            network.plan(network.now + back_after, lambda: network.start(victim))

    def opened(_: str) -> None:
        network.plan(network.now + when, kill)

    network.moments["training", 1] = opened
    assert network.run()
    check(network)
    return network


def sets_of(network: Network, round_: int) -> set[frozenset[str]]:
    return {opening.listed for opening in network.openings if opening.round == round_}


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 12), st.integers(0, 2**32), st.data())
def test_a_death_costs_its_own_contribution_or_the_rest_of_the_round(
    parties: int, seed: int, data: st.DataObject
) -> None:
    network = Network(parties, seed)
    victim = data.draw(st.sampled_from([name for name in network.names[1:] if name != network.tree.apex]))
    network = run_and_kill(parties, seed, victim, data.draw(st.floats(0.0, 6.0)))
    everyone, others = frozenset(network.names), frozenset(network.names) - {victim}
    assert sets_of(network, 1) <= {everyone, others}
    assert sets_of(network, 2) <= {everyone, others}
    assert sets_of(network, 3) in ({everyone}, {others}), "nobody else is missed"
    whole = [round_ for round_ in (1, 2, 3) if sum(o.round == round_ for o in network.openings) == 3]
    assert len(whole) >= 2, "and at most the rest of one round"
    assert all(node.error is None for name, node in network.nodes.items() if name != victim)


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 10), st.integers(0, 2**32), st.floats(0.0, 6.0), st.booleans())
def test_the_apex_and_the_key_holder_cost_one_round_at_most(parties: int, seed: int, when: float, apex: bool) -> None:
    network = Network(parties, seed)
    victim = network.tree.apex if apex else network.key_holder
    network = run_and_kill(parties, seed, victim, when, back_after=1.0)
    assert all(node.error is None for node in network.nodes.values()), "everyone ends with the model"
    complete = [
        round_
        for round_ in (1, 2, 3)
        if sets_of(network, round_) and sum(opening.round == round_ for opening in network.openings) == 3
    ]
    assert len(complete) >= 2
    assert all(len(set_) >= parties - 1 for round_ in complete for set_ in sets_of(network, round_))


def test_who_is_stopped_for_a_while_comes_back_to_the_model() -> None:
    network = Network(7, seed=5, rounds=8)
    victim = network.tree.children[network.tree.apex][0]
    network.plan(6.0, lambda: network.stop(victim))
    network.plan(18.0, lambda: network.go_on(victim))
    assert network.run()
    check(network)
    assert all(node.error is None for node in network.nodes.values())
    assert network.disks[victim].state == network.disks[network.key_holder].state


def test_a_lost_update_costs_only_itself() -> None:
    network = Network(7, seed=1)
    loser = next(name for name in network.names if not network.tree.children[name])
    network.lose_own = {(loser, 1)}
    assert network.run()
    check(network)
    everyone = frozenset(network.names)
    assert sets_of(network, 1) == {everyone - {loser}}
    assert sets_of(network, 0) == sets_of(network, 2) == {everyone}
    assert network.nodes[loser].error is None, "it still has the model"


# ---- the gate and the key holder ------------------------------------------------------------------------


def test_below_the_quorum_nothing_is_opened_and_everyone_hears_it() -> None:
    network = Network(3, seed=3)
    network.lose_own = {("p01", 1)}
    assert network.run()
    check(network)
    assert {o.round for o in network.openings} == {0, 2}
    for name in network.names:
        failed = [report for who, report in network.reports if who == name and report.what.startswith("failed")]
        assert [report.round for report in failed] == [1]
        assert "below the quorum" in failed[0].what


def test_a_spent_budget_ends_the_study_for_everyone_and_is_no_failure_of_it() -> None:
    network = Network(5, seed=4, rounds=6)
    network.withheld_from = 3
    assert network.run()
    check(network)
    assert {o.round for o in network.openings} == {0, 1, 2}
    assert all(node.error is None for node in network.nodes.values())
    for name in network.names:
        told = [report.what for who, report in network.reports if who == name and report.what.startswith("failed")]
        assert told == ["failed: privacy budget: nothing was opened"]


def test_a_study_whose_rounds_all_fail_ends() -> None:
    network = Network(3, seed=3, rounds=50)
    network.lose_own = {("p01", round_) for round_ in range(1, 51)}
    assert network.run()
    assert all("below the quorum" in (node.error or "") for node in network.nodes.values())
    tried = [round_ for what, round_, _ in network.disks["p00"].records if what == "training"]
    assert max(tried) == network.rules.most_failures


def test_the_apex_is_the_gate() -> None:
    network = Network(4, seed=3, min_hidden=3, rounds=0)
    network.lose_own = {("p01", 0)}
    network.run()
    assert not network.openings
    assert not [f for f in key_holder_inbox(network) if isinstance(f.message, Partial)], "nothing went up"
    assert [f for f in key_holder_inbox(network) if isinstance(f.message, Absent)]


@pytest.mark.parametrize("parties", [3, 8, 17])
def test_the_key_holder_receives_one_aggregate_per_segment_and_no_other_ciphertext(parties: int) -> None:
    network = Network(parties, seed=parties)
    assert network.run()
    partials = [f.message for f in network.frames.values() if isinstance(f.message, Partial) and f.recipient == "p00"]
    assert len(partials) == len(network.openings)
    assert all(partial.contributors == frozenset(network.names[1:]) for partial in partials)
    others = {type(f.message) for f in key_holder_inbox(network)}
    assert others <= {Partial, Joined, Gone, Absent}


def test_a_node_with_another_model_stops_the_study_by_name() -> None:
    network = Network(5, seed=1, bases={"p03": b"\1" * 32})
    assert network.run()
    assert not network.openings
    assert "p03 holds another model" in (network.nodes["p00"].error or "")
    assert all(node.error for node in network.nodes.values())
