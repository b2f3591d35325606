"""What a round costs in the tree: time against the number of nodes, against depth on shaped links, and memory.

``scripts/bench_tree`` calls it. Four parts, each of which can be run by itself; what was measured before stays
in ``tree.json``, from which the page and the picture are made.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.bench.institutions import federation_of, run_nodes
from node.bench.links import Shape, endpoints, has_delay, shaped, why_not
from node.bench.tree_page import draw, write_page
from node.federation import plan_for
from node.local import run_federation
from node.pages import machine
from node.report import APEX, INNER_NODE, KEY_HOLDER, LEAF
from node.simulation import hold_ceremony, tree_of

NODES = (3, 4, 7, 15, 31, 63, 64, 127)
LOOPBACK_PARAMS = (3_591, 100_000)
MEMORY_PARAMS = (100_000, 1_000_000, 10_000_000)
MEMORY_PARTIES = 8
SLEEP_SECONDS = 4.0
"""How long a training on shaped links takes, asleep: zeros are encrypted meanwhile, as in any training."""

Row = dict[str, Any]


class TreeBenchError(WardtreeError):
    """A measurement that went wrong."""


@dataclass(frozen=True)
class Case:
    """One run on shaped links: ``whole`` sends the update as one segment."""

    tree: str
    parties: int
    params: int
    megabits: float
    whole: bool = False
    delay_ms: float = 0.0
    rounds: int = 3


def chain_parties(inner: int) -> int:
    """A chain of ``inner`` inner nodes has one leaf each, the last has two; and there is the key holder."""
    return 2 * inner + 2


def link_cases(megabits: Sequence[float], params: int, delay_ms: float) -> Iterator[Case]:
    """Depth against both ways of forwarding; and, for the law's sake, a smaller update."""
    for rate in megabits:
        for inner in (1, 3, 5):
            for size in (params, params // 4):
                yield Case("chain", chain_parties(inner), size, rate)
            yield Case("chain", chain_parties(inner), params, rate, whole=True, rounds=1)
        yield Case("balanced", chain_parties(5), params, rate)
        yield Case("balanced", chain_parties(5), params, rate, whole=True, rounds=1)
        if delay_ms:
            yield from (Case("chain", chain_parties(inner), params, rate, delay_ms=delay_ms) for inner in (1, 5))


# ---- the parts --------------------------------------------------------------------------------------------


def loopback(parties: int, params: int, rounds: int) -> Row:
    """A local federation's rounds without training; the median is over all rounds but the first."""
    with _folder() as out:
        federation = federation_of(out, parties, params, rounds=rounds + 1)
        outcome = run_federation(federation, lambda record: None)
    record = outcome.record
    if any(outcome.codes.values()) or not record.models_identical:
        raise TreeBenchError(f"{parties} nodes, {params} parameters: {dict(record.errors) or 'models differ'}")
    seconds = [record.seconds(number) for number in sorted(record.rounds)]
    sent = sum(link["to_parent"] + link["to_children"] for link in record.traffic.values())
    assert outcome.peak
    return {
        "parties": parties,
        "params": params,
        "levels": outcome.tree.height(outcome.tree.key_holder),
        "first_s": seconds[0],
        "rounds_s": seconds[1:],
        "median_s": statistics.median(seconds[1:]),
        "bytes_per_round": sent / len(seconds),
        "peak_memory": outcome.peak.memory,
        "peak_how": outcome.peak.how,
        "processes": outcome.peak.processes,
        "ceremony_s": outcome.ceremony_seconds,
        "start_s": outcome.start_seconds,
    }


def links(case: Case, timeout: float) -> Row:
    """Real nodes, each in a network namespace of its own.

    ``seconds`` run from the first enclave that has its integers, before any of them is encrypted, until the last
    node has applied the closed round; ``from_open_s`` from the key holder's opening, the sleep included.
    """
    with _folder() as out:
        federation = federation_of(
            out,
            case.parties,
            case.params,
            rounds=case.rounds,
            tree=case.tree,
            segment_ciphertexts=_whole(case.params) if case.whole else None,
            seconds=SLEEP_SECONDS,
        )
        where = endpoints(federation.names)
        passphrases, tree = hold_ceremony(federation, where), tree_of(federation)
        with shaped(tree.parent, Shape(case.megabits, case.delay_ms), where) as spaces:
            before = {name: ("ip", "netns", "exec", space) for name, space in spaces.items()}
            said = run_nodes(federation, passphrases, timeout, before=before)
        segments = len(plan_for(federation.study).segments(case.params))
    rounds, opened = [], []
    for number in range(1, case.rounds + 1):
        applied = said.times("applied", number)
        if len(applied) != case.parties:
            raise TreeBenchError(f"{case}: round {number} was applied by {len(applied)} nodes")
        rounds.append(max(applied.values()) - min(said.times("stage", number, stage="train").values()))
        opened.append(max(applied.values()) - min(said.times("round", number, what="opened").values()))
    return asdict(case) | {
        "levels": tree.height(tree.key_holder),
        "segments": segments,
        "rounds_s": rounds,
        "seconds": statistics.median(rounds),
        "from_open_s": statistics.median(opened),
    }


def memory(params: int, parties: int, timeout: float, rounds: int = 2) -> Row:
    """The most that any process of each room had resident, where the node stands in the tree; bytes."""
    with _folder() as out:
        federation = federation_of(out, parties, params, rounds=rounds)
        passphrases, tree = hold_ceremony(federation), tree_of(federation)
        said = run_nodes(federation, passphrases, timeout, memory=True)
    peaks: dict[str, int] = {}
    for name, rooms in said.peaks.items():
        role = LEAF if not tree.children[name] else INNER_NODE
        role = {tree.key_holder: KEY_HOLDER, tree.apex: APEX}.get(name, role)
        for room, peak in rooms.items():
            if room in ("relay", "enclave", "sealer", "keyroom child"):
                key = f"{room} of the {role}" if room == "relay" else room
                peaks[key] = max(peaks.get(key, 0), peak)
    return {"params": params, "parties": parties, "peaks": peaks}


def _whole(params: int) -> int:
    """Ciphertexts of the whole update, as one segment."""
    from keys.planner import choose

    return choose(64, 14).ciphertexts(params)


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="wardtree-bench-") as folder:
        yield Path(folder) / "run"


# ---- the program ------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """The script's entry."""
    parser = argparse.ArgumentParser(description="What a round costs in the tree.")
    parser.add_argument("--parts", nargs="*", choices=("loopback", "links", "memory"), default=None)
    parser.add_argument("--nodes", type=int, nargs="+", default=NODES, help="loopback: numbers of parties")
    parser.add_argument("--params", type=int, nargs="+", default=LOOPBACK_PARAMS, help="loopback: parameters")
    parser.add_argument("--rounds", type=int, default=5, help="loopback: rounds after the first")
    parser.add_argument("--megabits", type=float, nargs="+", default=(10.0, 50.0), help="links: each of them, each way")
    parser.add_argument("--link-params", type=int, default=1_000_000, help="links: parameters")
    parser.add_argument("--memory-params", type=int, nargs="+", default=MEMORY_PARAMS, help="memory: parameters")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one run of nodes")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the folder")
    parser.add_argument("--redraw", action="store_true", help="only remake page and picture from the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "tree.json"
    report: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    parts = () if options.redraw else options.parts or ("loopback", "links", "memory")
    if parts:
        report["machine"] = machine()
        report["sleep_s"] = SLEEP_SECONDS
    for part in parts:
        measurements = list(_planned(part, options))
        if part == "links" and (reason := why_not()):
            print(f"links: not measured: {reason}", flush=True)
            report["links_skipped"] = reason
            continue
        for what, measure in measurements:
            row = {"busy_before": _busy()} | measure()
            print(f"{part}: {what}: {_said(row)}", flush=True)
            _replace(report.setdefault(part, []), row)
            file.write_text(json.dumps(report, indent=1) + "\n")
    draw(report, options.out / "tree.svg")
    page = write_page(report)
    (options.out / "tree.md").write_text(page)
    print(page)


def _planned(part: str, options: argparse.Namespace) -> Iterator[tuple[str, Callable[[], Row]]]:
    if part == "loopback":
        for params in options.params:
            for parties in options.nodes:
                yield f"{parties} nodes, {params:,} parameters", _later(loopback, parties, params, options.rounds)
    elif part == "memory":
        for params in options.memory_params:
            yield f"{params:,} parameters", _later(memory, params, MEMORY_PARTIES, options.timeout)
    elif not why_not():
        delay = 10.0 if has_delay() else 0.0
        for case in link_cases(options.megabits, options.link_params, delay):
            yield str(case), _later(links, case, options.timeout)


def _later(function: Callable[..., Row], *arguments: Any) -> Callable[[], Row]:
    return lambda: function(*arguments)


def _replace(rows: list[Row], row: Row) -> None:
    """Put a measurement in the place of an earlier one of the same case."""
    keys = ("parties", "params", "tree", "megabits", "whole", "delay_ms")
    same = [index for index, old in enumerate(rows) if all(old.get(key) == row.get(key) for key in keys)]
    if same:
        rows[same[0]] = row
    else:
        rows.append(row)


def _said(row: Row) -> str:
    if "peaks" in row:
        return ", ".join(f"{room} {peak / 1e6:.0f} MB" for room, peak in row["peaks"].items())
    return f"{row.get('seconds', row.get('median_s')):.3f} s"


def _busy() -> float:
    """Which part of the cores other work takes, over a second in which we do nothing."""

    def read() -> tuple[int, int]:
        figures = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
        return sum(figures), figures[3] + figures[4]

    total, idle = read()
    time.sleep(1.0)
    later, later_idle = read()
    return 1 - (later_idle - idle) / max(later - total, 1)


if __name__ == "__main__":
    try:
        main()
    except WardtreeError as error:
        sys.exit(f"wardtree: {error}")
