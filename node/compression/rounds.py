"""The mask of a round, from the study and what is published: one call before the round, one after it.

mask = mask_for(settings, length, round_, seed, last)    # at every party, and at the key holder
...
last = after(settings, mask, total, parties, length, last)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from node.compression import masks
from node.compression.density import MovingThreshold
from node.compression.masks import Integers, Mask, MaskError
from node.compression.settings import CompressionSettings


@dataclass(frozen=True, eq=False)
class Published:
    """What the last training round leaves for the next mask; the same at every party.

    Attributes:
        mask: what was sent.
        total: the published integers, shape (mask.size,); zeros for segments that were not opened.
        parties: how many parties' integers they sum.
        threshold: None with a fixed density.
    """

    mask: Mask
    total: Integers
    parties: int
    threshold: MovingThreshold | None = None


def mask_for(
    settings: CompressionSettings,
    length: int,
    round_: int,
    seed: bytes,
    last: Published | None = None,
    norms: Integers | None = None,
) -> Mask:
    """The mask of training round ``round_``, counted from 0.

    Args:
        length: parameters of the model.
        seed: :func:`masks.public_seed` of this round.
        last: None before the first round, and for whoever does not need it.
        norms: with ``mask = "energy"`` the opened total of the parties' block norms of this round.
    """
    if not settings.is_sparse:
        return masks.full(length)
    count = settings.schedule_of_density.count(length, round_)
    if settings.mask == "cyclic":
        return masks.cyclic(length, count, round_)
    if settings.mask == "energy":
        if norms is None:
            raise MaskError('mask: with mask = "energy" the sums of block norms come first')
        return masks.top_blocks(length, count, settings.block, norms)
    if settings.mask == "random" or last is None:
        return masks.random_blocks(length, count, settings.block, seed)
    if last.threshold and round_ >= settings.warm_up:
        least, most = math.ceil(settings.least * length), math.ceil(settings.most * length)
        kept = last.threshold.count(last.total, last.parties, 1, length)
        count = min(max(math.ceil(kept / max(1 - settings.explore, 0.1)), least), most)  # and room to grow
    explore = min(count, math.ceil(count * settings.explore))
    return masks.top_of_total(last.mask, last.total, count, explore, settings.block, seed)


def after(
    settings: CompressionSettings, mask: Mask, total: Integers, parties: int, length: int, last: Published | None
) -> Published:
    """What to keep when a round's total is published."""
    if settings.schedule != "moving":
        return Published(mask, total, parties)
    threshold = last.threshold if last and last.threshold else settings.threshold
    assert settings.density is not None
    kept = math.ceil(length * settings.density * (1 - settings.explore))  # the rest of the target is drawn
    return Published(mask, total, parties, threshold.after(total, parties, max(1, kept)))
