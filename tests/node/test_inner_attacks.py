"""A malicious inner node: each attack works on an undefended system, or this file proves nothing; none on ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.node.inner_attacks import ATTACKS, Attack, Rejoiner, Scene, hand_false_model, make_scene, run_attack

pytestmark = pytest.mark.confined
ISOLATED = 0.9
"""Correlation with the victim's update from which on it counts as read."""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return make_scene(tmp_path_factory.mktemp("inner"))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_inner_node_gets_no_false_total_published(scene: Scene, attack: Attack) -> None:
    result = run_attack(attack, replace(scene, integers={}), with_own=(False,))
    assert result.published == 0
    assert result.answers == ("refused",)
    if attack.isolates:
        assert result.correlations[0] >= ISOLATED


def test_an_honest_total_of_the_same_scene_is_published(scene: Scene) -> None:
    honest = Attack("none", lambda s: [s.total(s.parts(s.everyone))])
    assert run_attack(honest, replace(scene, integers={})).answers == ("opened", "opened")


def test_a_rejoiner_takes_no_model_but_the_one_that_the_key_holder_signed(scene: Scene, tmp_path: Path) -> None:
    rejoiner = hand_false_model(scene, tmp_path / "false")
    assert rejoiner.keeper.digest == rejoiner.first
    assert rejoiner.reports[-1] == "was handed a false state"
    assert rejoiner.left == [scene.apex]
    assert not rejoiner.trained_on


def test_nor_a_model_whose_close_the_parent_signed_itself(scene: Scene, tmp_path: Path) -> None:
    rejoiner = Rejoiner(scene, tmp_path / "forged")
    false = rejoiner.model(1, -1.0)
    rejoiner.hear(rejoiner.closed(false, rejoiner.first), scene.apex)
    assert rejoiner.keeper.digest == rejoiner.first


def test_and_it_takes_the_one_that_was_signed(scene: Scene, tmp_path: Path) -> None:
    rejoiner = Rejoiner(scene, tmp_path / "true")
    true = rejoiner.model(1, 1.0)
    rejoiner.hand_over(rejoiner.closed(true, rejoiner.first), true)
    assert rejoiner.keeper.digest == true.digest(rejoiner.home.digest) != rejoiner.first
