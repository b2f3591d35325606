"""Flower's own example apps, byte for byte as `flwr new` writes them, on the tree and under Flower's own FedAvg."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import FULL, wardtree

pytest.importorskip("flwr", reason="the extra `flower` is not installed")

ROOT = Path(__file__).parents[2]
APPS = ROOT / "tests" / "flower_apps"
PARTIES = ("ada", "bo", "cy", "di")
ROUNDS = 20 if FULL else 5
RUN_CONFIG = {"penalty": "l2", "local-epochs": 1}

AS_WRITTEN = {
    "quickstart_numpyclient/client_app.py": "d92dd44189cf3e302ef847820378928d81138f0ec1c4d92114df85a1c65c6ab4",
    "quickstart_numpyclient/task.py": "dad079a815c2f755957501881210cd7108fa05ff10e2210d76b3714cd6e70d66",
    "quickstart_messages/client_app.py": "8e71202aa1a310c47b7d1781eb3c662efee9384fc7efb43f21a68f64d1dfbc61",
    "quickstart_messages/task.py": "2c5c473bd631fba7cdddcc59634391b07e9a3bd1447efb5997e20fb58958799f",
}

STUDY = """
[study]
name = "flower"
rounds = {rounds}
seed = 1
[task]
class = "flower"
[task.options]
client = "{app}.client_app:{client}"
initial = "{app}.first:initial"
run_config = {{ penalty = "l2", local-epochs = 1 }}
measures = {{ accuracy = [0, 1] }}
[aggregation]
clip = 0.01
[evaluation]
every = {rounds}
[debug]
check_sums = true
"""


@pytest.fixture
def apps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The apps as users have them, and installed beside them what stands for their source of data."""
    for name in ("quickstart_numpyclient", "quickstart_messages"):
        shutil.copytree(APPS / name, tmp_path / "apps" / name)
        shutil.copy(APPS / "stand_ins" / "first.py", tmp_path / "apps" / name)
    shutil.copytree(APPS / "stand_ins" / "flwr_datasets", tmp_path / "site-packages" / "flwr_datasets")
    path = [str(tmp_path / "apps"), str(tmp_path / "site-packages")]
    monkeypatch.setenv("PYTHONPATH", ":".join([*path, str(ROOT)]))
    monkeypatch.setattr(sys, "path", [*path, *sys.path])
    yield tmp_path
    for module in [name for name in sys.modules if name.startswith(("quickstart_", "flwr_datasets"))]:
        del sys.modules[module]


def contexts() -> list[Any]:
    from flwr.app import Context, RecordDict

    nodes = [{"partition-id": number, "num-partitions": len(PARTIES)} for number in range(len(PARTIES))]
    return [Context(0, node["partition-id"], node, RecordDict(), RUN_CONFIG) for node in nodes]


def with_numpy_clients(app: str) -> float:
    """The accuracy on all held-out images after ``ROUNDS`` rounds of Flower's FedAvg, everyone in this process."""
    from flwr.common import EvaluateIns, FitIns, ndarrays_to_parameters
    from flwr.server.strategy import FedAvg

    client_fn = import_module(f"{app}.client_app").client_fn
    parameters, strategy = ndarrays_to_parameters(import_module(f"{app}.first").initial()), FedAvg()
    for number in range(1, ROUNDS + 1):
        results = [client_fn(context).fit(FitIns(parameters, {})) for context in contexts()]
        parameters, _ = strategy.aggregate_fit(number, [(None, result) for result in results], [])
    results = [client_fn(context).evaluate(EvaluateIns(parameters, {})) for context in contexts()]
    right = sum(each.metrics["accuracy"] * each.num_examples for each in results)
    return float(right / sum(each.num_examples for each in results))


def with_messages(app: str) -> float:
    """The same with the app's messages, under the FedAvg that takes them."""
    from flwr.app import ArrayRecord, ConfigRecord, Message, Metadata, RecordDict
    from flwr.serverapp.strategy import FedAvg

    def ask(what: str, arrays: Any, number: int) -> list[Any]:
        content = RecordDict({"arrays": arrays, "config": ConfigRecord()})
        ids = [(context, Metadata(0, "", 0, context.node_id, "", "", 0.0, 1e9, what)) for context in contexts()]
        return [client_app(Message(metadata=metadata, content=content), context) for context, metadata in ids]

    client_app = import_module(f"{app}.client_app").app
    arrays, strategy = ArrayRecord(import_module(f"{app}.first").initial()), FedAvg()
    for number in range(1, ROUNDS + 1):
        arrays, _ = strategy.aggregate_train(number, ask("train", arrays, number))
    return float(strategy.aggregate_evaluate(ROUNDS, ask("evaluate", arrays, ROUNDS))["accuracy"])


def test_the_examples_are_as_flower_wrote_them() -> None:
    assert {name: hashlib.sha256((APPS / name).read_bytes()).hexdigest() for name in AS_WRITTEN} == AS_WRITTEN


@pytest.mark.confined
@pytest.mark.parametrize(
    ("app", "client", "reference"),
    [("quickstart_numpyclient", "client_fn", with_numpy_clients), ("quickstart_messages", "app", with_messages)],
)
def test_an_example_of_flowers_ends_where_flowers_own_average_does(
    app: str, client: str, reference: Callable[[str], float], apps: Path
) -> None:
    (apps / "study.toml").write_text(STUDY.format(app=app, client=client, rounds=ROUNDS))
    parts = [f"[{name}]\npartition-id = {number}\nnum-partitions = 4\n" for number, name in enumerate(PARTIES)]
    (apps / "hospitals.toml").write_text("\n".join(['key_holder = "ada"', *parts]))
    options = ("--study", "study.toml", "--data", "hospitals.toml", "--out", apps / "run", "--json")
    ran = wardtree("local", *options, cwd=apps, timeout=280)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert (report["ok"], report["rounds"]) == (True, ROUNDS)
    accuracy, expected = report["evaluations"][-1]["accuracy"], reference(app)
    print(f"\n{app}: {accuracy:.4f} on the tree, {expected:.4f} under Flower's FedAvg, {ROUNDS} rounds")
    assert expected > 0.8
    assert abs(accuracy - expected) <= 0.01
