"""What a death costs, with real processes: each is killed at a moment that they tell themselves."""

from __future__ import annotations

import ast
import mmap
import signal
import struct
import time
from pathlib import Path

import pytest

import node
from node.process import ENDED_FROM_OUTSIDE
from tests.end_to_end.watched import SEGMENTS, Watched, by_hand, watched

pytestmark = pytest.mark.confined


def opened(nodes: Watched, name: str, round_: int) -> None:
    """Until this node has just begun to train in a round."""
    nodes.until_told(name, "round", what="opened", round=round_)


pytestmark = pytest.mark.confined

# ---- what is lost ---------------------------------------------------------------------------------------


def test_a_death_while_it_trains_costs_its_own_contribution_alone(tmp_path: Path) -> None:
    """An enclave, a leaf, an inner node: its children move to its parent in the same round. The apex: one round."""
    with watched(tmp_path, parties=7, rounds=6, seconds=1.0) as nodes:
        leaf, inner, apex = nodes.leaf, nodes.inner, nodes.apex
        nodes.start()
        opened(nodes, apex, 2)
        nodes.kill_room(apex, "enclave")
        opened(nodes, leaf, 3)
        nodes.kill(leaf)
        opened(nodes, inner, 4)
        nodes.kill(inner)
        opened(nodes, apex, 5)
        nodes.kill(apex)
        nodes.finish()
        without: dict[int, set[str]] = {1: set(), 2: {apex}, 3: {leaf}, 4: {leaf, inner}, 6: {leaf, inner, apex}}
        assert nodes.closed() == {number: (nodes.everyone - lost, SEGMENTS) for number, lost in without.items()}
        nodes.check(without=frozenset({leaf, inner, apex}))


def test_a_death_after_the_set_is_frozen_costs_at_most_the_rest_of_the_round(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=3) as nodes:
        inner = nodes.inner
        nodes.start()
        nodes.until_told(nodes.key_holder, "ciphertext", round=2, segment=0)
        nodes.kill(inner)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1] == (nodes.everyone, SEGMENTS)
        assert closed.get(2, (nodes.everyone, 0))[0] == nodes.everyone, "the set was not changed any more"
        assert closed[3] == (nodes.everyone - {inner}, SEGMENTS)
        nodes.check(without=frozenset({inner}))


def test_a_key_holder_that_is_started_again_costs_at_most_one_round(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=7) as nodes:
        key_holder = nodes.key_holder
        nodes.start()
        opened(nodes, key_holder, 2)
        nodes.kill(key_holder)
        nodes.start(key_holder)
        nodes.until_told(key_holder, "ciphertext", round=4, segment=0)  # it may be opening it
        nodes.kill(key_holder)
        nodes.start(key_holder)
        for _ in range(2):  # when the second total is open, the first is on the disk
            nodes.until_told(key_holder, "stage", stage="open", round=6)
        nodes.kill(key_holder)
        nodes.start(key_holder)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1] == closed[3] == closed[5] == closed[7] == (nodes.everyone, SEGMENTS)
        assert 2 not in closed
        assert closed[6][0] == nodes.everyone, "what was opened is published"
        assert 1 <= closed[6][1] <= SEGMENTS
        assert [entry["round"] for entry in nodes.ledger(key_holder, "training")] == [1, 2, 3, 4, 5, 6, 7]
        nodes.check()


# ---- who comes back -------------------------------------------------------------------------------------


def test_a_node_that_is_started_again_goes_on(tmp_path: Path) -> None:
    """It gets round and model from its parent, trains at most once in each round, and ends with everyone."""
    with watched(tmp_path, rounds=6) as nodes:
        victim = nodes.inner
        nodes.start()
        opened(nodes, victim, 2)
        nodes.kill(victim)
        nodes.start(victim)
        nodes.finish()
        closed = nodes.closed()
        assert sorted(closed) == [1, 2, 3, 4, 5, 6]
        assert {number for number, (listed, _) in closed.items() if listed == nodes.everyone} >= {1, 5, 6}
        assert all(listed >= nodes.everyone - {victim} and n == SEGMENTS for listed, n in closed.values())
        trained = [entry["round"] for entry in nodes.ledger(victim, "training")]
        assert len(trained) == len(set(trained))
        assert len(nodes.ledger(victim, "started")) == 2
        nodes.check()


@by_hand
def test_a_room_that_is_killed_ends_its_node_which_goes_on_when_it_is_started_again(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=8) as nodes:
        nodes.start()
        for round_, victim, room in (
            (2, nodes.leaf, "relay"),
            (4, nodes.leaf, "template"),
            (6, nodes.key_holder, "keyroom"),
        ):
            opened(nodes, nodes.key_holder, round_)
            nodes.kill_room(victim, room)
            nodes.until_told(victim, "ended", code=ENDED_FROM_OUTSIDE)
            assert "start this node again" in nodes.record.errors[victim]
            nodes.start(victim)
        nodes.finish()
        assert nodes.closed().keys() >= {1, 2, 3, 4, 5, 7, 8}
        assert nodes.closed()[8] == (nodes.everyone, SEGMENTS)
        nodes.check()


@by_hand
def test_a_straggler_comes_when_the_others_are_at_work(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=4, join_seconds=3.0) as nodes:
        late, key_holder = nodes.leaf, nodes.key_holder
        others = nodes.everyone - {late, key_holder}
        nodes.start(*others)
        nodes.until(lambda _: nodes.record.ready >= others)
        nodes.start(key_holder)
        opened(nodes, key_holder, 1)
        nodes.start(late)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1][0] == nodes.everyone - {late}
        assert closed[4] == (nodes.everyone, SEGMENTS)
        nodes.check()


def test_a_node_that_is_stopped_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=3) as nodes:
        victim = nodes.inner
        nodes.start()
        opened(nodes, victim, 2)
        nodes.launcher.signal(victim, signal.SIGSTOP)
        nodes.until_told(nodes.apex, "stage", stage="protect", round=2)
        nodes.launcher.signal(victim, signal.SIGCONT)
        nodes.finish()
        assert nodes.closed() == dict.fromkeys((1, 2, 3), (nodes.everyone, SEGMENTS))
        nodes.check()


@by_hand
def test_a_node_that_is_stopped_for_long_loses_its_own_contributions_alone(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=6) as nodes:
        victim = nodes.inner
        nodes.start()
        opened(nodes, victim, 2)
        nodes.launcher.signal(victim, signal.SIGSTOP)
        opened(nodes, nodes.key_holder, 3)
        nodes.launcher.signal(victim, signal.SIGCONT)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1] == closed[6] == (nodes.everyone, SEGMENTS)
        assert closed[2] == (nodes.everyone - {victim}, SEGMENTS), "its children moved"
        nodes.check()


# ---- clocks ---------------------------------------------------------------------------------------------


def test_a_clock_that_jumps_changes_nothing_but_the_stamps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every process of a federation is forked from this one, and so are their clocks."""
    jump = mmap.mmap(-1, 8)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + struct.unpack("<q", jump)[0])
    years = 365 * 24 * 3600
    with watched(tmp_path, rounds=4) as nodes:
        nodes.start()
        for round_, ahead in ((1, 10 * years), (2, -20 * years), (3, 0)):
            opened(nodes, nodes.key_holder, round_)
            jump[:] = struct.pack("<q", ahead)
        nodes.finish()
        assert nodes.closed() == dict.fromkeys((1, 2, 3, 4), (nodes.everyone, SEGMENTS))
        nodes.check()
        stamps = [entry["time"] for entry in nodes.ledger(nodes.key_holder, "closed")]
        assert max(stamps) > real() + 9 * years, "the clock did jump"
        assert min(stamps) < real() - 19 * years


def test_nothing_in_a_running_study_asks_for_the_time_of_day() -> None:
    """Where it is asked for it goes into a ledger or a log, or a manifest is checked for its expiry, at the start."""
    allowed = {
        "time.time": {
            "relay.py": {"run", "_keep"},
            "telemetry.py": {"tell"},
            "launcher.py": {"_live", "listen"},
            "wiping.py": {"_write_if_gone"},
            "neighbours.py": {"take", "_tell_time"},  # what the status shows, and what check-network asks for
            "observer.py": {"__init__", "take", "write"},
            "status.py": {"read_status"},
            "flower.py": {"_ask"},  # a message of Flower says when it was made
        },
        "datetime.now": {"supervisor.py": {"run_node"}, "warm.py": {"_template"}, "simulation.py": {"hold_ceremony"}},
    }
    for path in Path(node.__file__).parent.rglob("*.py"):
        if path.parent.name in ("cli", "chaos", "bench", "reproduce"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in (each for each in ast.walk(function) if isinstance(each, ast.Call)):
                    asked = ast.unparse(call.func)
                    if asked in allowed:
                        assert function.name in allowed[asked].get(path.name, set()), f"{path}: {function.name}"
