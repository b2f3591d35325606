"""A node's home folder, read and checked whole before anything starts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from keys import ceremony, transcript
from keys.errors import WardtreeError
from keys.identity import Card
from keys.manifest import TWO_PARTIES, Manifest
from keys.plan import Plan
from keys.vault import read_bounded
from node.address import default_bind, split
from node.protocol.party import Rules
from node.protocol.posture import UNCONFINED, Minimum, Posture
from node.sandbox.machine import POLICIES
from node.study import Study, parse_study
from node.tasks.loader import task_digest, task_source
from topology import Member, Placement, Roster, Tree

SETTINGS = "node.toml"
MODEL = "model.npz"
"""The model as it was published last: in the home a link to where the relay writes it."""
BEST = "best.npz"
"""The evaluated model whose published figure was the best, in the relay's folder."""
RELAY = "relay"
"""The folder that the relay may write."""
BASE = "base.npz"
"""The published model that this version of the manifest goes on from, where it does."""
OPENED = "opened.bin"
"""At the key holder: totals of a round that is not closed."""
LEDGER = "ledger.jsonl"
STATUS = "status/status.json"
"""Below the relay's folder, in one of its own: the page process reads that, and neither model nor totals."""
LOCK = "lock"
LOCK_SECONDS = 3.0
"""How long the processes of a node that was killed may take to end, and let go of its home."""

WINDOW = 4
"""Segments that may be on their way over one link, unconsumed."""


class HomeError(WardtreeError):
    """The node's folder is not ready to run."""


@dataclass(frozen=True)
class Options:
    """What whoever starts a node may ask for. The debug seeds count only if the manifest allows the check.

    Attributes:
        check_seeds: one of 32 bytes for each round, from 0; empty: no sum check.
        history: a folder for the published model of every round; None: only the last is kept.
        policy: what confines the rooms, instead of what ``node.toml`` says; "off" only with the next.
        insecure_development: whether they may be left unconfined.
        status: whether the relay keeps the status file.
        status_port: where the page process listens, on this machine only; 0: anywhere free.
    """

    check_seeds: tuple[bytes, ...] = ()
    history: Path | None = None
    policy: str | None = None
    insecure_development: bool = False
    status: bool = False
    status_port: int | None = None


@dataclass(frozen=True)
class Home:
    """Everything public that a node starts from. Secrets stay sealed in their files."""

    path: Path
    card: Card
    manifest: Manifest
    study: Study
    plan: Plan
    placement: Placement
    data: Mapping[str, Any]
    bind: str | None
    readable: tuple[Path, ...]
    policy: str = "required"
    status_port: int | None = None
    posture: Posture = UNCONFINED
    addresses: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.card.name

    @property
    def roster(self) -> Roster:
        return self.placement.roster

    @cached_property
    def tree(self) -> Tree:
        """The tree when everyone is there."""
        return self.placement.tree(self.roster.names)

    @property
    def is_key_holder(self) -> bool:
        return self.name == self.manifest.key_holder

    @property
    def ledger(self) -> Path:
        return self.path / LEDGER

    @property
    def openings(self) -> Path:
        """The ledger of what was opened with this key, and whether it is retired: the key room's."""
        return self.path / f"openings-{self.manifest.public_key_digest[:16]}.jsonl"

    @property
    def relay_folder(self) -> Path:
        """The relay's own, the only folder in which it can make files."""
        return self.path / RELAY

    @property
    def task_source(self) -> Path:
        """The file or the package that holds the task, and that all parties signed."""
        return task_source(self.study.task.class_name, self.study.task.options)

    @property
    def digest(self) -> bytes:
        return bytes.fromhex(self.manifest.digest)

    def address(self, card: Card) -> str | None:
        """Where a party listens, as ``host:port``; by number once :func:`node.sandbox.names.resolve` found it."""
        return self.addresses.get(card.name, card.endpoint)

    @property
    def secret_key(self) -> Path:
        """Where the key holder has the sealed secret key that belongs to the manifest."""
        return self.path / ceremony.secret_key_file(self.manifest.public_key_digest)

    @property
    def share(self) -> float:
        """This party's public weight over the largest one."""
        return self.manifest.weights[self.name] / max(self.manifest.weights.values())

    @property
    def minimum(self) -> Minimum:
        """What every node's sandbox must be."""
        return Minimum(frozenset(self.manifest.sandbox_gaps), frozenset(self.study.sandbox.demand))

    @property
    def rules(self) -> Rules:
        return Rules(
            schedule=self.study.schedule,
            min_hidden=self.manifest.quorum,
            values_per_segment=self.plan.values_per_segment,
            window=WINDOW,
            gather_seconds=self.study.deadlines.round_seconds,
            join_seconds=self.study.deadlines.join_seconds,
            minimum=self.minimum,
            sample=self.study.aggregation.sample,
            near_sets=self.study.evaluation.allow_near_sets,
        )


def roster_of(manifest: Manifest) -> Roster:
    """The roster as the tree sees it: who takes part, who listens."""
    members = tuple(Member(card.name, card.endpoint is not None) for card in manifest.cards)
    return Roster(members, manifest.key_holder)


def load_home(path: Path, now: datetime) -> Home:
    """Read and check a home folder.

    Raises:
        WardtreeError, TopologyError: the first thing that is wrong, as one line.
    """
    if not path.is_dir():
        raise HomeError(f"{path}: a node's home folder was expected; `wardtree ceremony identity new` makes one")
    manifest = ceremony.verify(path / ceremony.MANIFEST, now)
    _check_record(path, manifest, now)
    card = ceremony.read_card(path / ceremony.CARD)
    if card.name not in manifest.names or manifest.card(card.name) != card:
        raise HomeError(f"{path}: the card of {card.name} is not the one in the manifest; join with your own manifest")
    plan = Plan.from_dict(manifest.plan)
    if len(manifest.cards) > plan.max_parties:
        raise HomeError(
            f"{path}: the plan in the manifest sums {plan.max_parties} parties exactly, "
            f"the manifest has {len(manifest.cards)}"
        )
    public_key = read_bounded(path / ceremony.PUBLIC_KEY, ceremony.MAX_PUBLIC_KEY)
    if hashlib.sha256(public_key).hexdigest() != manifest.public_key_digest:
        raise HomeError(f"{path / ceremony.PUBLIC_KEY}: not the public key whose digest all parties signed")
    study = parse_study(manifest.study, "the study in the manifest")
    if task_digest(study.task.class_name, study.task.options) != manifest.task_digest:
        raise HomeError(
            f"task {study.task.class_name}: its code here is not the code that all parties signed; "
            "install the version named in the ceremony, or start a new one"
        )
    experiment = TWO_PARTIES in manifest.debug
    if len(manifest.cards) == 2 and not (experiment or (manifest.allow_two_parties and study.privacy.is_private)):
        raise HomeError(
            f"{path}: of two members each learns the other's update: expected [privacy] and allow_two_parties in the "
            "study, came neither noise nor an experiment that both signed"
        )
    secret_key = path / ceremony.secret_key_file(manifest.public_key_digest)
    if card.name == manifest.key_holder and not secret_key.is_file():
        raise HomeError(f"{secret_key}: the key holder's secret key is missing")
    settings = read_settings(path / SETTINGS)
    sandbox, data = settings.get("sandbox", {}), settings.get("data", {})
    return Home(
        path=path,
        card=card,
        manifest=manifest,
        study=study,
        plan=plan,
        placement=Placement(roster_of(manifest), bytes.fromhex(manifest.tree_seed), study.aggregation.tree),
        data=data,
        bind=settings.get("network", {}).get("bind") or (card.endpoint and default_bind(card.endpoint)),
        readable=readable_files([data, sandbox.get("read", [])], path),
        policy=sandbox.get("policy", "required"),
        status_port=settings.get("operation", {}).get("status_port"),
    )


def _check_record(path: Path, manifest: Manifest, now: datetime) -> None:
    """Obey the transcript that the home keeps: what was agreed, revoked or destroyed since the node joined."""
    record = transcript.read_home(path, now)
    if record is None:
        return
    history = record.history
    newest = history.in_force
    if newest is None or newest.digest != manifest.digest:
        version = newest.version if newest else 0
        raise HomeError(
            f"{path}: version {version} of the manifest is the newest in this home's transcript, and the home follows "
            f"version {manifest.version}; join version {version}"
        )
    if history.revoked:
        raise HomeError(
            f"{path}: version {manifest.version} of the manifest holds no longer: {', '.join(sorted(history.revoked))} "
            "revoked the signature; the others can agree on a new version (`wardtree ceremony rotate`)"
        )
    if gone := history.destroyed.get(manifest.public_key_digest):
        raise HomeError(
            f"{path}: {gone.by} destroyed the secret key of version {manifest.version} on {gone.time}: nothing can be "
            "opened any more; a study goes on only under a new version with a new key"
        )


def read_settings(path: Path) -> dict[str, Any]:
    """``node.toml``: what this institution alone decides. ``[data]`` is for the task; ``[network] bind``,
    ``[sandbox] policy, read`` and ``[operation] status_port`` for us.

    Raises:
        HomeError: names the key.
    """
    if not path.exists():
        return {}
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HomeError(f"{path}: not readable as TOML: {error}") from error
    for key, keys in settings.items():
        if key not in ("data", "network", "operation", "sandbox") or not isinstance(keys, dict):
            raise HomeError(f"{path}: expected the tables [data], [network], [operation] and [sandbox], came {key!r}")
    for key, value in settings.get("network", {}).items():
        if key != "bind" or not isinstance(value, str) or not _is_address(value):
            raise HomeError(f'{path}: network: expected bind = "host:port", came {key} = {value!r}')
    for key, value in settings.get("operation", {}).items():
        if key != "status_port" or type(value) is not int or not 1 <= value <= 65_535:
            raise HomeError(f"{path}: operation: expected status_port = 1 to 65535, came {key} = {value!r}")
    for key, value in settings.get("sandbox", {}).items():
        a_policy = key == "policy" and value in POLICIES
        some_paths = key == "read" and isinstance(value, list) and all(isinstance(each, str) for each in value)
        if not a_policy and not some_paths:
            expected = f'policy = {" or ".join(f"{name!r}" for name in POLICIES)}, or read = ["path", ...]'
            raise HomeError(f"{path}: sandbox: expected {expected}, came {key} = {value!r}")
    return settings


def _is_address(text: str) -> bool:
    try:
        split(text)
    except ValueError:
        return False
    return True


def readable_files(value: Any, home: Path) -> tuple[Path, ...]:
    """As :func:`_readable`, all of them."""
    return tuple(_readable(value, home))


def _readable(value: Any, home: Path) -> Iterator[Path]:
    """Every text in ``node.toml`` that names a file or folder, for the enclave to read: absolute, or from the home.

    Raises:
        HomeError: one names a folder that holds the home, and with it the keys of the node.
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _readable(each, home)
    elif isinstance(value, str) and value:
        try:
            path = (home / value).resolve(strict=True)
        except (OSError, ValueError, RuntimeError):
            return  # a text that is no path
        if path == home.resolve() or path in home.resolve().parents:
            raise HomeError(
                f"{home / SETTINGS}: {value!r}: holds the node's own home; an enclave must not read its keys"
            )
        yield path


def lock_home(path: Path) -> int:
    """Take the home for this process; gives the descriptor that keeps it.

    Raises:
        HomeError: another node runs from this folder, or it cannot be written.
    """
    try:
        descriptor = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HomeError(f"{path / LOCK}: cannot be written: {error.strerror}") from error
    deadline = time.monotonic() + LOCK_SECONDS
    while not _locked(descriptor):
        if time.monotonic() > deadline:
            os.close(descriptor)
            raise HomeError(f"{path}: another node is running from this home; two nodes need two identities")
        time.sleep(0.05)
    return descriptor


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
