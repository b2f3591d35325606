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
from tests.end_to_end.watched import SEGMENTS, Watched, watched


def opened(nodes: Watched, name: str, round_: int) -> None:
    """Until this node has just begun to train in a round."""
    nodes.until_told(name, "round", what="opened", round=round_)


# ---- before the set is frozen ---------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["leaf", "inner"])
def test_a_death_while_it_trains_costs_its_own_contribution_alone(tmp_path: Path, who: str) -> None:
    """The children of an inner node move to its parent, in the same round. It never comes back."""
    with watched(tmp_path) as nodes:
        victim = getattr(nodes, who)
        nodes.start()
        opened(nodes, victim, 2)
        nodes.kill(victim)
        nodes.finish()
        rest = nodes.everyone - {victim}
        assert nodes.closed() == {1: (nodes.everyone, SEGMENTS), 2: (rest, SEGMENTS), 3: (rest, SEGMENTS)}
        nodes.check(without=frozenset({victim}))


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


def test_a_lost_enclave_costs_its_update_of_that_round(tmp_path: Path) -> None:
    with watched(tmp_path) as nodes:
        nodes.start()
        opened(nodes, nodes.inner, 2)
        nodes.until(lambda event: event["time"] > nodes.seen[0]["time"])  # the enclave is forked by now
        nodes.kill_room(nodes.inner, "enclave")
        nodes.finish()
        closed = nodes.closed()
        assert closed[2] == (nodes.everyone - {nodes.inner}, SEGMENTS)
        assert closed[3] == (nodes.everyone, SEGMENTS)
        assert nodes.codes[nodes.inner] == [0], "the node itself went on"
        nodes.check()


# ---- afterwards -----------------------------------------------------------------------------------------


def test_a_death_after_the_set_is_frozen_costs_at_most_the_rest_of_the_round(tmp_path: Path) -> None:
    with watched(tmp_path) as nodes:
        victim = nodes.inner
        nodes.start()
        nodes.until_told(nodes.key_holder, "ciphertext", round=2, segment=0)
        nodes.kill(victim)
        nodes.finish()
        closed = nodes.closed()
        rest = nodes.everyone - {victim}
        assert closed[1] == (nodes.everyone, SEGMENTS)
        assert closed.get(2, (nodes.everyone, 0))[0] == nodes.everyone, "the set was not changed any more"
        assert closed[3] == (rest, SEGMENTS)
        nodes.check(without=frozenset({victim}))


def test_the_death_of_the_apex_costs_one_round_and_another_takes_its_place(tmp_path: Path) -> None:
    with watched(tmp_path) as nodes:
        victim = nodes.apex
        nodes.start()
        opened(nodes, victim, 2)
        nodes.kill(victim)
        nodes.finish()
        closed = nodes.closed()
        assert closed == {1: (nodes.everyone, SEGMENTS), 3: (nodes.everyone - {victim}, SEGMENTS)}
        nodes.check(without=frozenset({victim}))


@pytest.mark.parametrize("moment", ["it trains", "a total arrived", "a total is open"])
def test_a_key_holder_that_is_started_again_costs_at_most_one_round(tmp_path: Path, moment: str) -> None:
    with watched(tmp_path, rounds=4) as nodes:
        nodes.start()
        key_holder = nodes.key_holder
        if moment == "it trains":
            opened(nodes, key_holder, 2)
        elif moment == "a total arrived":
            nodes.until_told(key_holder, "ciphertext", round=2, segment=0)
        else:
            nodes.until_told(key_holder, "stage", stage="open", round=2)
        nodes.kill(key_holder)
        nodes.start(key_holder)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1] == closed[3] == closed[4] == (nodes.everyone, SEGMENTS)
        if moment == "a total is open":  # the first at least was on the disk before it was told
            assert closed[2][0] == nodes.everyone
            assert 1 <= closed[2][1] <= SEGMENTS
        tried = [entry["round"] for entry in nodes.ledger(key_holder, "training")]
        assert tried == [1, 2, 3, 4], "no round was tried twice"
        nodes.check()


@pytest.mark.parametrize("room", ["relay", "template", "keyroom"])
def test_a_room_that_is_killed_ends_its_node_which_goes_on_when_it_is_started_again(tmp_path: Path, room: str) -> None:
    with watched(tmp_path, rounds=5) as nodes:
        victim = nodes.key_holder if room == "keyroom" else nodes.leaf
        nodes.start()
        opened(nodes, victim, 2)
        nodes.kill_room(victim, room)
        nodes.until_told(victim, "ended", code=ENDED_FROM_OUTSIDE)
        assert "start this node again" in nodes.record.errors[victim]
        nodes.start(victim)
        nodes.finish()
        assert len(nodes.closed()) >= 4, "one round at most is lost"
        assert nodes.closed()[5] == (nodes.everyone, SEGMENTS)
        nodes.check()


# ---- late, slow, stopped --------------------------------------------------------------------------------


def test_a_straggler_comes_when_the_others_are_at_work(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=5) as nodes:
        late = nodes.leaf
        nodes.start(*nodes.everyone - {late})
        opened(nodes, nodes.key_holder, 1)
        nodes.start(late)
        nodes.finish()
        closed = nodes.closed()
        assert closed[1][0] == nodes.everyone - {late}
        assert closed[5] == (nodes.everyone, SEGMENTS)
        nodes.check()


def test_a_node_that_is_stopped_for_a_moment_loses_nothing(tmp_path: Path) -> None:
    with watched(tmp_path) as nodes:
        victim = nodes.inner
        nodes.start()
        opened(nodes, victim, 2)
        nodes.launcher.signal(victim, signal.SIGSTOP)
        nodes.until(lambda event: event["time"] > nodes.seen[-1]["time"])
        nodes.until_told(nodes.apex, "stage", stage="protect", round=2)
        nodes.launcher.signal(victim, signal.SIGCONT)
        nodes.finish()
        assert nodes.closed() == dict.fromkeys((1, 2, 3), (nodes.everyone, SEGMENTS))
        nodes.check()


def test_a_node_that_is_stopped_for_long_is_left_out_and_comes_back(tmp_path: Path) -> None:
    with watched(tmp_path, rounds=6) as nodes:
        victim = nodes.inner
        nodes.start()
        opened(nodes, victim, 2)
        nodes.launcher.signal(victim, signal.SIGSTOP)
        opened(nodes, nodes.key_holder, 3)
        nodes.launcher.signal(victim, signal.SIGCONT)
        nodes.finish()
        closed = nodes.closed()
        assert closed[2][0] == nodes.everyone - {victim}, "its children moved"
        assert closed[6] == (nodes.everyone, SEGMENTS)
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
        stamps = [entry["time"] for entry in nodes.ledger(nodes.leaf, "closed")]
        assert stamps[0] > real() + 9 * years, "the clock did jump"
        assert stamps[1] < real() - 19 * years


def test_nothing_in_a_running_study_asks_for_the_time_of_day() -> None:
    """Where it is asked for it goes into a ledger or a log, or a manifest is checked for its expiry, at the start."""
    allowed = {
        "time.time": {"relay.py": {"run", "_keep"}, "telemetry.py": {"tell"}, "launcher.py": {"_live", "listen"}},
        "datetime.now": {"supervisor.py": {"run_node"}, "warm.py": {"_template"}, "simulation.py": {"hold_ceremony"}},
    }
    for path in Path(node.__file__).parent.rglob("*.py"):
        if path.parent.name in ("cli", "chaos", "bench"):
            continue
        for function in ast.walk(ast.parse(path.read_text())):
            if isinstance(function, ast.FunctionDef):
                for call in (each for each in ast.walk(function) if isinstance(each, ast.Call)):
                    asked = ast.unparse(call.func)
                    if asked in allowed:
                        assert function.name in allowed[asked].get(path.name, set()), f"{path}: {function.name}"
