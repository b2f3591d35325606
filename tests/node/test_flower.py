"""Clients of Flower's as a task, in this process."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.evaluation import Layout as Counts
from node.tasks.base import Measure, OptionsError, Setup, TaskError, TrainingRound
from node.tasks.flower import FlowerTask

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

CLIENTS = """
import random
import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.client import ClientApp, NumPyClient
from flwr.common import Message


class Drawn(NumPyClient):
    def __init__(self):
        self.drawn = [np.random.normal(size=(2, 3)), torch.rand(4).numpy(), np.array(random.random())]

    def get_parameters(self, config):
        return self.drawn

    def fit(self, parameters, config):
        step = config["lr"] * config["server_round"]
        return [array + step for array in parameters], 10, {}

    def evaluate(self, parameters, config):
        return float(parameters[0].sum()), 10, {"rows": config["rows"]}


class Batches(Drawn):
    def __init__(self):
        self.drawn = [np.zeros(2, np.float32), np.array(7)]

    def fit(self, parameters, config):
        return [parameters[0] + 1, parameters[1] + 1], 10, {}


class Remembers(Batches):
    def __init__(self, context):
        super().__init__()
        self.context = context
        self.rounds = context.state["mine"]["rounds"] if "mine" in context.state else 0

    def fit(self, parameters, config):
        self.context.state["mine"] = MetricRecord({"rounds": self.rounds + 1})
        return [parameters[0] + self.rounds, parameters[1]], 10, {}


def remembers(context):
    return Remembers(context).to_client()


class Silent(Drawn):
    get_parameters = NumPyClient.get_parameters


class Reshapes(Drawn):
    def fit(self, parameters, config):
        return [parameters[0].T, *parameters[1:]], 10, {}


class Drops(Drawn):
    def fit(self, parameters, config):
        return parameters[:2], 10, {}


def context_itself(context):
    return {"patient": 4711}


def where(context):
    client = Drawn()
    client.drawn = [np.array([float(open(context.node_config["file"]).read()), context.run_config["offset"]])]
    return client.to_client()


nothing = None
around = ClientApp(lambda context: Drawn().to_client())
messages = ClientApp()


@messages.train()
def train(message, context):
    arrays = message.content["arrays"]
    assert list(arrays) == ["weight", "bias"]
    state = {name: tensor + message.content["config"]["lr"] for name, tensor in arrays.to_torch_state_dict().items()}
    metrics = MetricRecord({"num-examples": 3})
    return Message(RecordDict({"arrays": ArrayRecord(state), "metrics": metrics}), reply_to=message)


@messages.evaluate()
def evaluate(message, context):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 3, "loss": 99.0})}), reply_to=message)


def net():
    return torch.nn.Linear(2, 1)
"""

ROUND = TrainingRound(2, 5, None, 1)


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "flower_clients.py").write_text(CLIENTS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("flower_clients", None)


def task(client: str, data: dict[str, Any] | None = None, home: Path = Path("/nowhere"), **options: Any) -> FlowerTask:
    table = {"client": f"flower_clients:{client}", **options}
    FlowerTask.check_options(table)
    return FlowerTask(Setup("here", table, data or {}, 5, home))


def test_a_numpy_client_begins_alike_everywhere_and_trains_from_the_model_it_is_given() -> None:
    here, there = (task("Drawn", fit={"lr": 0.5}, scaled=["lr"]) for _ in range(2))
    assert here.parameters == 6 + 4 + 1
    assert np.array_equal(here.initial(), there.initial())
    np.random.seed(7)
    here.initial()
    assert np.random.normal() == np.random.RandomState(7).normal()  # the generators go on where they were
    update = here.train(here.initial(), TrainingRound(2, 5, None, 1, rate=0.1))
    assert update == pytest.approx(np.full(11, 0.5 * 0.1 * 2), abs=1e-6)


def test_no_client_that_trains_is_made_under_the_seed() -> None:
    first, second = (task("Drawn", fit={"lr": 0.5}) for _ in range(2))
    assert not np.array_equal(first._learner.start()["0"], second._learner.start()["0"])


def test_what_cannot_be_averaged_stays_here_and_is_carried() -> None:
    with pytest.raises(TaskError, match=r'array 1 .* came int64; .* stays_local = \["1"\]'):
        task("Batches")
    client = task("Batches", stays_local=["1"])
    assert client.parameters == 2
    assert client.train(np.zeros(2, np.float32), ROUND).tolist() == [1, 1]
    after = TrainingRound(3, 5, None, 1, carried=client.carry())
    again = task("Batches", stays_local=["1"])
    again.train(np.zeros(2, np.float32), after)
    assert again._left["1"].item() == 7 + 2


def test_a_clients_state_goes_on_in_its_next_round() -> None:
    carried = None
    for rounds_before in range(3):
        client = task("remembers", stays_local=["1"])
        update = client.train(np.zeros(2, np.float32), TrainingRound(rounds_before + 1, 3, None, 1, carried=carried))
        assert update.tolist() == [rounds_before] * 2
        carried = client.carry()


def test_measures_are_kept_within_their_bounds_and_counted() -> None:
    client = task("Drawn", fit={"lr": 0.5}, evaluate={"rows": 3}, measures={"loss": [0.0, 2.0], "rows": [0.0, 4.0]})
    spec = client.evaluation_spec()
    assert spec is not None
    assert spec.measures == (Measure("loss", 0, 2), Measure("rows", 0, 4))
    came = client.evaluate(np.ones(11, np.float32), ROUND)
    assert (came.examples, came.measures) == (10, {"loss": 2.0, "rows": 3.0})
    Counts(spec, 100, 1000, 8191).count(came)
    lacking = task("Drawn", evaluate={"rows": 3}, measures={"auc": [0.0, 1.0]})
    with pytest.raises(TaskError, match="expected a number auc"):
        lacking.evaluate(np.ones(11, np.float32), ROUND)
    assert task("Drawn").evaluation_spec() is None


def test_a_client_app_gets_named_tensors() -> None:
    client = task("messages", initial="flower_clients:net", fit={"lr": 0.25}, measures={"loss": [0.0, 9.0]})
    assert client.parameters == 3
    assert client.train(client.initial(), ROUND) == pytest.approx(np.full(3, 0.25))
    came = client.evaluate(client.initial(), ROUND)
    assert (came.examples, came.measures) == (3, {"loss": 9.0})


def test_an_exported_model_has_the_names_of_its_tensors() -> None:
    named = {"client": "flower_clients:messages", "initial": "flower_clients:net"}
    assert FlowerTask.layout(named) == {"weight": (1, 2), "bias": (1,)}
    assert FlowerTask.layout({"client": "flower_clients:Drawn"}) is None


def test_a_client_finds_its_data_and_its_settings(tmp_path: Path) -> None:
    (tmp_path / "number").write_text("2.5")
    client = task("where", {"file": "number", "examples": 40}, tmp_path, run_config={"offset": 1})
    assert client.examples == 40
    assert client.initial().tolist() == [2.5, 1.0]


@pytest.mark.parametrize(
    ("client", "options", "message"),
    [
        ("Silent", {}, "expected options.initial, which gives the first model"),
        ("context_itself", {}, "expected a Flower Client or NumPyClient, came dict"),
        ("nothing", {}, "expected a client_fn, a class or a ClientApp, came another object"),
        ("lacking", {}, "expected lacking in flower_clients, came none"),
        ("around", {}, "expected the name of that client_fn"),
        ("messages", {}, "a ClientApp has no first model"),
        ("Drawn", {"stays_local": ["9"]}, "expected names of arrays of the model, came 9"),
    ],
)
def test_what_is_no_client_is_named(client: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message) as caught:
        task(client, **options)
    assert "4711" not in str(caught.value)


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ("Reshapes", r"fit: expected array 0 with shape \(2, 3\), came \(3, 2\)"),
        ("Drops", "fit: expected 3 arrays, came 2"),
    ],
)
def test_another_model_than_was_given_is_refused(client: str, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        task(client).train(np.zeros(11, np.float32), ROUND)


def test_a_schedule_of_learning_rates_that_nothing_follows_is_refused() -> None:
    with pytest.raises(TaskError, match=r"expected options\.scaled, came none"):
        task("Drawn", fit={"lr": 0.5}).train(np.zeros(11, np.float32), TrainingRound(1, 5, None, 1, rate=0.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"client": "no colon"}, 'client: expected "module:client_fn"'),
        ({"initial": "elsewhere:net"}, "expected initial in the same module or package as client"),
        ({"fit": {"a": [1]}}, "fit: expected a to be a number, a text, true or false"),
        ({"scaled": ["lr"]}, "expected scaled to name decimal numbers of fit, came lr"),
        ({"measures": {"loss": [1.0, 0.0]}}, "expected measures with low below high, came others for loss"),
        ({"measures": {"loss": [1.0]}}, "measures.loss: expected a table of name"),
        ({"clients": "a:b"}, 'clients: unknown key; did you mean "client"'),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        FlowerTask.check_options({"client": "flower_clients:Drawn", **options})
