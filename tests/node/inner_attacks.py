"""What a malicious inner node can do to one of its children: attack, what an undefended system publishes, what we do.

Everything is real: identities and canaries from a ceremony, encryptions, the key room's own process with its
ledger; for who rejoins, the round machine, the codec and the model keeper. The undefended system is played
here: it decrypts whatever total comes and publishes it, or takes whatever model it is handed.

``inner_attacks_page.py`` makes the table.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tenseal.sealapi as seal

from keys.canaries import round_key
from keys.ceremony import PUBLIC_KEY, SECRET_KIND, load_identity
from keys.ciphertexts import load, load_segment, make_context
from keys.ckks import Sealer
from keys.identity import Identity, verify
from keys.packing import Integers, unpack
from keys.plan import Plan
from keys.segments import add
from keys.vault import open_file
from node.home import Home, Options
from node.model_keeper import ModelKeeper
from node.protocol import events as ev
from node.protocol.codec import Codec
from node.protocol.contributor import Contributor
from node.protocol.messages import TRAIN, Close, Message, Snapshot
from node.published import state_part
from node.telemetry import Telemetry
from node.update import Model, seal_segment
from tests.node.homes import KEY_HOLDER, PASSPHRASE, Federation, make_federation
from tests.node.played_node import CONFINED
from tests.node.test_keyroom import living

NAMES = ("ada", "bo", "cy", "di", "eva")
PLAN = Plan(segment_ciphertexts=1)
LENGTH = 2000
BASE, OTHER_BASE = b"b" * 32, b"o" * 32


@dataclass(frozen=True)
class Total:
    """One segment's sum as the malicious apex passes it to the key holder."""

    round: int
    segment: int
    claimed: tuple[str, ...]
    ciphertexts: bytes


@dataclass
class Scene:
    """A federation whose apex is malicious and has the leaf ``victim`` as a child.

    ``integers`` are the updates of round, segment and party; the apex's own are zeros, as it knows them anyway.
    """

    federation: Federation
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    integers: dict[tuple[int, int, str], Integers] = field(default_factory=dict)

    @cached_property
    def home(self) -> Home:
        return self.federation.home(KEY_HOLDER)

    @property
    def apex(self) -> str:
        return self.home.tree.apex

    @cached_property
    def victim(self) -> str:
        children = self.home.tree.children
        return next(name for name in children[self.apex] if not children[name])

    @property
    def everyone(self) -> tuple[str, ...]:
        """All but the key holder."""
        return tuple(sorted(set(NAMES) - {KEY_HOLDER}))

    @property
    def rest(self) -> tuple[str, ...]:
        """All but the key holder and the victim."""
        return tuple(name for name in self.everyone if name != self.victim)

    @cached_property
    def sealer(self) -> Sealer:
        return Sealer(PLAN, (self.home.path / PUBLIC_KEY).read_bytes())

    @cached_property
    def identities(self) -> dict[str, Identity]:
        return {name: load_identity(self.federation.path(name), PASSPHRASE) for name in NAMES}

    def update(self, name: str, round_: int = 1, segment: int = 0) -> Integers:
        if name == self.apex:
            return np.zeros(LENGTH, np.int64)
        drawn = self.rng.integers(-PLAN.max_value, PLAN.max_value, LENGTH, endpoint=True)
        return self.integers.setdefault((round_, segment, name), drawn)

    def part(self, name: str, round_: int = 1, segment: int = 0, base: bytes = BASE) -> bytes:
        """What this party's enclave makes of its update: its canaries, encrypted."""
        box_key = self.home.manifest.card(KEY_HOLDER).box_key
        key = round_key(self.identities[name].box_secret, box_key, self.home.digest, round_, base)
        return seal_segment(self.update(name, round_, segment), segment, self.sealer, key)

    def parts(self, names: tuple[str, ...], round_: int = 1, segment: int = 0, base: bytes = BASE) -> list[bytes]:
        return [self.part(name, round_, segment, base) for name in names]

    def zeros(self, count: int) -> list[bytes]:
        return [self.sealer.seal(np.zeros(LENGTH, np.int64)) for _ in range(count)]

    def total(self, parts: list[bytes], round_: int = 1, segment: int = 0, names: tuple[str, ...] = ()) -> Total:
        return Total(round_, segment, names or self.everyone, add(parts, PLAN))


# ---- the attacks ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """``totals``: what reaches the key holder, the last of them false. ``read``: the victim's update out of what was
    published; ``target``: the round and segment of that update."""

    name: str
    totals: Callable[[Scene], list[Total]]
    read: Callable[[list[Integers]], Integers] = lambda published: published[-1]
    target: tuple[int, int] = (1, 0)
    isolates: bool = False


def _difference(published: list[Integers]) -> Integers:
    return published[-1] - published[-2]


def _without_it_then_replayed(scene: Scene) -> list[Total]:
    old = scene.parts(scene.rest)
    return [
        scene.total(old, names=scene.rest),
        scene.total([*old, scene.part(scene.victim, round_=2)], round_=2),
    ]


def _another_segment(scene: Scene) -> list[Total]:
    rest = scene.parts(scene.rest)
    first = scene.total([*rest, scene.part(scene.victim)])
    return [first, scene.total(rest, segment=1)]


def _old_state(scene: Scene) -> list[Total]:
    for name in (*scene.rest, KEY_HOLDER):  # by now they have converged; on the first model updates are large
        scene.integers[2, 0, name] = scene.update(name, round_=2) // 16
    stale = scene.part(scene.victim, round_=1, base=OTHER_BASE)
    return [scene.total([*scene.parts(scene.rest, round_=2), stale], round_=2)]


ATTACKS = (
    Attack(
        "drops all children but one, claims them all",
        lambda s: [s.total(s.parts((s.apex, s.victim)))],
        isolates=True,
    ),
    Attack(
        "the same, the missing noise made up with encryptions of zero",
        lambda s: [s.total([*s.parts((s.apex, s.victim)), *s.zeros(2)])],
        isolates=True,
    ),
    Attack("counts one child twice", lambda s: [s.total([*s.parts(s.everyone), s.part(s.victim)])]),
    Attack(
        "multiplies one child by 3",
        lambda s: [s.total([*s.parts(s.rest), *[s.part(s.victim)] * 3])],
    ),
    Attack(
        "multiplies one child by 16",
        lambda s: [s.total([*s.parts(s.rest), *[s.part(s.victim)] * 16])],
        isolates=True,
    ),
    Attack("adds two encryptions of zero", lambda s: [s.total([*s.parts(s.everyone), *s.zeros(2)])]),
    Attack(
        "replays the older round of all but one",
        _without_it_then_replayed,
        _difference,
        target=(2, 0),
        isolates=True,
    ),
    Attack(
        "replays another segment of all but one",
        _another_segment,
        lambda published: published[-2] - published[-1],
        isolates=True,
    ),
    Attack(
        "replays one child's ciphertext of another base model",
        lambda s: [s.total([*s.parts(s.rest), s.part(s.victim, base=OTHER_BASE)])],
    ),
    Attack("hands a rejoiner another model, and passes up what it trains on it", _old_state, isolates=True),
)


@dataclass(frozen=True)
class Result:
    """How one attack fared.

    Attributes:
        isolates: whether it is meant to leave the victim's update alone in what is published.
        correlations: of what an undefended system publishes, as the attacker reads it, with the victim's update: in a
            round without the key holder's own update, and in one with it.
        answers: what our key room answered to the false total in those rounds; ``published`` of them were published.
    """

    attack: str
    isolates: bool
    correlations: tuple[float, ...]
    answers: tuple[str, ...]
    published: int


def run_attack(attack: Attack, scene: Scene, with_own: tuple[bool, ...] = (False, True)) -> Result:
    """One attack against the undefended system and against ours, in rounds without and with the key holder's own."""
    totals = attack.totals(scene)
    victim = scene.integers[(*attack.target, scene.victim)]
    correlations, answers = [], []
    for has_own in with_own:
        own = [has_own * scene.update(KEY_HOLDER, total.round, total.segment) for total in totals]
        published = [opened_unchecked(scene, total) + mine for total, mine in zip(totals, own, strict=True)]
        correlations.append(float(np.corrcoef(attack.read(published), victim)[0, 1]))
        *honest, answer = opened_by_key_room(scene, totals, own if has_own else None)
        assert set(honest) <= {"opened"}, "what came before the false total is in order"
        answers.append(answer)
    return Result(attack.name, attack.isolates, tuple(correlations), tuple(answers), answers.count("opened"))


def opened_unchecked(scene: Scene, total: Total) -> Integers:
    """What a key holder without our checks publishes: it decrypts and rounds."""
    context = make_context(PLAN)
    secret = seal.SecretKey()
    load(secret, context, open_file(scene.home.secret_key, SECRET_KIND, PASSPHRASE))
    decryptor, encoder = seal.Decryptor(context, secret), seal.CKKSEncoder(context)
    slots = []
    for ciphertext in load_segment(total.ciphertexts, PLAN, context):
        plaintext = seal.Plaintext()
        decryptor.decrypt(ciphertext, plaintext)
        slots.append(encoder.decode_complex(plaintext)[: PLAN.slots])
    return unpack(np.array(slots), PLAN).values[:LENGTH]


def opened_by_key_room(scene: Scene, totals: list[Total], own: list[Integers] | None) -> Iterator[str]:
    """What our key room answers to each total: its own process, from the key holder's home as the ceremony left it."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(scene.federation.folder, Path(folder) / "copy")
        home = Federation(Path(folder) / "copy").home(KEY_HOLDER)
        with living(home) as room:
            for index, total in enumerate(totals):
                enclave = room.round()
                if own:
                    integers = own[index].astype("<i4").tobytes()
                    enclave.send("own", round=total.round, segment=total.segment, integers=integers)
                answer: dict[str, Any] = room.open(
                    total.ciphertexts,
                    total.round,
                    segment=total.segment,
                    base=BASE,
                    others=list(total.claimed),
                    own=KEY_HOLDER if own else None,
                    length=LENGTH,
                )
                room.close_round()
                enclave.close()
                yield answer["kind"]


# ---- a rejoiner and its parent --------------------------------------------------------------------------


@dataclass
class Rejoiner:
    """A member that was away in round 1: real machine, codec and model keeper, and a parent that lies to it."""

    scene: Scene
    folder: Path
    reports: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    trained_on: list[bytes] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.home = replace(self.scene.federation.home(self.scene.victim), path=self.folder)
        manifest = self.home.manifest
        self.codec = Codec(self.home.digest, self.home.roster, manifest.signing_keys, verify)
        self.keeper = ModelKeeper(self.home, Options(), Telemetry(None, self.home.name))
        self.keeper.begin(LENGTH, 0, bytes(4 * LENGTH))
        self.machine = Contributor(self.home.name, self.home.placement, self.home.rules)
        self.first = self.keeper.digest
        self.happen(ev.Ready(self.first, {TRAIN: LENGTH}, self.keeper.size, self.keeper.largest, CONFINED))
        self.happen(ev.Up(self.scene.apex))

    def happen(self, event: ev.Event) -> None:
        events = [event]
        while events:
            for command in self.machine.handle(events.pop(0)):
                match command:
                    case ev.Adopt():
                        good = self.keeper.adopt(command)
                        events.append(ev.Adopted(self.keeper.digest, self.keeper.size) if good else ev.NotAdopted())
                    case ev.Report(what):
                        self.reports.append(what)
                    case ev.HangUp(peer):
                        self.left.append(peer)
                    case ev.Train():
                        self.trained_on.append(self.keeper.digest)

    def hear(self, message: Message, signer: str, recipient: str = "") -> None:
        """Over the malicious parent, through the codec."""
        frame = self.codec.encode(message, signer, recipient, self.scene.identities[signer].sign)
        decoded = self.codec.decode(self.scene.apex, *frame.parts)
        self.happen(ev.Received(self.scene.apex, decoded.sender, decoded.recipient, decoded.message, decoded))

    def model(self, round_: int, value: float) -> Model:
        return Model(round_, np.full(LENGTH, value, np.float32))

    def closed(self, model: Model, base: bytes) -> Close:
        """What the key holder signs when a round ended with this model."""
        return Close(model.round, base, frozenset(NAMES), 1, model.digest(self.home.digest))

    def hand_over(self, close: Close, model: Model) -> None:
        """The key holder's close, and a model that is said to be the one it names."""
        self.hear(close, KEY_HOLDER)
        self.hear(Snapshot(close.state, 0, 1, state_part(model, 0, 1 << 20)), self.scene.apex, self.home.name)


def make_scene(folder: Path) -> Scene:
    """The ceremony; in every tree of five the apex has a leaf as a child."""
    return Scene(make_federation(folder, plan=PLAN, names=NAMES))


def hand_false_model(scene: Scene, folder: Path) -> Rejoiner:
    """A parent hands its child a model that is not the one that the key holder signed."""
    rejoiner = Rejoiner(scene, folder)
    true, false = rejoiner.model(1, 1.0), rejoiner.model(1, -1.0)
    rejoiner.hand_over(rejoiner.closed(true, rejoiner.first), false)
    return rejoiner
