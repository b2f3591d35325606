"""Ours beside the peers, in one go: the same update, one core, one program after the other.

``scripts/bench_peers`` calls it with the pythons of the peers' environments. Every program runs alone in a
process of its own and prints one line of JSON; this one collects them into ``crypto-peers.json`` and has the
page and the picture made from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keys.errors import WardtreeError
from node.bench.page import FLOWER, MILLION, OURS, draw, write_page

ROOT = Path(__file__).parents[2]
SIZES = (3_591, 1_000_000, 11_511_784)
PARTIES = (4, 16)
LARGE = 2_000_000
"""Above so many parameters a run takes minutes and varies little: one is made."""
PAIR_REPEATS = 5
RENAMED = {"protect_online": "protect", "protect_offline": "ahead", "add": "server", "open": "read_back"}
"""Our figures under the names that all programs share."""


class CompareError(WardtreeError):
    """The comparison cannot be run."""


@dataclass(frozen=True)
class Program:
    """One line of the comparison.

    Attributes:
        name: for people.
        command: what to run; sizes are appended.
        sizes: numbers of parameters for which it is run; empty: all.
    """

    name: str
    command: tuple[str, ...]
    sizes: tuple[int, ...] = ()


def programs(flare: str, flower: str) -> tuple[Program, ...]:
    """All programs of the comparison, given the peers' pythons."""

    def peer(python: str, name: str, *options: str) -> tuple[str, ...]:
        return (python, "-m", f"node.bench.{name}", *options)

    ours = (sys.executable, "-m", "node", "bench", "crypto", "--json", "--value-bits")
    return (
        Program("wardtree, 14-bit values", (*ours, "14")),
        Program("wardtree, 7-bit values", (*ours, "7")),
        Program("NVIDIA FLARE 2.9 HE, 1 layer", peer(flare, "peer_flare")),
        Program("NVIDIA FLARE 2.9 HE, 62 layers", peer(flare, "peer_flare", "--layers", "62"), SIZES[1:2]),
        Program("Flower 1.41 SecAgg+, 3 shares", peer(flower, "peer_flower")),
        Program("Flower 1.41 SecAgg+, all shares", peer(flower, "peer_flower", "--shares", "0"), SIZES[:2]),
        Program("ckks_vector, N=8192 [60,40,40]", peer(sys.executable, "peer_ckks_vector")),
        Program("ckks_vector, N=4096 [40,20,40]", peer(sys.executable, "peer_ckks_vector", "--degree", "4096")),
    )


def run(program: Program, params: int, parties: int, repeats: int, timeout: float) -> dict[str, Any]:
    """One program on one size: its figures, or under ``failed`` why there are none."""
    sizes = ("--params", str(params), "--parties", str(parties), "--repeats", str(repeats))
    case = {"program": program.name, "params": params, "parties": parties}
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*program.command, *sizes], env=environment, capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        return case | {"failed": f"took longer than {timeout:.0f} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return case | {"failed": said[-1] if said else f"ended with {done.returncode}: out of memory?"}
    # TenSEAL prints warnings before the result; ours is indented JSON and nothing else.
    text = done.stdout if done.stdout.startswith("{") else done.stdout.strip().splitlines()[-1]
    figures: dict[str, Any] = json.loads(text)
    for ours, common in RENAMED.items():
        for unit in ("s", "cpu_s"):
            if f"{ours}_{unit}" in figures:
                figures[f"{common}_{unit}"] = figures.pop(f"{ours}_{unit}")
    return case | figures


def check_same_update(results: Sequence[dict[str, Any]]) -> None:
    """Refuse a comparison of different updates.

    Raises:
        CompareError: names the two programs.
    """
    seen: dict[int, dict[str, Any]] = {}
    for result in (result for result in results if "failed" not in result):
        first = seen.setdefault(result["params"], result)
        if first["update_sha256"] != result["update_sha256"]:
            raise CompareError(
                f"bench: {first['program']} and {result['program']} protected different updates of "
                f"{result['params']} parameters; numpy must draw the same in both environments"
            )


def _measure(options: argparse.Namespace, file: Path) -> None:
    """Run all programs on the sizes asked for, and write the figures after each."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # the programs inherit it
    machine = f"{os.cpu_count()} cores, CPU only, {platform.machine()}, Python {platform.python_version()}"
    sizes = [(params, parties) for params in options.params for parties in options.parties]
    earlier: dict[str, Any] = json.loads(file.read_text()) if options.keep else {"machine": machine, "results": []}
    if earlier["machine"] != machine:
        raise CompareError(f"bench: {file} is of another machine: {earlier['machine']}; this one: {machine}")
    report = earlier | {"results": []}
    number = 1 + max((result["run"] for result in earlier["results"]), default=0)
    results = [result for result in earlier["results"] if (result["params"], result["parties"]) not in sizes]
    for params, parties in sizes:
        for program in programs(options.flare, options.flower):
            if program.sizes and params not in program.sizes:
                continue
            repeats = options.repeats if params <= LARGE else 1
            result = run(program, params, parties, repeats, options.timeout) | {"run": number}
            said = result.get("failed") or f"protect {result['protect_cpu_s']:.4f} s"
            print(f"{params:>12,} parameters, {parties:>2} parties, {program.name}: {said}", flush=True)
            results.append(result)
            report["results"] = sorted(results, key=lambda each: (each["params"], each["parties"]))
            file.write_text(json.dumps(report, indent=1) + "\n")
    check_same_update(results)
    if (MILLION, 4) in sizes and options.pairs:
        report["pairs"] = [_pair(options) for _ in range(options.pairs)]
        file.write_text(json.dumps(report, indent=1) + "\n")


def _pair(options: argparse.Namespace) -> dict[str, float]:
    """Protecting a million parameters, here and in SecAgg+, one right after the other: processor seconds.

    Raises:
        CompareError: one of the two did not run.
    """
    by_name = {program.name: program for program in programs(options.flare, options.flower)}
    ours, flower = (run(by_name[name], MILLION, 4, PAIR_REPEATS, options.timeout) for name in (OURS, FLOWER))
    for result in (ours, flower):
        if "failed" in result:
            raise CompareError(f"bench: {result['program']}: {result['failed']}")
    stage = flower["protect_cpu_s"]
    pair = {"ours": ours["protect_cpu_s"], "stage": stage, "client": stage + flower["other_stages_cpu_s"]}
    print("a pair: " + ", ".join(f"{name} {seconds:.4f} s" for name, seconds in pair.items()), flush=True)
    return pair


def main(arguments: Sequence[str] | None = None) -> None:
    """The script's entry."""
    parser = argparse.ArgumentParser(description="The encryption beside its peers.")
    parser.add_argument("--flare", default=".venv-peers/flare/bin/python", help="python that has nvflare[HE]")
    parser.add_argument("--flower", default=".venv-peers/flower/bin/python", help="python that has flwr")
    parser.add_argument("--params", type=int, nargs="+", default=SIZES)
    parser.add_argument("--parties", type=int, nargs="+", default=PARTIES)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each; 1 above 2,000,000 parameters")
    parser.add_argument(
        "--pairs", type=int, default=9, help="times that we and SecAgg+ alternate at 1,000,000 parameters"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds for one program on one size")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="the folder")
    parser.add_argument("--keep", action="store_true", help="keep the JSON file's other sizes, of earlier runs here")
    parser.add_argument("--redraw", action="store_true", help="only remake page and picture from the JSON file")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / "crypto-peers.json"
    if not options.redraw:
        _measure(options, file)
    report = json.loads(file.read_text())
    draw(report, options.out / "crypto-peers.svg")
    page = write_page(report)
    (options.out / "crypto-peers.md").write_text(page)
    print(page)


if __name__ == "__main__":
    try:
        main()
    except WardtreeError as error:
        sys.exit(f"wardtree: {error}")
