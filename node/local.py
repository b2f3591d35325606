"""A whole federation on one machine: every hospital its own processes, its own folder, a real ceremony.

The launcher forks one supervisor per party while it is still small and knows no secret, holds the ceremony
file by file as people would, gives every supervisor its passphrase, and watches. Comparisons between
hospitals exist here alone: nowhere else may one process read two hospitals' data.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import selectors
import signal
import socket
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from keys import ceremony, steps
from keys.canonical import digest
from keys.errors import WardtreeError
from keys.identity import check_name
from keys.transcript import TRANSCRIPT
from keys.vault import KdfCost, write_private
from node.channel import Channel, ChannelClosedError
from node.federation import check_size, plan_for, propose
from node.home import SETTINGS, Options
from node.process import reap, spawn
from node.record import Record
from node.study import Study
from node.supervisor import run_node
from topology import Member, Roster, Tree, check_placeable, place

KDF = KdfCost(operations=2, memory_bytes=19 << 20)
"""The cheapest allowed: the passphrases of a simulation are random, nobody guesses them."""

FAREWELL_SECONDS = 8.0
"""How long the other nodes may take to end by themselves when one could not go on."""

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
    children: dict[str, int] = {}
    try:
        _import_once()
        starts, telemetry = _fork_supervisors(federation, children)
        passphrases = hold_ceremony(federation)
        rounds = federation.study.rounds + 1
        seeds = [secrets.token_bytes(32) for _ in range(rounds)] if federation.study.debug.check_sums else []
        for name, start in starts.items():
            keep = name == federation.key_holder  # one copy of each published model is enough to compare
            start.send("start", passphrase=passphrases[name], check_seeds=seeds, history=keep)
            start.close()
        outcome = Outcome(Record(federation.names), _tree(federation))
        _follow(telemetry, outcome, children, watch)
        outcome.seconds = time.monotonic() - began
        return outcome
    finally:
        end_all(children)


def end_all(children: Mapping[str, int]) -> None:
    """Kill what still runs; every process of a node dies with its supervisor."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for child in children.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    for child in children.values():
        with contextlib.suppress(ChildProcessError):
            reap(child)
    signal.signal(signal.SIGINT, previous)


def _import_once() -> None:
    """Import what every room needs before forking them all: imports only, nothing is made, no torch."""
    for module in ("node.relay", "node.enclave", "node.keyroom", "node.tasks.synthetic"):
        importlib.import_module(module)


def _make_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise LocalError(f"{out}: an empty or new folder was expected; nothing in it was touched")
    out.mkdir(parents=True, exist_ok=True)


def _fork_supervisors(
    federation: Federation, children: dict[str, int]
) -> tuple[dict[str, Channel], dict[str, Channel]]:
    """One supervisor a party, waiting for its start; none holds another's pipes."""
    starts: dict[str, Channel] = {}
    telemetry: dict[str, Channel] = {}
    sys.stdout.flush()
    for name in federation.names:
        ours, theirs = Channel.pair()
        start, wait = Channel.pair()
        inherited = [ours, start, *starts.values(), *telemetry.values()]
        children[name] = spawn(
            signal.SIGKILL, _supervise, federation.home(name), federation.out, wait, theirs, inherited
        )
        wait.close()
        theirs.close()
        starts[name], telemetry[name] = start, ours
    return starts, telemetry


def _supervise(home: Path, out: Path, wait: Channel, telemetry: Channel, inherited: list[Channel]) -> None:
    for channel in inherited:
        channel.close()
    try:
        start = wait.receive()
    except ChannelClosedError:
        raise SystemExit(2) from None
    wait.close()
    options = Options(tuple(start["check_seeds"]), out / "models" if start["history"] else None)
    try:
        code = run_node(home, lambda: start["passphrase"], telemetry, options)
    except WardtreeError as error:
        telemetry.send("stopped", party=home.name, time=time.time(), error=str(error))
        code = 2
    raise SystemExit(code)


def _follow(
    telemetry: Mapping[str, Channel],
    outcome: Outcome,
    children: dict[str, int],
    watch: Callable[[Record], None],
) -> None:
    """Take every node's events until all have ended. When one cannot go on, give the others a moment."""
    record = outcome.record
    selector = selectors.DefaultSelector()
    for name, channel in telemetry.items():
        assert channel.read is not None
        selector.register(channel.read, selectors.EVENT_READ, (name, channel))
    deadline: float | None = None
    while selector.get_map():
        for key, _ in selector.select(0.2):
            name, channel = key.data
            for event in _drain(channel):
                if event is None:
                    selector.unregister(key.fd)
                    outcome.codes[name] = reap(children.pop(name))
                else:
                    record.take(event)
        watch(record)
        if deadline is None and any(outcome.codes.values()):
            deadline = time.monotonic() + FAREWELL_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for name in children:
                outcome.codes.setdefault(name, 1)
            return


def _drain(channel: Channel) -> Iterator[dict[str, Any] | None]:
    try:
        while (event := channel.poll()) is not None:
            yield event
    except ChannelClosedError:
        yield None


# ---- the ceremony, as people would hold it --------------------------------------------------------------


def hold_ceremony(federation: Federation) -> dict[str, str]:
    """Identities, cards, key pair, proposal, signatures, manifest, transcript, joining: the files that people would
    pass around, in ``out/ceremony``. Gives the passphrases, which are kept nowhere."""
    from node.keyroom import make_key

    table = federation.out / "ceremony"
    now = datetime.now(UTC)
    passphrases = {name: secrets.token_urlsafe(18) for name in federation.names}
    examples = _examples(federation)
    for name, port in zip(federation.names, _free_ports(len(federation.names)), strict=True):
        home = federation.home(name)
        ceremony.create_identity(home, name, passphrases[name], KDF)
        card = table / f"{name}.card.json"
        ceremony.make_card(home, passphrases[name], f"127.0.0.1:{port}", examples[name], card)
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
    if isinstance(counts, str):
        raise LocalError(counts)
    assert isinstance(counts, dict)
    return counts


def _count_examples(federation: Federation) -> dict[str, int] | str:
    from node.tasks.base import Setup
    from node.tasks.loader import load_task

    study, counts = federation.study, {}
    try:
        for name in federation.names:
            home = federation.home(name)
            setup = Setup(name, study.task.options, federation.data[name], study.seed, home)
            counts[name] = load_task(study.task.class_name, setup).examples
    except WardtreeError as error:
        return str(error)
    return counts


def in_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process of its own, which may import what this one should not; gives its result.

    Raises:
        LocalError: it ended without one.
    """
    ours, theirs = Channel.pair()

    def work() -> None:
        ours.close()
        theirs.send("result", value=function(*arguments))

    child = spawn(signal.SIGKILL, work)
    theirs.close()
    try:
        return ours.receive()["value"]
    except ChannelClosedError as error:
        raise LocalError(f"{function.__name__.strip('_')} failed; see its message above") from error
    finally:
        ours.close()
        end_all({"worker": child})


def _settings(data: Mapping[str, Any]) -> bytes:
    """A ``node.toml`` with this party's ``[data]``."""

    def written(value: Any) -> str:
        if isinstance(value, Mapping):
            return "{ " + ", ".join(f'"{key}" = {written(item)}' for key, item in value.items()) + " }"
        text = str(value).replace("\\", "\\\\").replace('"', '\\"')
        return f'"{text}"'

    lines = [f"{key} = {written(value)}" for key, value in data.items()]
    return ("[data]\n" + "\n".join(lines) + "\n").encode()


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _tree(federation: Federation) -> Tree:
    manifest = ceremony.read_proposal(federation.out / "ceremony" / "proposal.json")
    roster = Roster(tuple(Member(name) for name in federation.names), federation.key_holder)
    return place(roster, roster.names, bytes.fromhex(manifest.tree_seed))
