"""A living federation for hostile input, and the member of it that a test plays."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.end_to_end.hostile import REVOKED, Mallory, World, leaf_below_the_apex, living


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Six parties, of whom one was revoked and one is mallory; the others have begun."""
    with living(tmp_path_factory.mktemp("hostile"), 6, leaf_below_the_apex, REVOKED) as world:
        world.mallory(leaf_below_the_apex(world.tree).pop(), world.tree.apex)
        world.until(lambda: world.rounds(world.tree.apex) >= 1, 60)
        yield world


@pytest.fixture
def mallory(world: World) -> Iterator[Mallory]:
    """Linked to the apex, and in the round that has just opened: what it says in that is the test's."""
    if not world.mallories:
        world.mallory(leaf_below_the_apex(world.tree).pop(), world.tree.apex)
    (made,) = world.mallories
    made.behaves = False
    world.next_round(made)
    yield made
    if made in world.mallories:
        made.behaves = True
        made.stay_away()
    world.honest_rounds_go_on()
