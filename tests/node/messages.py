"""One message of each kind, for tests of what goes over the wire."""

from __future__ import annotations

from collections.abc import Collection

from node.protocol.messages import Absent, Close, Fail, Finish, Gone, Joined, Message, Open, Partial, Snapshot, Total

MANIFEST, BASE, STATE = b"\x11" * 32, b"\x22" * 32, b"\x33" * 32


def one_of_each(names: Collection[str], posture: str) -> tuple[Message, ...]:
    """In the order of the codec's kinds; ``bo`` and ``cy`` are among the ``names``."""
    everyone = frozenset(names)
    return (
        Joined(7, BASE, 6, 2, "cy", posture),
        Open(7, BASE, everyone, "train", 1000, True, 30_000),
        Partial(7, BASE, 3, frozenset({"bo", "cy"}), 1, b"ciphertexts"),
        Absent(7, BASE),
        Total(7, BASE, 3, everyone, b"integers"),
        Close(7, BASE, everyone, 4, STATE),
        Fail(7, BASE, "the round is below the quorum", False),
        Finish(BASE),
        Gone(BASE, "cy"),
        Snapshot(BASE, 1, 3, b"content"),
    )
