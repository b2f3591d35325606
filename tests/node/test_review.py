"""What a person reads before signing, and what changed against the version before."""

from __future__ import annotations

from dataclasses import replace
from importlib.resources import files

import pytest

from keys.errors import WardtreeError
from keys.words import in_lines
from node.review import differences, review
from tests.keys.test_succession import NEW, OLD, manifest

HEART = (files("node") / "studies" / "heart.toml").read_text(encoding="utf-8")
FIRST = manifest(
    OLD.values(), study=HEART, sandbox_gaps=("landlock-tcp",), debug=("check-sums",), plan={"prime_bits": [60, 30]},
    allow_two_parties=False,
)  # fmt: skip


def test_a_review_says_who_what_and_how_protected() -> None:
    text = review(FIRST)
    for card in FIRST.cards:
        assert f"{card.name}: reached at {card.name}.example:7000; declares no number of examples; weight 1" in text
        assert " ".join(card.fingerprint) in text
    for told in (
        "ada holds the secret key",
        "The next version needs all of its own members, and 3 of these 5.",
        'Study "heart", 10 rounds of training.',
        "Task tabular (comes with wardtree)",
        FIRST.task_digest,
        "Outcome: column num",
        "chol: a number from 50 to 700",
        "sex: Female, Male",
        "Each value of an update is clipped to ±1 and rounded to 14 bits.",
        "among at least 2 others",
        "Privacy budget: none.",
        "Sandbox: may lack landlock-tcp.",
        "Debug modes: check-sums.",
        "prime_bits = [60, 30]",
        FIRST.public_key_digest,
        "Begins anew.",
        "until 2026-12-21T10:00:00Z",
        FIRST.digest,
        *in_lines(bytes.fromhex(FIRST.digest)),
    ):
        assert told in text, told
    assert "".join(f"  | {line}\n" for line in HEART.rstrip().split("\n")) in text
    assert "What changes" not in text


def test_a_task_of_ones_own_is_to_be_read() -> None:
    own = HEART.replace('class = "tabular"', 'class = "our.tasks:Stay"')
    text = review(replace(FIRST, study=own))
    assert "Task our.tasks:Stay (is not part of wardtree: read its code before you sign)" in text
    assert "Columns that are read" not in text


def test_a_client_that_a_built_in_task_runs_is_to_be_read() -> None:
    table = '[study]\nname = "x"\nrounds = 1\nseed = 1\n[task]\nclass = "flower"\n'
    table += 'options = { client = "app.client:make" }\n'
    text = review(replace(FIRST, study=table))
    assert "Task flower (runs app.client:make, which is not part of wardtree: read its code before you sign)" in text
    assert "Which data it reads is for this code alone to say." in text


def test_two_parties_are_told_plainly() -> None:
    pair = [OLD["ada"], OLD["bo"]]
    text = review(manifest(pair, study=HEART, allow_two_parties=True))
    assert "NOBODY IS HIDDEN: of two members, each learns the other's update" in text
    assert "hides each party" not in text


def test_a_study_that_cannot_be_run_cannot_be_reviewed() -> None:
    with pytest.raises(WardtreeError, match="the study in the proposal: "):
        review(replace(FIRST, study="[study]\n"))


def test_the_model_that_a_version_goes_on_from_is_compared_with_ones_own() -> None:
    second = replace(FIRST, version=2, previous=FIRST.digest, base="ee" * 32)
    assert "which is the one that your node published last" in review(second, FIRST, "ee" * 32)
    for own in (None, "dd" * 32):
        assert "WHICH IS NOT THE ONE that your node published last" in review(second, FIRST, own)


def test_differences_are_complete() -> None:
    parties = [*(each for name, each in OLD.items() if name not in ("di", "eve")), NEW["eve"], NEW["fay"]]
    cards = [
        each.card("elsewhere.example:7001", 100) if each.name == "cy" else each.card(f"{each.name}.example:7000", 0)
        for each in sorted(parties, key=lambda each: each.name)
    ]
    second = replace(
        FIRST,
        version=2,
        previous=FIRST.digest,
        cards=tuple(cards),
        weights={"ada": 1, "bo": 2, "cy": 1, "eve": 1, "fay": 1},
        study=HEART.replace("rounds = 10", "rounds = 20"),
        sandbox_gaps=("seccomp",),
        debug=(),
        public_key_digest="ab" * 32,
        min_hidden=3,
        threshold=4,
        plan={"prime_bits": [60, 40]},
        expires="2027-01-21T10:00:00Z",
        task_digest="cd" * 32,
        key_holder="bo",
    )
    assert list(differences(FIRST, second)) == [
        "cy has a new card: endpoint cy.example:7000 -> elsewhere.example:7001, examples 0 -> 128",
        "di leaves",
        "eve HAS OTHER KEYS than before",
        "fay is new",
        "key holder: ada -> bo",
        f"public key digest: {'aa' * 32} -> {'ab' * 32}",
        f"task digest: {'cc' * 32} -> {'cd' * 32}",
        "min hidden: 2 -> 3",
        "threshold: 3 -> 4",
        "expires: 2026-12-21T10:00:00Z -> 2027-01-21T10:00:00Z",
        "sandbox gaps: seccomp is new, landlock-tcp is gone",
        "debug: check-sums is gone",
        "weight of bo: 1 -> 2",
        "encryption plan, prime_bits: [60, 30] -> [60, 40]",
        "the study, line by line (- before, + now):",
        "    -rounds = 10",
        "    +rounds = 20",
    ]
    assert "What changes against version 1" in review(second, FIRST)
    assert list(differences(FIRST, replace(FIRST, version=2, previous=FIRST.digest))) == ["the study is the same"]
