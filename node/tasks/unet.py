"""MONAI's U-Net in torch: made, trained, asked. No normalisation over a batch: it would mix patients, and Opacus could
not have each image's gradient."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from node.tasks.base import TaskError

try:
    from monai.inferers.utils import sliding_window_inference
    from monai.losses.dice import DiceLoss
    from monai.metrics.meandice import compute_dice
    from monai.networks.nets.unet import UNet
except ImportError:
    raise TaskError('task segmentation: expected the package monai (the extra "segmentation"), came none') from None

AT_ONCE = 16
"""Slices or patches that are segmented at once."""


def unet(dimensions: int, inputs: int, outputs: int, channels: Sequence[int], residual_units: int) -> nn.Module:
    """Each level halves the size; instance normalisation with weights of its own (Ulyanov et al. 2016).

    Leaky rectifiers: the last level has one channel a structure, and where that died nothing more would be learnt.
    """
    network: nn.Module = UNet(
        spatial_dims=dimensions,
        in_channels=inputs,
        out_channels=outputs,
        channels=tuple(channels),
        strides=(2,) * (len(channels) - 1),
        num_res_units=residual_units,
        norm=("INSTANCE", {"affine": True}),
        act=("LEAKYRELU", {"negative_slope": 0.1}),
    )
    return network


def loss(logits: Tensor, masks: Tensor) -> Tensor:
    """Dice loss and cross-entropy of each structure's own map, the mean over images: one image's says nothing of
    another's, as per-image gradients need it."""
    both: Tensor = DiceLoss(sigmoid=True)(logits, masks) + functional.binary_cross_entropy_with_logits(logits, masks)
    return both


class Pieces:
    """What is trained on: images, slices or patches, in batches.

    Args:
        examples: of each image or volume x, (pieces, C, *spatial), and masks, (pieces, structures, *spatial).
        size: of what goes into the network.
        patches: of each volume in a pass, where ``size`` has three numbers.
    """

    def __init__(
        self, examples: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]], size: Sequence[int], patches: int, flips: bool
    ) -> None:
        self._examples, self._size, self._flips = examples, tuple(size), flips
        each = [patches if len(size) == 3 else len(x) for x, _ in examples]
        self._index = [(number, piece) for number, count in enumerate(each) for piece in range(count)]

    def __len__(self) -> int:
        return len(self._index)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """A pass over all of them in an order of torch's global generator: (N, C, *size), (N, structures, *size)."""
        for rows in torch.randperm(len(self)).split(size):
            yield self.take(rows.tolist())

    def take(self, rows: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Some of them, flipped and cut at random."""
        taken = [self._piece(*self._index[row]) for row in rows]
        return torch.stack([x for x, _ in taken]), torch.stack([masks for _, masks in taken])

    def _piece(self, number: int, piece: int) -> tuple[Tensor, Tensor]:
        x, masks = (torch.from_numpy(each) for each in self._examples[number])
        if len(self._size) == 3:
            x, masks = _patch(x[0], masks[0], self._size)
        else:
            x, masks = x[piece], masks[piece]
        x, masks = as_input(x), masks.float()
        # A volume is flipped from left to right only, its first axis: patients do not stand on their heads.
        axes = [axis for axis in ((1,) if len(self._size) == 3 else (1, 2)) if self._flips and torch.rand(()) < 0.5]
        return x.flip(axes), masks.flip(axes)


def train(
    network: nn.Module, pieces: Pieces, optimiser: str, rate: float, momentum: float, batch_size: int, epochs: int
) -> None:
    """``epochs`` passes by "adam" or "sgd", in place."""
    parameters = network.parameters()
    steps: torch.optim.Optimizer = (
        torch.optim.Adam(parameters, lr=rate)
        if optimiser == "adam"
        else torch.optim.SGD(parameters, lr=rate, momentum=momentum)
    )
    for _ in range(epochs):
        for x, masks in pieces.batches(batch_size):
            steps.zero_grad()
            loss(network(x), masks).backward()
            steps.step()


def segment(network: nn.Module, x: NDArray[Any], size: Sequence[int]) -> NDArray[np.bool_]:
    """What it marks in (pieces, C, *spatial): (pieces, structures, *spatial). A volume in overlapping windows."""
    with torch.inference_mode():
        if len(size) == 3:
            logits: Any = sliding_window_inference(as_input(torch.from_numpy(x)), tuple(size), AT_ONCE, network)
        else:
            logits = torch.cat([network(as_input(part)) for part in torch.from_numpy(x).split(AT_ONCE)])
        marked: NDArray[np.bool_] = (logits > 0).numpy()
    return marked


def dice(marked: NDArray[np.bool_], masks: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Of one image or volume, over all its pieces together: (structures,)."""
    both = (torch.from_numpy(np.ascontiguousarray(np.moveaxis(each, 1, 0)))[None] for each in (marked, masks))
    found: NDArray[np.float64] = compute_dice(*both, ignore_empty=False).numpy()[0].astype(np.float64)
    return found


def resized(x: NDArray[Any], size: Sequence[int]) -> NDArray[Any]:
    """(N, C, *size) from (N, C, H, W), of the same type: averaged where it shrinks; of a mask, more than half."""
    if x.shape[2:] == tuple(size):
        return x
    values = torch.from_numpy(np.ascontiguousarray(x)).float()
    if x.dtype == np.bool_:
        return np.asarray(functional.interpolate(values, tuple(size), mode="bilinear", antialias=True).numpy() > 0.5)
    resized = functional.interpolate(values, tuple(size), mode="bilinear", antialias=True)
    return np.asarray((resized.round().clamp(0, 255) if x.dtype == np.uint8 else resized).numpy().astype(x.dtype))


def as_input(x: Tensor) -> Tensor:
    """Bytes from -1 to 1; other values as they are."""
    return x.float() / 127.5 - 1 if x.dtype == torch.uint8 else x.float()


def _patch(x: Tensor, masks: Tensor, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A patch of a volume (C, H, W, D) at random; every other one has a marked voxel in it, if there is any."""
    short = [max(0, wanted - length) for wanted, length in zip(size, x.shape[1:], strict=True)]
    if any(short):
        around = [edge for length in reversed(short) for edge in (length // 2, length - length // 2)]
        lowest = float(x.min())
        x, masks = functional.pad(x, around, value=lowest), functional.pad(masks, around, value=False)
    highest = [length - wanted for length, wanted in zip(x.shape[1:], size, strict=True)]
    marked = masks.any(0).nonzero() if torch.rand(()) < 0.5 else torch.empty(0)
    if len(marked):
        voxel = marked[int(torch.randint(len(marked), ()))].tolist()
        lows = [max(0, at - wanted + 1) for at, wanted in zip(voxel, size, strict=True)]
        starts = [
            int(torch.randint(low, min(at, top) + 1, ())) for low, at, top in zip(lows, voxel, highest, strict=True)
        ]
    else:
        starts = [int(torch.randint(top + 1, ())) for top in highest]
    part = (slice(None), *(slice(start, start + wanted) for start, wanted in zip(starts, size, strict=True)))
    return x[part], masks[part]
