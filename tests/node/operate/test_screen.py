"""A status on a terminal: what people read, and nothing that a terminal would obey."""

from __future__ import annotations

import fcntl
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from node.home import LOCK, RELAY, STATUS
from node.operate.screen import follow, shown
from node.operate.status import Report, read_report
from tests.node.operate.reports import status


def home_with(folder: Path, **change: Any) -> Path:
    file = folder / RELAY / STATUS
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(status(**change)))
    (folder / LOCK).touch()
    return folder


def text_of(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(shown(report))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_what_people_ask_first_is_there(tmp_path: Path) -> None:
    text = text_of(read_report(home_with(tmp_path)))
    assert text.splitlines()[0].rstrip() == "ada (key holder) · test · not running", "nobody holds the home's lock"
    for line in (
        "2 of 5 closed; flowing", "none: this is the key holder", "2: bo, cy", "1 (last: 2)", "no privacy mode",
        "1 s ago", "● ada (this node)", "● bo", "✕ cy gone since", "○ di", "3/4", "left out",
        "warning: round 2: no update of our own",
    ):  # fmt: skip
        assert line in text, text


def test_a_budget_and_an_error_are_shown_where_there_are_any(tmp_path: Path) -> None:
    text = text_of(read_report(home_with(tmp_path, epsilon=1.25, budget=8.0, error="the disk is full", round=None)))
    assert "1.25 of 8.0" in text
    assert "last error: the disk is full" in text


def test_nothing_reaches_the_terminal_that_it_would_obey(tmp_path: Path) -> None:
    """A relay that somebody took over writes this file."""
    evil = "\x1b]0;owned\x07\x1b[2J"
    parties = [{**party, "name": evil + party["name"], "place": None} for party in status()["parties"]]
    change = {
        "parties": parties,
        "party": evil,
        "study": evil,
        "posture": evil,
        "warnings": [evil],
        "error": evil,
        "parent": evil,
    }
    assert "\x1b" not in text_of(read_report(home_with(tmp_path, **change)))


def test_watching_ends_when_the_node_does(tmp_path: Path) -> None:
    home = home_with(tmp_path)
    descriptor = os.open(home / LOCK, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)

    def node() -> None:
        time.sleep(0.6)
        home_with(tmp_path, state="ended", study="the last word")
        os.close(descriptor)

    thread = threading.Thread(target=node)
    thread.start()
    console = Console(file=io.StringIO(), width=100)
    last = follow(home, console)
    thread.join()
    assert last is not None
    assert (last.study, last.running, last.is_well) == ("the last word", "no", True)


def test_a_relay_that_hangs_is_silent(tmp_path: Path) -> None:
    home = home_with(tmp_path, written_at=time.time() - 30)
    descriptor = os.open(home / LOCK, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        report = read_report(home)
        assert (report.running, report.is_well) == ("silent", False)
    finally:
        os.close(descriptor)
