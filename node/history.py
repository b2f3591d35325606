"""What a node's ledger says about the rounds under its manifest, when the node starts again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from node.home import Home
from node.ledger import Ledger
from node.protocol import events as ev
from node.protocol.codec import Codec, RemoteProtocolError
from node.protocol.messages import EVALUATE, Close


@dataclass(frozen=True)
class History:
    """The closed rounds that lead from the first state to the last that is known; the last round that we trained in
    or opened, or left out as the key holder, and the last that left us as the apex (-1: none).
    ``evaluated``: the sets of the evaluations that were opened here. ``account``: what this hospital's own training has
    spent, with record-level privacy; the versions of a study have one account."""

    chain: tuple[ev.Published, ...]
    last_round: int
    last_forwarded: int
    evaluated: tuple[frozenset[str], ...] = ()
    account: str = ""


def history_of(ledger: Ledger, home: Home, codec: Codec, first: bytes) -> History:
    """Read the entries since this manifest was first started with; ``first`` is the first state's digest."""
    entries = _under(home.manifest.digest, ledger.entries)
    chain: list[ev.Published] = []
    states = [first]
    for entry in entries:
        published = _published(entry, home, codec)
        if published and published.close.base in states:
            index = states.index(published.close.base)
            chain, states = [*chain[:index], published], [*states[: index + 1], published.close.state]
    rounds = {what: [-1] for what in ("training", "opening", "skipped", "forwarded", "closed")}
    for entry in entries:
        if entry["what"] in rounds:
            rounds[entry["what"]].append(entry["round"])
    took_part = max(rounds["training"] + rounds["opening"] + rounds["skipped"])
    purpose = home.study.schedule.purpose
    opened = [entry for entry in entries if entry["what"] == "opening" and purpose(entry["round"]) == EVALUATE]
    evaluated = tuple(frozenset(entry["contributors"]) for entry in opened)
    study = entries if home.manifest.version == 1 else ledger.entries
    accounts = [entry["account"] for entry in study if entry["what"] == "privacy" and entry["unit"] == "record"]
    return History(tuple(chain), took_part, max(rounds["forwarded"]), evaluated, (accounts or [""])[-1])


def _under(manifest: str, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ours = False
    found = []
    for entry in entries:
        if entry["what"] == "started":
            ours = entry["manifest"] == manifest
        if ours:
            found.append(entry)
    return found


def _published(entry: dict[str, Any], home: Home, codec: Codec) -> ev.Published | None:
    """The close in an entry, checked as if it came from the network: the ledger proves nothing by itself."""
    if entry["what"] != "closed" or "frame" not in entry:
        return None
    try:
        frame = codec.decode("our ledger", bytes.fromhex(entry["frame"]), b"")
    except (RemoteProtocolError, ValueError):
        return None
    if not isinstance(frame.message, Close) or frame.sender != home.manifest.key_holder:
        return None
    return ev.Published(frame.message, None if home.is_key_holder else frame)
