"""What a task carries from round to round, as a residual or an optimiser's state.

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


def _place(index: int, count: int) -> bytes:
    return b"wardtree/carried/1\0" + struct.pack("<QQ", index, count)


class Carried:
    """At the relay: what the last contribution that counted left, and what the one in hand may leave."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._new: list[bytes] = []

    def take(self, piece: bytes) -> None:
        """A piece from the round in hand."""
        self._new.append(piece)

    def settle(self, contributed: bool) -> None:
        """The round is over: what it left counts if our update was in its total, else things stay as they were."""
        if contributed and self._new:
            self.pieces = self._new
        self._new = []
