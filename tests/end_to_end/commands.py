"""Helpers: the real program in real processes, and what `ps` says of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from node.address import free_ports
from node.sandbox.machine import detect

FULL = os.environ.get("WARDTREE_FULL") == "1"
"""Full sizes are run by hand; CI runs reduced ones."""

OWN_GAPS = sorted(detect().gaps & {"root"})
"""Gaps of the sandbox that a manifest must allow for these tests to run: that they run as root, if they do."""


def _listens_over_ipv6() -> bool:
    try:
        return bool(free_ports(1, "::1"))
    except OSError:
        return False


has_ipv6 = pytest.mark.skipif(not _listens_over_ipv6(), reason="this machine has no IPv6 loopback")


@contextmanager
def at_descriptor(*secrets: str) -> Iterator[list[int]]:
    """Descriptors from which the secrets can be read, one line each."""
    reads = []
    for secret in secrets:
        read, write = os.pipe()
        os.write(write, secret.encode() + b"\n")
        os.close(write)
        reads.append(read)
    try:
        yield reads
    finally:
        for read in reads:
            os.close(read)


def wardtree(
    *arguments: object, timeout: float = 280, passphrase: str | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end. A passphrase goes over a descriptor, as it would in a script."""
    command = [sys.executable, "-m", "node", *map(str, arguments)]
    if passphrase is None:
        return subprocess.run(
            command, capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, cwd=cwd
        )
    with at_descriptor(passphrase) as (read,):
        return subprocess.run(
            [*command, "--passphrase-fd", str(read)],
            capture_output=True, text=True, timeout=timeout, stdin=subprocess.DEVNULL, cwd=cwd, pass_fds=[read],
        )  # fmt: skip


def run_study(folder: Path, study: str, *options: object) -> dict[str, Any]:
    """`wardtree local` on a study until it is complete; gives its report."""
    (folder / "study.toml").write_text(study)
    result = wardtree("local", "--study", folder / "study.toml", *options, "--out", folder / "run", "--json")
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    assert report["ok"] is True
    return report


def _take_interrupts() -> None:
    """A shell's background jobs ignore SIGINT, and so does whatever is started from them."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: object, out: Path) -> subprocess.Popen[str]:
    """Start the program in a session of its own, its output in files in ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / "stdout").open("w") as stdout, (out / "stderr").open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "node", *map(str, arguments)],
            stdout=stdout, stderr=stderr, stdin=subprocess.DEVNULL, text=True, start_new_session=True,
            preexec_fn=_take_interrupts,
        )  # fmt: skip


def descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def names_below(pid: int) -> Iterator[tuple[str, str]]:
    """(parent's name, own name) of every process below ``pid``, as ``ps -o comm`` shows them."""
    for process in descendants(pid):
        try:
            parent = process.parent()
            yield (parent.name() if parent else ""), process.name()
        except psutil.NoSuchProcess:
            continue


def wait_until(condition: object, seconds: float = 60) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
