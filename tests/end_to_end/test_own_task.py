"""From `wardtree task new` to a federation of four that trained it, by documented commands; and wrong tasks."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.commands import wardtree

pytestmark = pytest.mark.confined

ROOT = Path(__file__).parents[2]
PARTIES = ("ada", "bo", "cy", "di")


def tables(folder: Path) -> str:
    """400 made patients of four hospitals; gives the key of ``[data]``."""
    draw = np.random.default_rng(1)
    age, pressure, cholesterol = (draw.uniform(low, high, 400) for low, high in ((30, 90), (100, 200), (120, 350)))
    risk = 1 / (1 + np.exp(-(age - 60) / 8 - (pressure - 150) / 30))
    ill = (draw.uniform(size=400) < risk).astype(int)
    for number, name in enumerate(PARTIES):
        rows = np.column_stack([age, pressure, cholesterol, ill])[number::4]
        lines = [f"{a:.1f},{p:.1f},{c:.1f},{y:.0f}" for a, p, c, y in rows]
        (folder / f"{name}.csv").write_text("\n".join(["age,systolic,cholesterol,outcome", *lines]))
    return "csv"


def pictures(folder: Path) -> str:
    """Scikit-learn's digits, a quarter at each hospital."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    for number, name in enumerate(PARTIES):
        images = (digits.images[number::4] * 15.9).astype(np.uint8)
        np.savez(folder / f"{name}.npz", images=images, labels=digits.target[number::4])
    return "npz"


@pytest.mark.parametrize(("kind", "make", "least"), [("tabular", tables, 0.8), ("network", pictures, 0.95)])
def test_from_a_new_task_to_a_federation_that_trained_it(
    kind: str, make: object, least: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.monotonic()
    assert callable(make)
    key = make(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    wrote = wardtree("task", "new", "our_task.py", "--kind", kind, cwd=tmp_path)
    assert wrote.returncode == 0, wrote.stderr
    (tmp_path / "node.toml").write_text(f'[data]\n{key} = "ada.{key}"\n')
    tried = wardtree("task", "try", "our_task.toml", "--data", "node.toml", "--rounds", 2, "--json", cwd=tmp_path)
    assert tried.returncode == 0, tried.stderr
    shown = json.loads(tried.stdout)
    assert [step["purpose"] for step in shown["steps"]] == ["train", "evaluate"] * 2
    assert shown["posture"].startswith("required")
    assert all(step["clipped"] < 0.5 for step in shown["steps"] if step["purpose"] == "train")

    data = ['key_holder = "ada"', *(f'[{name}]\n{key} = "{tmp_path / f"{name}.{key}"}"' for name in PARTIES)]
    (tmp_path / "hospitals.toml").write_text("\n".join(data))
    options = ("--study", "our_task.toml", "--data", "hospitals.toml", "--out", tmp_path / "run", "--json")
    ran = wardtree("local", *options, cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["ok"], report["parties"], report["rounds"]) == (True, 4, 10)
    assert report["evaluations"][-1]["auc"] > least
    print(f"\n{kind}: {time.monotonic() - began:.0f} s from `wardtree task new` to a finished federation of four")


WRONG = """
import os, socket, time
import numpy as np
from node.tasks.base import Evaluation, EvaluationSpec, Task

class Wrong(Task):
    examples, parameters = 5, 3

    def __init__(self, setup):
        self.what = setup.options["what"]

    @classmethod
    def check_options(cls, options):
        pass

    def initial(self):
        return np.zeros(3, np.float32)

    def train(self, model, round):
        if self.what == "prints":
            print("patient 4711", flush=True)
            os.write(2, b"patient 4711")
        if round.number == 2:
            if self.what == "shape":
                return np.zeros(4)
            if self.what == "nan":
                return np.array([4711.0, np.nan, 0])
            if self.what == "hangs":
                time.sleep(600)
            if self.what == "socket":
                socket.create_connection(("127.0.0.1", 9))
            if self.what == "raises":
                raise ValueError("patient 4711 is odd")
        return np.zeros(3)

    def evaluation_spec(self):
        return EvaluationSpec(classes=2)

    def evaluate(self, model, round):
        labels = np.ones(5, int) * (4711 if self.what == "labels" else 1)
        return Evaluation(5, labels, np.full(5, 0.75))
"""

EXPECTED = {
    "shape": "train, round 2: here: the task's train should have shape (3,), came (4,)",
    "nan": "train, round 2: here: the task's train has values that are not finite",
    "hangs": "train, round 2: the task is not done after 3 s (--seconds)",
    "socket": "an enclave has no network",
    "raises": "train, round 2: here: the task failed: ValueError at wrong.py:",
    "labels": "evaluate, round 1: evaluation: expected labels from 0 to 1 and scores from 0 to 1, came others",
}


@pytest.fixture
def wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "wrong.py").write_text(WRONG)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def study(folder: Path, what: str) -> Path:
    text = '[study]\nname = "wrong"\nrounds = 3\nseed = 1\n[task]\nclass = "wrong:Wrong"\n'
    (folder / "study.toml").write_text(f'{text}options = {{ what = "{what}" }}\n')
    return folder / "study.toml"


@pytest.mark.parametrize("what", EXPECTED)
def test_what_is_wrong_with_a_task_is_one_line_that_quotes_no_patient(what: str, wrong: Path) -> None:
    result = wardtree("task", "try", study(wrong, what), "--seconds", 3 if what == "hangs" else 60, cwd=wrong)
    assert result.returncode == 2, result.stdout
    *_, line = result.stderr.splitlines()
    assert line.startswith("wardtree: ")
    assert EXPECTED[what] in line
    assert "4711" not in result.stderr + result.stdout


def test_what_a_task_prints_stays_inside_and_one_class_has_no_auc(wrong: Path) -> None:
    result = wardtree("task", "try", study(wrong, "prints"), "--json", cwd=wrong)
    assert result.returncode == 0, result.stderr
    assert "4711" not in result.stderr + result.stdout
    figures = json.loads(result.stdout)["steps"][-1]["figures"]
    assert figures["accuracy"] == 1.0
    assert np.isnan(figures["auc"])
