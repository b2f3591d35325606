"""The page process: what a node's status file says, to whoever asks on this machine.

It is a room of its own: it has a socket that listens on loopback, which the supervisor made, and reads one folder;
it can make no socket, and reach no key and no data. Anyone who may use this machine can ask, so nothing is
shown that all parties do not know anyway, beside counts and times of this node's own.
"""

from __future__ import annotations

import base64
import hashlib
import re
import socket
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, TCPServer, ThreadingMixIn
from typing import Any

from keys.errors import WardtreeError
from node.operate.loopback import LOOPBACK
from node.operate.metrics import CONTENT_TYPE, exposition
from node.operate.status import Report, read_status
from node.process import name_process

PAGE = Path(__file__).with_name("page.html")
MOST_CONNECTIONS = 16
REQUEST_SECONDS = 5.0
"""A connection is ended when it is older: whatever it was given to say or to hear."""
CACHE_SECONDS = 0.1


def run_page(listening: socket.socket, status: Path, party: str) -> None:
    """Serve until the supervisor ends this process."""
    name_process(f"page {party}")
    Server(listening, status).serve_forever()


class Server(ThreadingMixIn, TCPServer):
    """A thread for each of a few connections; those that take too long are ended."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, status: Path) -> None:
        BaseServer.__init__(self, listening.getsockname(), Handler)
        self.socket = listening
        self._status = status
        self.html = PAGE.read_bytes()
        self.policy = content_policy(self.html.decode())
        port = listening.getsockname()[1]
        self.hosts = {f"{LOOPBACK}:{port}", f"localhost:{port}"} | ({LOOPBACK, "localhost"} if port == 80 else set())
        self._lock = threading.Lock()
        self._open: dict[socket.socket, float] = {}
        self._report: tuple[float, Report | None] = (-1.0, None)

    def report(self) -> Report | None:
        """The node's status; None before there is one. However many ask, the file is read a few times a second."""
        with self._lock:
            if time.monotonic() - self._report[0] > CACHE_SECONDS:
                try:
                    # The supervisor, which holds the home's lock, ends this process when the node ends.
                    self._report = time.monotonic(), read_status(self._status, running=True)
                except WardtreeError:
                    self._report = time.monotonic(), None
            return self._report[1]

    def verify_request(self, request: Any, client_address: Any) -> bool:
        return len(self._open) < MOST_CONNECTIONS

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open[request] = time.monotonic() + REQUEST_SECONDS
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        with self._lock:
            late = [request for request, due in self._open.items() if time.monotonic() > due]
        for request in late:
            try:
                request.shutdown(socket.SHUT_RDWR)  # its thread then ends
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever hangs up in the middle is nobody's business."""


class Handler(BaseHTTPRequestHandler):
    """GET and HEAD of three things, for this machine's own browsers and collectors."""

    server: Server
    server_version, sys_version = "wardtree", ""
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        if self.headers.get_all("Host", []) not in [[host] for host in self.server.hosts]:
            # A name that an attacker points at this machine would let a stranger's page read ours.
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
        elif self.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none"):
            self._refuse(HTTPStatus.FORBIDDEN)
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", self.server.html)
        elif self.path == "/status.json":
            report = self.server.report()
            if report is None:
                self._refuse(HTTPStatus.SERVICE_UNAVAILABLE)
            else:
                self._answer("application/json", report.model_dump_json().encode())
        elif self.path == "/metrics":
            self._answer(CONTENT_TYPE, exposition(self.server.report()))
        else:
            self._refuse(HTTPStatus.NOT_FOUND)

    do_HEAD = do_GET  # noqa: N815

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self._refuse(HTTPStatus(code))

    def _refuse(self, status: HTTPStatus) -> None:
        self._answer("text/plain", f"{status.value} {status.phrase}\n".encode(), status)

    def _answer(self, kind: str, body: bytes, status: HTTPStatus = HTTPStatus.OK) -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": self.server.policy,
            "Cache-Control": "no-store",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Whoever asks shall not fill the node's log."""


def content_policy(html: str) -> str:
    """Nothing but the page's own script and style, named by their digests, and its own address."""
    (style,) = re.findall(r"<style>(.*?)</style>", html, re.DOTALL)
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    return (
        f"default-src 'none'; style-src '{_source(style)}'; script-src '{_source(script)}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
