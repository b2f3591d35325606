"""What the key holder believes about who is there."""

from __future__ import annotations

import pytest

from node.protocol.attendance import MOST_MISSED, Attendance

NOW, BEFORE, STRANGE = b"now", b"before", b"strange"
KNOWN = {NOW, BEFORE}


@pytest.fixture
def present() -> Attendance:
    """ada is the apex; bo and cy are below it, dee below bo."""
    attendance = Attendance("key", frozenset({"ada", "bo", "cy", "dee"}))
    for name, parent in (("ada", "key"), ("bo", "ada"), ("cy", "ada"), ("dee", "bo")):
        assert attendance.joined(name, parent, NOW)
    return attendance


def live(present: Attendance, *, resumed: bool = False, neighbours: frozenset[str] = frozenset({"ada"})) -> set[str]:
    return set(present.live(NOW, KNOWN, neighbours, resumed)) - {"key"}


def test_everyone_with_a_way_to_the_key_holder_is_live(present: Attendance) -> None:
    assert live(present) == {"ada", "bo", "cy", "dee"}
    assert live(present, neighbours=frozenset()) == set(), "the apex is no neighbour any more"


def test_who_is_gone_takes_the_way_of_those_below_it(present: Attendance) -> None:
    assert present.gone("bo", "ada")
    assert live(present) == {"ada", "cy"}
    assert present.expected == {"ada", "cy", "dee"}, "dee will come by another way"
    assert not present.joined("dee", "ada", NOW), "it was there before"
    assert live(present) == {"ada", "cy", "dee"}


def test_only_its_parent_says_that_a_party_is_gone(present: Attendance) -> None:
    assert not present.gone("dee", "ada")
    assert not present.gone("nobody", "ada")
    assert live(present) == {"ada", "bo", "cy", "dee"}


def test_an_old_state_is_believed_of_who_was_in_the_last_round_and_of_all_after_a_restart(present: Attendance) -> None:
    present.joined("bo", "ada", BEFORE)
    assert "bo" in live(present)
    present.expected -= {"bo"}
    assert "bo" not in live(present)
    assert "dee" in live(present), "it is no less a way for others"
    assert "bo" in live(present, resumed=True)
    present.joined("bo", "ada", STRANGE)
    assert "bo" not in live(present, resumed=True)


def test_who_came_back_during_a_round_follows_it_to_its_close(present: Attendance) -> None:
    present.expected -= {"bo", "cy"}
    present.joined("bo", "ada", BEFORE)
    present.joined("cy", "ada", b"long before")
    present.closed(BEFORE, {"key", "ada", "dee"}, {"ada", "dee"}, {"key", "ada", "dee"}, NOW)
    assert live(present) == {"ada", "bo", "dee"}


def test_who_gives_nothing_twice_must_say_again_that_it_is_there(present: Attendance) -> None:
    everyone = {"key", "ada", "bo", "cy", "dee"}
    for _ in range(MOST_MISSED):
        assert "cy" in live(present)
        present.closed(NOW, everyone, everyone, everyone - {"cy"}, NOW)
    assert live(present) == {"ada", "bo", "dee"}
    present.joined("cy", "ada", NOW)
    assert "cy" in live(present)


def test_one_contribution_forgives_what_was_missed(present: Attendance) -> None:
    everyone = {"key", "ada", "bo", "cy", "dee"}
    for contributors in (everyone - {"cy"}, everyone, everyone - {"cy"}):
        present.closed(NOW, everyone, everyone, contributors, NOW)
    assert "cy" in live(present)
