"""DP-SGD by Opacus under our own accountant: the stop comes before the step that would pass the budget."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from node.privacy.accountant import Accountant
from node.privacy.chacha import normals, uniforms

if TYPE_CHECKING:
    import torch

    from node.privacy.clipping import AdaptiveClip


@dataclass(frozen=True)
class Recipe:
    """How a hospital trains with noise.

    Attributes:
        learning_rate, momentum: of stochastic gradient descent.
        batch_size: rows expected in a batch; None: all rows, in every step.
        epochs: passes over the rows, in expectation.
        clip: the most that one row's gradient may be long.
        noise_multiplier: sigma of the noise over ``clip``; 0: neither clipping nor noise.
        weight_decay: of matrices of weights, not of biases; it asks no data, and so needs no noise.
        adaptive: how ``clip`` moves after each step, at the quantile of the rows' gradients (Andrew et al. 2021); what
            the numbers that it follows cost is within ``noise_multiplier``. None: it stays.
    """

    learning_rate: float
    batch_size: int | None
    epochs: int
    clip: float
    noise_multiplier: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    adaptive: AdaptiveClip | None = None

    def batches(self, rows: int) -> int:
        """Steps of a pass over so many rows; each row is in each batch with probability 1 over it."""
        return 1 if self.batch_size is None else -(-rows // self.batch_size)

    def sample_rate(self, rows: int) -> float:
        return 1 / self.batches(rows)


@dataclass(frozen=True)
class Trained:
    """How many steps were taken, and what ``clip`` was after them."""

    steps: int
    clip: float


def train(
    module: torch.nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    loss: Callable[[Any, Any], Any],
    recipe: Recipe,
    accountant: Accountant,
    generator: torch.Generator | None = None,
) -> Trained:
    """Train ``module`` in place. Batches are Poisson samples, as the accounting assumes.

    Args:
        loss: a mean over rows.
        generator: for batches and noise, where the result is to be repeated and the data are public. None: ChaCha20
            under a seed of the operating system; torch's own generator has only 32 bits of seed on a CPU, and who
            finds it takes the noise away.

    Raises:
        BudgetError: the next step would pass the budget; the steps before it are in ``module``, and spent.
        PrivacyError: ``adaptive`` has so little noise that the numbers alone would cost as much as all is to.
    """
    import torch
    from opacus import GradSampleModule

    rows = len(y)
    private = recipe.noise_multiplier > 0
    groups: list[dict[str, Any]] = [
        {"params": [each for each in module.parameters() if each.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [each for each in module.parameters() if each.ndim <= 1]},
    ]
    optimizer: Any = torch.optim.SGD(
        [group for group in groups if group["params"]], lr=recipe.learning_rate, momentum=recipe.momentum
    )
    model: Any = module
    expected = max(1, rows // recipe.batches(rows))
    if private:
        of_gradients = recipe.noise_multiplier
        if recipe.adaptive:
            of_gradients = recipe.adaptive.update_multiplier(of_gradients)
        model = GradSampleModule(module, loss_reduction="mean")
        optimizer = _optimizer_class(generator is None)(
            optimizer,
            noise_multiplier=of_gradients,
            max_grad_norm=recipe.clip,
            expected_batch_size=expected,
            loss_reduction="mean",
            generator=generator,
        )
    steps, rate = 0, recipe.sample_rate(rows)
    try:
        for _ in range(recipe.epochs * recipe.batches(rows)):
            if private:
                accountant.spend(recipe.noise_multiplier, rate)
            chosen = _batch(rows, rate, generator)
            optimizer.zero_grad()
            if private or chosen.any():  # an empty batch is a step of noise alone
                with warnings.catch_warnings():  # Opacus hooks modules whose inputs are data: as it should be
                    warnings.filterwarnings("ignore", message="Full backward hook is firing")
                    loss(model(x[chosen]), y[chosen]).backward()
                if private and recipe.adaptive:
                    within = _within(optimizer) + recipe.adaptive.count_noise * _normal(generator)
                optimizer.step()
                if private and recipe.adaptive:
                    clip = optimizer.max_grad_norm
                    optimizer.max_grad_norm = recipe.adaptive.moved(clip, within / expected + 0.5)
            steps += 1
    finally:
        if private:
            model.remove_hooks()
    return Trained(steps, float(optimizer.max_grad_norm) if private else recipe.clip)


def _within(optimizer: Any) -> float:
    """A half for each row of this batch whose gradient is not longer than the clip, minus a half for each other: so
    that a row more or less changes it by a half, as theorem 1 asks for. (Their mere number would change by one.)"""
    import torch

    lengths = [each.flatten(1).norm(2, dim=1) for each in optimizer.grad_samples]
    if not lengths[0].numel():
        return 0.0
    is_within = torch.stack(lengths, dim=1).norm(2, dim=1) <= optimizer.max_grad_norm
    return int(is_within.sum()) - len(is_within) / 2


def _normal(generator: torch.Generator | None) -> float:
    """A standard normal value, of the same source as the noise on the gradients."""
    import torch

    return float(normals(1)[0]) if generator is None else float(torch.randn((), generator=generator))


def _batch(rows: int, rate: float, generator: torch.Generator | None) -> torch.Tensor:
    """Which rows are in a batch, each with probability ``rate``: shape (rows,), bool."""
    import torch

    if generator is None:
        return torch.from_numpy(uniforms(rows) <= rate)
    return torch.rand(rows, generator=generator) < rate


@cache
def _optimizer_class(secure: bool) -> Any:
    """Opacus's optimizer, with our noise if it is to be ``secure``. (Opacus's own ``secure_mode`` needs torchcsprng,
    which has not been built for years; it is replaced at the one place where Opacus draws.)"""
    import torch
    from opacus.optimizers import DPOptimizer

    if not secure:
        return DPOptimizer

    class ChaChaOptimizer(DPOptimizer):  # type: ignore[misc]
        def add_noise(self) -> None:
            for parameter in self.params:
                total = parameter.summed_grad
                noise = torch.from_numpy(normals(total.numel())).reshape(total.shape)
                noise *= self.noise_multiplier * self.max_grad_norm
                parameter.grad = (total + noise.to(total)).view_as(parameter)

    return ChaChaOptimizer
