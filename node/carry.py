"""What a party carries from round to round: what its task asks for, as an optimiser's state, and the residual of its
updates under a mask.

It is sealed in the enclave, under a key that only the template and its forks hold; the relay keeps the pieces, and
cannot read them.

The key dies with the node's template: after a restart a task begins without.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from nacl.exceptions import CryptoError
from nacl.secret import Aead

from keys.errors import WardtreeError

_PARTS = struct.Struct("<qq")

PIECE = 1 << 20
"""Bytes that are sealed, and sent, at a time."""


def seal(key: bytes, carried: bytes) -> list[bytes]:
    """The pieces, each of which can only be opened in its place."""
    box, count = Aead(key), -(-len(carried) // PIECE)
    return [
        bytes(box.encrypt(carried[index * PIECE : (index + 1) * PIECE], _place(index, count))) for index in range(count)
    ]


def unseal(key: bytes, pieces: Sequence[bytes]) -> bytes | None:
    """The inverse of :func:`seal`; None for no pieces.

    Raises:
        WardtreeError: these are not the pieces of one that this key sealed.
    """
    box, count = Aead(key), len(pieces)
    try:
        opened = [box.decrypt(piece, _place(index, count)) for index, piece in enumerate(pieces)]
    except (CryptoError, ValueError, TypeError) as error:
        raise WardtreeError("what the task carries from round to round was changed outside of the enclave") from error
    return b"".join(opened) if opened else None


def join(task: bytes | None, feedback: bytes | None) -> bytes:
    """What the task carries, and what of its updates waits to be sent, as one; empty for neither."""
    if task is None and feedback is None:
        return b""
    return _PARTS.pack(*(-1 if part is None else len(part) for part in (task, feedback))) + b"".join(
        part for part in (task, feedback) if part
    )


def split(carried: bytes | None) -> tuple[bytes | None, bytes | None]:
    """The inverse of :func:`join`."""
    if not carried:
        return None, None
    first, second = _PARTS.unpack_from(carried)
    middle = _PARTS.size + max(first, 0)
    return None if first < 0 else carried[_PARTS.size : middle], None if second < 0 else carried[middle:]


def _place(index: int, count: int) -> bytes:
    return b"wardtree/carried/1\0" + struct.pack("<QQ", index, count)


class Carried:
    """At the relay: what the last contribution that counted left, and what the one in hand may leave.

    Attributes:
        applied: how many of that contribution's integers were opened and applied.
    """

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.applied = 0
        self._new: list[bytes] = []

    def take(self, piece: bytes) -> None:
        """A piece from the round in hand."""
        self._new.append(piece)

    def settle(self, contributed: bool, applied: int = 0) -> None:
        """The round is over: what it left counts if our update was in its total, of which ``applied`` integers were
        opened; else things stay as they were."""
        if contributed and self._new:
            self.pieces, self.applied = self._new, applied
        self._new = []
