"""Attempts from inside the real rooms, and the same ones outside, where they work: ``scripts/prove_sandbox``.

Each attempt runs in a process of its own, forked and then confined by the calls with which the supervisor
confines the room. One that fails for any other reason than a refusal counts as a failure of the proof.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import platform
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from node.address import free_ports
from node.home import Home, load_home
from node.process import harden
from node.protocol.posture import Posture
from node.sandbox import policy
from node.sandbox.enter import enter, narrow
from node.sandbox.machine import detect
from tests.node.homes import KEY_HOLDER, NOW, make_federation
from tests.node.sandbox import cost
from tests.node.sandbox.attempts import ATTEMPTS
from tests.node.sandbox.scene import ENCLAVE, PAGE, RELAY, ROOMS, SECRET, SUPERVISOR, Attempt, Scene

OUTSIDE = "outside"
REFUSED, WENT_THROUGH = "refused", "went through"
_REFUSALS = (errno.EPERM, errno.EACCES, errno.ENOSYS, errno.EOPNOTSUPP)
_EXIT_REFUSED, _EXIT_OTHER = 77, 78
ORDINARY = 65534
"""The user that root becomes for the proof: ``nobody``, or whoever has this number."""


@dataclass(frozen=True)
class Result:
    attempt: Attempt
    where: str
    outcome: str
    as_root: bool

    @property
    def expected(self) -> str:
        if self.where == OUTSIDE:
            return REFUSED if self.attempt.needs_root and not self.as_root else WENT_THROUGH
        return WENT_THROUGH if self.where in self.attempt.works_in else REFUSED

    @property
    def as_it_must(self) -> bool:
        return self.outcome.startswith(self.expected)


# ---- the scene ------------------------------------------------------------------------------------------


@contextmanager
def scene(folder: Path, user: int | None) -> Iterator[tuple[Scene, Home]]:
    """A federation's files, listeners, a victim and a terminal; all of it ``user``'s, if one is given."""
    federation = make_federation(folder)
    (folder / "outside").mkdir()
    (folder / "outside" / "note").write_text("private")
    home = federation.path(KEY_HOLDER)
    (home / "node.toml").write_text('[data]\ncsv = "patients.csv"\n')
    (home / "patients.csv").write_text("patient\n4711\n")
    loaded = load_home(home, NOW)
    for file in (loaded.ledger, loaded.openings):
        file.touch()
    loaded.relay_folder.mkdir()
    (loaded.relay_folder / "way-out").symlink_to(folder / "outside" / "note")
    if user is not None:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, user, user, follow_symlinks=False)
    with ExitStack() as stack:

        def listener(family: int, kind: int, address: object) -> socket.socket:
            end = stack.enter_context(socket.socket(family, kind))
            end.bind(address)
            if kind == socket.SOCK_STREAM:
                end.listen(64)
            return end

        tcp = [listener(socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)) for _ in range(2)]
        datagrams = listener(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0))
        unix, abstract = str(folder / "outside" / "socket"), f"\0wardtree-{os.getpid()}"
        for address in (unix, abstract):
            listener(socket.AF_UNIX, socket.SOCK_STREAM, address)
        os.chmod(unix, 0o777)
        (port,) = free_ports(1)
        secret = ctypes.create_string_buffer(SECRET)
        victim = _victim(user)
        stack.callback(os.waitpid, victim, 0)
        stack.callback(os.kill, victim, signal.SIGKILL)
        _, terminal = os.openpty()
        yield (
            Scene(
                home=home,
                other=federation.path("bo"),
                openings=loaded.openings,
                secret_key=loaded.secret_key,
                data=home / "patients.csv",
                outside=folder / "outside",
                free=port,
                parent=tcp[0].getsockname()[1],
                stranger=tcp[1].getsockname()[1],
                datagrams=datagrams.getsockname()[1],
                unix=unix,
                abstract=abstract,
                victim=victim,
                secret_at=ctypes.addressof(secret),
                terminal=terminal,
            ),
            loaded,
        )


def _victim(user: int | None) -> int:
    child = os.fork()
    if child == 0:
        if user is not None:
            _become(user)
        ctypes.CDLL(None).prctl(4, 1)  # its user may trace it, as any ordinary process
        while True:
            signal.pause()
    return child


def _become(user: int) -> None:
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


# ---- the rooms ------------------------------------------------------------------------------------------


def confine(where: str, place: Scene, home: Home, posture: Posture, say: int) -> None:
    """What the supervisor does; the relay's ports are this machine's, not those in the example's cards."""
    if where == OUTSIDE:
        return
    harden()
    keep = (place.terminal, say)
    if where == SUPERVISOR:
        enter(policy.supervisor([os.getpid()]), posture, keep)
    elif where == RELAY:
        room = policy.relay(home, None)
        assert room.reach
        enter(replace(room, reach=replace(room.reach, bind=(place.free,), connect=(place.parent,))), posture, keep)
        with socket.socket() as end:
            end.bind(("127.0.0.1", place.free))
            end.listen()
        narrow(policy.listening_relay(), posture)
    elif where == ENCLAVE:
        enter(policy.template(home.path, home.task_source, home.readable), posture, keep)
        narrow(policy.enclave(), posture)
    elif where == PAGE:
        enter(policy.page(home), posture, keep)
    else:
        enter(policy.keyroom(home), posture, keep)


def outcome(attempt: Attempt, where: str, user: int | None, place: Scene, home: Home, posture: Posture) -> str:
    """One attempt in a process of its own; gives what became of it, in words."""
    place.spare.write_text("spare")
    os.chown(place.spare, -1 if user is None else user, -1)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code, said = 0, ""
        try:
            if user is not None:
                _become(user)
            confine(where, place, home, posture, write)
            attempt.act(place)
        except OSError as error:
            code = _EXIT_REFUSED if error.errno in _REFUSALS else _EXIT_OTHER
            said = errno.errorcode.get(error.errno or 0, "") if code == _EXIT_REFUSED else repr(error)
        except BaseException as error:
            code, said = _EXIT_OTHER, repr(error)
        finally:
            os.write(write, said.encode())
            os._exit(code)
    os.close(write)
    said = os.read(read, 500).decode()
    os.close(read)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == 0:
        return WENT_THROUGH
    if code in (_EXIT_REFUSED, -signal.SIGSYS):
        return f"{REFUSED}: {said or 'the process was ended'}"
    return f"neither: {said or f'it ended with {code}'}"


def prove(user: int | None) -> list[Result]:
    """Every attempt, outside and in each room, as a user or as whoever runs this."""
    as_root = user is None and os.geteuid() == 0
    with tempfile.TemporaryDirectory(prefix="wardtree-") as name:
        os.chmod(name, 0o711)
        with scene(Path(name) / "scene", user) as (place, home):
            posture = detect()
            return [
                Result(each, where, outcome(each, where, user, place, home, posture), as_root)
                for each in ATTEMPTS
                for where in (OUTSIDE, *ROOMS)
            ]


# ---- the table ------------------------------------------------------------------------------------------


def table(results: list[Result]) -> str:
    """Markdown: a line an attempt, a column a place."""
    lines = [f"| | attempt | {' | '.join((OUTSIDE, *ROOMS))} |", "|" + "---|" * (3 + len(ROOMS))]
    group = ""
    for each in ATTEMPTS:
        row = {result.where: result for result in results if result.attempt is each}
        cells = [_cell(row[where]) for where in (OUTSIDE, *ROOMS)]
        lines.append(f"| {each.group if each.group != group else ''} | {each.name} | {' | '.join(cells)} |")
        group = each.group
    return "\n".join(lines)


def _cell(result: Result) -> str:
    if not result.as_it_must:
        return f"**WRONG: {result.outcome}**"
    if result.where == OUTSIDE:
        return "works" if result.outcome == WENT_THROUGH else "needs root"
    return "its work" if result.outcome == WENT_THROUGH else result.outcome.replace(": ", " ")


def summary(results: list[Result]) -> str:
    refused = [each for each in results if each.where != OUTSIDE and each.expected == REFUSED]
    wrong = [each for each in results if not each.as_it_must]
    works = sum(each.where == OUTSIDE and each.outcome == WENT_THROUGH for each in results)
    return (
        f"{len(ATTEMPTS)} attempts; outside {works} of them go through; in the rooms "
        f"{sum(each.as_it_must for each in refused)} of {len(refused)} that must be refused are; wrong: {len(wrong)}"
    )


def main() -> None:
    arguments = argparse.ArgumentParser(prog="scripts/prove_sandbox", description=__doc__)
    arguments.add_argument("--out", type=Path, help="write the table to this file as well")
    arguments.add_argument("--cost", type=int, metavar="PAIRS", help="time rounds with and without it as well, in turn")
    arguments.add_argument("--json", action="store_true", help="print JSON, and nothing else")
    asked = arguments.parse_args()
    if not detect().landlock:
        sys.exit("prove_sandbox: this kernel has no Landlock; `wardtree doctor` says what to do")
    root = os.geteuid() == 0
    runs = {f"as an ordinary user (number {ORDINARY if root else os.geteuid()})": prove(ORDINARY if root else None)}
    if root:
        runs["as root, without its privileges (the gap `root`)"] = prove(None)
    kernel = f"Linux {platform.release()} on {platform.machine()}, {detect().text}"
    page = [f"# Attempts from inside the rooms\n\nWritten by `scripts/prove_sandbox`: {kernel}. {HOW_TO_READ}"]
    page += [f"## {title}\n\n{summary(results)}.\n\n{table(results)}" for title, results in runs.items()]
    if asked.cost:
        page.append(
            f"## What it costs\n\n{asked.cost} pairs of runs, in turn.\n\n{cost.table(cost.measure(asked.cost))}"
        )
    text = "\n\n".join(page) + "\n"
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")
    if asked.json:
        print(json.dumps({title: [_plain(each) for each in results] for title, results in runs.items()}, indent=2))
    else:
        print(text)
    sys.exit(any(not each.as_it_must for results in runs.values() for each in results))


HOW_TO_READ = (
    "A cell says how the kernel refused; *works* is outside any room, to show that the attempt is one; *its work* is "
    "what the room is there for; *needs root* is refused to an ordinary user anywhere."
)


def _plain(result: Result) -> dict[str, object]:
    return {
        "group": result.attempt.group,
        "attempt": result.attempt.name,
        "where": result.where,
        "outcome": result.outcome,
        "as_it_must": result.as_it_must,
    }


if __name__ == "__main__":
    main()
