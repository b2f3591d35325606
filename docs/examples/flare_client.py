"""A script as for NVIDIA FLARE's client API: logistic regression of readmission on age, in numpy."""

import argparse
import csv

import numpy as np
import nvflare.client as flare


def first():
    """The first model. The study names it; in FLARE the server has it."""
    return {"weights": np.zeros(2)}


def load(path):
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["age"]]
    x = np.array([[1.0, float(row["age"]) / 50 - 1] for row in rows])
    return x, np.array([row["readmitted"] == "yes" for row in rows], float)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--csv", required=True)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    x, y = load(args.csv)

    flare.init()
    while flare.is_running():
        received = flare.receive()
        weights = received.params["weights"].copy()
        accuracy = np.mean((x @ weights > 0) == (y > 0))
        print(f"{flare.get_site_name()}, round {received.current_round}: accuracy {accuracy:.2f}")
        if flare.is_train():
            for _ in range(args.epochs):
                weights -= 0.5 * x.T @ (1 / (1 + np.exp(-x @ weights)) - y) / len(y)
        flare.send(flare.FLModel(params={"weights": weights}, metrics={"accuracy": accuracy}))


if __name__ == "__main__":
    main()
