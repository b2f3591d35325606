"""A CURVE client of our own (ZMTP 3.1, CurveZMQ, RFC 26): says over TCP what libzmq would not let us say.

An attacker is not bound to libzmq: it may stop in the middle of a handshake, begin a message that never
ends, or change any byte on its way.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from nacl.bindings import crypto_box_afternm, crypto_box_beforenm, crypto_box_keypair, crypto_box_open_afternm
from nacl.public import PrivateKey

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x01" + b"CURVE".ljust(20, b"\0") + bytes(32)
METADATA = b"\x0bSocket-Type" + struct.pack(">I", 6) + b"DEALER" + b"\x08Identity" + bytes(4)
COMMAND, LONG, MORE = 4, 2, 1


def frame(flags: int, body: bytes) -> bytes:
    """A ZMTP frame: flags, size, body."""
    if len(body) > 255:
        return bytes([flags | LONG]) + struct.pack(">Q", len(body)) + body
    return bytes([flags, len(body)]) + body


@dataclass
class CurveClient:
    """One connection to a CURVE server, as far as :meth:`greet` and the steps after it were taken.

    Attributes:
        secret: our long-term X25519 secret, 32 bytes.
        server: the server's public key.
    """

    port: int
    secret: bytes
    server: bytes
    host: str = "127.0.0.1"
    socket: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.socket = socket.create_connection((self.host, self.port))
        self.socket.settimeout(10)
        self._public, self._secret = crypto_box_keypair()  # of this connection
        self._count = 0

    def close(self) -> None:
        self.socket.close()

    def is_closed(self) -> bool:
        """Wait until the server has ended the connection, at most 10 seconds."""
        try:
            while self.socket.recv(1 << 16):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    # ---- the handshake, step by step --------------------------------------------------------------------

    def connect(self) -> CurveClient:
        """The whole handshake.

        Raises:
            ConnectionError: the server ended it.
        """
        self.greet()
        self.socket.sendall(self.hello())
        self.socket.sendall(self.initiate(self.welcome()))
        self.ready()
        return self

    def greet(self) -> None:
        self.socket.sendall(GREETING)
        self.take_greeting()

    def take_greeting(self) -> None:
        self._read(len(GREETING))

    def hello(self) -> bytes:
        key = crypto_box_beforenm(self.server, self._secret)
        box = self._box(b"CurveZMQHELLO---", key, bytes(64))
        return frame(COMMAND, b"\x05HELLO\x01\x00" + bytes(72) + self._public + box)

    def welcome(self) -> bytes:
        """Take the server's answer to our HELLO; gives its cookie."""
        body = self._read_frame()[len(b"\x07WELCOME") :]
        key = crypto_box_beforenm(self.server, self._secret)
        opened = crypto_box_open_afternm(body[16:], b"WELCOME-" + body[:16], key)
        self._short = opened[:32]
        return opened[32:]

    def initiate(self, cookie: bytes) -> bytes:
        own = bytes(PrivateKey(self.secret).public_key)
        to_vouch = crypto_box_beforenm(self._short, self.secret)
        vouch = crypto_box_afternm(self._public + self.server, b"VOUCH---" + bytes(16), to_vouch)
        self._key = crypto_box_beforenm(self._short, self._secret)
        box = self._box(b"CurveZMQINITIATE", self._key, own + bytes(16) + vouch + METADATA)
        return frame(COMMAND, b"\x08INITIATE" + cookie + box)

    def ready(self) -> None:
        body = self._read_frame()
        if not body.startswith(b"\x05READY"):
            raise ConnectionError(f"expected READY, came {body[:6]!r}")

    # ---- after it ---------------------------------------------------------------------------------------

    def part(self, content: bytes, more: bool = False) -> bytes:
        """One part of a message, encrypted."""
        box = self._box(b"CurveZMQMESSAGEC", self._key, bytes([MORE if more else 0]) + content)
        return frame(0, b"\x07MESSAGE" + box)

    def send(self, *parts: bytes) -> None:
        """A whole message."""
        last = len(parts) - 1
        self.socket.sendall(b"".join(self.part(content, number < last) for number, content in enumerate(parts)))

    def receive(self) -> list[bytes]:
        """The parts of the next message; commands, heartbeats above all, are passed over."""
        parts = []
        while True:
            body = self._read_frame().removeprefix(b"\x07MESSAGE")
            content = crypto_box_open_afternm(body[8:], b"CurveZMQMESSAGES" + body[:8], self._key)
            if content[0] & 2:
                continue
            parts.append(content[1:])
            if not content[0] & MORE:
                return parts

    def _box(self, prefix: bytes, key: bytes, content: bytes) -> bytes:
        self._count += 1
        nonce = struct.pack(">Q", self._count)
        return nonce + crypto_box_afternm(content, prefix + nonce, key)

    def _read_frame(self) -> bytes:
        flags = self._read(1)[0]
        size = struct.unpack(">Q", self._read(8))[0] if flags & LONG else self._read(1)[0]
        return self._read(size)

    def _read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.socket.recv(size - len(data))
            if not more:
                raise ConnectionError("the server ended the connection")
            data += more
        return data
