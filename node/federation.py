"""From a study and cards to a proposal: everything that is checked before anyone is asked to sign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from keys import ceremony
from keys.ceremony import Step
from keys.errors import WardtreeError
from keys.plan import Plan
from keys.planner import choose
from node.study import Study, check_options
from node.tasks.loader import task_digest
from topology import Member, check_placeable


class FederationError(WardtreeError):
    """This study cannot be run by these parties."""


def plan_for(study: Study) -> Plan:
    """The CKKS plan of a study. Its key is made before any task is loaded, so for updates of any length.

    Raises:
        PlanError: no plan is exact for so many parties and bits.
    """
    rules = study.aggregation
    plan = choose(rules.max_parties, rules.value_bits)
    return plan if rules.segment_ciphertexts is None else replace(plan, segment_ciphertexts=rules.segment_ciphertexts)


def check_size(study: Study, count: int) -> None:
    """Refuse numbers of parties that the study cannot protect.

    Raises:
        FederationError: says which rule, and what would be needed.
    """
    rules = study.aggregation
    if count > rules.max_parties:
        raise FederationError(f"{count} parties: aggregation.max_parties allows {rules.max_parties}")
    if count < 3:
        raise FederationError(
            f"{count} parties: at least 3 are needed. With two each learns the other's update by subtraction, "
            "unless aggregation.allow_two_parties and a local DP mode are on, and this version has none"
        )
    if count - 1 < rules.min_hidden:
        raise FederationError(
            f"{count} parties: aggregation.min_hidden = {rules.min_hidden} needs at least {rules.min_hidden + 1}"
        )


def weights_for(study: Study, examples: Mapping[str, int]) -> dict[str, int]:
    """The public weights: 1 for all, or each party's declared number of examples, bucketed by its card.

    Raises:
        FederationError: names who declared nothing.
    """
    if study.aggregation.weights == "equal":
        return dict.fromkeys(examples, 1)
    silent = sorted(name for name, number in examples.items() if number < 1)
    if silent:
        raise FederationError(
            f'aggregation.weights = "examples", but {", ".join(silent)} declared no number of examples: '
            "`wardtree ceremony card --examples N` makes a new card"
        )
    return dict(examples)


def propose(
    study_text: str,
    study: Study,
    source: str,
    cards: Sequence[Path],
    public_key: Path,
    key_holder: str,
    created: datetime,
    expires: datetime,
    out: Path,
    sandbox_gaps: Iterable[str] = (),
) -> Step:
    """Check the study, its task's options, the number of parties and where they can sit; write the proposal.

    ``sandbox_gaps`` names the parts of the sandbox that may be missing at a node without its refusing to start.

    Raises:
        WardtreeError, TopologyError: the first thing that is wrong.
    """
    check_options(study, source)
    read = [ceremony.read_card(path) for path in cards]
    check_size(study, len(read))
    if key_holder not in {card.name for card in read}:
        raise FederationError(f"the key holder {key_holder!r} has no card among the {len(read)} given")
    check_placeable([Member(card.name, card.endpoint is not None) for card in read], key_holder)
    return ceremony.propose(
        cards=cards,
        public_key=public_key,
        key_holder=key_holder,
        study=study_text,
        plan=plan_for(study).to_dict(),
        task_digest=task_digest(study.task.class_name),
        weights=weights_for(study, {card.name: card.examples for card in read}),
        created=created,
        expires=expires,
        out=out,
        min_hidden=study.aggregation.min_hidden,
        allow_two_parties=study.aggregation.allow_two_parties,
        sandbox_gaps=sandbox_gaps,
        debug=["check-sums"] if study.debug.check_sums else [],
    )
