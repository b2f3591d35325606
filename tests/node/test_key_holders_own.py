"""The key holder's own update, lost when its key room asks for it: a set that nobody has seen may still shrink."""

from __future__ import annotations

import pytest

from tests.node.faults import check
from tests.node.network import Network


def opened(network: Network, round_: int) -> list[tuple[int, bool]]:
    """Segment, and whether the key holder is in its total."""
    return [(each.segment, network.key_holder in each.listed) for each in network.openings if each.round == round_]


@pytest.mark.parametrize("seed", range(5))
def test_before_the_first_total_the_others_sum_is_opened_without_it(seed: int) -> None:
    network = Network(5, seed)
    network.lose_own_at = {(1, 0)}
    assert network.run()
    check(network)
    assert opened(network, 1) == [(0, False), (1, False), (2, False)]
    assert opened(network, 2) == [(0, True), (1, True), (2, True)]


@pytest.mark.parametrize("seed", range(5))
def test_after_the_first_total_the_round_ends_with_what_was_opened(seed: int) -> None:
    network = Network(5, seed)
    network.lose_own_at = {(1, 1)}
    assert network.run()
    check(network)
    assert opened(network, 1) == [(0, True)]
    assert opened(network, 2) == [(0, True), (1, True), (2, True)], "the next round is whole again"
    assert len({disk.state for disk in network.disks.values()}) == 1


def test_with_too_few_others_nothing_is_opened() -> None:
    network = Network(3, seed=1)
    network.lose_own_at = {(1, 0)}
    assert network.run()
    check(network)
    assert opened(network, 1) == []
    assert opened(network, 2) == [(0, True), (1, True), (2, True)]
