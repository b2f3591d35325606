"""Scripts of FLARE's client API as a task, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.tasks.base import OptionsError, Setup, TaskError, TrainingRound
from node.tasks.flare import FlareTask

# As FLARE's own guides write them: a loop around receive and send, in a module's main part.
SCRIPT = """
import argparse
import torch
import nvflare.client as flare
from nvflare.client.tracking import SummaryWriter


def net():
    return torch.nn.Linear(2, 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=float)
    parser.add_argument("--step", type=float, default=0.5)
    args = parser.parse_args()
    model = net()
    flare.init()
    writer = SummaryWriter()
    print(flare.get_site_name())
    while flare.is_running():
        input_model = flare.receive()
        model.load_state_dict(input_model.params)
        accuracy = 1 / (1 + abs(args.target - model.bias.item()))
        writer.add_scalar("accuracy", accuracy, input_model.current_round)
        if flare.is_evaluate():
            flare.send(flare.FLModel(metrics={"accuracy": accuracy}))
            continue
        with torch.no_grad():
            model.bias += args.step * (args.target - model.bias)
        flare.send(
            flare.FLModel(
                params=model.cpu().state_dict(), metrics={"accuracy": accuracy}, meta={"NUM_STEPS_CURRENT_ROUND": 1}
            )
        )


if __name__ == "__main__":
    main()
"""

DIFFERENCE = """
import numpy as np
import nvflare.client as flare

def first():
    return {"weights": np.zeros((2, 2)), "steps": np.array(3)}

if __name__ == "__main__":
    flare.init()
    model = flare.receive()
    assert flare.receive() is None
    change, metrics = {"weights": np.full((2, 2), 0.25), "steps": np.array(1)}, {"steps": model.params["steps"]}
    flare.send(flare.FLModel(params_type=flare.ParamsType.DIFF, params=change, metrics=metrics))
"""

WRONG = """
import sys
import nvflare.client as flare

def first():
    return [[0.0]]

if __name__ == "__main__":
    flare.init()
    if sys.argv[1] == "ends":
        sys.exit("patient 4711")
    if sys.argv[1] == "bare":
        flare.send(flare.FLModel(metrics={}))
    if sys.argv[1] == "other":
        flare.send(flare.FLModel(params={"0": [1.0, 2.0]}))
"""

ROUND = TrainingRound(2, 5, None, 1)


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, text in (("flare_script", SCRIPT), ("flare_difference", DIFFERENCE), ("flare_wrong", WRONG)):
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("flare_script", "flare_difference", "flare_wrong"):
        sys.modules.pop(name, None)


def task(module: str, initial: str, data: dict[str, Any] | None = None, **options: Any) -> FlareTask:
    table = {"script": module, "initial": f"{module}:{initial}", **options}
    FlareTask.check_options(table)
    return FlareTask(Setup("here", table, data or {}, 5, Path("/nowhere")))


def test_a_script_trains_from_the_model_it_receives_and_evaluates_it(capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {
        "arguments": ["--target", "{where}"],
        "tensors": True,
        "measures": {"accuracy": [0.0, 1.0]},
    }
    script = task("flare_script", "net", {"where": 3.0, "examples": 20}, **options)
    model = script.initial()
    assert np.array_equal(model, task("flare_script", "net", {"where": 9.0}, **options).initial())
    update = script.train(model, ROUND)
    assert update == pytest.approx([0, 0, (3 - model[2]) / 2])
    came = script.evaluate(np.array([0, 0, 2], np.float32), ROUND)
    assert (came.examples, came.measures) == (20, {"accuracy": 0.5})
    assert capsys.readouterr().out == "here\nhere\n"
    assert not [name for name in sys.modules if name.startswith("nvflare")]


def test_a_difference_is_the_update_and_what_cannot_be_averaged_is_carried() -> None:
    options: dict[str, Any] = {"stays_local": ["steps"], "measures": {"steps": [0.0, 9.0]}}
    script = task("flare_difference", "first", **options)
    assert script.train(np.ones(4, np.float32), ROUND).tolist() == [0.25] * 4
    assert FlareTask.layout({"script": "flare_difference", "initial": "flare_difference:first", **options}) == {
        "weights": (2, 2)
    }
    again = task("flare_difference", "first", **options)
    came = again.evaluate(np.ones(4, np.float32), TrainingRound(3, 5, None, 1, carried=script.carry()))
    assert came.measures == {"steps": 4.0}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("nothing", "script flare_wrong: expected flare.send, came none"),
        ("ends", "script flare_wrong: ended with an error before it sent a model"),
        ("bare", "flare.send: expected params, came none"),
        ("other", r"flare.send: expected array 0 with shape \(1,\), came \(2,\)"),
    ],
)
def test_a_script_that_does_not_do_its_part_is_named(what: str, message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        task("flare_wrong", "first", arguments=[what]).train(np.zeros(1, np.float32), ROUND)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"script": "a:b"}, "script: expected the name of a module"),
        ({"initial": "elsewhere:net"}, "expected initial in the same module or package as script"),
        ({"measures": {"loss": [1.0, 0.0]}}, "expected measures with low below high, came others for loss"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        FlareTask.check_options({"script": "flare_wrong", "initial": "flare_wrong:first", **options})


def test_a_schedule_of_learning_rates_is_refused() -> None:
    with pytest.raises(TaskError, match="expected a constant schedule"):
        task("flare_wrong", "first").train(np.zeros(1, np.float32), TrainingRound(1, 5, None, 1, rate=0.5))
