"""What every experiment writes: figures as JSON and CSV, a picture, a page; and what it shows meanwhile."""

from __future__ import annotations

import csv
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from node.pages import machine

Row = dict[str, Any]


@dataclass
class Results:
    """The figures of one experiment, kept in ``NAME.json`` after every measurement, so that it can be run in parts.

    Attributes:
        folder, name: where, and what all its files are called.
        keys: the fields by which a row is known; a new row takes the place of an old one of the same.
        rows: what was measured.
        missing: measure only what has no row yet.
    """

    folder: Path
    name: str
    keys: tuple[str, ...]
    quick: bool = False
    missing: bool = False
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self._file("json")
        if file.exists():
            kept = json.loads(file.read_text())
            if kept["quick"] == self.quick:
                self.rows, self.seconds = kept["rows"], kept["seconds"]

    def measure(self, plan: Sequence[tuple[Row, Callable[[], Row]]]) -> None:
        """Make each row, with a line of progress for each: its keys, and what gives the rest of it."""
        if self.missing:
            plan = [(key, make) for key, make in plan if not self.find(**key)]
        with progress(self.name, len(plan)) as advance:
            for key, make in plan:
                began = time.monotonic()
                advance(", ".join(str(value) for value in key.values()), 0)
                made = {**key, **make()}
                took = time.monotonic() - began
                before = [row for row in self.rows if all(row.get(name) == key[name] for name in self.keys)]
                self.rows = [*(row for row in self.rows if row not in before), {**made, "took_s": round(took, 1)}]
                self.seconds = round(self.seconds + took - sum(row.get("took_s", 0.0) for row in before), 1)
                self._save()
                advance("", 1)

    def find(self, **wanted: object) -> Row | None:
        """The row with these fields."""
        return next((row for row in self.rows if wanted.items() <= row.items()), None)

    def publish(self, page: str, draw: Callable[[Path], None]) -> None:
        """Write the page, the picture, and the rows as CSV: lists and tables in them are left to the JSON file."""
        draw(self._file("svg"))
        self._file("md").write_text(page)
        columns = list(dict.fromkeys(name for row in self.rows for name, value in row.items() if _is_cell(value)))
        with self._file("csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            writer.writerows(self.rows)
        print(page)

    def foot(self) -> str:
        """What a page ends with: how its figures were made, on what, and in which time."""
        size = "a quick run, of a smaller size than the published one, " if self.quick else ""
        return (
            f"Made by `scripts/reproduce {self.name}{' --quick' if self.quick else ''}`: {size}{self.seconds:.0f} s on "
            f"{machine()}. Figures: [{self.name}.json]({self.name}.json), [{self.name}.csv]({self.name}.csv).\n"
        )

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def _save(self) -> None:
        head = json.dumps({"quick": self.quick, "machine": machine(), "seconds": self.seconds})
        rows = ",\n".join(json.dumps(row) for row in self.rows)  # one a line: a new row is one line of difference
        self._file("json").write_text(f'{head[:-1]}, "rows": [\n{rows}\n]}}\n')


def _is_cell(value: object) -> bool:
    return isinstance(value, str | int | float | bool) or value is None


ENOUGH = 100
"""Repetitions from which on a mean is judged."""


def verdict(kept: bool, repetitions: int = ENOUGH) -> str:
    """A promise's last cell; a mean over fewer repetitions than were promised says nothing either way."""
    if repetitions < ENOUGH:
        return f"not judged by {repetitions} repetitions"
    return "kept" if kept else "**not kept**"


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[str, float], None]]:
    """A bar on a terminal, plain lines anywhere else, on stderr; give it what is being done, and steps done."""
    console = Console(stderr=True)
    if not console.is_terminal:
        done = [0.0]

        def say(text: str, steps: float) -> None:
            done[0] += steps
            if text:
                print(f"{what}: {text} ({done[0]:.0f} of {total} done)", file=sys.stderr, flush=True)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # Nodes are forked while this is on: no thread of its own.
    with Progress(*columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as bar:
        task = bar.add_task(what, total=total)

        def show(text: str, steps: float) -> None:
            bar.update(task, advance=steps, description=f"{what}: {text}" if text else None)
            bar.refresh()

        yield show


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation."""
    import numpy as np

    return float(np.mean(values)), float(np.std(values))
