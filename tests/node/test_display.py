"""The view of a run while it runs: what a terminal shows, and what a log file gets."""

from __future__ import annotations

import io
import re
import time
from typing import Any

import pytest
from rich.console import Console

from node.display import LiveView
from node.protocol.schedule import Schedule
from node.record import Record

TREE = {"apex": "holder", "inner": "apex", "leaf": "apex", "low-leaf": "inner"}
PARTIES = ("apex", "holder", "inner", "leaf", "low-leaf")


def tell(record: Record, party: str, kind: str, **fields: Any) -> None:
    record.take({"party": party, "kind": kind, "time": 0.0, **fields})


def record_of(parties: tuple[str, ...] = PARTIES) -> Record:
    record = Record(parties)
    for party in parties:
        tell(record, party, "ready", parameters=9)
    return record


def close(record: Record, number: int, parties: tuple[str, ...], contributors: tuple[str, ...] | None = None) -> None:
    for party in parties:
        names = sorted(contributors or parties)
        tell(record, party, "applied", round=number, state="ab", seconds=1.25, contributors=names)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def plain() -> Console:
    return Console(file=io.StringIO(), width=60)


def terminal() -> Console:
    return Console(file=io.StringIO(), width=100, force_terminal=True, color_system=None)


def last_frame(console: Console) -> list[str]:
    """The lines on the screen at the end: what was drawn after the last erasure."""
    text = re.split(r"(?:\x1b\[2K|\x1b\[1A|\r)+", text_of(console))[-1]
    return [line.rstrip() for line in re.sub(r"\x1b\[[?\d;]*[a-zA-Z]", "", text).splitlines() if line.strip()]


# ---- lines ----------------------------------------------------------------------------------------------


def test_a_log_gets_one_line_for_each_round_however_often_it_is_updated() -> None:
    console, record = plain(), record_of()
    with LiveView(Schedule(2), console) as view:
        view.update(record)
        for number in range(3):
            close(record, number, PARTIES[:2])
            view.update(record)
            close(record, number, PARTIES[2:], PARTIES if number < 2 else PARTIES[1:])
            view.update(record)
            view.update(record)
    assert text_of(console).splitlines() == [
        "statistics closed: 5 of 5 contributed, 1.25 s",
        "round 1 of 2 closed: 5 of 5 contributed, 1.25 s",
        "round 2 of 2 closed: 4 of 5 contributed, 1.25 s",
    ]


def test_a_round_waits_for_all_who_live_and_no_longer() -> None:
    console, record = plain(), record_of()
    with LiveView(Schedule(1), console) as view:
        close(record, 1, PARTIES[:4], PARTIES)
        view.update(record)
        assert text_of(console) == ""
        tell(record, "low-leaf", "stopped", error="no power")
        view.update(record)
        assert "round 1 of 1 closed" in text_of(console)


def test_a_round_that_only_some_closed_is_told_at_the_end() -> None:
    console, record = plain(), record_of()
    with LiveView(Schedule(1), console) as view:
        close(record, 1, PARTIES[:1], PARTIES)
        view.update(record)
    assert text_of(console) == "round 1 of 1 closed: 5 of 5 contributed, 1.25 s\n"


def test_every_warning_is_told_once_whole_and_as_it_came() -> None:
    console, record = plain(), record_of()
    with LiveView(Schedule(1), console) as view:
        tell(record, "leaf", "warning", text="first [bold]warning[/bold]")
        view.update(record)
        tell(record, "apex", "warning", text="second " + "long " * 30)
        view.update(record)
        view.update(record)
        tell(record, "inner", "warning", text="nobody updates after this one")
    assert [line.rstrip() for line in text_of(console).splitlines()] == [
        "warning: leaf: first [bold]warning[/bold]",
        ("warning: apex: second " + "long " * 30).rstrip(),
        "warning: inner: nobody updates after this one",
    ]


# ---- the table ------------------------------------------------------------------------------------------


def test_a_terminal_shows_where_everyone_is() -> None:
    console, record = terminal(), record_of()
    close(record, 1, PARTIES)
    for child, parent in TREE.items():
        sent = {"peer": child, "round": 2, "segment": 0, "contributors": [child], "bytes": 65_665}
        tell(record, parent, "ciphertext", **sent)
    tell(record, "leaf", "stage", stage="train", round=2, seconds=0.1)
    tell(record, "holder", "stage", stage="open", round=2, seconds=0.1)
    tell(record, "inner", "stopped", error="no power")
    tell(record, "low-leaf", "stopped", error=None, state="ab")
    tell(record, "apex", "round", what="opened", round=2, contributors=[])
    with LiveView(Schedule(4), console) as view:
        view.update(record)
    head, _, *rows, progress = last_frame(console)
    assert re.split(r"\s{2,}", head.strip()) == ["node", "role", "round", "stage", "ciphertext in", "state"]
    assert [re.split(r"\s{2,}", row.strip()) for row in rows] == [
        ["apex", "apex", "2", "training", "131.3 kB", "running"],
        ["holder", "key holder", "2", "checking the total", "65.7 kB", "running"],
        ["inner", "inner node", "65.7 kB", "failed"],
        ["leaf", "leaf", "2", "encrypting", "–", "running"],
        ["low-leaf", "leaf", "–", "finished"],
    ]
    assert progress.startswith("rounds")
    assert progress.endswith("1/4")


def test_roles_are_shown_only_once_they_are_known() -> None:
    console, record = terminal(), record_of()
    sent = {"peer": "leaf", "round": 0, "segment": 0, "contributors": ["leaf"], "bytes": 5}
    tell(record, "apex", "ciphertext", **sent)
    with LiveView(Schedule(1), console) as view:
        view.update(record)
    assert "key holder" not in text_of(console)
    assert "5 B" in text_of(console)


def test_more_nodes_than_fit_are_counted_by_what_they_do() -> None:
    parties = tuple(f"party-{number:02}" for number in range(1, 65))
    console, record = terminal(), record_of(parties)
    for party in parties[:60]:
        tell(record, party, "stage", stage="protect", round=3, seconds=0.1)
    tell(record, parties[63], "stopped", error="no power")
    with LiveView(Schedule(5), console) as view:
        view.update(record)
    _, _, *rows, _ = last_frame(console)
    assert [re.split(r"\s{2,}", row.strip()) for row in rows] == [
        ["1", "failed"],
        ["3", "ready"],
        ["60", "3", "adding", "running"],
    ]


def test_the_screen_is_drawn_at_most_eight_times_a_second_and_shows_the_end() -> None:
    console, record = terminal(), record_of()
    with LiveView(Schedule(200), console) as view:
        began, number = time.monotonic(), 0
        while time.monotonic() - began < 0.5:
            number += 1
            close(record, min(number, 199), PARTIES)
            view.update(record)
        close(record, 200, PARTIES)
    assert number > 20
    assert text_of(console).count("ciphertext in") <= 8
    assert last_frame(console)[-1].endswith(f"{min(number, 199) + 1}/200")


def test_an_interrupt_passes_and_the_cursor_comes_back() -> None:
    console = terminal()

    def interrupted() -> None:
        with LiveView(Schedule(1), console) as view:
            view.update(record_of())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert text_of(console).rindex("\x1b[?25h") > text_of(console).rindex("\x1b[?25l")
