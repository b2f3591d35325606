"""Which values of an update a round sends. Every party has the same mask, and everyone may know it.

A party's own largest values would be a better choice for that party, and are never sent: their places tell of its
patients, and ciphertexts of values at different places cannot be added. So a mask is made of what is published already:
the round, the manifest, the model, and totals. There are four kinds:

- ``cyclic``: the next values in turn; every value once in a while.
- ``random_blocks``: blocks drawn from a public seed.
- ``top_of_total``: the largest of the last published total, and some blocks from a public seed among the others, since
  a value outside the last mask has no total by which to come back.
- ``top_blocks``: the blocks with the largest norms, of which the sum over the parties was published before, encrypted
  and summed like an update. (It can cost privacy; see ``block_norms``.)

All arithmetic is on integers, or is exact: parties on different machines must have the same mask.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from nacl.utils import randombytes_deterministic
from numpy.typing import NDArray

from keys.errors import WardtreeError

Indices = NDArray[np.int64]
Integers = NDArray[np.int64]
Floats = NDArray[np.floating]


class MaskError(WardtreeError):
    """A mask that does not fit the model, or bytes that are not one."""


@dataclass(frozen=True, eq=False)
class Mask:
    """The places of the values that a round sends.

    Attributes:
        length: of the model.
        indices: shape (k,), rising.
    """

    length: int
    indices: Indices

    @property
    def size(self) -> int:
        """k: the length of the round's vector."""
        return int(self.indices.size)

    def gather(self, values: Floats) -> Floats:
        """Of ``values``, shape (length,), those that are sent, shape (k,)."""
        self._check(values)
        picked: Floats = values[self.indices]
        return picked

    def to_bytes(self) -> bytes:
        """A bit for each value of the model."""
        chosen = np.zeros(self.length, np.bool_)
        chosen[self.indices] = True
        return np.packbits(chosen).tobytes()

    @classmethod
    def from_bytes(cls, length: int, data: bytes) -> Mask:
        """The inverse of :meth:`to_bytes`.

        Raises:
            MaskError: it is no mask of this length.
        """
        bits = np.unpackbits(np.frombuffer(data, np.uint8))
        if bits.size != -(-length // 8) * 8 or bits[length:].any():
            raise MaskError(f"mask: {-(-length // 8)} bytes were expected for {length} values, came {len(data)}")
        return cls(length, np.flatnonzero(bits).astype(np.int64))

    def _check(self, values: Floats) -> None:
        if values.shape != (self.length,):
            raise MaskError(f"mask: values of shape ({self.length},) were expected, came {values.shape}")


def public_seed(manifest: bytes, round_: int, base: bytes) -> bytes:
    """32 bytes that everyone knows from the opening of a round on, and nobody before its base model was published.

    Args:
        manifest, base: digests of the manifest and of the model that the round works on.
    """
    return hashlib.sha256(b"wardtree/mask/1\0" + manifest + round_.to_bytes(8, "big") + base).digest()


def full(length: int) -> Mask:
    """Everything."""
    return Mask(length, np.arange(length, dtype=np.int64))


def cyclic(length: int, count: int, round_: int) -> Mask:
    """``count`` values in turn: round t has those from ``t * count`` on, and begins again after the last."""
    _check_count(length, count)
    return Mask(length, np.sort((round_ * count + np.arange(count, dtype=np.int64)) % length))


def random_blocks(length: int, count: int, block: int, seed: bytes) -> Mask:
    """``count`` values in blocks of ``block``, each block as likely as any other; the last one is cut."""
    _check_count(length, count)
    return Mask(length, np.sort(_members(_drawn(length, count, block, seed), length, block)[:count]))


def top_of_total(last: Mask, total: Integers, count: int, explore: int, block: int, seed: bytes) -> Mask:
    """The ``count - explore`` largest of the last published total, and ``explore`` others in random blocks.

    Args:
        last: the mask of the total; ``total``: its published integers, shape (last.size,).
        explore: how many values are drawn; more, if the last mask had fewer than are asked for.
    """
    _check_count(last.length, count)
    if total.shape != (last.size,) or not 0 <= explore <= count:
        raise MaskError(f"mask: a total of {last.size} values was expected, came {total.shape}; explore {explore}")
    chosen = np.zeros(last.length, np.bool_)
    chosen[last.indices[largest(np.abs(total), min(count - explore, last.size))]] = True
    missing = count - int(chosen.sum())
    # As many as the mask holds: even if all that were chosen are among them, enough are left.
    drawn = _members(_drawn(last.length, count, block, seed), last.length, block)
    chosen[drawn[~chosen[drawn]][:missing]] = True
    return Mask(last.length, np.flatnonzero(chosen).astype(np.int64))


def top_blocks(length: int, count: int, block: int, norms: Integers) -> Mask:
    """The blocks with the largest published sums of norms, ``count`` values of them; the smallest one is cut.

    Args:
        norms: the opened total of :func:`block_norms` as integers, one for each block.
    """
    _check_count(length, count)
    if norms.shape != (-(-length // block),):
        raise MaskError(f"mask: sums of {-(-length // block)} blocks were expected, came {norms.shape}")
    order = np.lexsort((np.arange(norms.size), -norms))[: -(-count // block) + 1]
    return Mask(length, np.sort(_members(order, length, block)[:count]))


def block_norms(values: Floats, block: int) -> NDArray[np.float64]:
    """The L2 norm of each block of ``block`` values: what a party adds to the aggregation that chooses a mask.

    Their own L2 norm is that of ``values``, so whoever clips the update first has them clipped. They are computed on
    data: with differential privacy they need noise of their own, and are charged like an update.
    """
    squares = np.zeros(-(-values.size // block))
    for start in range(0, values.size, block << 10):
        part = np.asarray(values[start : start + (block << 10)], np.float64)
        places = np.arange(0, part.size, block)
        squares[start // block : start // block + places.size] = np.add.reduceat(part * part, places)
    return np.sqrt(squares)


def largest(magnitudes: Integers, count: int) -> Indices:
    """The places of the ``count`` largest, in rising order; of equal ones the first."""
    if count == 0:
        return np.zeros(0, np.int64)
    least = np.partition(magnitudes, magnitudes.size - count)[magnitudes.size - count]
    above = np.flatnonzero(magnitudes > least)
    equal = np.flatnonzero(magnitudes == least)[: count - above.size]
    return np.sort(np.concatenate([above, equal])).astype(np.int64)


def _drawn(length: int, count: int, block: int, seed: bytes) -> Indices:
    """Enough blocks for ``count`` values, in the order in which they were drawn, whichever block is the short one."""
    blocks = -(-length // block)
    enough = min(blocks, -(-count // block) + 1)
    keys = np.frombuffer(randombytes_deterministic(8 * blocks, seed), "<u8")  # ChaCha20: the same everywhere
    first = np.argpartition(keys, enough - 1)[:enough]
    return first[np.lexsort((first, keys[first]))].astype(np.int64)


def _members(blocks: Indices, length: int, block: int) -> Indices:
    members = (blocks[:, None] * block + np.arange(block)).reshape(-1)
    kept: Indices = members[members < length]
    return kept


def _check_count(length: int, count: int) -> None:
    if not 1 <= count <= length:
        raise MaskError(f"mask: 1 to {length} values were expected to be sent, came {count}")
