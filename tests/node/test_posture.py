"""What a manifest makes of a node's sandbox."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.protocol.codec import MAX_TEXT
from node.protocol.posture import ADVISORY, REQUIRED, UNCONFINED, Minimum, Posture, parse_posture
from tests.node.network import Network
from tests.node.played_node import CONFINED

GAPS = frozenset((*REQUIRED, *ADVISORY))
postures = st.builds(
    Posture,
    st.sampled_from(("required", "bubblewrap", "external", "off")),
    st.integers(0, 999),
    st.frozensets(st.sampled_from(sorted(GAPS))),
)


@given(postures)
def test_a_posture_is_one_line_and_comes_back_as_it_was(posture: Posture) -> None:
    assert parse_posture(posture.text) == posture


def test_the_longest_fits_into_a_frame() -> None:
    assert len(Posture("bubblewrap", 999, GAPS).text) <= MAX_TEXT


@given(st.text())
def test_any_other_text_is_none_or_itself(text: str) -> None:
    posture = parse_posture(text)
    assert posture is None or parse_posture(posture.text) == posture


@pytest.mark.parametrize(
    ("gaps", "allowed", "demanded", "refused"),
    [
        ((), (), (), ()),
        (("root",), (), (), ("root",)),
        (("root",), ("root",), (), ()),
        (("swap",), (), (), ()),
        (("swap",), (), ("swap",), ("swap",)),
        (("swap",), ("swap",), ("swap",), ()),
        (("landlock", "root", "swap"), ("root",), (), ("landlock",)),
        (("no-sandbox",), ("landlock", "seccomp"), (), ("no-sandbox",)),
        (("a-gap-of-a-later-version",), (), (), ("a-gap-of-a-later-version",)),
    ],
)
def test_a_gap_must_be_allowed_by_name_unless_it_is_only_advised_against(
    gaps: tuple[str, ...], allowed: tuple[str, ...], demanded: tuple[str, ...], refused: tuple[str, ...]
) -> None:
    minimum = Minimum(frozenset(allowed), frozenset(demanded))
    posture = Posture("required", 7, frozenset(gaps))
    assert minimum.refused(posture) == refused
    assert minimum.objection(posture.text) == (f"gaps {', '.join(refused)}" if refused else None)


@pytest.mark.parametrize("text", ["", "required", "required landlock=7 gaps=swap,", CONFINED + "\n"])
def test_no_posture_is_none_that_a_manifest_accepts(text: str) -> None:
    assert Minimum(allowed=GAPS).objection(text) == "no posture"


@pytest.mark.parametrize("posture", [UNCONFINED.text, "nonsense"])
def test_a_node_below_the_minimum_is_refused_by_name_and_nothing_of_it_is_opened(posture: str) -> None:
    leaf = next(name for name in Network(7, 1).tree.parent if not Network(7, 1).tree.children[name])
    network = Network(7, 1, postures={leaf: posture})
    assert network.run()
    assert {drop.expected for _, drop in network.drops} == {f"{leaf} in a sandbox as the manifest demands"}
    began = [report for name, report in network.reports if report.what == "began without"]
    assert began[0].contributors == {leaf}
    assert network.openings
    assert not any(leaf in opening.held for opening in network.openings)


def test_the_key_holder_too_refuses_its_apex() -> None:
    apex = Network(4, 1).tree.apex
    network = Network(4, 1, postures={apex: UNCONFINED.text})
    network.run()
    assert (network.key_holder, apex, "gaps no-sandbox") in {(who, d.who, d.came) for who, d in network.drops}
    assert not any(apex in opening.held for opening in network.openings)
