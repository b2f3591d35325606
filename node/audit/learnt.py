"""Who learnt what: the contract of the design, with the names and counts of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from node.audit.facts import PURPOSES, Agreement, Learnt, Own, Round
from topology.quorum import hidden


def learnt_by(agreements: Sequence[Agreement], rounds: Sequence[Round], ledgers: Sequence[Own]) -> tuple[Learnt, ...]:
    """For everyone who had a part, and for those who had none, in sentences."""
    names = sorted({member.name for each in agreements for member in each.members})
    holders = sorted({each.key_holder for each in agreements})
    everyone = Learnt(who="all parties", sentences=tuple(_everyone(rounds)))
    own = {each.party: each for each in ledgers}
    parties = [
        Learnt(who=name, sentences=tuple(_party(name, name in holders, rounds, own.get(name)))) for name in names
    ]
    nobody = Learnt(
        who="nobody",
        sentences=(
            "Another party's data, or another party's update: neither in the clear, nor in a form that it could "
            "decrypt.",
            f"This rests on {' and '.join(holders)}, who held the secret key: that it followed the protocol and "
            "colluded with nobody. With the parent of a leaf in the tree it could have opened that leaf's update.",
        ),
    )
    outside = Learnt(
        who="others",
        sentences=(
            "Whoever saw the network: who spoke with whom, when and how many bytes, never a value.",
            "Whoever has the manifest and the transcript, which are no secret: members, study, rules and signatures.",
        ),
    )
    return (everyone, *parties, nobody, outside)


def _everyone(rounds: Sequence[Round]) -> Iterator[str]:
    yield "The signed manifest: members and their public keys, the study, the digest of the task's code, the weights."
    yield "Which parties were in which round."
    for purpose, called in PURPOSES.items():
        some = [each for each in rounds if each.purpose == purpose]
        if some:
            sizes = sorted({each.integers for each in some if each.integers})
            count = " or ".join(f"{size:,}" for size in sizes) if sizes else "an unrecorded number of"
            yield f"The published sums of {len(some)} {called} {_plural('round', some)}: {count} integers each."
    if rounds:
        yield f"The model after each of them; the last state is {rounds[-1].state}."


def _party(name: str, has_key: bool, rounds: Sequence[Round], own: Own | None) -> Iterator[str]:
    yield "Besides that: its own data, and its own updates."
    inside = [each for each in rounds if name in each.contributors]
    outside = [each for each in rounds if name in each.left_out]
    yield (
        f"Its update is in {len(inside)} published {_plural('sum', inside)}; it was left out of {len(outside)} "
        f"{_plural('round', outside)} whose sums it learnt as well."
    )
    if inside:
        fewest = min(hidden(each.contributors) for each in inside)
        sums = (
            "one other party's update alone: both had signed that"
            if fewest == 1
            else f"the sum of the others, of {fewest} of them in the smallest round"
        )
        yield f"By subtracting its own update from a published sum it could learn {sums}."
    if has_key:
        yield "It held the secret key. It received one sum a segment over all other contributors, no other ciphertext."
    else:
        yield "Ciphertexts that its children in the tree sent it, which it could add and not open."
    if own is None:
        yield "Its own ledger is not in this record."


def _plural(word: str, several: Sequence[object]) -> str:
    return word if len(several) == 1 else f"{word}s"
