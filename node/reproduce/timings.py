"""Tables VI, VIII and IX, and the paragraph on 11.5 million parameters: times and sizes of the encryptions."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from keys.errors import WardtreeError
from node.bench.common import Clock, digest, make_update
from node.pages import picture, table
from node.reproduce.approximate import (
    LARGE,
    OURS,
    PLAIN,
    SCHEMES,
    SETTINGS,
    SMALL,
    make_contexts,
    make_scheme,
)
from node.reproduce.output import Results, Row, verdict
from node.simulation import in_process

ROOT = Path(__file__).parents[2]
SIZES = (1, 10, 100, 3_591, 11_511_784)
QUICK_SIZES = (1, 100, 3_591)
LARGE_SIZE = 1_000_000
"""From so many parameters on one run is made: it takes seconds, and says enough."""

LWE = "TFHE (LWE), Concrete"
EVERYTHING = (*SCHEMES, LWE)
"""The last of them needs an environment of its own."""
MOST_LWE = 3_591
"""One LWE ciphertext a value: 11.5 million of them are 80 GB."""
EXPECTED_BYTES = {SMALL.name: 80.9e3, LARGE.name: 331e3}
"""Of one ciphertext, which is one up to a ring's half of values; the paper's settings."""

STEPS = ("encrypt", "add", "decrypt")


class TimingError(WardtreeError):
    """An encryption that did not give back what was put in."""


def run(
    results: Results, sizes: Sequence[int], repeats: int, schemes: Sequence[str] = SCHEMES, concrete: str | None = None
) -> None:
    """Measure the cells asked for, and write everything.

    Args:
        concrete: the python of an environment with concrete-python; its cells are measured as well.
    """
    plan = list(_plan(sizes, repeats, schemes))
    if concrete:
        small = [params for params in sizes if params <= MOST_LWE]
        plan += [
            ({"params": params, "scheme": LWE}, partial(_measure_lwe, concrete, params, repeats)) for params in small
        ]
    results.measure(plan)


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def _plan(sizes: Sequence[int], repeats: int, schemes: Sequence[str]) -> Iterator[tuple[Row, Callable[[], Row]]]:
    for params in sizes:
        for scheme in schemes:
            yield {"params": params, "scheme": scheme}, partial(cell, params, scheme, repeats)


def cell(params: int, scheme: str, repeats: int) -> Row:
    """Encrypt an update, add two, decrypt the sum: in a process of its own, on one core.

    Returns:
        Medians over the runs after a warm-up: ``STEP_s`` of wall time, ``STEP_cpu_s`` of the processor's;
        ``bytes`` of one party's ciphertexts; ``error``, the largest of a value of the sum.

    Raises:
        TimingError: the sum is not what it should be.
    """
    repeats = 1 if params >= LARGE_SIZE else repeats
    figures: Row
    if scheme == OURS:
        figures = in_process(_measure_ours, params, repeats)
    else:
        figures = in_process(_measure, params, scheme, repeats)
    if not figures["error"] < (0.1 if scheme != PLAIN else 1e-12):
        raise TimingError(f"{scheme}, {params} parameters: the sum is wrong by {figures['error']:g}")
    return {"repeats": repeats} | figures


def _measure(params: int, scheme: str, repeats: int) -> Row:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    setting = SETTINGS[scheme]
    public, secret = (None, None) if setting is None else make_contexts(setting)
    sealer, opener = make_scheme(public), make_scheme(secret)
    values = make_update(params).astype(np.float64)
    clock, upload, total = Clock(), b"", b""
    opened = np.zeros(0)
    for _ in clock.runs_after_warm_up(repeats):
        with clock.time("encrypt"):
            upload = sealer.protect(values)
        with clock.time("add"):
            total = sealer.add([upload, upload])
        with clock.time("decrypt"):
            opened = opener.open(total)[:params]
    return clock.medians() | {"bytes": len(upload), "error": float(np.abs(opened - 2 * values).max())}


def _measure_ours(params: int, repeats: int) -> Row:
    from node.bench.ours import measure

    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    figures: dict[str, Any] = measure(params, 2, repeats=repeats)
    if not figures["exact"]:
        raise TimingError(f"{OURS}, {params} parameters: the sum is not exact")
    renamed = {"encrypt": "protect_online", "ahead": "protect_offline", "add": "add", "decrypt": "open"}
    times = {f"{name}_{unit}": figures[f"{old}_{unit}"] for name, old in renamed.items() for unit in ("s", "cpu_s")}
    return times | {"bytes": figures["upload_bytes"], "error": 2 * figures["largest_error"]}


def _measure_lwe(concrete: str, params: int, repeats: int) -> Row:
    command = [
        concrete,
        "-W",
        "ignore",
        "-m",
        "node.reproduce.peer_concrete",
        "--params",
        str(params),
        "--parties",
        "2",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    try:
        done = subprocess.run(
            [*command, "--repeats", str(repeats)], env=environment, capture_output=True, text=True, timeout=600
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise TimingError(f"--concrete {concrete}: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["it ended without a word"]
        raise TimingError(f"--concrete {concrete}: expected a python with concrete-python: {said[-1]}")
    figures: Row = json.loads(done.stdout.splitlines()[-1])
    if figures["update_sha256"] != digest(make_update(params)):
        raise TimingError(f"--concrete {concrete}: its numpy draws another update")
    return {"repeats": repeats} | figures


# ---- the page -------------------------------------------------------------------------------------------

INTRODUCTION = """\
# Tables VI, VIII and IX again: times and sizes of the encryptions

One update of so many parameters, encrypted; two of them added, from bytes to bytes; the sum decrypted. Each cell in a
process of its own on one core, medians after a warm-up, at {large:,} parameters and more one run. Seconds of the
processor: what else the machine does then does not count; the JSON file has wall time too.

- **plain**: eight bytes a value.
- **{small}** and **{big}**: the paper's two settings, `ckks_vector` of the whole update, as in the paper, with
  `serialize` and its inverse where bytes come and go. Approximate.
- **wardtree**: the functions that a node calls, 14-bit values, planned for 64 parties, with canaries and all checks.
  *Ahead* is what needs no data and is made while the model trains; *encrypt* is what the round then waits for.

![Seconds and bytes against the number of parameters](timings.svg)
"""

NOTES = """\
## What differs, and why

- A ciphertext of the paper's settings holds up to half a ring of values, so 1 and 100 parameters cost the same; two
  polynomials of 8192 coefficients in three primes are compressed to the size above. Ours needs one prime, because sums
  need no rescaling, and puts four integers into each slot.
- **TFHE.** {lwe}
  It encrypts each value by itself, so that any circuit could be computed on it; sums need none of that. The paper's own
  TFHE figures are not repeated.
- The paper's own times are of another machine and are not repeated either; what can be compared across machines are
  the sizes, and the ratios within a column.
"""


def write_page(results: Results) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION.format(large=LARGE_SIZE, small=SMALL.name, big=LARGE.name)]
    sizes = sorted({row["params"] for row in results.rows})
    for params in sizes:
        rows = [row for name in EVERYTHING if (row := results.find(params=params, scheme=name))]
        parts.append(f"## {params:,} parameter{'s' if params > 1 else ''}\n\n{_table(rows)}")
    parts.append("## What was promised\n\n" + _promises(results))
    if scaling := _scaling(results, sizes):
        parts.append("## From one ciphertext to 11.5 million parameters\n\n" + scaling)
    parts += [NOTES.format(lwe=_lwe(results)), results.foot()]
    return "\n".join(parts)


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{1e3 * value:.3f}" if value < 0.1 else f"{1e3 * value:,.0f}"


def _bytes(count: float) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB" if count >= 1e3 else f"{count:.0f} B"


def _table(rows: Sequence[Row]) -> str:
    head = ("", "ahead, ms", *(f"{step}, ms" for step in STEPS), "size", "largest error")
    body = []
    for row in rows:
        times = [_seconds(row.get(f"{step}_cpu_s")) for step in ("ahead", *STEPS)]
        body.append((row["scheme"], *times, _bytes(row["bytes"]), f"{row['error']:.0e}" if row["error"] else "0"))
    return table(head, body)


def _promises(results: Results) -> str:
    lines = []
    for scheme, expected in EXPECTED_BYTES.items():
        ours = results.find(params=100, scheme=OURS)
        if row := results.find(params=100, scheme=scheme):
            off = row["bytes"] / expected - 1
            what = f"{scheme}: one ciphertext against the {_bytes(expected)} expected"
            lines.append((what, _bytes(row["bytes"]), f"{off:+.2%}", verdict(abs(off) <= 0.01)))
            if ours:
                factor = row["bytes"] / ours["bytes"]
                lines.append((f"{scheme}: over ours, 100 parameters", _bytes(ours["bytes"]), f"{factor:.2f} ×", ""))
    for scheme in EXPECTED_BYTES:
        large, ours = (results.find(params=SIZES[-1], scheme=name) for name in (scheme, OURS))
        if large and ours:
            factor = large["bytes"] / ours["bytes"]
            lines.append(
                (f"{scheme}: over ours, {SIZES[-1]:,} parameters", _bytes(ours["bytes"]), f"{factor:.1f} ×", "")
            )
    return table(("", "measured", "difference or factor", "within 1 %"), lines)


def _lwe(results: Results) -> str:
    row = results.find(scheme=LWE)
    if row is None:
        return "The LWE baseline, Zama's Concrete, needs an environment of its own (`--concrete`) and was not measured."
    each = row["bytes"] / row["params"]
    return f"The LWE baseline is {row['version']} security, 14-bit values: {_bytes(each)} each, one ciphertext a value."


def _scaling(results: Results, sizes: Sequence[int]) -> str:
    """How much more the largest update costs than the one of 3,591 parameters, and per parameter."""
    if SIZES[-1] not in sizes or 3_591 not in sizes:
        return ""
    body = []
    for scheme in SCHEMES:
        small, large = (results.find(params=params, scheme=scheme) for params in (3_591, SIZES[-1]))
        if small and large:
            factors = [f"{large[f'{step}_cpu_s'] / small[f'{step}_cpu_s']:,.0f} ×" for step in STEPS]
            body.append(
                (scheme, *factors, f"{large['bytes'] / small['bytes']:,.0f} ×", f"{large['bytes'] / SIZES[-1]:.2f}")
            )
    head = ("", *STEPS, "size", "bytes per parameter")
    return f"The parameters are {SIZES[-1] / 3_591:,.0f} times as many:\n\n" + table(head, body)


def draw(results: Results, file: Path) -> None:
    """The picture: each step's time, and the size, against the number of parameters."""
    sizes = sorted({row["params"] for row in results.rows})
    with picture(file, (12, 3.8)) as figure:
        panels: Any = figure.subplots(1, 4)
        for axes, step in zip(panels, (*STEPS, "bytes"), strict=True):
            for scheme in EVERYTHING:
                rows = [row for params in sizes if (row := results.find(params=params, scheme=scheme))]
                values = [row["bytes"] if step == "bytes" else row[f"{step}_cpu_s"] for row in rows]
                axes.plot([row["params"] for row in rows], values, marker="o", label=scheme)
            axes.set(title=step, xscale="log", yscale="log", xlabel="parameters")
            axes.set_ylabel("bytes" if step == "bytes" else "seconds")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
