"""Children in which SEAL may crash: what each index of a task comes to, its own end or hang included."""

from __future__ import annotations

import faulthandler
import gc
import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from typing import IO

FULL = os.environ.get("WARDTREE_FULL") == "1"
"""Full sizes, and progress on stderr."""

WORKERS = 2
HANG_SECONDS = 20
HEADROOM = 1 << 30
"""Address space that one mutant may take beyond what the child has when it begins."""

Task = Callable[[int], str]


def survey(make: Callable[[], Task], indices: Iterable[int], hang_seconds: float = HANG_SECONDS) -> Counter[str]:
    """Run ``make()`` in forked children over all indices and count its answers.

    A child that dies is counted by its signal, SIGALRM being a hang, and replaced after the fatal index.
    An exception that escapes is counted by its name.
    """
    everything = list(indices)
    counts: Counter[str] = Counter()
    running = [_start(make, everything[worker::WORKERS], hang_seconds) for worker in range(WORKERS)]
    while running:
        process, share, log = running.pop(0)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        with log:
            log.seek(0)
            answers = log.read().decode().splitlines()
        counts.update(answers)
        if code:
            fate = signal.Signals(-code).name if code < 0 else f"exit {code}"
            counts[f"killed by {fate} at {share[len(answers)]}"] += 1
            running.append(_start(make, share[len(answers) + 1 :], hang_seconds))
    return counts


def _start(make: Callable[[], Task], share: list[int], hang_seconds: float) -> tuple[int, list[int], IO[bytes]]:
    log = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - the parent reads and closes it
    process = os.fork()
    if not process:
        code = 70
        try:
            _work(make, share, log, hang_seconds)
            code = 0
        finally:
            os._exit(code)
    return process, share, log


def _work(make: Callable[[], Task], share: list[int], log: IO[bytes], hang_seconds: float) -> None:
    gc.freeze()  # what other tests forgot, a socket's context say, would wait for its threads, which are the parent's
    faulthandler.disable()  # the parent counts the crash; a traceback of every one helps nobody
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    task = make()
    with open("/proc/self/statm") as statm:
        size = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + HEADROOM, size + HEADROOM))
    for done, index in enumerate(share, 1):
        signal.setitimer(signal.ITIMER_REAL, hang_seconds)
        try:
            answer = task(index)
        except Exception as error:
            answer = f"escaped at {index}: {type(error).__name__}: {error}".replace("\n", " ")
        log.write(answer.encode() + b"\n")
        if FULL and done % 20_000 == 0:
            print(f"{done} of {len(share)}", file=sys.stderr, flush=True)
    signal.setitimer(signal.ITIMER_REAL, 0)
