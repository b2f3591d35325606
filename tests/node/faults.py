"""Seeded faults on the in-memory network, and what must hold whatever they are."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from node.protocol.contributor import Contributor
from node.protocol.keyholder import KeyHolder
from node.protocol.messages import EVALUATE
from tests.node.network import Network
from tests.node.played_node import FIRST
from topology import quorum_met, tells_apart


class ViolationError(AssertionError):
    """An invariant of the protocol was broken."""


@dataclass
class Outcome:
    """How the rounds of one run ended."""

    rounds: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)


def trouble(network: Network, faults: Counter[str], key_holder_too: bool = True) -> None:
    """Plan faults over the first part of a run; after it everything is mended and everyone is back."""
    draw = network.random
    until = draw.uniform(5.0, 15.0 * network.rules.schedule.last)
    network.slow = draw.choice((0.0, 0.0, 0.02, 0.1))
    network.doubled = draw.choice((0.0, 0.0, 0.05))
    network.key_holder_seconds = draw.choice((2.0, 8.0))
    victims = list(network.names[not key_holder_too :])

    def kill(name: str) -> None:
        if network.is_alive(name):
            faults["killed"] += 1
            network.kill(name)
            if draw.random() < 0.9:
                network.plan(network.now + draw.choice((0.05, 1.0, 3.0, 20.0)), lambda: restart(name))

    def kill_near(name: str) -> None:
        """Just after somebody trained, the apex let a total through, or one was opened: it, or one below it."""
        near = draw.choice((name, *network.tree.children[name]))
        if near in victims:
            kill(near)

    def restart(name: str) -> None:
        if network.nodes[name].machine.state.name != "ENDED" and not network.is_alive(name):
            faults["restarted"] += 1
            network.start(name)

    def stop(name: str) -> None:
        faults["stopped"] += 1
        network.stop(name)
        network.plan(network.now + draw.choice((0.5, 4.0, 15.0)), lambda: network.go_on(name))

    def cut(a: str, b: str) -> None:
        faults["cut"] += 1
        network.cut(a, b)

    for _ in range(draw.randrange(1, 3 + len(network.names) // 2)):
        when = draw.uniform(0.0, until)
        a, b = draw.sample(network.names, 2)
        name = draw.choice(victims)
        kind = draw.choice(("kill", "kill", "moment", "moment", "stop", "cut", "flicker", "own"))
        if kind == "kill":
            network.plan(when, lambda name=name: kill(name))  # type: ignore[misc]
        elif kind == "moment":
            moment = draw.choice(("training", "forwarded", "forwarded", "opening"))
            network.moments[moment, draw.randrange(network.rules.schedule.last + 1)] = kill_near
        elif kind == "stop":
            network.plan(when, lambda name=name: stop(name))  # type: ignore[misc]
        elif kind == "cut":
            network.plan(when, lambda a=a, b=b: cut(a, b))  # type: ignore[misc]
        elif kind == "flicker":
            network.plan(when, network.flicker)
        else:
            network.lose_own.add((name, draw.randrange(network.rules.schedule.last + 1)))

    def mend() -> None:
        network.mend()
        network.slow = network.doubled = 0.0

    network.plan(until, mend)


def run_with_faults(
    parties: int,
    seed: int,
    machines: tuple[type[KeyHolder], type[Contributor]] = (KeyHolder, Contributor),
    **options: Any,
) -> tuple[Network, Outcome]:
    """One study under seeded faults; raises :class:`ViolationError` when something that must hold does not."""
    network = Network(parties, seed, machines=machines, **options)
    outcome = Outcome()
    trouble(network, outcome.faults)
    if not network.run():
        raise ViolationError(f"seed {seed}: no progress after the faults ended")
    check(network)
    opened = Counter(opening.round for opening in network.openings)
    for round_, segments in opened.items():
        length = network.lengths[network.rules.schedule.purpose(round_)]
        opening = next(opening for opening in network.openings if opening.round == round_)
        asked = network.rules.chosen(frozenset(network.names), network.rules.schedule.purpose(round_), opening.base)
        whole = segments == network.rules.segments(length) and opening.listed == asked
        outcome.rounds["complete" if whole else "partial"] += 1
    tried = {round_ for what, round_, _ in network.disks[network.key_holder].records if what == "training"}
    outcome.rounds["failed"] += len(tried - opened.keys())
    return network, outcome


def require(condition: bool, text: str) -> None:
    if not condition:
        raise ViolationError(text)


def check(network: Network) -> None:
    """What must hold, whatever happened."""
    require(not network.violations, "; ".join(network.violations))
    seen = set()
    for opening in network.openings:
        require(len(set(opening.held)) == len(opening.held), f"{opening}: nobody is in it twice")
        listed = sorted(f"{name}:{opening.round}" for name in opening.listed)
        require(opening.held == listed, f"{opening}: the total is the sum over its listed set, of this round")
        require(quorum_met(opening.listed, network.rules.min_hidden), f"{opening}: everyone is hidden")
        require((opening.round, opening.segment) not in seen, f"{opening}: one opening per round and segment")
        seen.add((opening.round, opening.segment))
    evaluated = {o.round: o.listed for o in network.openings if network.rules.schedule.purpose(o.round) == EVALUATE}
    earlier: list[frozenset[str]] = []
    for listed in evaluated.values():
        apart = tells_apart(listed, earlier, network.rules.min_hidden)
        earlier.append(listed)
        require(not apart, "two evaluations over sets that tell of too few parties")
    for round_, sets in network.ciphertexts_at_key_holder.items():
        require(len(sets) == 1, f"round {round_} reached the key holder over {len(sets)} sets")
    published: dict[bytes, set[frozenset[str]]] = {}
    for total in network.published:
        published.setdefault(total.base, set()).add(total.contributors)
    require(all(len(sets) == 1 for sets in published.values()), "two published totals on one base over different sets")
    chain = network.disks[network.key_holder].history
    for name, disk in network.disks.items():
        require(disk.history == chain[: len(disk.history)], f"{name}: its models are the key holder's, round by round")
        require(len(set(disk.history)) == len(disk.history), f"{name}: no state twice")
        require(disk.state == (disk.history[-1] if disk.history else FIRST), f"{name}: its disk has its last state")
        if name == network.key_holder:
            continue
        trained = [round_ for what, round_, _ in disk.records if what == "training"]
        require(len(trained) == len(set(trained)), f"{name}: trained twice in one round")
    for name, node in network.nodes.items():
        if node.machine.state.name == "ENDED":
            require(not node.staged, f"{name}: ends wiped")
            require(not node.training, f"{name}: its enclave ended")
            require(getattr(node.machine, "round", None) is None, f"{name}: holds no ciphertext")
            same = network.disks[name].state == network.disks[network.key_holder].state
            require(node.error is not None or same, f"{name}: ends with the model, or says why not")
