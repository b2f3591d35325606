"""From a study and cards to a proposal: everything that is checked before anyone is asked to sign."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from keys import ceremony
from keys.ceremony import Step
from keys.errors import WardtreeError
from keys.identity import Card
from keys.manifest import Manifest
from keys.plan import Plan
from keys.planner import choose
from node.course import Regime
from node.home import BASE, MODEL
from node.protocol.messages import STATISTICS, TRAIN
from node.study import Study, check_options
from node.tasks.loader import task_digest
from topology import Member, check_placeable


class FederationError(WardtreeError):
    """This study cannot be run by these parties."""


def plan_for(study: Study) -> Plan:
    """The CKKS plan of a study. Its key is made before any task is loaded, so for updates of any length, but for the
    noise of hospital-level privacy: this takes room that grows with the length, and is planned for ``privacy.values``.

    Raises:
        PlanError: no plan is exact for so many parties and bits, and so much noise.
        PrivacyError: the noise cannot be had.
    """
    rules = study.aggregation
    plan = choose(rules.max_parties, rules.value_bits)
    if study.privacy.mode == "hospital":
        plan = choose(rules.max_parties, rules.value_bits, max_noise=_noise_room(study, plan))
    return plan if rules.segment_ciphertexts is None else replace(plan, segment_ciphertexts=rules.segment_ciphertexts)


def _noise_room(study: Study, plan: Plan) -> int:
    """What the noise of a total does not pass, in integers, for as many parties and values as the study allows."""
    rules, values, rooms = study.aggregation, study.privacy.values, []
    quorums = [(rules.min_hidden, rules.max_parties)]
    if rules.allow_two_parties or study.debug.two_parties:
        quorums.append((1, 2))
    for quorum, parties in quorums:
        regime = Regime.of(study, plan, quorum)
        rooms += [each.room(parties) for each in (regime.arranged(TRAIN, values),) if each]
        if study.privacy.statistics:
            rooms += [each.room(parties) for each in (regime.arranged(STATISTICS, values),) if each]
    return max(rooms)


def check_size(study: Study, count: int) -> None:
    """Refuse numbers of parties that the study cannot protect.

    Raises:
        FederationError: says which rule, and what would be needed.
    """
    rules = study.aggregation
    if count > rules.max_parties:
        raise FederationError(f"{count} parties: aggregation.max_parties allows {rules.max_parties}")
    own_noise = rules.allow_two_parties and study.privacy.is_private
    if count == 2 and (study.debug.two_parties or own_noise):
        return
    if count < 3:
        raise FederationError(
            f"{count} parties: at least 3 are needed. With two each learns the other's update by subtraction, "
            "unless aggregation.allow_two_parties and [privacy] are on"
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
            "`wardtree ceremony identity card --examples N` makes a new card"
        )
    return dict(examples)


@dataclass(frozen=True)
class Succession:
    """What a version says that another one comes before: see :class:`keys.manifest.Manifest` for the fields."""

    previous: Manifest
    base: str | None


def propose(
    study_text: str,
    study: Study,
    source: str,
    cards: Sequence[Card],
    public_key_digest: str,
    key_holder: str,
    created: datetime,
    expires: datetime,
    out: Path,
    sandbox_gaps: Iterable[str] = (),
    threshold: int | None = None,
    succession: Succession | None = None,
) -> Step:
    """Check the study, its task's options, the number of parties and where they can sit; write the proposal.

    ``sandbox_gaps`` names the parts of the sandbox that may be missing at a node without its refusing to start.

    Raises:
        WardtreeError, TopologyError: the first thing that is wrong.
    """
    check_options(study, source)
    check_size(study, len(cards))
    if key_holder not in {card.name for card in cards}:
        raise FederationError(f"the key holder {key_holder!r} has no card among the {len(cards)} given")
    check_placeable([Member(card.name, card.endpoint is not None) for card in cards], key_holder)
    return ceremony.propose(
        cards=cards,
        public_key_digest=public_key_digest,
        key_holder=key_holder,
        study=study_text,
        plan=plan_for(study).to_dict(),
        task_digest=task_digest(study.task.class_name, study.task.options),
        weights=weights_for(study, {card.name: card.examples for card in cards}),
        created=created,
        expires=expires,
        out=out,
        min_hidden=study.aggregation.min_hidden,
        threshold=threshold,
        base=succession.base if succession else None,
        allow_two_parties=study.aggregation.allow_two_parties or study.debug.two_parties,
        sandbox_gaps=sandbox_gaps,
        debug=study.debug.names,
        tree_seed=succession.previous.tree_seed if succession else None,
        previous=succession.previous if succession else None,
    )


def next_cards(previous: Manifest, new: Iterable[Card], leaving: Iterable[str]) -> list[Card]:
    """The roster of ``previous`` without who is leaving, with new cards in place of old ones of the same name.

    Raises:
        FederationError: somebody leaves who is not there.
    """
    cards = {card.name: card for card in previous.cards}
    for name in leaving:
        if cards.pop(name, None) is None:
            raise FederationError(f"{name!r} cannot leave: the members are {', '.join(previous.names)}")
    return list((cards | {card.name: card for card in new}).values())


def next_base(home: Path, previous: Manifest) -> str | None:
    """The digest of the model that a version after ``previous`` goes on from, as ``home`` has it published."""
    from node.continuation import published_model

    model = published_model(home, previous)
    return model.digest(bytes.fromhex(previous.digest)).hex() if model else None


def install_base(home: Path, manifest: Manifest, model: Path | None) -> Path | None:
    """Put the model that ``manifest`` goes on from into ``home``: of the file given, or of the home's own.

    Raises:
        FederationError: none of them is the model that all signed.
    """
    from node.continuation import find_base
    from node.published import load_model, save_model

    if manifest.base is None:
        return None
    found = find_base(manifest, [*([model] if model else []), home / MODEL, home / BASE])
    if found is None:
        raise FederationError(
            f"version {manifest.version} goes on from the published model {manifest.base[:16]}, which is not "
            f"{'in ' + str(model) if model else 'in this home'}: get the file {MODEL} of another party, and give it as "
            "--model"
        )
    save_model(home / BASE, load_model(found))
    return home / BASE
