"""Images out of gradients: what somebody sees who has an update of one step, or the sum of several.

Three attacks, short, as published:

- *exact*: a linear model's gradient is the image itself, times a number that its bias's gradient gives (known since
  Phong et al. 2017); of several images it is a weighted mean;
- *DLG*: Zhu, Liu and Han, Deep Leakage from Gradients, NeurIPS 2019: find an image whose gradient is equal (L-BFGS);
- *cosine*: Geiping, Bauermeister, Droege and Moeller, Inverting Gradients, NeurIPS 2020: find one whose gradient has
  the same direction, with little total variation (Adam on signs).

The attacker is a strong one: it knows the model, the step's size, how many images there are and their labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Images = NDArray[np.float32]
"""(images, channels, height, width), in [0, 1]."""

EXACT, DLG, COSINE = "exact", "DLG", "cosine"
ATTACKS = (EXACT, DLG, COSINE)
VARIATION = 1e-3
"""Weight of the total variation, in the cosine attack."""


@dataclass(frozen=True)
class Effort:
    """How long an attack tries: steps of L-BFGS (of 20 evaluations each), of Adam; and on how many images at least,
    repeated where an update hides fewer."""

    dlg: int
    cosine: int
    images: int = 1


def network(attack: str, shape: Sequence[int], classes: int, seed: int) -> torch.nn.Module:
    """The model that is trained: the convolutional one of Zhu et al., or a linear one for the exact attack."""
    import torch
    from torch import nn

    torch.manual_seed(seed)
    channels, height, width = shape
    if attack == EXACT:
        return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * width, classes))
    body = nn.Sequential(
        nn.Conv2d(channels, 12, 5, padding=2, stride=2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2, stride=2), nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2), nn.Sigmoid(), nn.Flatten(),
    )  # fmt: skip
    length = body(torch.zeros(1, *shape)).shape[1]
    model = nn.Sequential(body, nn.Linear(length, classes))
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def gradient(model: torch.nn.Module, images: torch.Tensor, labels: torch.Tensor, graph: bool = False) -> list[Any]:
    """Of the mean cross-entropy, for each parameter."""
    import torch
    from torch.nn.functional import cross_entropy

    loss = cross_entropy(model(images), labels)
    return list(torch.autograd.grad(loss, list(model.parameters()), create_graph=graph))


def invert(
    attack: str, model: torch.nn.Module, seen: list[Any], shape: Sequence[int], labels: torch.Tensor, effort: Effort
) -> Images:
    """What the attack makes of a gradient: as many images as there are labels."""
    import torch

    if attack == EXACT:
        return _exact(seen, shape, labels)
    guess = torch.rand(len(labels), *shape)
    found = _dlg if attack == DLG else _cosine
    return np.asarray(found(model, seen, guess, labels, effort).clamp(0, 1).numpy(), np.float32)


def _exact(seen: list[Any], shape: Sequence[int], labels: torch.Tensor) -> Images:
    """Row c of the weights' gradient over the bias's: for one image itself, whatever c is; else that of its label."""
    weight, bias = seen
    rows = [weight[label] / bias[label] for label in labels.tolist()]
    return np.stack([row.reshape(tuple(shape)).numpy() for row in rows]).clip(0, 1).astype(np.float32)


def _dlg(model: Any, seen: list[Any], guess: torch.Tensor, labels: torch.Tensor, effort: Effort) -> torch.Tensor:
    import torch

    guess = guess.requires_grad_()
    optimizer: Any = torch.optim.LBFGS([guess], lr=1.0)
    best, kept = float("inf"), guess.detach().clone()

    def distance() -> Any:
        optimizer.zero_grad()
        found = gradient(model, guess, labels, graph=True)
        total = sum(((one - other) ** 2).sum() for one, other in zip(found, seen, strict=True))
        total.backward()
        return total

    for _ in range(effort.dlg):
        loss = float(optimizer.step(distance).detach())
        if not np.isfinite(loss):
            break
        if loss < best:
            best, kept = loss, guess.detach().clone()
        if loss < 1e-9:
            break
    return kept


def _cosine(model: Any, seen: list[Any], guess: torch.Tensor, labels: torch.Tensor, effort: Effort) -> torch.Tensor:
    import torch

    guess = guess.requires_grad_()
    optimizer = torch.optim.Adam([guess], lr=0.1)
    milestones = [round(effort.cosine * part) for part in (3 / 8, 5 / 8, 7 / 8)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    length = torch.sqrt(sum((each**2).sum() for each in seen))
    for _ in range(effort.cosine):
        optimizer.zero_grad()
        found = gradient(model, guess, labels, graph=True)
        product = sum((one * other).sum() for one, other in zip(found, seen, strict=True))
        loss = 1 - product / (length * torch.sqrt(sum((each**2).sum() for each in found)))
        variation = (guess.diff(dim=-1)).abs().mean() + (guess.diff(dim=-2)).abs().mean()
        (loss + VARIATION * variation).backward()
        assert guess.grad is not None
        guess.grad.sign_()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            guess.clamp_(0, 1)
    return guess.detach()


# ---- how near -------------------------------------------------------------------------------------------


def matched(true: Images, found: Images) -> Images:
    """``found`` in the order of ``true``: the pairing with the smallest distances."""
    from scipy.optimize import linear_sum_assignment

    distances = ((true[:, np.newaxis] - found[np.newaxis]) ** 2).mean(axis=(2, 3, 4))
    return np.asarray(found[linear_sum_assignment(distances)[1]], np.float32)


def psnr(true: Images, found: Images) -> NDArray[np.float64]:
    """Peak signal to noise in decibels, for each image; above 60 there is nothing to see."""
    error = ((true - found) ** 2).mean(axis=(1, 2, 3))
    return np.asarray(np.minimum(-10 * np.log10(np.maximum(error, 1e-12)), 100.0))


def recognised(true: Images, found: Images, others: Images) -> float:
    """The share of images that what was found is nearest to, among themselves and ``others``, by correlation."""

    def scaled(images: Images) -> NDArray[np.float64]:
        flat = images.reshape(len(images), -1).astype(np.float64)
        flat -= flat.mean(axis=1, keepdims=True)
        return np.asarray(flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12))

    candidates = scaled(np.concatenate([true, others]))
    return float(np.mean((scaled(found) @ candidates.T).argmax(axis=1) == np.arange(len(true))))
