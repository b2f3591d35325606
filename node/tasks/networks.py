"""The networks of image tasks, in torch: a linear head, ResNet-18 and a small ResNet-9.

Group normalisation everywhere that is trained: batch statistics would be one hospital's own, and tell of its patients.
Names of parameters are torchvision's, so that its files of weights fit. torchvision itself is not used: it does
not import beside every torch, and a federation would need its exact version at every hospital.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]

GROUPS = 32


def drawn(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """A network whose weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()


def flat(network: nn.Module) -> NDArray[np.float32]:
    """All its values, (parameters,)."""
    values: NDArray[np.float32] = nn.utils.parameters_to_vector(network.parameters()).detach().numpy()
    return values


def loaded(network: nn.Module, model: NDArray[np.float32]) -> nn.Module:
    """The network with a model's values, which are copied."""
    nn.utils.vector_to_parameters(torch.from_numpy(model.astype(np.float32)), network.parameters())
    return network


def group_norm(channels: int) -> nn.Module:
    """Group normalisation (Wu and He 2018) in up to 32 groups."""
    return nn.GroupNorm(min(GROUPS, channels), channels)


class Head(nn.Linear):
    """Multinomial logistic regression on features."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__(features, classes)
        with torch.no_grad():
            self.weight.zero_()  # a convex problem: no draw is needed, and none depends on torch's version
            self.bias.zero_()


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a way past them (He et al. 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = norm(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = norm(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        past = x if self.downsample is None else self.downsample(x)
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)) + past)


class ResNet18(nn.Module):
    """ResNet-18: images (N, C, H, W) to logits (N, classes); 11.2 million parameters."""

    def __init__(self, channels: int, classes: int, norm: Norm = group_norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = norm(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        width = 64
        for number, outputs in enumerate((64, 128, 256, 512), start=1):
            blocks = BasicBlock(width, outputs, 1 if number == 1 else 2, norm), BasicBlock(outputs, outputs, 1, norm)
            self.add_module(f"layer{number}", nn.Sequential(*blocks))
            width = outputs
        self.fc = nn.Linear(width, classes)

    def features(self, x: Tensor) -> Tensor:
        """What the last layer is given, (N, 512)."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for number in range(1, 5):
            x = self.get_submodule(f"layer{number}")(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.features(x))
        return logits


class ResNet9(nn.Module):
    """A small residual network without pooling: convolutions of stride 2, for small images and for DP-SGD.

    ``width`` is of the first layer; 64 gives 6.6 million parameters, 16 a sixteenth of them. No operation is in place
    and none mixes images, so that Opacus can have each image's gradient.
    """

    def __init__(self, channels: int, classes: int, width: int, norm: Norm = group_norm) -> None:
        super().__init__()

        def layer(inputs: int, outputs: int, stride: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU())

        self.first = nn.Sequential(layer(channels, width, 1), layer(width, 2 * width, 2))
        self.residual1 = nn.Sequential(layer(2 * width, 2 * width, 1), layer(2 * width, 2 * width, 1))
        self.middle = nn.Sequential(layer(2 * width, 4 * width, 2), layer(4 * width, 8 * width, 2))
        self.residual2 = nn.Sequential(layer(8 * width, 8 * width, 1), layer(8 * width, 8 * width, 1))
        self.fc = nn.Linear(8 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.residual1(x)
        x = self.middle(x)
        x = x + self.residual2(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def parameters_of(network: nn.Module) -> int:
    """How many values a flat model of it has. It has no buffers: all that it learns is in the update."""
    assert not list(network.buffers())
    return sum(parameter.numel() for parameter in network.parameters())
