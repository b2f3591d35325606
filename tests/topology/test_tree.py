"""The tree in which the key holder has one neighbour only (design, section 2)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from topology import Member, Placement, Roster, TopologyError, Tree, check_placeable, place


def roster_of(n: int, dial_out: int = 0) -> Roster:
    names = [f"party-{i:03}" for i in range(n)]
    return Roster(tuple(Member(name, listens=i < n - dial_out) for i, name in enumerate(names)), names[0])


def assert_sound(tree: Tree, roster: Roster) -> None:
    assert tree.children[roster.key_holder] == (tree.apex,)
    assert all(len(children) <= 2 for children in tree.children.values())
    assert sorted(tree.subtree(roster.key_holder)) == sorted(tree.parties)
    placed = [child for children in tree.children.values() for child in children]
    assert sorted([*placed, roster.key_holder]) == sorted(tree.parties)
    for child, parent in tree.parent.items():
        assert child in tree.children[parent]


@pytest.mark.parametrize("n", range(2, 65))
def test_key_holder_has_one_neighbour_and_everyone_is_there_once(n: int) -> None:
    roster = roster_of(n)
    tree = place(roster, roster.names, b"seed")
    assert_sound(tree, roster)
    assert tree.parties == frozenset(roster.names)
    assert max(map(tree.depth, roster.names)) == (n - 1).bit_length(), "a complete tree is no deeper"


@given(st.integers(3, 64), st.data())
def test_dial_out_members_are_leaves(n: int, data: st.DataObject) -> None:
    dial_out = data.draw(st.integers(0, (n - 1) - (n - 1) // 2))
    roster = roster_of(n, dial_out)
    tree = place(roster, roster.names, data.draw(st.binary(min_size=1, max_size=8)))
    assert_sound(tree, roster)
    for member in roster.members:
        if not member.listens:
            assert tree.children[member.name] == ()


@given(st.integers(3, 40), st.data())
def test_only_the_children_of_the_dead_move_and_to_their_nearest_living_ancestor(n: int, data: st.DataObject) -> None:
    roster = roster_of(n, data.draw(st.integers(0, (n - 1) - (n - 1) // 2)))
    placement = Placement(roster, b"s")
    whole = placement.tree(roster.names)
    listening = [member.name for member in roster.others if member.listens]
    dead = data.draw(st.sets(st.sampled_from(roster.names[1:])).filter(lambda names: not names.issuperset(listening)))
    live = frozenset(roster.names) - dead
    tree = placement.tree(live)
    assert tree.parties == live
    assert placement.tree(sorted(live, reverse=True)) == tree
    assert tree.children[roster.key_holder] == (tree.apex,)
    assert tree.apex == next(name for name in placement.order if name in live and name in listening)
    for name in live - {roster.key_holder, tree.apex}:
        above = whole.parent[name]
        while above in dead:
            above = whole.parent[above]
        assert tree.parent[name] == (tree.apex if above == roster.key_holder else above)
        assert name in tree.children[tree.parent[name]]
    assert tree.subtree(roster.key_holder) == live, "everyone is there once, and no circle"
    for top in roster.names:
        below = tree.subtree(top)
        assert {name for name in roster.names if tree.is_within(name, top)} == below
        assert not below or tree.height(top) == max(map(tree.depth, below)) - tree.depth(top)


@given(st.integers(3, 40), st.data())
def test_whoever_looks_for_a_parent_dials_only_those_before_itself(n: int, data: st.DataObject) -> None:
    roster = roster_of(n, data.draw(st.integers(0, (n - 1) - (n - 1) // 2)))
    placement = Placement(roster, data.draw(st.binary(min_size=1, max_size=4)))
    whole = placement.tree(roster.names)
    for name in placement.order:
        ladder = placement.ladder(name)
        assert ladder[0] == whole.parent[name]
        assert len(set(ladder)) == len(ladder)
        listens = next(member.listens for member in roster.members if member.name == name)
        assert (ladder[-1] == roster.key_holder) == listens
        below = set(placement.order[placement.order.index(name) :])
        assert below.isdisjoint(ladder)


@given(st.integers(3, 24), st.data())
def test_the_parent_in_any_living_set_is_on_the_ladder(n: int, data: st.DataObject) -> None:
    roster = roster_of(n)
    placement = Placement(roster, b"s")
    live = data.draw(st.sets(st.sampled_from(roster.names[1:]), min_size=1)) | {roster.key_holder}
    for child, parent in placement.tree(live).parent.items():
        assert parent == next(name for name in placement.ladder(child) if name in live)


def test_a_tree_without_a_living_listener_is_refused() -> None:
    placement = Placement(roster_of(5, dial_out=2), b"s")
    with pytest.raises(TopologyError, match="nobody beside"):
        placement.tree({"party-000", "party-004"})
    with pytest.raises(TopologyError, match="not among the living"):
        placement.tree({"party-001", "party-002"})


@pytest.mark.parametrize("n", range(2, 41))
def test_a_chain_is_as_deep_as_two_children_an_inner_node_allow(n: int) -> None:
    roster = roster_of(n, dial_out=(n - 1) - (n - 1) // 2)
    tree = place(roster, roster.names, b"seed", "chain")
    assert_sound(tree, roster)
    inner = [name for name in tree.parent if tree.children[name]]
    assert len(inner) == (n - 1) // 2
    assert sorted(map(tree.depth, inner)) == list(range(1, len(inner) + 1)), "one below another"
    assert all(any(not tree.children[child] for child in tree.children[name]) for name in inner), "a leaf each"
    assert {len(tree.children[name]) for name in inner[:-1]} <= {2}
    assert all(member.listens for member in roster.members if tree.children[member.name])


def test_a_chain_of_five_inner_nodes_has_eleven_nodes_below_the_key_holder() -> None:
    tree = place(roster_of(12), roster_of(12).names, b"seed", "chain")
    assert (len(tree.parent), tree.height(tree.key_holder)) == (11, 6)
    assert place(roster_of(4), roster_of(4).names, b"s", "chain") == place(roster_of(4), roster_of(4).names, b"s")


def test_the_seed_moves_the_apex() -> None:
    roster = roster_of(9)
    assert len({place(roster, roster.names, bytes([i])).apex for i in range(64)}) > 4


def test_too_many_dial_out_members_are_refused_with_the_number_missing() -> None:
    with pytest.raises(TopologyError, match="2 listening members are missing"):
        check_placeable(roster_of(9, dial_out=6).members, "party-000")
    with pytest.raises(TopologyError, match="must listen"):
        check_placeable((Member("a", listens=False), Member("b")), "a")
    with pytest.raises(TopologyError, match="at least 2 parties"):
        check_placeable((Member("a"),), "a")


@given(st.integers(2, 70), st.data())
def test_contributor_sets_travel_as_bitmaps(n: int, data: st.DataObject) -> None:
    roster = roster_of(n)
    chosen = data.draw(st.frozensets(st.sampled_from(roster.names)))
    bitmap = roster.to_bitmap(chosen)
    assert roster.from_bitmap(bitmap) == chosen
    with pytest.raises(ValueError, match="parties"):
        roster.from_bitmap(bitmap + b"\0")
    if n % 8:
        with pytest.raises(ValueError, match="parties"):
            roster.from_bitmap(b"\xff" * len(bitmap))
