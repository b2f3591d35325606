"""What a model tells of the patients that it was trained on: who was among them, and a value of theirs.

- *Membership* by a threshold on the loss (Yeom, Giacomelli, Fredrikson and Jha 2018): members have smaller ones.
  Judged by the area under the curve and by the true positives at 1 % false ones (Carlini et al. 2022): an attack that
  finds few members, but surely, is one.
- *A missing value* by the model's own likelihood (Fredrikson, Jha and Ristenpart 2015): the attacker knows all of a
  patient but one binary value, tries both, and takes the one under which the outcome is likelier, its frequency
  counted in.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from node.privacy.accountant import Accountant
from node.privacy.dpsgd import Recipe, train
from node.reproduce.framingham import FEATURES
from node.tasks.heart_risk import Patients

if TYPE_CHECKING:
    import torch

Values = NDArray[np.float64]
FALSE_POSITIVES = 0.01
DELTA = 1e-3


def membership(members: Values, others: Values) -> tuple[float, float]:
    """From the losses of members and of others: the area under the curve, and true positives at 1 % false ones."""
    from sklearn.metrics import roc_auc_score, roc_curve

    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    guess = -np.concatenate([members, others])
    false, true, _ = roc_curve(truth, guess)
    return float(roc_auc_score(truth, guess)), float(true[false <= FALSE_POSITIVES].max())


def missing_value(
    model: NDArray[np.floating[Any]], patients: Patients, feature: int, values: tuple[float, float], share: float
) -> float:
    """How often the attack names the right one of a feature's two ``values``; ``share`` of patients have the second."""
    likelihoods = []
    for value, prior in zip(values, (1 - share, share), strict=True):
        x = patients.x.copy()
        x[:, feature] = value
        ill = 1 / (1 + np.exp(-x @ model))
        likelihoods.append(np.where(patients.y == 1, ill, 1 - ill) * prior)
    guess = np.where(likelihoods[1] > likelihoods[0], values[1], values[0])
    return float(np.mean(np.isclose(guess, patients.x[:, feature])))


def binary_features(patients: Patients) -> dict[str, tuple[int, tuple[float, float]]]:
    """The features with two values: their column, and the values."""
    found = {}
    for column, name in enumerate(FEATURES):
        values = np.unique(patients.x[:, column])
        if len(values) == 2:
            found[name] = (column, (float(values[0]), float(values[1])))
    return found


# ---- models to attack: small images, several hospitals --------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How the hospitals of an attacked model train: rounds of ``epochs``, with noise where ``noise`` is above 0."""

    hospitals: int
    rounds: int
    epochs: int
    noise: float = 0.0

    @property
    def recipe(self) -> Recipe:
        batch = None if self.noise else 10
        return Recipe(1.0 if self.noise else 0.1, batch, self.epochs, 1.0, self.noise)


Rows = tuple["torch.Tensor", "torch.Tensor"]


def make_model(features: int, classes: int) -> torch.nn.Module:
    from torch import nn

    return nn.Sequential(nn.Linear(features, 128), nn.ReLU(), nn.Linear(128, classes))


def train_together(parts: list[Rows], classes: int, training: Training, seed: int) -> tuple[torch.nn.Module, float]:
    """The mean of the hospitals' models, round after round: what the tree computes. Gives epsilon at ``DELTA`` too."""
    import torch
    from torch.nn.functional import cross_entropy

    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make_model(parts[0][0].shape[1], classes)
    accountants = [Accountant(None) for _ in parts]
    for _ in range(training.rounds):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        ends = []
        for (x, y), accountant in zip(parts, accountants, strict=True):
            model.load_state_dict(start)
            train(model, x, y, cross_entropy, training.recipe, accountant, generator)
            ends.append({name: value.clone() for name, value in model.state_dict().items()})
        mean = {name: torch.stack([end[name] for end in ends]).mean(dim=0) for name in start}
        model.load_state_dict(mean)
    return model, accountants[0].epsilon(DELTA) if training.noise else float("inf")


def losses(model: torch.nn.Module, rows: Rows) -> Values:
    """Cross-entropy of each row."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.no_grad():
        return np.asarray(cross_entropy(model(rows[0]), rows[1], reduction="none").numpy(), np.float64)


def accuracy(model: torch.nn.Module, rows: Rows) -> float:
    import torch

    with torch.no_grad():
        return float((model(rows[0]).argmax(dim=1) == rows[1]).float().mean())
