"""The page and the picture of the comparison, from its figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from node.pages import picture

OURS, SEVEN_BIT = "wardtree, 14-bit values", "wardtree, 7-bit values"
FLARE, FLOWER = "NVIDIA FLARE 2.9 HE, 1 layer", "Flower 1.41 SecAgg+, 3 shares"
MILLION, RESNET18 = 1_000_000, 11_511_784
STEPS = (
    ("ahead", "made ahead, while the model trains", "#c9d8e8"),
    ("protect", "client: protect", "#2f6db3"),
    ("server", "add all updates", "#e0973a"),
    ("read_back", "read back", "#5a9e6f"),
)

TIMING_NOISE = 1.25
"""Two times nearer than this factor cannot be told apart by one run on a shared machine."""

Report = Mapping[str, Any]

INTRODUCTION = """\
# The encryption beside its peers

One update, drawn from one seed (float32, normal, sigma 0.02), protected, added up and read back by every program
of a table in one run, one after the other, each in its own process on one core. Made by `scripts/bench_peers`; the
figures are in [crypto-peers.json](crypto-peers.json){runs}. Machine: {machine}.

![Time and upload for one million parameters](crypto-peers.svg)

**What the columns are.** *Ahead*: what needs no data and is made while the model trains. *Protect*: from the float
update to bytes ready to send, for one client. *Add*: from the bytes of all updates to the bytes of the result.
*Read back*: from those bytes to floats. *Bytes*: of one party's upload, per parameter. *Error*: how far the mean
lies from the update, at most. Seconds are processor seconds, so that waiting for other work on the machine does not
count; but such work, and the neighbours of a virtual machine, still take caches and memory, and slow what they share
them with. Two runs of the same code differed by a fifth in single figures and in their ratios. In these
{core_share} of the wall time was processor time; 100% is a quiet machine. The JSON file has both.
"""

NOTES = """\
## What each of them protects against

Nobody's time buys the same thing.

- **wardtree.** One party has the secret key and is sent only the total over all others. Together with the node
  to which a party sends, it could open that party's update; a malicious key holder is outside the model. What
  is published are exact integers, so decryptions give nothing away about the key; canaries check the listed
  set.
- **NVIDIA FLARE HE.** Every client is given the same secret key (`HEBuilder` writes it into each client's
  file); the server has none, and adds what it cannot read. Any client together with the server could open any
  update. Decryptions are approximate, and seen by those who have the key.
- **Flower SecAgg+.** No encryption of the update, but masks that cancel; the server reads the *sum* in clear.
  Each mask comes from numpy's Mersenne Twister with a seed folded to 32 bits (`pseudo_rand_gen`), where the
  others stand for 128 bits. The server passes the clients' public keys on unsigned. As many of a client's
  neighbours as the threshold could open its update together with the server. It was made for clients that drop
  out in mid-round.
- **Plain `ckks_vector`.** A building block, no protocol: whoever has the secret key opens what it sees. If its
  floats are published, the secret key can be computed from them (Li and Micciancio, EUROCRYPT 2021).

## How it was measured

- **wardtree**: the functions of `node/update.py` that a round calls, segment by segment, with canaries, planned
  for 64 parties, in one process: all zeros first, as while a model trains, then the update. A node has processes
  beside the enclave for it on its other cores, and their pipes; both are left out here, as is every network. *Add*
  is one node adding all updates; in a tree each node adds three. *Read back* is the key holder's decryption with
  all its checks; everybody else reads four bytes a parameter.
- **FLARE**: `HEBuilder`'s default keys (N=8192, [60,40,40], scale 2^40, symmetric), `HEModelEncryptor`,
  `HEInTimeAccumulateWeightedAggregator`, `HEModelShareableGenerator` and `HEModelDecryptor` called directly,
  with FLARE's own serialisation in between. Whole weights, not differences, which saves it an addition. One
  layer is the best case; every further layer carries a copy of the context.
- **SecAgg+**: `SecAggPlusWorkflow` with `FedAvg`, and `secaggplus_mod`, in one process: the workflow's messages
  are handed to the mod, replies are deflated and hashed as Flower's client does, and inflated at the server.
  Default quantisation; three shares and threshold two are Flower's own example's, "all shares" makes everybody
  everybody's neighbour. *Protect* is the stage that needs the update ({mod} s of it in the mod at a million
  parameters and four parties); the other stages take a client {other} s more. What the server sends out is not
  counted.
- **ckks_vector**: TenSEAL's vector of the whole update under a public key; `serialize`, add, `decrypt`.
- Beyond four parties four messages are used again, except for SecAgg+, whose masks must cancel.
"""


def write_page(report: Report) -> str:
    """The page in Markdown."""
    results = [result for result in report["results"] if "failed" not in result]
    shares = [result["core_share"] for result in results]
    runs = len({result["run"] for result in report["results"]})
    parts = [
        INTRODUCTION.format(
            machine=report["machine"],
            runs=f", from {runs} runs on one machine" if runs > 1 else "",
            core_share=f"{min(shares):.0%} to {max(shares):.0%}",
        )
    ]
    cases = dict.fromkeys((result["params"], result["parties"]) for result in report["results"])
    for params, parties in cases:
        here = [result for result in report["results"] if (result["params"], result["parties"]) == (params, parties)]
        parts.append(f"## {params:,} parameters, {parties} parties\n\n{_repeats(here).capitalize()}.\n\n{_table(here)}")
    if checks := _checks(results, report.get("pairs", [])):
        parts.append("## What was promised\n\n" + checks)
    flower = _find(results, FLOWER, MILLION, 4) or {}
    parts.append(
        NOTES.format(mod=_seconds(flower.get("protect_mod_cpu_s")), other=_seconds(flower.get("other_stages_cpu_s")))
    )
    versions = sorted({result["version"] for result in results if "version" in result})
    parts.append("Versions: " + "; ".join(versions) + ".\n")
    return "\n".join(parts)


def _repeats(results: Sequence[Report]) -> str:
    """How many timed runs stand behind a table."""
    repeats = {result["repeats"] for result in results if "failed" not in result}
    most = max(repeats, default=0)
    return f"medians of {most} runs after a warm-up" if most > 1 else "one run"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.4f}" if value < 0.1 else f"{value:.2f}"


def _table(results: Sequence[Report]) -> str:
    lines = [
        "| | ahead, s | protect, s | add, s | read back, s | bytes | error |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "failed" in result:
            lines.append(f"| {result['program']} | not measured: {result['failed']} | | | | | |")
            continue
        times = " | ".join(_seconds(result.get(f"{step}_cpu_s")) for step, _, _ in STEPS)
        size = f"{result['bytes_per_param']:.2f} | {result['largest_error']:.0e}"
        lines.append(f"| {result['program']} | {times} | {size} |")
    return "\n".join(lines) + "\n"


def _find(results: Sequence[Report], program: str, params: int, parties: int) -> Report | None:
    wanted = (program, params, parties)
    return next((r for r in results if (r["program"], r["params"], r["parties"]) == wanted), None)


def _path(result: Report) -> float:
    return sum(float(result.get(f"{step}_cpu_s", 0.0)) for step, _, _ in STEPS)


def _checks(results: Sequence[Report], pairs: Sequence[Mapping[str, float]]) -> str:
    """Each promise, what was measured, and whether it was kept."""
    ours, seven = _find(results, OURS, MILLION, 4), _find(results, SEVEN_BIT, MILLION, 4)
    flare, flower = _find(results, FLARE, MILLION, 4), _find(results, FLOWER, MILLION, 4)
    large = _find(results, OURS, RESNET18, 4)
    rows: list[tuple[str, float, float, str]] = []
    if ours and seven:
        rows.append(("1,000,000 parameters, 14 bits: bytes per parameter", ours["bytes_per_param"], 8.2, ""))
        rows.append(("the same with 7 bits", seven["bytes_per_param"], 5.5, ""))
    if ours and flower and not pairs:
        client = flower["protect_cpu_s"] + flower["other_stages_cpu_s"]
        rows.append(("protect, against a SecAgg+ client's four stages", ours["protect_cpu_s"], client, " s"))
    if ours and flare:
        rows.append(("protect, against 1/8 of FLARE's", ours["protect_cpu_s"], flare["protect_cpu_s"] / 8, " s"))
        rows.append(
            ("the whole path with what was made ahead, 4 parties, against 1/4 of FLARE's",
             _path(ours), _path(flare) / 4, " s")
        )  # fmt: skip
    if large:
        rows.append(("11,511,784 parameters, 14 bits: upload", large["upload_bytes"] / 1e6, 95, " MB"))
        rows.append(("one addition of two such updates", large["add_two_cpu_s"], 0.05, " s"))
    exact = [result["exact"] for result in results if "exact" in result]
    lines = ["| | measured | at most | |", "|---|---|---|---|"]
    for what, value, limit, unit in rows:
        verdict = "kept" if value <= limit else "**not kept**"
        if unit == " s" and limit / TIMING_NOISE < value < limit * TIMING_NOISE:
            verdict = "too close for one run: " + verdict.replace("*", "") + " in this one"
        lines.append(f"| {what} | {value:.3g}{unit} | {limit:.3g}{unit} | {verdict} |")
    if pairs:
        lines += [
            _ratio("protect over a SecAgg+ client's four stages", [pair["ours"] / pair["client"] for pair in pairs]),
            _ratio("protect over its stage that needs the update", [pair["ours"] / pair["stage"] for pair in pairs]),
        ]
    verdict = "kept" if all(exact) else "**not kept**"
    lines.append(f"| wardtree's sums exact | {sum(exact)} of {len(exact)} | | {verdict} |")
    return "\n".join(lines) + "\n" if exact else ""


def _ratio(what: str, ratios: Sequence[float]) -> str:
    """A line for times measured alternately: the machine's moods strike both sides alike."""
    middle, most = statistics.median(ratios), max(ratios)
    verdict = "kept" if most <= 1 else "kept by the median" if middle <= 1 else "**not kept**"
    spread = f"median of {len(ratios)} alternating runs {middle:.2f} ({min(ratios):.2f} to {most:.2f})"
    return f"| {what}: {spread} | {middle:.2f} | 1 | {verdict} |"


def draw(report: Report, file: Path) -> None:
    """The picture, SVG: seconds by step and megabytes, one million parameters or the largest size there is."""
    results = [result for result in report["results"] if "failed" not in result]
    sizes = {result["params"] for result in results}
    params = MILLION if MILLION in sizes else max(sizes)
    parties = min(result["parties"] for result in results if result["params"] == params)
    shown = [r for r in results if (r["params"], r["parties"]) == (params, parties)][::-1]
    names = [result["program"] for result in shown]
    with picture(file, (10, 0.45 * len(shown) + 1.6), salt="peers") as figure:
        times, uploads = figure.subplots(1, 2, sharey=True, width_ratios=(3, 1))
        left = [0.0] * len(shown)
        for step, label, colour in STEPS:
            widths = [result.get(f"{step}_cpu_s", 0.0) for result in shown]
            times.barh(names, widths, left=left, color=colour, label=label)
            left = [start + width for start, width in zip(left, widths, strict=True)]
        for row, total in enumerate(left):
            times.text(total, row, f" {total:.2f} s", va="center")
        times.set_xlim(0, 1.12 * max(left))
        times.set_xlabel("seconds on one core")
        megabytes = [result["upload_bytes"] / 1e6 for result in shown]
        uploads.barh(names, megabytes, color="#8a8a8a")
        for row, size in enumerate(megabytes):
            uploads.text(size, row, f" {size:.1f}", va="center")
        uploads.set_xlim(0, 1.25 * max(megabytes))
        uploads.set_xlabel("upload of one party, MB")
        figure.suptitle(f"{params:,} parameters, {parties} parties")
        figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
