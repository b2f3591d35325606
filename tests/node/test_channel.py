"""Messages over pipes between the rooms of a node."""

from __future__ import annotations

import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgpack
import pytest

from node.channel import Channel, ChannelClosedError
from node.process import reap, spawn


@contextmanager
def raw(limit: int = 1 << 20) -> Iterator[tuple[Channel, int]]:
    """A channel that only reads, and the descriptor from which any bytes at all can be put in."""
    read, write = os.pipe()
    channel = Channel(read, None, limit)
    try:
        yield channel, write
    finally:
        channel.close()
        os.close(write)


def framed(**message: object) -> bytes:
    body = msgpack.packb(message)
    assert isinstance(body, bytes)
    return struct.pack(">I", len(body)) + body


def test_messages_go_both_ways_in_order_with_every_type_that_the_rooms_use() -> None:
    ours, theirs = Channel.pair()
    ours.send("round", round=1, model=b"\0\xff", statistics=None, share=0.5, names=["ada", "bö"], ok=True)
    ours.send("close")
    theirs.send("error", text="failed")
    expected = {"kind": "round", "round": 1, "model": b"\0\xff", "statistics": None, "share": 0.5}
    assert theirs.receive() == expected | {"names": ["ada", "bö"], "ok": True}
    assert theirs.receive() == {"kind": "close"}
    assert ours.receive() == {"kind": "error", "text": "failed"}
    ours.close()
    theirs.close()


def test_a_message_may_come_byte_by_byte_and_two_at_once() -> None:
    data = framed(kind="a", text="å" * 50) + framed(kind="b")
    with raw() as (channel, write):
        for byte in data[:-3]:
            assert os.write(write, bytes([byte])) == 1
            message = channel.poll()
            if message:
                assert message == {"kind": "a", "text": "å" * 50}
        assert channel.poll() is None
        os.write(write, data[-3:] + data)
        assert [message and message["kind"] for message in (channel.poll() for _ in range(4))] == [
            "b",
            "a",
            "b",
            None,
        ]


def test_large_messages_pass_while_both_sides_write() -> None:
    """Many times what a pipe holds, both ways at once, by a process that reads before it answers."""
    ours, theirs = Channel.pair()
    blob = os.urandom(5 << 20)

    def echo() -> None:
        ours.close()
        for _ in range(2):
            theirs.send("echo", blob=theirs.receive()["blob"])

    child = spawn(signal.SIGKILL, echo)
    theirs.close()

    def ask() -> None:
        for _ in range(2):
            ours.send("take", blob=blob)

    writer = threading.Thread(target=ask, daemon=True)
    writer.start()
    assert [ours.receive(30)["blob"] == blob for _ in range(2)] == [True, True]
    writer.join(30)
    assert reap(child) == 0
    ours.close()


def test_a_writer_waits_until_the_reader_takes_it() -> None:
    ours, theirs = Channel.pair()
    writer = threading.Thread(target=lambda: ours.send("take", blob=bytes(1 << 20)), daemon=True)
    writer.start()
    writer.join(0.2)
    assert writer.is_alive(), "a pipe holds 64 KiB: the rest is the reader's to ask for"
    assert len(theirs.receive(10)["blob"]) == 1 << 20
    writer.join(10)
    assert not writer.is_alive()


def test_what_a_closed_peer_said_is_given_out_before_its_end_is() -> None:
    ours, theirs = Channel.pair()
    theirs.send("last")
    theirs.close()
    assert ours.poll() == {"kind": "last"}
    with pytest.raises(ChannelClosedError):
        ours.poll()
    with pytest.raises(ChannelClosedError):
        ours.receive()
    with pytest.raises(ChannelClosedError):
        ours.send("anyone?")


def test_a_peer_that_ends_in_the_middle_of_a_message_is_closed() -> None:
    read, write = os.pipe()
    channel = Channel(read, None)
    os.write(write, framed(kind="a", text="x" * 100)[:-1])
    os.close(write)
    with pytest.raises(ChannelClosedError):
        channel.receive()
    channel.close()


def test_what_follows_a_message_is_left_for_who_reads_the_pipe_next() -> None:
    """The key room's child of one round must not swallow what is said to the next round's."""
    ours, theirs = Channel.pair()
    for kind in ("close", "open", "open again"):
        ours.send(kind, payload=bytes(10_000))
    for kind in ("close", "open", "open again"):
        assert Channel(theirs.read, None).receive(1)["kind"] == kind
    ours.close()
    theirs.close()


def test_silence_is_not_waited_for_longer_than_asked() -> None:
    with raw() as (channel, _), pytest.raises(ChannelClosedError):
        channel.receive(timeout=0.05)


def test_a_message_above_the_limit_is_refused_by_its_length_alone() -> None:
    with raw(limit=100) as (channel, write):
        os.write(write, framed(kind="a", text="x" * 80))
        assert channel.poll() is not None
        os.write(write, struct.pack(">I", 101))
        with pytest.raises(ChannelClosedError):
            channel.poll()
