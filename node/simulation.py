"""A federation for one machine: its parties and their data, and the ceremony, held file by file as people would.

Here one process knows all passphrases, which only a simulation may.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keys import ceremony, steps
from keys.canonical import digest
from keys.errors import WardtreeError
from keys.identity import check_name
from keys.transcript import TRANSCRIPT
from keys.vault import KdfCost, write_private
from node.address import free_ports, join
from node.apart import NoAnswerError, call_apart
from node.federation import plan_for, propose
from node.home import SETTINGS
from node.protocol.posture import Minimum
from node.sandbox.machine import detect, require
from node.study import Study
from topology import Member, Roster, Tree, place

KDF = KdfCost(operations=2, memory_bytes=19 << 20)
"""The cheapest allowed: the passphrases of a simulation are random, nobody guesses them."""

STUDIES = Path(__file__).parent / "studies"
_PARTIES = ".data.toml"


class LocalError(WardtreeError):
    """A local federation cannot be started like this."""


@dataclass(frozen=True)
class Federation:
    """What a local run is made from.

    Attributes:
        study_text: the TOML that all parties sign.
        data: for each party its own ``[data]`` table.
        key_holder: who holds the secret key.
        out: the run's folder; homes, ceremony files, models and reports go there.
        allowed_gaps: parts of the sandbox that may be missing: they go into the manifest.
        policy: what confines the rooms; "off": nothing does, for work on wardtree itself.
    """

    study_text: str
    study: Study
    data: Mapping[str, Mapping[str, Any]]
    key_holder: str
    out: Path
    allowed_gaps: tuple[str, ...] = ()
    policy: str = "required"

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.data))

    def home(self, name: str) -> Path:
        return self.out / "homes" / name


def manifest_gaps(federation: Federation) -> tuple[str, ...]:
    """The gaps that the manifest allows by name: those asked for, and what this run cannot but have, since all
    its nodes are this user's: that it is root, or that the sandbox was left out.

    Raises:
        SandboxError: this machine has a gap besides.
    """
    posture = detect(federation.policy)
    gaps = {*federation.allowed_gaps, *(posture.gaps & {"root", "no-sandbox"})}
    minimum = Minimum(frozenset(gaps), frozenset(federation.study.sandbox.demand))
    require(posture, minimum, "this machine", "run with --allow-gap, and the manifest allows it by name")
    return tuple(sorted(gaps))


def read_parties(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Read a file of parties: ``key_holder = "name"`` and one table per party, its ``[data]``.

    A relative path of csv, images, masks or features is taken from the file's own folder.

    Raises:
        LocalError: names the key.
    """
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LocalError(f"{path}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise LocalError(f"{path}: expected TOML, came a syntax error: {error}") from error
    key_holder = tables.pop("key_holder", None)
    for name, table in tables.items():
        check_name(name)
        if not isinstance(table, dict):
            raise LocalError(f"{path}: {name}: expected a table with the data of one party, came {table!r}")
        for kind in ("csv", "images", "masks", "features"):
            file = table.get(kind)
            if isinstance(file, str) and ":" not in file and not Path(file).is_absolute():
                table[kind] = str((path.parent / file).resolve())
    if key_holder not in tables:
        raise LocalError(f"{path}: key_holder: expected one of {', '.join(tables)}, came {key_holder!r}")
    return tables, key_holder


def simulated_parties(count: int, data: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """``count`` parties; where there are data, each gets its share of the rows."""
    width = max(2, len(str(count)))
    names = [f"party-{index:0{width}}" for index in range(1, count + 1)]
    shares = [{**data, "shard": f"{index}/{count}"} if data else {} for index in range(1, count + 1)]
    return dict(zip(names, shares, strict=True)), names[0]


def templates() -> tuple[str, ...]:
    """The names of the studies that come with wardtree."""
    return tuple(sorted(file.stem for file in STUDIES.glob("*.toml") if not file.name.endswith(_PARTIES)))


def template_text(name: str) -> tuple[str, str | None]:
    """The study of that name, and where its parties find their data, where it says so; both TOML.

    Raises:
        LocalError: there is none.
    """
    if name not in templates():
        raise LocalError(f"--template: expected one of {', '.join(templates())}, came {name!r}")
    data = STUDIES / f"{name}{_PARTIES}"
    return (STUDIES / f"{name}.toml").read_text("utf-8"), data.read_text("utf-8") if data.exists() else None


# ---- the ceremony ---------------------------------------------------------------------------------------


def hold_ceremony(federation: Federation, endpoints: Mapping[str, str] | None = None) -> dict[str, str]:
    """Identities, cards, key pair, proposal, signatures, manifest, transcript, joining: the files that people would
    pass around, in ``out/ceremony``.

    Args:
        endpoints: where each node listens; None: free ports of this machine.

    Returns:
        The passphrases, which are kept nowhere.
    """
    from node.keyroom import make_key

    table = federation.out / "ceremony"
    now = datetime.now(UTC)
    passphrases = {name: secrets.token_urlsafe(18) for name in federation.names}
    examples = _examples(federation)
    endpoints = endpoints or free_endpoints(federation.names)
    for name in federation.names:
        home = federation.home(name)
        ceremony.create_identity(home, name, passphrases[name], KDF)
        card = table / f"{name}.card.json"
        ceremony.make_card(home, passphrases[name], endpoints[name], examples[name], card)
        write_private(home / SETTINGS, _settings(federation.data[name]))
    holder = federation.key_holder
    make_key(federation.home(holder), passphrases[holder], plan_for(federation.study), table / "public.key", KDF)
    coordinator, record = ceremony.load_identity(federation.home(holder), passphrases[holder]), table / TRANSCRIPT
    propose(
        federation.study_text,
        federation.study,
        "study",
        [ceremony.read_card(table / f"{name}.card.json") for name in federation.names],
        digest(ceremony.read_public_key(table / "public.key")).hex(),
        holder,
        now,
        now + timedelta(days=1),
        table / "proposal.json",
        manifest_gaps(federation),
    )
    steps.note_proposal(federation.home(holder), coordinator, table / "proposal.json", record, now)
    signatures = [table / f"{name}.signature.json" for name in federation.names]
    for name, signature in zip(federation.names, signatures, strict=True):
        ceremony.sign(federation.home(name), passphrases[name], table / "proposal.json", signature)
    manifest = table / "manifest.json"
    steps.agree(federation.home(holder), coordinator, table / "proposal.json", signatures, record, manifest, now)
    for name in federation.names:
        steps.join(federation.home(name), manifest, table / "public.key", record, now)
    return passphrases


def _examples(federation: Federation) -> dict[str, int]:
    """What each party declares: its number of examples where the study weights by it, else nothing."""
    if federation.study.aggregation.weights == "equal":
        return dict.fromkeys(federation.names, 0)
    counts = in_process(_count_examples, federation)
    assert isinstance(counts, dict)
    return counts


def _count_examples(federation: Federation) -> dict[str, int]:
    from node.tasks.base import Setup
    from node.tasks.loader import load_task

    study, counts = federation.study, {}
    for name in federation.names:
        setup = Setup(name, study.task.options, federation.data[name], study.seed, federation.home(name))
        counts[name] = load_task(study.task.class_name, setup).examples
    return counts


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, which may import and know what this one should not; gives its result.

    Raises:
        WardtreeError: as the function did.
        LocalError: it ended without a result.
    """
    try:
        return call_apart(lambda channel: function(*arguments))
    except NoAnswerError as error:
        raise LocalError(f"{function.__name__.strip('_')} failed; see its message above") from error


def _settings(data: Mapping[str, Any]) -> bytes:
    """A ``node.toml`` with this party's ``[data]``."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f"{written(key)} = {written(item)}" for key, item in value.items()) + " }"
        if isinstance(value, list):
            return "[" + ", ".join(map(written, value)) + "]"
        if isinstance(value, bool | str):  # as JSON has them, so has TOML
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        return str(value)

    lines = [f"{written(key)} = {written(value)}" for key, value in data.items()]
    return ("[data]\n" + "\n".join(lines) + "\n").encode()


def free_endpoints(names: Iterable[str], address: str = "127.0.0.1") -> dict[str, str]:
    """A port of this machine that nobody has now, at one of its addresses, for each name."""
    names = list(names)
    return {name: join(address, port) for name, port in zip(names, free_ports(len(names), address), strict=True)}


def tree_of(federation: Federation) -> Tree:
    """The tree that follows from what was proposed."""
    manifest = ceremony.read_proposal(federation.out / "ceremony" / "proposal.json")
    roster = Roster(tuple(Member(name) for name in federation.names), federation.key_holder)
    return place(roster, roster.names, bytes.fromhex(manifest.tree_seed), federation.study.aggregation.tree)
