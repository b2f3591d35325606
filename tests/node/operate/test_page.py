"""The page process's server: who is answered, with what, and what it takes to keep it busy."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from node.operate import page
from node.operate.loopback import PageError, address, listen
from node.operate.metrics import exposition
from node.operate.page import MOST_CONNECTIONS, PAGE, Server, content_policy
from node.operate.status import Report, read_status
from tests.node.operate.reports import status


@dataclass
class Served:
    """A page and what it reads."""

    port: int
    file: Path

    def ask(self, path: str = "/", method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return answer, body

    def say(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), 10) as line:
            line.sendall(data)
            answer = b""
            while piece := line.recv(1 << 16):
                answer += piece
        return answer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    file = tmp_path / "status.json"
    file.write_text(json.dumps(status()))
    listening = listen(0)
    server = Server(listening, file)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield Served(listening.getsockname()[1], file)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_three_things_are_served_and_no_others(served: Served) -> None:
    for path, kind in (("/", "text/html"), ("/status.json", "application/json"), ("/metrics", "text/plain")):
        answer, body = served.ask(path)
        assert (answer.status, len(body) > 300) == (200, True)
        assert answer.headers["Content-Type"].startswith(kind)
        only_head, nothing = served.ask(path, "HEAD")
        assert (only_head.status, nothing) == (200, b"")
    for path in ("/model.npz", "/../model.npz", "/status.json?x=1", "/etc/passwd", "*"):
        assert served.ask(path)[0].status == 404
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT"):
        assert served.ask("/status.json", method)[0].status == 501


def test_every_answer_forbids_what_a_page_could_be_misused_for(served: Served) -> None:
    for path in ("/", "/status.json", "/metrics", "/nowhere"):
        answer, _ = served.ask(path)
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert answer.headers["Cross-Origin-Resource-Policy"] == "same-origin"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Cache-Control"] == "no-store"
        assert "Python" not in answer.headers["Server"]


OTHER_HOSTS = ("attacker.example", "attacker.example:{port}", "127.0.0.1:1", "127.0.0.1", "[::1]:{port}", "")


@pytest.mark.parametrize("host", OTHER_HOSTS)
def test_another_name_for_this_machine_is_refused(served: Served, host: str) -> None:
    """DNS rebinding: a stranger's page whose name was pointed at loopback."""
    answer, body = served.ask("/status.json", Host=host.format(port=served.port))
    assert answer.status == 421
    assert b"party" not in body


def test_no_host_or_two_are_refused_and_localhost_is_not(served: Served) -> None:
    good = b"Host: localhost:%d\r\n" % served.port
    assert b" 200 " in served.say(b"GET /status.json HTTP/1.1\r\n" + good + b"\r\n").splitlines()[0]
    assert b" 421 " in served.say(b"GET /status.json HTTP/1.1\r\n\r\n").splitlines()[0]
    assert b" 421 " in served.say(b"GET / HTTP/1.1\r\n" + good + b"Host: attacker.example\r\n\r\n").splitlines()[0]


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_another_sites_page_is_refused(served: Served, site: str) -> None:
    assert served.ask("/status.json", Sec_Fetch_Site=site)[0].status == 403
    assert served.ask("/status.json", Sec_Fetch_Site="same-origin")[0].status == 200


LONG, MANY = b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n"
JUNK = (b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x16\x03\x01\x02\x00", LONG, MANY)


@pytest.mark.parametrize("junk", JUNK, ids=["nothing", "no path", "no such version", "TLS", "long", "many headers"])
def test_junk_gets_an_error_or_silence_and_the_next_is_answered(served: Served, junk: bytes) -> None:
    with socket.create_connection(("127.0.0.1", served.port), 10) as line:
        line.sendall(junk)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):  # it was ended before all of it was read
            assert b" 200 " not in line.recv(100)
    assert served.ask("/status.json")[0].status == 200


def test_who_says_nothing_or_too_slowly_is_ended(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "REQUEST_SECONDS", 0.5)
    lines = [socket.create_connection(("127.0.0.1", served.port), 10) for _ in range(MOST_CONNECTIONS)]
    began = time.monotonic()
    try:
        while any(_lives(line) for line in lines):  # one byte now and then keeps no connection open
            assert time.monotonic() - began < 5
            time.sleep(0.1)
        assert served.ask("/status.json")[0].status == 200
    finally:
        for line in lines:
            line.close()


def _lives(line: socket.socket) -> bool:
    line.setblocking(False)
    try:
        line.send(b"G")
        return line.recv(1, socket.MSG_PEEK) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


def test_more_connections_than_a_few_are_closed_at_once(served: Served) -> None:
    lines = [socket.create_connection(("127.0.0.1", served.port), 5) for _ in range(MOST_CONNECTIONS)]
    try:
        time.sleep(0.3)
        with socket.create_connection(("127.0.0.1", served.port), 3) as one_more:
            assert one_more.recv(1) == b""
    finally:
        for line in lines:
            line.close()


def test_without_a_status_it_says_that_there_is_none_yet(served: Served) -> None:
    served.file.unlink()
    assert served.ask("/")[0].status == 200
    assert served.ask("/status.json")[0].status == 503
    families = {f.name: f for f in text_string_to_metric_families(served.ask("/metrics")[1].decode())}
    assert [sample.value for sample in families.pop("wardtree_up").samples] == [0]
    assert not families


def test_a_status_that_is_none_is_not_passed_on(served: Served) -> None:
    served.file.write_text('{"party": "<script>"}')
    answer, body = served.ask("/status.json")
    assert (answer.status, b"script" in body) == (503, False)


def test_the_page_is_one_file_that_asks_for_nothing_outside() -> None:
    html = PAGE.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[^\s\"'`]+", html))
    assert addresses == {"http://www.w3.org/2000/svg"}, "a namespace, which nobody fetches"
    assert not re.findall(r"<(?:script|img|iframe|object|embed)\s[^>]*src", html)
    assert re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", html) == []
    assert not re.findall(r'style="|on(?:click|load|error)="', html), "the page's own policy would refuse it"
    assert content_policy(html) != content_policy(html.replace("follow();", "follow() ;"))


def test_a_port_in_use_is_one_line(served: Served) -> None:
    with pytest.raises(PageError, match=rf"^live page: cannot listen on 127\.0\.0\.1:{served.port}: Address already"):
        listen(served.port)


def test_it_listens_on_loopback_alone() -> None:
    with listen(0) as made:
        assert made.getsockname()[0] == "127.0.0.1"
        assert address(made) == f"http://127.0.0.1:{made.getsockname()[1]}/"


def test_every_metric_has_a_name_of_ours_and_a_help_text(tmp_path: Path) -> None:
    file = tmp_path / "status.json"
    full = status(epsilon=0.5, budget=3.0, evaluations=[{"round": 2, "metrics": {"loss": 0.4, "auc": 0.81}}])
    file.write_text(json.dumps(full))
    report: Report = read_status(file, running=True)
    families = {f.name: f for f in text_string_to_metric_families(exposition(report).decode())}
    assert all(name.startswith("wardtree_") and family.documentation for name, family in families.items())
    values = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    assert values["wardtree_epsilon",] == 0.5
    assert values["wardtree_evaluation", "auc"] == 0.81
    assert values["wardtree_parties", "gone"] == 1
    assert values["wardtree_segments", "sealed"] == 3
    assert values["wardtree_up",] == 1
    os.utime(file)
    silent = {**full, "written_at": time.time() - 60}
    file.write_text(json.dumps(silent))
    assert b"wardtree_up 0.0" in exposition(read_status(file, running=True))
