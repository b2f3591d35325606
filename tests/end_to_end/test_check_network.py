"""`wardtree check-network` names what is wrong with a network: each fault by real sockets, keys and processes."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from keys.ceremony import load_identity
from node.home import Home, load_home
from node.line import Peer
from node.operate.reachability import MEANING, REMEDIES, NetworkReport
from node.transport import Transport
from tests.end_to_end.commands import has_ipv6, wait_until, wardtree
from tests.end_to_end.test_institutions import NAMES, make_homes, nodes

pytestmark = pytest.mark.confined
SCHEMA = Path(__file__).parents[2] / "docs" / "check-network.schema.json"
KEY_HOLDER = "uppsala"
TEN_MINUTES = 600.0
FAKE_CLOCK = f"""\
import time
real = time.time
time.time = lambda: real() + {TEN_MINUTES}
from node.__main__ import main
main()
"""


@dataclass(frozen=True)
class Three:
    """A key holder, its apex, and the apex's leaf, who may have to dial both."""

    folder: Path
    ports: dict[str, int]
    apex: str
    leaf: str

    def home(self, name: str) -> Home:
        return load_home(self.folder / name, datetime.now(UTC))

    def check(self, name: str, *options: object) -> tuple[int, dict[str, str], NetworkReport]:
        """Exit code, each party's state, and the whole report, which is as its schema says."""
        ended = wardtree("check-network", "--home", self.folder / name, "--json", *options, passphrase=name)
        return read(ended.returncode, ended.stdout, ended.stderr)

    @contextlib.contextmanager
    def listening(self, name: str, seconds: float = 60, code: str | None = None) -> Iterator[subprocess.Popen[str]]:
        """`check-network --listen` of a party, from when its port answers."""
        read_end, write_end = os.pipe()
        os.write(write_end, name.encode() + b"\n")
        os.close(write_end)
        program = ["-c", code] if code else ["-m", "node"]
        command = ["check-network", "--home", str(self.folder / name), "--listen", str(seconds), "--json"]
        process = subprocess.Popen(
            [sys.executable, *program, *command, "--passphrase-fd", str(read_end)],
            pass_fds=[read_end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_end)
        bind = self.home(name).bind
        assert bind
        try:
            wait_until(lambda: answers(int(bind.rpartition(":")[2])))
            yield process
        finally:
            process.kill()
            process.communicate()


def read(code: int, stdout: str, stderr: str) -> tuple[int, dict[str, str], NetworkReport]:
    assert code in (0, 1), stderr
    jsonschema.validate(json.loads(stdout), json.loads(SCHEMA.read_text(encoding="utf-8")))
    report = NetworkReport.model_validate_json(stdout)
    assert code == (0 if report.ok else 1)
    return code, {finding.party: finding.state for finding in report.findings}, report


def answers(port: int) -> bool:
    """Whether somebody listens there: found out without a connection, which would be one more that is refused."""
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.exists()]
    sockets = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return any(each[1].endswith(f":{port:04X}") and each[3] == "0A" for each in sockets)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Three:
    folder = tmp_path_factory.mktemp("network")
    ports = make_homes(folder, key_holder=KEY_HOLDER)
    apex, leaf = load_home(folder / KEY_HOLDER, datetime.now(UTC)).placement.order
    return Three(folder, ports, apex, leaf)


def test_all_at_once_find_each_other(three: Three) -> None:
    with contextlib.ExitStack() as stack:
        running = {name: stack.enter_context(three.listening(name)) for name in NAMES}
        found = {name: read(process.wait(60), *process.communicate()) for name, process in running.items()}
    assert {name: states for name, (_, states, _) in found.items()} == {
        KEY_HOLDER: {three.apex: "good", three.leaf: "good"},
        three.apex: {KEY_HOLDER: "good", three.leaf: "good"},
        three.leaf: {three.apex: "good", KEY_HOLDER: "good"},
    }
    for code, _, report in found.values():
        assert code == 0
        assert report.notes == ()
        assert all(abs(finding.clock_seconds or 0.0) < 10 for finding in report.findings)


@has_ipv6
def test_over_ipv6(tmp_path: Path) -> None:
    ports = make_homes(tmp_path, key_holder=KEY_HOLDER, host="::1")
    apex, leaf = load_home(tmp_path / KEY_HOLDER, datetime.now(UTC)).placement.order
    three = Three(tmp_path, ports, apex, leaf)
    with three.listening(apex):
        assert three.check(leaf)[1] == {apex: "good", KEY_HOLDER: "refused"}


def test_a_wrong_port_is_refused(three: Three) -> None:
    code, states, report = three.check(three.leaf)
    assert (code, set(states.values())) == (1, {"refused"})
    assert f"127.0.0.1:{three.ports[three.apex]}" in {finding.endpoint for finding in report.findings}


def test_a_firewall_that_drops(three: Three) -> None:
    """A queue of connections that is full: the kernel drops what comes after, as a firewall does."""
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        full.bind(("127.0.0.1", three.ports[three.apex]))
        full.listen(0)
        for _ in range(8):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(full.getsockname())
        code, states, _ = three.check(three.leaf)
    assert (code, states[three.apex], states[KEY_HOLDER]) == (1, "timeout", "refused")


def test_a_wrong_server_key(three: Three) -> None:
    """Where the apex should listen, another party of the same study does."""
    settings = three.folder / KEY_HOLDER / "node.toml"
    settings.write_text(f'[network]\nbind = "127.0.0.1:{three.ports[three.apex]}"\n')
    try:
        with three.listening(KEY_HOLDER):
            code, states, _ = three.check(three.leaf)
    finally:
        settings.unlink()
    assert (code, states[three.apex]) == (1, "wrong server key")


def test_an_unknown_client_key(three: Three) -> None:
    """The apex has its own keys, and a roster in which the leaf has others."""
    apex = three.home(three.apex)
    stranger = Peer(three.leaf, apex.manifest.card(KEY_HOLDER).curve_key, None)
    secret = load_identity(apex.path, three.apex).curve_secret
    refused: list[str] = []
    listens = Transport(secret, [stranger], apex.bind, lambda who, *_: refused.append(who), 1 << 16)
    over = threading.Event()

    def serve() -> None:
        while not over.is_set():
            listens.poll(0.05)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        code, states, _ = three.check(three.leaf)
    finally:
        over.set()
        thread.join()
        listens.close()
    assert (code, states[three.apex]) == (1, "unknown client key")
    assert any(who.startswith("key ") for who in refused)


def test_a_clock_that_is_ten_minutes_off_and_both_sides_say_so(three: Three) -> None:
    with three.listening(three.apex, 8, FAKE_CLOCK) as ahead:
        code, states, report = three.check(three.leaf)
        assert (code, states[three.apex]) == (1, "clock")
        (finding,) = [finding for finding in report.findings if finding.party == three.apex]
        assert abs((finding.clock_seconds or 0.0) - TEN_MINUTES) < 10
        assert "10.0 minutes ahead of ours" in finding.found
        _, states, report = read(ahead.wait(60), *ahead.communicate())
    assert states[three.leaf] == "clock"
    assert "10.0 minutes behind ours" in next(f.found for f in report.findings if f.party == three.leaf)


def test_something_else_listens_there(three: Three) -> None:
    with socket.create_server(("127.0.0.1", three.ports[three.apex])) as other:

        def greet() -> None:
            with contextlib.suppress(OSError), closing(other.accept()[0]) as caller:
                caller.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                caller.recv(1)

        thread = threading.Thread(target=greet, daemon=True)
        thread.start()
        _, states, _ = three.check(three.leaf)
    assert states[three.apex] == "something else listens"


def test_a_node_that_runs_tells_the_time_too_and_says_nothing_is_wrong(three: Three, tmp_path: Path) -> None:
    with nodes({three.apex: three.folder / three.apex}) as running:
        wait_until(lambda: answers(three.ports[three.apex]))
        _, states, _ = three.check(three.leaf)
        assert states[three.apex] == "good"
        running[three.apex].kill()
        said, _ = running[three.apex].communicate()
        assert "dropped" not in said


def test_the_table_for_people_names_the_party_and_what_to_do(three: Three) -> None:
    ended = wardtree("check-network", "--home", three.folder / three.leaf, passphrase=three.leaf)
    assert ended.returncode == 1
    text = " ".join(ended.stdout.split())
    assert f"{three.apex}: its machine answers that nothing listens on this port. To do: start" in text
    assert text.endswith("The network is not ready.")


def test_a_key_holder_alone_has_nobody_to_dial(three: Three) -> None:
    ended = wardtree("check-network", "--home", three.folder / KEY_HOLDER, passphrase=KEY_HOLDER)
    assert ended.returncode == 2
    assert "give --listen" in ended.stderr


def test_the_schema_is_the_programs_own_and_every_state_is_explained() -> None:
    schema: dict[str, Any] = json.loads(wardtree("check-network", "--schema").stdout)
    assert schema == json.loads(SCHEMA.read_text(encoding="utf-8"))
    states = set(schema["$defs"]["Finding"]["properties"]["state"]["enum"])
    assert states == MEANING.keys()
    assert states - REMEDIES.keys() == {"good", "already connected"}
