"""Error feedback: what a mask leaves out is not lost, it waits for a round whose mask has its place.

Seide et al. 2014; Karimireddy, Rebjock, Stich and Jaggi, "Error Feedback Fixes SignSGD and other Gradient Compression
Schemes", 2019. A party adds its residual to its next update, and keeps what is not sent again. The residual is made of
this hospital's updates: it stays in its enclave, or is sealed under a key that only its template holds.

What the *clip* takes away is not kept: a residual of it would grow without end, and be clipped again. Rounding is
unbiased and needs none.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from keys.errors import WardtreeError
from node.compression.masks import Mask

_HEAD = struct.Struct(">4sQ?")
_MAGIC = b"wef1"


class FeedbackError(WardtreeError):
    """A residual of another model, or bytes that are none."""


@dataclass(frozen=True, eq=False)
class Feedback:
    """What one party carries from round to round.

    Attributes:
        values: shape (P,), float32: the last round's update with its residual, before mask and clip.
        sent: the last round's mask; None before the first.
    """

    values: NDArray[np.float32]
    sent: Mask | None = None

    @classmethod
    def start(cls, length: int) -> Feedback:
        """Nothing is waiting."""
        return cls(np.zeros(length, np.float32))

    def add_to(self, update: NDArray[np.float64], applied: int) -> None:
        """Add what waits to ``update``, shape (P,), where it lies.

        Args:
            applied: how many values of the last mask were published and applied with this party in the set: all of
                them, or, where a round ended early, those of the first segments; 0 where this party was left out. What
                was not applied waits as well.
        """
        if update.shape != self.values.shape:
            raise FeedbackError(f"feedback: values of shape {self.values.shape} were expected, came {update.shape}")
        if not 0 <= applied <= (self.sent.size if self.sent else 0):
            raise FeedbackError(f"feedback: {applied} values were applied, which is more than were sent")
        update += self.values
        if self.sent:
            done = self.sent.indices[:applied]
            update[done] -= self.values[done]

    @classmethod
    def after(cls, corrected: NDArray[np.float64], mask: Mask) -> Feedback:
        """What to carry on when of ``corrected`` (update and residual) the masked values are sent."""
        if corrected.shape != (mask.length,):
            raise FeedbackError(f"feedback: values of shape ({mask.length},) were expected, came {corrected.shape}")
        return cls(corrected.astype(np.float32), mask)

    def to_bytes(self) -> bytes:
        """For the sealed state of a task: 4 bytes for each parameter, and a bit."""
        mask = self.sent.to_bytes() if self.sent else b""
        return _HEAD.pack(_MAGIC, self.values.size, self.sent is not None) + mask + self.values.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, length: int) -> Feedback:
        """The inverse of :meth:`to_bytes`, for a model of ``length`` values.

        Raises:
            FeedbackError: it is something else.
        """
        masked = data[_HEAD.size - 1 : _HEAD.size] == b"\1"
        start = _HEAD.size + (-(-length // 8) if masked else 0)
        if data[: _HEAD.size] != _HEAD.pack(_MAGIC, length, masked) or len(data) != start + 4 * length:
            raise FeedbackError(f"feedback: the residual of {length} values was expected, came something else")
        sent = Mask.from_bytes(length, data[_HEAD.size : start]) if masked else None
        return cls(np.frombuffer(data, "<f4", offset=start).astype(np.float32), sent)
