"""The page and the picture of the attacks, from what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from node.pages import picture, table
from node.reproduce.attacks import (
    CANDIDATES,
    GRADIENTS,
    HEART,
    MEMBERS,
    MODELS,
    ROWS,
    SCENARIOS,
    SHOWN,
    TARGETS,
    VALUES,
)
from node.reproduce.gradient_inversion import ATTACKS
from node.reproduce.inference import DELTA
from node.reproduce.output import Results

INTRODUCTION = """\
# Table I again: the attacks, run

What the paper's first table lists, tried: three ways of getting patients' data out of what federated learning shows.
The attacker is a strong one: it knows the model, the hyperparameters, how many images are in an update, and their
labels. What it *sees* is what the tree decides, so each attack is run against what each place of the tree sees.

| who | sees |
| --- | --- |
| a server of plain federated learning | each hospital's update |
| here: a parent in the tree, the network | ciphertexts: nothing to run an attack on |
| here: everyone after the round, the key holder too | the total; without one's own update it is that of n - 1 |
| here: all but one together; the key holder with the parent of a leaf | one hospital's update |

![What three attacks recover from each view](attacks.svg)
"""

GRADIENT_METHODS = """\
From the update of one step, the gradient, back to the images that it is of. Three attacks, as published:

- *exact*: a linear model's gradient of one image is that image times a number, which the bias's gradient gives (Phong
  et al. 2017); of several images it is a weighted mean of them;
- *DLG*: a small network with convolutions; look for images whose gradient is equal (Zhu, Liu and Han 2019);
- *cosine*: the same network; look for images whose gradient has the same direction (Geiping et al. 2020).

*Noise* is what differential privacy adds: its standard deviation in each value, over the length of the whole update.
"""
MEMBERSHIP = """\
Was this patient in the training? The attacker has the final model, and names those whom it fits best, by a threshold on
the loss (Yeom et al. 2018). Members are {rows} small images of digits at each hospital (scikit-learn's), in the last
line the patients of Table V; others are as many that no hospital had. By guessing the *area under the curve* is 0.5,
and *found at 1 % false* (the share of members that are named when one in a hundred others is named as well) 1 %.
*Epsilon* is at delta = {delta:g}, of an image.
"""
MISSING = """\
The attacker has the model of Table V and knows all of a patient, the outcome too, but one value, which is yes or no;
it takes the one under which the outcome is likelier (Fredrikson et al. 2015). Means over {models} models.
"""
NOTES = """\
## What this says

- **An update may be an image.** A linear model's update of one step on one image *is* that image; through a network
  with convolutions it is found by search. The rounding to integers that the tree does is no protection: encryption is.
  This is what a server of plain federated learning holds.
- **A total protects by number, not by principle.** What is seen is the mean gradient of all images of all others. With
  one image at each of four hospitals most can still be told apart; with eight each, few. Taking one's own update away
  leaves a smaller mean, so `min_hidden` should be larger where hospitals take single steps on few patients. Updates of
  many steps on hundreds of patients are far beyond what these attacks were shown to invert; that is experience, and no
  proof.
- **Noise for privacy is the proof.** How much is needed depends on the model: a linear one's image is still told apart
  under noise of 1 % of the update's length for each value, through convolutions the searches then mostly fail; under
  DP-SGD's sigma of 1, a hundred times that, nothing is found by any.
- **The final model is published**, whatever is encrypted. A model that was trained until it knows its images tells who
  they are, a little; one that several hospitals trained together tells less, because it fits each of them less; under
  DP-SGD the bound is epsilon, and the price is accuracy. Ten parameters learnt from 800 patients tell nothing that
  could be measured.
- **A missing value** is named right for strangers about as often as for members, and hardly more often than by always
  saying the likelier: what is learnt is medicine (the values go together), not a member's secret. Encryption changes
  nothing of it, and should not.

Attacks get better; nothing here is an upper bound but what differential privacy gives. An attack that searches is as
good as its time, and these are short ones; an en dash is one that was not made. Attacks of malicious members on the
protocol itself are in [inner-attacks.md](inner-attacks.md) and [SECURITY.md](../../SECURITY.md).

BloodMNIST: Acevedo et al. 2020, Yang et al. 2023; CC BY 4.0.
"""


def publish(results: Results) -> None:
    """The files, from what was measured."""
    results.publish(write_page(results), lambda file: draw(results, file))


def write_page(results: Results) -> str:
    """The page in Markdown."""
    parts = [INTRODUCTION, "## Gradient inversion\n\n" + _gradients(results)]
    parts.append(f"## Membership\n\n{MEMBERSHIP.format(rows=ROWS, delta=DELTA)}\n" + _membership(results))
    parts.append(f"## A missing value\n\n{MISSING.format(models=MODELS)}\n" + _missing(results))
    return "\n".join([*parts, NOTES, results.foot()])


def _gradients(results: Results) -> str:
    head = ("what the attacker sees", "images in it", *(f"{attack}: told apart, PSNR" for attack in ATTACKS))
    lines = []
    for scenario in SCENARIOS:
        rows = [results.find(kind=GRADIENTS, target=scenario.name, method=attack) for attack in ATTACKS]
        if any(rows):
            cells = [f"{row['recognised']:.0%}, {row['psnr']:.0f} dB" if row else "–" for row in rows]
            lines.append((scenario.name, scenario.hidden, *cells))
    all_rows = [row for row in results.rows if row["kind"] == GRADIENTS]
    sources = {row["source"] for row in all_rows}
    least = min((row["images"] * row["repetitions"] for row in all_rows), default=0)
    return (
        f"{GRADIENT_METHODS}\n*Told apart*: the share of images that what was found resembles more than any of "
        f"{CANDIDATES} others (by guessing: {1 / (CANDIDATES + 1):.1%}). *PSNR*: peak signal to noise ratio, mean over "
        "the images: above 60 dB there is no difference to see, below 10 little of the image. Images: "
        f"{', '.join(sorted(sources)) or 'none yet'}; {least} or more of them in each cell.\n\n" + table(head, lines)
    )


def _membership(results: Results) -> str:
    head = ("model", "right on members", "on others", "area under the curve", "found at 1 % false", "epsilon")
    rows = [results.find(kind=MEMBERS, target=target) for target in (*TARGETS, HEART)]
    return table(
        head,
        [
            (
                row["target"],
                f"{row['train']:.1%}",
                f"{row['test']:.1%}",
                f"{row['auc']:.3f} ± {row['auc_spread']:.3f}",
                f"{row['tpr']:.1%} ± {row['tpr_spread']:.1%}",
                "–" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
            )
            for row in rows
            if row
        ],
    )


def _missing(results: Results) -> str:
    head = ("value", "named right, of members", "of others", "by always saying the likelier")
    rows = [row for row in results.rows if row["kind"] == VALUES]
    cells = [
        [row["target"], *(f"{row[name]:.1%}" for name in ("members", "others", "always_the_likelier"))] for row in rows
    ]
    return table(head, cells)


def draw(results: Results, file: Path) -> None:
    """The picture: for each scenario some true images, and what each attack made of them."""
    shown = []
    for scenario in SCENARIOS:
        rows = [results.find(kind=GRADIENTS, target=scenario.name, method=attack) for attack in ATTACKS]
        if any(rows):
            shown.append((scenario, rows))
    groups = 1 + len(ATTACKS)
    with picture(file, (12, 0.85 * max(len(shown), 1) + 0.4)) as figure:
        grid: Any = figure.subplots(max(len(shown), 1), groups * (SHOWN + 1) - 1, squeeze=False)
        for axes in grid.ravel():
            axes.axis("off")
        for line, (scenario, rows) in zip(grid, shown, strict=False):
            line[0].text(0, 1.08, scenario.name, transform=line[0].transAxes, fontsize=8).set_in_layout(False)
            for place, row in enumerate(rows, start=1):
                for number, (true, found) in enumerate(row["pictures"] if row else ()):
                    assert row
                    for at, pixels in ((0, true), (place, found)):
                        image = _image(pixels, row["shape"])
                        line[at * (SHOWN + 1) + number].imshow(image, interpolation="nearest")
        figure.suptitle("\n\n", fontsize=10)  # room for the titles of the groups, which no axes has
        titles = ("the hospitals' images", *(f"found: {attack}" for attack in ATTACKS))
        for place, title in enumerate(titles):
            figure.text((place + 0.5) / groups, 0.995, title, ha="center", va="top", fontsize=10)


def _image(pixels: str, shape: Sequence[int]) -> NDArray[np.uint8]:
    """(height, width, 3), of ``shape`` (channels, height, width)."""
    image = np.frombuffer(bytes.fromhex(pixels), np.uint8).reshape(shape).transpose(1, 2, 0)
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
