"""Types the commands of docs/ceremony.md as the people in it would: one shell and one folder each, at a terminal.

A block ```console has lines such as ``lund$ wardtree ...`` (and ``> ...`` where one goes on), each followed by
what the terminal then shows. Blocks ```console together are done by all at the same time, up to the next block
without that word. A command that ends in ``# refused`` must fail, every other must not.

``python -m tests.end_to_end.walkthrough docs/ceremony.md`` does it all, and puts what was shown into the page.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pexpect

from keys.words import _list
from node.address import free_ports
from tests.end_to_end.commands import OWN_GAPS

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "ceremony.md"
SECONDS = 300
"""How long one command may take, on a machine that has other things to do."""
_COMMAND = re.compile(r"([a-z]+)\$ (.*)")
_PORT = re.compile(r"127\.0\.0\.1:(7\d\d\d)")


@dataclass
class Command:
    """One command of the page: who types which lines, and what the page says is shown then."""

    who: str
    lines: list[str]
    shown: list[str] = field(default_factory=list)

    @property
    def refused(self) -> bool:
        return self.lines[-1].endswith("# refused")

    def to_lines(self) -> list[str]:
        first, *rest = self.lines
        return [f"{self.who}$ {first}", *(f"> {line}" for line in rest), *self.shown]


@dataclass
class Page:
    """A page in parts: text, and blocks of commands (with whether they are done together)."""

    parts: list[str | tuple[bool, list[Command]]]

    @classmethod
    def parse(cls, text: str) -> Page:
        parts: list[str | tuple[bool, list[Command]]] = []
        lines: list[str] = []
        block: list[Command] | None = None
        for line in text.splitlines():
            if line.startswith("```console"):
                lines.append(line)
                parts.append("\n".join(lines))
                block, lines = [], []
                parts.append((line.endswith(" together"), block))
            elif block is not None and line == "```":
                block, lines = None, ["```"]
            elif block is None:
                lines.append(line)
            elif match := _COMMAND.fullmatch(line):
                block.append(Command(match[1], [match[2]]))
            elif line.startswith("> ") and not block[-1].shown:
                block[-1].lines.append(line[2:])
            else:
                block[-1].shown.append(line)
        return cls([*parts, "\n".join(lines)])

    def render(self) -> str:
        texts = []
        for part in self.parts:
            if isinstance(part, str):
                texts.append(part)
            else:
                texts.append("\n".join(line for command in part[1] for line in command.to_lines()))
        return "\n".join(texts) + "\n"

    def turns(self) -> Iterator[list[Command]]:
        """Commands that are done at the same time, turn by turn."""
        together: list[Command] = []
        for part in self.parts:
            if isinstance(part, str):
                continue
            if part[0]:
                together += part[1]
                continue
            if together:
                yield together
                together = []
            yield from ([command] for command in part[1])
        if together:
            yield together


class Person:
    """Somebody at a terminal, in a folder of their own, who knows a passphrase and has a telephone."""

    def __init__(self, name: str, folder: Path, environment: dict[str, str], spoken: dict[str, str]) -> None:
        self.name, self._spoken = name, spoken
        self._prompt = re.compile(f"@@{name} (\\d+)@@ ")
        (folder / name).mkdir()
        self._shell = pexpect.spawn(
            "/bin/bash", ["--norc", "--noprofile", "--noediting"], cwd=str(folder / name), encoding="utf-8",
            dimensions=(50, 500), timeout=SECONDS, env=environment | {"PS1": f"@@{name} $?@@ ", "PS2": ""},
        )  # fmt: skip
        self._shell.delaybeforesend = None
        self._shell.expect(self._prompt)

    def type(self, command: Command) -> tuple[int, str]:
        """Type a command and answer what it asks; gives its status and what was shown, the command left out."""
        asked = [
            self._prompt,
            r"Passphrase of [^\r\n]*: ",
            r"Repeat for confirmation: ",
            r"Words of ([a-z]+): ",
            r"Type destroy to go on: ",
            r"is left\? \[y/N\]: ",
        ]
        for line in command.lines:
            self._shell.sendline(line)
            self._shell.expect_exact(line[-40:] + "\r\n")  # the terminal's echo
        shown = ""
        while (what := self._shell.expect(asked)) != 0:
            shown += self._shell.before + self._shell.after
            word = self._shell.match[1] if what == 3 else ""
            answers = {1: self._passphrase, 2: self._passphrase, 3: self._spoken.get(word, ""), 4: "destroy", 5: "y"}
            self._shell.sendline(answers[what])
        shown += self._shell.before
        if match := re.search(r"Its words: ([a-z ]+)", shown):
            self._spoken[self.name] = match[1].strip()
        return int(self._shell.match[1]), shown.replace("\r\n", "\n")

    def leave(self) -> None:
        self._shell.close(force=True)

    @property
    def _passphrase(self) -> str:
        return f"four random words of {self.name}"


def walk(page: Page, folder: Path, places: Mapping[str, str] | None = None) -> Page:
    """Do everything that the page says, in ``folder``; gives the page as it should be.

    Args:
        places: for what else the page names (a host, a folder) what it is here.

    Raises:
        AssertionError: a command failed that should not, or the other way round.
    """
    numbers = sorted(set(_PORT.findall(page.render())))
    ports = dict(zip(numbers, free_ports(len(numbers)), strict=True))
    there = {f"127.0.0.1:{number}": f"127.0.0.1:{port}" for number, port in ports.items()} | dict(places or {})
    back = {port: number for number, port in there.items()}
    spoken: dict[str, str] = {}
    environment = _environment(folder)
    names = sorted({command.who for turn in page.turns() for command in turn})
    people = {name: Person(name, folder, environment, spoken) for name in names}
    results: dict[int, list[str]] = {}

    def act(commands: list[Command]) -> None:
        for command in commands:
            status, shown = people[command.who].type(_renamed(command, there))
            assert bool(status) == command.refused, f"{command.who}$ {command.lines}: status {status}\n{shown}"
            shown = _as_a_user(_replace(shown, back))
            results[id(command)] = shown.rstrip("\n").split("\n") if shown.strip() else []

    try:
        with ThreadPoolExecutor(len(people)) as pool:
            for turn in page.turns():
                mine = {name: [each for each in turn if each.who == name] for name in names}
                list(pool.map(act, [commands for commands in mine.values() if commands]))
    finally:
        for person in people.values():
            person.leave()
    parts: list[str | tuple[bool, list[Command]]] = []
    for part in page.parts:
        if isinstance(part, str):
            parts.append(part)
        else:
            parts.append((part[0], [Command(each.who, each.lines, results[id(each)]) for each in part[1]]))
    return Page(parts)


def comparable(command: Command) -> list[str]:
    """What is shown, without what differs from run to run: digests, words, times. Of a node, the last line."""
    known = set(_list().wordlist)
    lines = command.shown[-1:] if " node " in f"{command.lines[0]} " else command.shown
    result = []
    for line in lines:
        line = re.sub(r"[0-9a-f]{8,}", "#", line)
        line = re.sub(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", "TIME", line)
        line = re.sub(r"(?:\b[a-z]{3,8}\b ?){6,7}", lambda match: _plain(match[0], known), line)
        result.append(line.rstrip())
    return result


def _plain(text: str, known: set[str]) -> str:
    return "WORDS" if set(text.split()) <= known else text


def _as_a_user(shown: str) -> str:
    """As root the nodes have a gap that the people of the page, who are no root, do not have."""
    if not OWN_GAPS:
        return shown
    shown = shown.replace("Sandbox: may lack root.", "Sandbox: nothing may be missing.")
    return re.sub(r"(?m)(?<=[=,])root,|,root$|(?<==)root$", "", shown)


def _renamed(command: Command, names: dict[str, str]) -> Command:
    return Command(command.who, [_replace(line, names) for line in command.lines])


def _replace(text: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        text = text.replace(old, new)
    return text


def _environment(folder: Path) -> dict[str, str]:
    """A person's: ``wardtree`` is on the path, and nothing else of ours is there."""
    program = folder / "bin" / "wardtree"
    program.parent.mkdir()
    run = f'exec "{sys.executable}" -m node'
    as_root = f'case "$1 $2" in "ceremony propose") {run} "$@" --allow-gap root;; esac\n' if OWN_GAPS else ""
    program.write_text(f'#!/bin/sh\n{as_root}{run} "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER") if name in os.environ}
    return kept | {"PATH": f"{program.parent}:/usr/bin:/bin", "PYTHONPATH": str(ROOT), "TERM": "dumb"}


def main() -> None:
    """Rewrite the page with what is really shown."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PAGE
    with tempfile.TemporaryDirectory() as folder:
        page = walk(Page.parse(path.read_text(encoding="utf-8")), Path(folder))
    path.write_text(page.render(), encoding="utf-8")


if __name__ == "__main__":
    main()
