"""A proposal in plain words, for the person who is to sign it, and what changes against the version before."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from keys.manifest import Manifest
from keys.words import in_lines
from node.study import Study, parse_study
from node.tasks.loader import BUILTIN, users_code


def review(manifest: Manifest, previous: Manifest | None = None, own_base: str | None = None) -> str:
    """The whole text.

    Args:
        previous: the version that the reader's home follows, if it follows one.
        own_base: digest of the model that the reader's node published last, as ``previous`` names it.

    Raises:
        StudyError: the study in the proposal cannot be used.
    """
    study = parse_study(manifest.study, "the study in the proposal")
    lines = [*_heading(manifest), ""]
    sections = {
        "Who": _who(manifest),
        "What is done with the data": _what(manifest, study),
        "What is protected, and how": _protection(manifest, study),
        "The model": _model(manifest, previous, own_base),
    }
    if previous and previous.digest != manifest.digest:
        sections[f"What changes against version {previous.version}"] = differences(previous, manifest)
    sections["The study, word for word"] = (f"| {line}" for line in manifest.study.rstrip("\n").split("\n"))
    sections["This very text has the digest"] = iter([manifest.digest, *in_lines(bytes.fromhex(manifest.digest))])
    for title, section in sections.items():
        lines += [title, *(f"  {line}" for line in section), ""]
    return "\n".join(lines)


def _heading(manifest: Manifest) -> Iterator[str]:
    yield f"Proposal: version {manifest.version} of the federation {manifest.federation}"
    yield f"In force from {manifest.created} until {manifest.expires}, once all have signed"
    if manifest.previous:
        yield f"Follows version {manifest.version - 1}, digest {manifest.previous}"


def _who(manifest: Manifest) -> Iterator[str]:
    yield f"{manifest.key_holder} holds the secret key: it alone can decrypt, and only sums over all others reach it."
    for card in manifest.cards:
        examples = f"about {card.examples} examples" if card.examples else "no number of examples"
        where = f"reached at {card.endpoint}" if card.endpoint else "dials out only"
        yield f"{card.name}: {where}; declares {examples}; weight {manifest.weights[card.name]}"
        yield f"    {' '.join(card.fingerprint)}"
    yield f"The next version needs all of its own members, and {manifest.threshold} of these {len(manifest.cards)}."


def _what(manifest: Manifest, study: Study) -> Iterator[str]:
    name, options = study.task.class_name, study.task.options
    origin = "comes with wardtree" if name in BUILTIN else "is not part of wardtree: read its code before you sign"
    yield f'Study "{study.name}", {study.rounds} rounds of training.'
    code = users_code(name, options)
    if code is not None:
        origin = f"runs {code}, which is not part of wardtree: read its code before you sign"
    yield f"Task {name} ({origin}); the code that will touch the data has the digest"
    yield f"    {manifest.task_digest}"
    if name == "tabular":
        yield from _columns(options)
    elif name not in BUILTIN or code is not None:
        yield "    Which data it reads is for this code alone to say."
    yield f"Each value of an update is clipped to ±{study.aggregation.clip:g} and rounded to {_bits(study)}."
    yield "Nothing leaves a hospital but its encrypted update; everyone sees the sums, and the model."


def _columns(options: Mapping[str, Any]) -> Iterator[str]:
    target = options.get("target", {})
    yield f"Outcome: column {target.get('column')}"
    yield "Columns that are read:"
    for column, kind in options.get("features", {}).items():
        if "range" in kind:
            low, high = kind["range"]
            yield f"    {column}: a number from {low} to {high}"
        else:
            yield f"    {column}: {', '.join(map(str, kind.get('levels', ())))}"


def _bits(study: Study) -> str:
    return f"{study.aggregation.value_bits} bits"


def _protection(manifest: Manifest, study: Study) -> Iterator[str]:
    if len(manifest.cards) == 2:
        yield "NOBODY IS HIDDEN: of two members, each learns the other's update by subtraction."
    else:
        yield f"Every published sum hides each party among at least {manifest.min_hidden} others."
    budget = study.privacy.model_dump()
    mode = budget.pop("mode")
    if mode == "none":
        yield "Privacy budget: none. What the model itself tells of patients is not limited by differential privacy."
    else:
        told = ", ".join(f"{key} = {value}" for key, value in budget.items())
        yield f"Privacy budget: mode {mode}, {told}"
    gaps = ", ".join(manifest.sandbox_gaps)
    yield f"Sandbox: {'may lack ' + gaps if gaps else 'nothing may be missing'}."
    yield f"Debug modes: {', '.join(manifest.debug) or 'none'}."
    plan = ", ".join(f"{name} = {value}" for name, value in sorted(manifest.plan.items()))
    yield f"Encryption: {plan}"
    yield f"Public key: {manifest.public_key_digest}"


def _model(manifest: Manifest, previous: Manifest | None, own_base: str | None) -> Iterator[str]:
    if manifest.base is None:
        yield "Begins anew."
        return
    yield f"Goes on from the published model {manifest.base}"
    if previous:
        same = own_base == manifest.base
        yield (
            "    which is the one that your node published last."
            if same
            else ("    WHICH IS NOT THE ONE that your node published last: ask the coordinator why before you sign.")
        )


def differences(old: Manifest, new: Manifest) -> Iterator[str]:
    """What is not the same in two versions, a line each; a changed study line by line."""
    before, after = ({card.name: card for card in manifest.cards} for manifest in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            yield f"{name} leaves"
        elif name not in before:
            yield f"{name} is new"
        elif before[name].keys != after[name].keys:
            yield f"{name} HAS OTHER KEYS than before"
        elif before[name] != after[name]:
            yield f"{name} has a new card: " + ", ".join(
                f"{what} {getattr(before[name], what)} -> {getattr(after[name], what)}"
                for what in ("endpoint", "examples")
                if getattr(before[name], what) != getattr(after[name], what)
            )
    plain = (
        "key_holder", "public_key_digest", "task_digest", "min_hidden", "threshold", "allow_two_parties",
        "tree_seed", "expires",
    )  # fmt: skip
    for field in plain:
        if getattr(old, field) != getattr(new, field):
            yield f"{field.replace('_', ' ')}: {getattr(old, field)} -> {getattr(new, field)}"
    for field in ("sandbox_gaps", "debug"):
        added, gone = (set(getattr(a, field)) - set(getattr(b, field)) for a, b in ((new, old), (old, new)))
        if added or gone:
            words = [*(f"{name} is new" for name in sorted(added)), *(f"{name} is gone" for name in sorted(gone))]
            yield f"{field.replace('_', ' ')}: {', '.join(words)}"
    for name in sorted(old.weights.keys() & new.weights.keys()):
        if old.weights[name] != new.weights[name]:
            yield f"weight of {name}: {old.weights[name]} -> {new.weights[name]}"
    for name in sorted(old.plan.keys() | new.plan.keys()):
        if old.plan.get(name) != new.plan.get(name):
            yield f"encryption plan, {name}: {old.plan.get(name)} -> {new.plan.get(name)}"
    if old.study == new.study:
        yield "the study is the same"
    else:
        yield "the study, line by line (- before, + now):"
        delta = difflib.unified_diff(old.study.splitlines(), new.study.splitlines(), lineterm="", n=0)
        yield from (f"    {line}" for line in delta if not line.startswith(("---", "+++", "@@")))
