"""What a task carries: only its own template's forks can read it, whole and unchanged."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keys.errors import WardtreeError
from node import carry

KEY = os.urandom(32)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=200), st.integers(1, 50))
def test_it_comes_back_and_nothing_of_it_shows(data: bytes, piece: int) -> None:
    carry.PIECE, before = piece, carry.PIECE
    try:
        pieces = carry.seal(KEY, data)
        assert carry.unseal(KEY, pieces) == (data or None)
        assert len(data) < 8 or data not in b"".join(pieces)
        if len(pieces) > 1:
            for wrong in (pieces[:-1], pieces[::-1], [*pieces, pieces[0]]):
                with pytest.raises(WardtreeError, match="was changed outside of the enclave"):
                    carry.unseal(KEY, wrong)
        if pieces:
            with pytest.raises(WardtreeError):
                carry.unseal(os.urandom(32), pieces)
    finally:
        carry.PIECE = before


def test_only_a_contribution_that_counted_changes_what_is_carried() -> None:
    carried = carry.Carried()
    carried.take(b"first")
    carried.settle(True)
    carried.take(b"lost")
    carried.settle(False)
    assert carried.pieces == [b"first"]
    carried.settle(True)
    assert carried.pieces == [b"first"], "a round without any leaves it as it was"
    carried.take(b"second")
    carried.settle(True)
    assert carried.pieces == [b"second"]
