"""DPResNet's other questions: is encrypted the same as plain, what if hospitals drop out, what does SecAgg+ cost?"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keys.planner import choose
from node import update
from node.bench.common import Clock
from node.bench.ours import Bench
from node.gauge import Gauge
from node.home import load_home
from node.ledger import read_entries
from node.local import prepare
from node.nursery import start_nursery
from node.process import end_all
from node.protocol.posture import NO_GAPS
from node.record import Record
from node.reproduce import ours
from node.reproduce.dpresnet import PLAIN, hospitals_data, measured, study_text, tasks_of, the_study
from node.reproduce.output import Results, Row
from node.sandbox.machine import detect
from node.simulation import STUDIES, Federation, in_process, tree_of
from node.study import parse_study

BITS, DROPOUT, SECAGG, SAME = "bit for bit", "dropout", "SecAgg+", "wardtree"
CHECKS = (BITS, DROPOUT, SECAGG)

TEN = 10
BITS_ROUNDS = 2
STEP = 2.0**-14
"""Of the grid in ``bit for bit``: a power of two, so that each multiple of it is a float."""

LEAST = 4
"""The fewest contributors of a round, as the paper's reconstruction threshold; each is hidden among one fewer."""
DROPS = {2: 3, 3: 3, 4: 1}
"""How many more of the ten hospitals are killed in each round, while they train."""
SECAGG_DROPS = (0, 3, 6, 7)
ROUND_SECONDS = 150.0


def run(results: Results, file: Path, checks: Sequence[str], flower: str) -> Iterator[None]:
    """Those asked for, with ten hospitals; yields after each. ``flower``: see :func:`side_by_side`."""
    plan: dict[str, Callable[[Path, int], Row]] = {
        BITS: bit_for_bit,
        DROPOUT: dropout,
        SECAGG: partial(side_by_side, python=flower),
    }
    for check in checks:
        results.measure([({"arm": check, "hospitals": TEN}, partial(plan[check], file, TEN))])
        yield


# ---- encrypted is plain -----------------------------------------------------------------------------------


def bit_for_bit(file: Path, hospitals: int) -> Row:
    """A federation, and one process that adds the same hospitals' integers in the clear: are all their models the same?

    Batches follow from public seeds here, weights are equal, and updates lie on the grid, where random rounding leaves
    them: so both programs have the same integers to sum, each trained for itself.

    Returns:
        ``different``: values, of all models of all rounds, that differ in a bit; ``digests``: of the last models.
    """
    study = bits_text()
    data = hospitals_data(file, hospitals, {})
    data = {name: {**table, "party": str(number)} for number, (name, table) in enumerate(data.items(), 1)}
    ran = ours.run(study, data, "hospital-01", 1)
    with tempfile.NamedTemporaryFile(suffix=".npy") as kept:
        in_process(_sum_in_the_clear, study, data, kept.name)
        plain = np.load(kept.name)
    figures: Row = in_process(measured, study, data, plain[-1:])
    pairs = [np.ascontiguousarray(each, np.float32).view(np.uint32) for each in (ran.models, plain)]
    return {
        "rounds": len(plain),
        "parameters": int(plain.shape[1]),
        "different": int((pairs[0] != pairs[1]).sum()),
        "moved": int((pairs[1][-1] != pairs[1][0]).sum()),
        "digests": [hashlib.sha256(each[-1].tobytes()).hexdigest() for each in pairs],
        "exact": ran.exact,
        "curve": figures["curve"],
        "processor_seconds": ran.processor_seconds,
    }


def bits_text() -> str:
    """The study of :func:`bit_for_bit`."""
    whole = the_study()
    bound = STEP * choose(whole.aggregation.max_parties, whole.aggregation.value_bits).max_value
    text = (STUDIES / "dpresnet.toml").read_text()
    for old, new in {
        f"rounds = {whole.rounds}\n": f"rounds = {BITS_ROUNDS}\n",
        'class = "image"': 'class = "node.tasks.image_experiment:RepeatableImageTask"',
        "[task.options]\n": f"[task.options]\ngrid = {STEP!r}\n",
        f"local_epochs = {whole.task.options['local_epochs']}\n": "local_epochs = 1\n",
        'weights = "examples"': 'weights = "equal"',
        f"clip = {whole.aggregation.clip}": f"clip = {bound!r}",
        f'schedule = "cosine"\nwarmup_rounds = {whole.optimisation.warmup_rounds}\n': 'schedule = "constant"\n',
    }.items():
        text = text.replace(old, new, 1)
    return text


def _sum_in_the_clear(study: str, data: Mapping[str, Mapping[str, Any]], kept: str) -> int:
    """The models of all rounds, from integers that nobody encrypted; saved as ``kept``. Gives how many."""
    from node.tasks.base import TrainingRound

    tasks, rounds = tasks_of(study, data), parse_study(study, "dpresnet").rounds
    model, models = tasks[0].initial(), []
    for number in range(1, rounds + 1):
        total = np.zeros(model.size, np.int64)
        for task in tasks:
            trained = task.train(model, TrainingRound(number, rounds, None, 0)).astype(np.float64)
            total += np.rint(trained / STEP).astype(np.int64)
        model = (model + total * (STEP / len(tasks))).astype(np.float32)
        models.append(model)
    np.save(kept, np.stack(models))
    return len(models)


# ---- hospitals drop out -----------------------------------------------------------------------------------


@dataclass
class _Seen:
    record: Record
    killed: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def dropout(file: Path, hospitals: int) -> Row:
    """Real nodes, of which ``DROPS`` are killed for good while they train.

    Returns:
        ``contributors``: of each round that was published; ``refused``: what the key holder says of the one with too
        few; ``openings``: rounds in which a ciphertext was opened; ``exact``; ``identical``: whoever applied a round
        has the same model after it.
    """
    text = dropout_text()
    data = hospitals_data(file, hospitals, {})
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="wardtree-reproduce-")))
        study = parse_study(text, "dropout")
        federation = Federation(text, study, data, "hospital-01", folder / "run")
        federation = replace(federation, allowed_gaps=NO_GAPS.refused(detect(federation.policy)))
        helpers: dict[str, int] = {}
        stack.callback(end_all, helpers)
        gauge = Gauge()
        helpers["gauge"] = gauge.process
        seen = _run_with_drops(federation, helpers)
        peak = gauge.stop()
        del helpers["gauge"]
        record = seen.record
        published = {number: each for number, each in sorted(record.rounds.items()) if each.states}
        home = load_home(federation.home("hospital-01"), datetime.now(UTC))
        entries = [line["entry"] for line in read_entries(home.openings)]
        return {
            "rounds": len(published),
            "killed": seen.killed,
            "contributors": [len(each.contributors) for each in published.values()],
            "refused": seen.refused,
            "openings": sorted({entry["round"] for entry in entries if entry["what"] == "opening"}),
            "exact": record.sums_exact(),
            "identical": all(each.identical for each in published.values()),
            "min_hidden": home.manifest.min_hidden,
            "seconds": [record.seconds(number) for number in published],
            "processor_seconds": peak.processor_seconds,
        }


def dropout_text() -> str:
    """The study of :func:`dropout`."""
    whole = the_study()
    text = (STUDIES / "dpresnet.toml").read_text()
    for old, new in {
        f"rounds = {whole.rounds}\n": f"rounds = {max(DROPS)}\n",
        f"local_epochs = {whole.task.options['local_epochs']}\n": "local_epochs = 1\n",
        "[aggregation]\n": f"[aggregation]\nmin_hidden = {LEAST - 1}\n",
        f"round_seconds = {whole.deadlines.round_seconds}": f"round_seconds = {ROUND_SECONDS}",
    }.items():
        text = text.replace(old, new, 1)
    return text


def _run_with_drops(federation: Federation, helpers: dict[str, int]) -> _Seen:
    nursery, helpers["nursery"] = start_nursery(federation.study.task.class_name)
    launcher = prepare(federation, nursery=nursery)
    tree = tree_of(federation)
    victims = [name for name in federation.names if name not in (tree.key_holder, tree.apex)]
    due: dict[int, list[str]] = {}
    for number, count in sorted(DROPS.items()):
        due[number], victims = victims[:count], victims[count:]
    seen = _Seen(Record(federation.names))
    deadline = time.monotonic() + 2 * ROUND_SECONDS * federation.study.rounds + federation.study.deadlines.join_seconds
    try:
        for name in federation.names:
            launcher.start(name)
        while launcher.running and not seen.refused and time.monotonic() < deadline:
            for event in launcher.listen(0.2):
                if event["kind"] == "ended":
                    continue
                seen.record.take(event)
                if event["kind"] != "round":
                    continue
                what, number, party = event["what"], event["round"], event["party"]
                if what == "opened" and party in due.get(number, ()):
                    launcher.signal(party, signal.SIGKILL)
                    seen.killed.append(party)
                if "below" in what and party == tree.key_holder:
                    seen.refused.append(f"round {number}: {what}")
    finally:
        launcher.end_all()
    return seen


# ---- Flower's SecAgg+ -------------------------------------------------------------------------------------


def side_by_side(file: Path, hospitals: int, python: str, repeats: int = 3) -> Row:
    """The same updates through Flower's SecAgg+ and through our encryption, one process each, one thread.

    Args:
        python: of an environment that has flwr.

    Returns:
        ``programs``: figures of ours, and of SecAgg+ with each of ``SECAGG_DROPS`` hospitals gone; or with ``failed``,
        why there are none.
    """
    study = study_text(PLAIN, 1)
    data = hospitals_data(file, hospitals, {})
    with tempfile.TemporaryDirectory(prefix="wardtree-reproduce-") as folder:
        kept = Path(folder) / "updates.npy"
        in_process(_updates, study, data, str(kept))
        programs = [{"program": SAME, "dropped": 0, **in_process(_ours, str(kept), repeats)}]
        for dropped in SECAGG_DROPS:
            programs.append({"program": SECAGG, "dropped": dropped, **_flower(python, kept, dropped, repeats)})
    return {"programs": programs}


def _updates(study: str, data: Mapping[str, Mapping[str, Any]], kept: str) -> int:
    """What each hospital makes of the first model, (hospitals, parameters)."""
    from node.tasks.base import TrainingRound

    tasks = tasks_of(study, data)
    model = tasks[0].initial()
    updates = [task.train(model, TrainingRound(1, 1, None, 0)) for task in tasks]
    np.save(kept, np.stack(updates))
    return len(updates)


def _ours(kept: str, repeats: int) -> Row:
    """Protect, add and open, as ``node/bench/ours.py`` does with drawn updates; equal weights."""
    updates: NDArray[np.float32] = np.load(kept)
    parties, parameters = updates.shape
    rules = the_study().aggregation
    plan = choose(rules.max_parties, rules.value_bits, parameters)
    bench, clock = Bench.fresh(plan, parties), Clock()
    grid = update.Grid(rules.clip, plan)
    error, exact, upload = 0.0, True, 0
    for _ in clock.runs_after_warm_up(repeats):
        total, uploads = np.zeros(parameters, np.int64), []
        for party, values in enumerate(updates):
            with clock.time("protect"):
                integers = update.quantise(values.astype(np.float64), grid, 1.0)
                uploads.append(list(update.seal_segments(integers, bench.sealer, bench.canary_keys[party])))
            total += integers
        upload = sum(map(len, uploads[0]))
        opened = []
        for number, segment in enumerate(plan.segments(parameters)):
            with clock.time("server"):
                added = update.merge(plan, tuple(each[number] for each in uploads))
                length = segment.stop - segment.start
                opened.append(update.open_total(bench.opener, added, number, bench.canary_keys, None, length))
        published = np.frombuffer(b"".join(opened), "<i4")
        exact &= bool(np.array_equal(published, total))
        error = max(error, float(np.abs(published * (grid.step / parties) - updates.mean(0, np.float64)).max()))
        clock.runs[-1]["protect"] = clock.runs[-1]["protect"] / parties
    return clock.medians() | {"bytes_up": upload, "error": error, "aggregated": True, "exact": exact}


def _flower(python: str, kept: Path, dropped: int, repeats: int) -> Row:
    updates = np.load(kept, mmap_mode="r")
    command: Sequence[str] = (
        python, "-m", "node.bench.peer_flower", "--params", str(updates.shape[1]), "--parties", str(len(updates)),
        "--shares", "0", "--threshold", str(LEAST), "--updates", str(kept), "--drop", str(dropped),
        "--repeats", str(repeats),
    )  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    except OSError as error:
        return {"failed": f"{python}: {error.strerror}"}
    except subprocess.TimeoutExpired:
        return {"failed": "took longer than 10 minutes"}
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return {"failed": said[-1] if said else f"ended with {done.returncode}"}
    found: Row = json.loads(done.stdout.strip().splitlines()[-1])
    kept_fields = ("protect_s", "protect_cpu_s", "other_stages_s", "other_stages_cpu_s", "server_s", "server_cpu_s")
    return {name: found[name] for name in kept_fields} | {
        "bytes_up": found["upload_bytes"] + found["other_bytes"],
        "error": found["largest_error"],
        "aggregated": found["aggregated"],
        "version": found["version"],
    }
