"""A whole federation on one machine: every hospital its own processes, its own folder, a real ceremony.

The ceremony is held file by file as people would, in a process of its own; the launcher, which knows no secret,
forks one supervisor per party, watches, and starts again who was killed. Comparisons between hospitals exist
here alone: nowhere else may one process read two hospitals' data.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import secrets
import signal
import socket
import time
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keys import ceremony
from keys.errors import WardtreeError
from keys.identity import check_name
from keys.plan import Plan
from keys.vault import KdfCost, write_private
from node.channel import Channel, ChannelClosedError
from node.federation import check_size, plan_for, propose
from node.home import SETTINGS, Options
from node.launcher import Launcher, Seat, kill_all, was_ended_from_outside
from node.process import reap, spawn
from node.record import Record
from node.study import Study
from topology import Member, Roster, TopologyError, Tree, check_placeable, place

KDF = KdfCost(operations=2, memory_bytes=19 << 20)
"""The cheapest allowed: the passphrases of a simulation are random, nobody guesses them."""

FAREWELL_SECONDS = 8.0
"""How long the other nodes may take to end by themselves when one could not go on."""

MOST_RESTARTS = 20
"""Who is killed oftener than this stays dead."""

STUDIES = Path(__file__).parent / "studies"


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
    """

    study_text: str
    study: Study
    data: Mapping[str, Mapping[str, Any]]
    key_holder: str
    out: Path

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(sorted(self.data))

    def home(self, name: str) -> Path:
        return self.out / "homes" / name


@dataclass
class Outcome:
    """How a local run ended."""

    record: Record
    tree: Tree
    codes: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def read_parties(path: Path) -> tuple[dict[str, dict[str, Any]], str]:
    """Read a file of parties: ``key_holder = "name"`` and one table per party, its ``[data]``.

    A relative csv path is taken from the file's own folder.

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
        csv = table.get("csv")
        if isinstance(csv, str) and ":" not in csv and not Path(csv).is_absolute():
            table["csv"] = str((path.parent / csv).resolve())
    if key_holder not in tables:
        raise LocalError(f"{path}: key_holder: expected one of {', '.join(tables)}, came {key_holder!r}")
    return tables, key_holder


def simulated_parties(count: int, data: Mapping[str, Any]) -> tuple[dict[str, dict[str, Any]], str]:
    """``count`` parties; where there are data, each gets its share of the rows."""
    width = max(2, len(str(count)))
    names = [f"party-{index:0{width}}" for index in range(1, count + 1)]
    shares = [{**data, "shard": f"{index}/{count}"} if data else {} for index in range(1, count + 1)]
    return dict(zip(names, shares, strict=True)), names[0]


# ---- running --------------------------------------------------------------------------------------------


def run_federation(federation: Federation, watch: Callable[[Record], None]) -> Outcome:
    """Run the whole study; ``watch`` is called as things happen.

    Raises:
        WardtreeError: the federation could not be set up.
        KeyboardInterrupt: everything is ended first.
    """
    began = time.monotonic()
    check_size(federation.study, len(federation.data))
    check_placeable([Member(name) for name in federation.names], federation.key_holder)
    _make_out(federation.out)
    _import_once()
    launcher = Launcher(take_seats(federation))
    try:
        for name in federation.names:
            launcher.start(name)
        outcome = Outcome(Record(federation.names), tree_of(federation))
        _follow(launcher, outcome, watch)
        outcome.seconds = time.monotonic() - began
        return outcome
    finally:
        launcher.end_all()


def take_seats(federation: Federation, endpoints: Mapping[str, str] | None = None) -> dict[str, Seat]:
    """Hold the ceremony, in a process of its own; gives what each node is started with.

    Args:
        endpoints: as for :func:`hold_ceremony`.
    """
    letters = {name: os.memfd_create("wardtree passphrase", os.MFD_CLOEXEC) for name in federation.names}
    in_process(_hold_apart, federation, endpoints, letters)
    rounds = federation.study.rounds + 1
    seeds = [secrets.token_bytes(32) for _ in range(rounds)] if federation.study.debug.check_sums else []
    models = {federation.key_holder: federation.out / "models"}  # one copy of each is enough to compare
    return {
        name: Seat(federation.home(name), letters[name], Options(tuple(seeds), models.get(name)))
        for name in federation.names
    }


def _hold_apart(federation: Federation, endpoints: Mapping[str, str] | None, letters: Mapping[str, int]) -> None:
    for name, passphrase in hold_ceremony(federation, endpoints).items():
        os.write(letters[name], passphrase.encode())


def _import_once() -> None:
    """Import what every room needs before forking them all: imports only, nothing is made, no torch."""
    for module in ("node.relay", "node.enclave", "node.keyroom", "node.tasks.synthetic"):
        importlib.import_module(module)


def _make_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalError(f"{out}: an empty or new folder was expected; nothing in it was touched")
    out.mkdir(parents=True, exist_ok=True)


def _follow(launcher: Launcher, outcome: Outcome, watch: Callable[[Record], None]) -> None:
    """Take every node's events until all have ended. Who was killed is started again; when one cannot go on, the
    others have a moment."""
    record, restarts = outcome.record, dict.fromkeys(launcher.running, 0)
    deadline = math.inf
    while launcher.running and time.monotonic() < deadline:
        for event in launcher.listen(0.2):
            if event["kind"] != "ended":
                record.take(event)
                continue
            name, code = event["party"], event["code"]
            if was_ended_from_outside(code) and restarts[name] < MOST_RESTARTS:
                restarts[name] += 1
                record.warnings.append(f"{name}: was killed, and is started again")
                launcher.start(name)
            else:
                outcome.codes[name] = code
                if code:
                    deadline = min(deadline, time.monotonic() + FAREWELL_SECONDS)
        watch(record)
    for name in launcher.running:
        outcome.codes[name] = 1


# ---- the ceremony, as people would hold it --------------------------------------------------------------


def hold_ceremony(federation: Federation, endpoints: Mapping[str, str] | None = None) -> dict[str, str]:
    """Identities, cards, key pair, proposal, signatures, manifest, joining: the files that people would pass
    around, in ``out/ceremony``.

    Args:
        endpoints: where each node listens; None: free ports of this machine.

    Returns:
        The passphrases, which are kept nowhere.
    """
    table = federation.out / "ceremony"
    now = datetime.now(UTC)
    passphrases = {name: secrets.token_urlsafe(18) for name in federation.names}
    examples = _examples(federation)
    endpoints = endpoints or _free_endpoints(federation.names)
    for name in federation.names:
        home = federation.home(name)
        ceremony.create_identity(home, name, passphrases[name], KDF)
        card = table / f"{name}.card.json"
        ceremony.make_card(home, passphrases[name], endpoints[name], examples[name], card)
        write_private(home / SETTINGS, _settings(federation.data[name]))
    holder = federation.key_holder
    make_key_apart(federation.home(holder), passphrases[holder], plan_for(federation.study), table / "public.key")
    propose(
        federation.study_text,
        federation.study,
        "study",
        [table / f"{name}.card.json" for name in federation.names],
        table / "public.key",
        holder,
        now,
        now + timedelta(days=1),
        table / "proposal.json",
    )
    signatures = [table / f"{name}.signature.json" for name in federation.names]
    for name, signature in zip(federation.names, signatures, strict=True):
        ceremony.sign(federation.home(name), passphrases[name], table / "proposal.json", signature)
    ceremony.combine(table / "proposal.json", signatures, table / "manifest.json", now)
    for name in federation.names:
        ceremony.join(federation.home(name), table / "manifest.json", table / "public.key", now)
    return passphrases


def make_key_apart(home: Path, passphrase: str, plan: Plan, public_key: Path) -> None:
    """Make the key pair in a process of its own, so that no copy of the secret key stays in this one.

    Raises:
        WardtreeError: it did not work.
    """

    def make() -> None:
        from node.keyroom import make_key

        make_key(home, passphrase, plan, public_key, KDF)

    if reap(spawn(signal.SIGKILL, make)):
        raise LocalError(f"{home}: the key pair could not be made; is there space on the disk?")


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
        LocalError: as the function did, or it ended without a result.
    """
    ours, theirs = Channel.pair()

    def work() -> None:
        ours.close()
        try:
            theirs.send("result", value=function(*arguments))
        except (WardtreeError, TopologyError) as error:
            theirs.send("refused", text=str(error))

    child = spawn(signal.SIGKILL, work)
    theirs.close()
    try:
        answer = ours.receive()
    except ChannelClosedError as error:
        raise LocalError(f"{function.__name__.strip('_')} failed; see its message above") from error
    finally:
        ours.close()
        kill_all([child])
    if answer["kind"] == "refused":
        raise LocalError(answer["text"])
    return answer["value"]


def _settings(data: Mapping[str, Any]) -> bytes:
    """A ``node.toml`` with this party's ``[data]``."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f'"{key}" = {written(item)}' for key, item in value.items()) + " }"
        text = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    lines = [f"{key} = {written(value)}" for key, value in data.items()]
    return ("[data]\n" + "\n".join(lines) + "\n").encode()


def _free_endpoints(names: Iterable[str]) -> dict[str, str]:
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in names}
        for one in sockets.values():
            one.bind(("127.0.0.1", 0))
        return {name: f"127.0.0.1:{one.getsockname()[1]}" for name, one in sockets.items()}


def tree_of(federation: Federation) -> Tree:
    """The tree that follows from what was proposed."""
    manifest = ceremony.read_proposal(federation.out / "ceremony" / "proposal.json")
    roster = Roster(tuple(Member(name) for name in federation.names), federation.key_holder)
    return place(roster, roster.names, bytes.fromhex(manifest.tree_seed), federation.study.aggregation.tree)
