"""A scanner that stands outside: it reads all writable memory of a process, and counts copies of what it knows.

What it looks for are *windows*, 64 bytes each, spread over the thing whose copies are sought: a copy that was
overwritten in part still has some. They are found at any address.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

WINDOW = 64
WINDOWS = 64
"""Windows of each form: a whole copy counts for as many."""

DISTINCT = 12
"""A window has at least so many different bytes."""

_CHUNK = 32 << 20
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PRESENT = np.uint64(0b11 << 62)  # in memory, or swapped out


@dataclass(frozen=True)
class Windows:
    """What to look for, by name of the form; shape (windows, 64), bytes."""

    forms: Mapping[str, NDArray[np.uint8]]

    @classmethod
    def of(cls, things: Mapping[str, bytes]) -> Windows:
        return cls({name: _spread(thing) for name, thing in things.items()})


def _spread(thing: bytes) -> NDArray[np.uint8]:
    """Windows at even distances, but for those that any memory may hold, as padding with zeros is."""
    last = len(thing) - WINDOW
    starts = np.unique(np.linspace(0, last, min(8 * WINDOWS, 1 + last // WINDOW)).astype(int) // 8 * 8)
    windows = np.stack([np.frombuffer(thing, np.uint8, WINDOW, start) for start in starts])
    own = windows[[np.unique(window).size >= DISTINCT for window in windows]]
    return own[np.unique(np.linspace(0, len(own) - 1, WINDOWS).astype(int))]


def _marks(windows: NDArray[np.uint8]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Of each window four bytes that are rare in memory, and where in it they are: not zeros, nor all the same."""
    quads = windows.reshape(len(windows), -1, 4)
    ordered = np.sort(quads, axis=2)
    rarity = (np.diff(ordered, axis=2) != 0).sum(axis=2) + (quads != 0).sum(axis=2)
    places = rarity.argmax(axis=1)
    chosen = quads[np.arange(len(quads)), places]
    return np.ascontiguousarray(chosen).view("<u4")[:, 0], 4 * places


def count(memory: Iterable[bytes], windows: Windows) -> dict[str, int]:
    """How many windows of each form are in pieces of memory (consecutive ones overlap by a window)."""
    names = list(windows.forms)
    all_windows = np.concatenate([windows.forms[name] for name in names])
    owner = np.repeat(np.arange(len(names)), [len(windows.forms[name]) for name in names])
    marks, offsets = _marks(all_windows)
    order = np.argsort(marks, kind="stable")
    marks, offsets, all_windows, owner = marks[order], offsets[order], all_windows[order], owner[order]
    table = np.zeros(1 << 16, bool)
    table[marks & 0xFFFF] = True
    totals = np.zeros(len(names), np.int64)
    for piece in memory:
        data = np.frombuffer(piece, np.uint8)
        for shift in range(4):
            words = data[shift : shift + (len(data) - shift) // 4 * 4].view("<u4")
            (places,) = np.nonzero(table[words.astype(np.uint16)])
            lows = np.searchsorted(marks, words[places], "left")
            highs = np.searchsorted(marks, words[places], "right")
            for place, low, high in zip(places[lows < highs], lows[lows < highs], highs[lows < highs], strict=True):
                for index in range(low, high):
                    at = shift + 4 * int(place) - int(offsets[index])
                    if 0 <= at <= len(data) - WINDOW and (data[at : at + WINDOW] == all_windows[index]).all():
                        totals[owner[index]] += 1
    return dict(zip(names, totals.tolist(), strict=True))


def memory_of(process: int) -> Iterator[bytes]:
    """All writable memory of a process that is really there, region by region; page tables of the kernel say what is.

    Raises:
        PermissionError: it cannot be traced, and we are not root.
    """
    with (
        open(f"/proc/{process}/maps") as maps,
        open(f"/proc/{process}/mem", "rb", buffering=0) as memory,
        open(f"/proc/{process}/pagemap", "rb", buffering=0) as pages,
    ):
        for line in maps:
            addresses, rights, *_ = line.split()
            if "w" in rights and "r" in rights:
                start, end = (int(part, 16) for part in addresses.split("-"))
                yield from _present(memory.fileno(), pages.fileno(), start, end)


def _present(memory: int, pages: int, start: int, end: int) -> Iterator[bytes]:
    entries = np.frombuffer(os.pread(pages, (end - start) // _PAGE * 8, start // _PAGE * 8), "<u8")
    there = np.concatenate([[False], (entries & _PRESENT) != 0, [False]])
    edges = np.flatnonzero(there[1:] != there[:-1])
    for first, last in edges.reshape(-1, 2):
        at, stop = start + int(first) * _PAGE, start + int(last) * _PAGE
        while at < stop:
            try:
                piece = os.pread(memory, min(_CHUNK, stop - at), at)
            except OSError:  # a device's memory, or gone meanwhile
                break
            if not piece:
                break
            yield piece
            at += len(piece) if len(piece) <= WINDOW or at + len(piece) == stop else len(piece) - WINDOW


def files_in(folders: Iterable[Path], own: Path, since: float, but: Iterable[Path]) -> Iterator[bytes]:
    """The content of every file in these folders, and of all below ``own``, that was written since a moment."""
    excluded = {path.resolve() for path in but}
    for paths in (own.rglob("*"), *(folder.iterdir() for folder in folders)):
        for path in paths:
            try:
                is_ours = path.is_file() and not path.is_symlink() and path.resolve() not in excluded
                if is_ours and path.stat().st_mtime >= since:
                    yield path.read_bytes()
            except OSError:
                continue
