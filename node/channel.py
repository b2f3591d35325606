"""Messages between the processes of one node, over pipes: a length, then a msgpack map."""

from __future__ import annotations

import os
import select
import struct
from collections.abc import Iterable
from typing import Any

import msgpack

_LENGTH = struct.Struct(">I")
_CHUNK = 1 << 18
MAX_MESSAGE = (1 << 32) - 1


class ChannelClosedError(Exception):
    """The other process is gone."""


class Channel:
    """One end of a two-way conversation. ``read`` and ``write`` are descriptors; either may be None.

    A message is a dict with a ``kind`` and the fields of that kind. Writing blocks until the other side
    has taken everything, which is all the flow control that two processes need.

    Attributes:
        reads_ahead: no other process reads from this pipe: more than one message may be taken at a time.
    """

    def __init__(self, read: int | None, write: int | None, limit: int = MAX_MESSAGE) -> None:
        self.read, self.write, self.limit = read, write, limit
        self.reads_ahead = False
        self._buffer = bytearray()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends, joined by two pipes. The descriptors are not inherited over exec, only over fork."""
        (read_a, write_b), (read_b, write_a) = os.pipe(), os.pipe()
        return cls(read_a, write_a), cls(read_b, write_b)

    @property
    def descriptors(self) -> tuple[int, ...]:
        """Those of its two that are open."""
        return tuple(each for each in (self.read, self.write) if each is not None)

    def send(self, kind: str, **fields: Any) -> None:
        """Send one message.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        head, body = packed(kind, **fields)
        self.send_packed((head + body,) if len(body) < _CHUNK else (head, body))

    def send_packed(self, parts: Iterable[bytes]) -> None:
        """Send the bytes of whole messages.

        Raises:
            ChannelClosedError: the other side is gone.
        """
        assert self.write is not None
        try:
            for part in parts:
                view = memoryview(part)
                while view:
                    view = view[os.write(self.write, view) :]
        except BrokenPipeError as error:
            raise ChannelClosedError from error

    def _readable(self, timeout: float) -> bool:
        assert self.read is not None
        poller = select.poll()  # select() stops at descriptor 1024
        poller.register(self.read, select.POLLIN)
        return bool(poller.poll(timeout * 1000))

    def receive(self, timeout: float | None = None) -> dict[str, Any]:
        """Wait for the next message.

        Raises:
            ChannelClosedError: the other side is gone, or said nothing within ``timeout`` seconds.
        """
        while (message := self._take()) is None:
            if timeout is not None and not self._readable(timeout):
                raise ChannelClosedError
            if not self._fill():
                raise ChannelClosedError
        return message

    def poll(self) -> dict[str, Any] | None:
        """Read what is there; gives the next message if it is complete.

        Call it when ``read`` is readable, and again until it gives None before waiting anew.

        Raises:
            ChannelClosedError: the other side is gone and everything it said was given out.
        """
        while (message := self._take()) is None and self._readable(0):
            if not self._fill():
                raise ChannelClosedError
        return message

    def close(self) -> None:
        for descriptor in (self.read, self.write):
            if descriptor is not None:
                os.close(descriptor)
        self.read = self.write = None
        self._buffer.clear()

    def _fill(self) -> bool:
        """Read on, but not beyond this message where the next may be for another process at the same pipe."""
        assert self.read is not None
        end = _LENGTH.size
        if len(self._buffer) >= end:
            end += _LENGTH.unpack_from(self._buffer)[0]
        data = os.read(self.read, _CHUNK if self.reads_ahead else min(_CHUNK, end - len(self._buffer)))
        self._buffer += data
        return bool(data)

    def _take(self) -> dict[str, Any] | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > self.limit:
            raise ChannelClosedError
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        with memoryview(self._buffer) as whole, whole[_LENGTH.size : end] as body:
            message = _unpack(body)
            whole[:end] = bytes(end)  # it may have been a plaintext
        del self._buffer[:end]
        return message


def packed(kind: str, **fields: Any) -> tuple[bytes, bytes]:
    """Head and body of a message."""
    body = msgpack.packb({"kind": kind, **fields}, use_bin_type=True)
    return _LENGTH.pack(len(body)), body


def _unpack(body: memoryview) -> dict[str, Any]:
    try:
        message = msgpack.unpackb(body, raw=False, max_bin_len=MAX_MESSAGE)
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise ChannelClosedError from error
    if not isinstance(message, dict) or not isinstance(message.get("kind"), str):
        raise ChannelClosedError  # who says what is no message is as good as gone
    return message
