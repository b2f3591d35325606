"""A task on images: a small network of torch. The npz has ``images``, (n, height, width) from 0 to 255, and ``labels``.

Convolution and normalisation are shared; the statistics of the normalisation stay at the hospital, as all buffers do.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from node.tasks.base import Evaluation, EvaluationSpec, Measure, Setup, Task, TaskError, TrainingRound
from node.tasks.tensors import Tensors

CLASSES, MOST_LOSS = 10, 20.0


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.Linear(256, CLASSES),
    )  # fmt: skip


class NetworkTask(Task):
    def __init__(self, setup: Setup) -> None:
        try:
            with np.load(setup.home / setup.data["npz"], allow_pickle=False) as arrays:
                images = torch.from_numpy(arrays["images"].astype(np.float32) / 255)[:, None]
                labels = torch.from_numpy(arrays["labels"].astype(np.int64))
        except (OSError, KeyError, ValueError) as error:
            raise TaskError(f"{setup.party}: expected images and labels, came {type(error).__name__}") from None
        held_out = torch.arange(len(labels)) % 4 == 3
        self._train, self._test = (images[~held_out], labels[~held_out]), (images[held_out], labels[held_out])
        with torch.random.fork_rng():
            torch.manual_seed(setup.seed)  # the first model is the same at every hospital
            self._tensors = Tensors(network())
        self.examples, self.parameters = len(labels), self._tensors.shared

    def initial(self) -> NDArray[np.float32]:
        return self._tensors.read()

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        module = self._tensors.write(model, round.carried).train()
        optimiser = torch.optim.SGD(module.parameters(), lr=0.05 * round.rate, momentum=0.9)
        for batch in torch.randperm(len(self._train[1])).split(32):
            loss = nn.functional.cross_entropy(module(self._train[0][batch]), self._train[1][batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        return self._tensors.read() - model

    def carry(self) -> bytes:
        return self._tensors.local()

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(CLASSES, (Measure("loss", 0.0, MOST_LOSS),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        images, labels = self._test
        with torch.no_grad():
            logits = self._tensors.write(model, round.carried).eval()(images)
        loss = min(float(nn.functional.cross_entropy(logits, labels)), MOST_LOSS)
        return Evaluation(len(labels), labels.numpy(), logits.softmax(1).numpy(), {"loss": loss})
