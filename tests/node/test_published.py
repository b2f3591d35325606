"""The published state on the disk and in parts: what was put away comes back, and nothing else does."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.protocol import events as ev
from node.protocol.messages import Total
from node.published import (
    OpenedTotals,
    PublishedError,
    load_model,
    save_model,
    state_from,
    state_part,
    state_size,
)
from node.update import Model
from tests.node.test_ledger import files_at_most

MANIFEST = b"m" * 32


def model(parameters: int, sums: int, round_: int = 3) -> Model:
    generator = np.random.default_rng(parameters)
    statistics = generator.normal(size=sums) if sums else None
    return Model(round_, generator.normal(size=parameters).astype(np.float32), statistics, 5 if sums else 0)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 20), st.integers(1, 200))
def test_a_state_in_parts_is_the_same_state(parameters: int, sums: int, size: int) -> None:
    whole = model(parameters, sums)
    parts = [state_part(whole, part, size) for part in range(-(-state_size(whole) // size))]
    assert all(len(part) == size for part in parts[:-1])
    assert sum(map(len, parts)) == state_size(whole)
    again = state_from(parts)
    assert again is not None
    assert again.digest(MANIFEST) == whole.digest(MANIFEST)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.binary(max_size=60), max_size=3))
def test_any_bytes_are_a_state_or_none(parts: list[bytes]) -> None:
    state = state_from(parts)
    assert state is None or state_size(state) == sum(map(len, parts))


def test_a_part_too_many_or_missing_is_another_state_or_none() -> None:
    whole = model(50, 3)
    parts = [state_part(whole, part, 64) for part in range(-(-state_size(whole) // 64))]
    for wrong in (parts[:-1], [*parts, parts[-1]], parts[::-1], parts[1:]):
        state = state_from(wrong)
        assert state is None or state.digest(MANIFEST) != whole.digest(MANIFEST)


def test_a_saved_model_is_the_old_one_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "state.npz"
    save_model(path, model(1000, 3, round_=1))
    before = path.read_bytes()
    with files_at_most(len(before) // 2), pytest.raises(PublishedError, match="cannot be written") as caught:
        save_model(path, model(1000, 3, round_=2), durable=True)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["state.npz"]
    save_model(path, model(1000, 3, round_=2))
    assert load_model(path).round == 2


def stage(segment: int, size: int = 400) -> ev.Stage:
    return ev.Stage(Total(7, b"b" * 32, segment, frozenset({"ada", "bo", "cy"}), bytes([segment]) * size), "train")


def test_totals_come_back_in_order_and_one_that_was_cut_short_never_was(tmp_path: Path) -> None:
    totals = OpenedTotals(tmp_path / "opened.bin")
    assert totals.read() == []
    for segment in range(3):
        totals.add(stage(segment))
    assert totals.read() == [stage(0), stage(1), stage(2)]
    data = totals.path.read_bytes()
    third = len(data) // 3
    for kept in (3, 8, 9, 300, third - 1):
        totals.path.write_bytes(data[: 2 * third + kept])
        assert totals.read() == [stage(0), stage(1)]
    totals.path.write_bytes(data)
    totals.clear()
    assert totals.read() == []
    totals.clear()  # nothing to do


def test_a_total_that_does_not_fit_is_one_line_and_costs_no_other(tmp_path: Path) -> None:
    totals = OpenedTotals(tmp_path / "opened.bin")
    totals.add(stage(0))
    with files_at_most(totals.path.stat().st_size + 100), pytest.raises(PublishedError, match="cannot be written"):
        totals.add(stage(1))
    assert totals.read() == [stage(0)]
