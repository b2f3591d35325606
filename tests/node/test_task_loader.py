"""Tasks by name: the built-in ones, a user's own, and what is wrong with the others."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.study import read_study
from node.tasks.base import Evaluation, OptionsError, Setup, TaskError, TrainingRound
from node.tasks.loader import load_task, load_task_class, task_digest, task_source

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
ROUND = TrainingRound(number=1, rounds=1, statistics=None, parties=3)


def setup(options: dict[str, Any] | None = None, home: Path = Path()) -> Setup:
    return Setup("north", options or {}, {}, 1, home)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module with the source that the test is parametrised with; its name differs from test to test."""
    name = f"own_task_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(request.param)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_synthetic_updates_are_fresh_bounded_and_as_long_as_asked() -> None:
    task = load_task("synthetic", setup({"params": 1000, "scale": 0.25}))
    one, other = (task.train(task.initial(), ROUND) for _ in range(2))
    assert (task.examples, task.parameters, task.statistics_spec()) == (1, 1000, None)
    assert one.dtype == np.float32
    assert one.shape == task.initial().shape == (1000,)
    assert not np.array_equal(one, other)
    assert 0.2 < np.abs(one).max() <= 0.25
    assert task.evaluate(np.full(1000, 2, np.float32), ROUND) == Evaluation(1, measures={"rms": 2.0})


def test_synthetic_and_studies_need_neither_torch_nor_pandas() -> None:
    program = (
        "import sys, pathlib, node.compare, node.tasks.tabular\n"
        "from node.study import new_study_text, parse_study\n"
        "from node.tasks.base import Setup\n"
        "from node.tasks.loader import load_task\n"
        "parse_study(new_study_text(), 'new')\n"
        "load_task('synthetic', Setup('a', {}, {}, 1, pathlib.Path()))\n"
        "print(sorted({'torch', 'pandas', 'sklearn', 'zmq', 'tenseal'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tabula", 'task: expected image, tabular, synthetic, flower, flare or "module:Class", came "tabula"'),
        ("a-b:C", 'task: expected image, tabular, synthetic, flower, flare or "module:Class", came "a-b:C"'),
        ("no_such:C", "task no_such:C: expected a Python module no_such, none is installed or on PYTHONPATH"),
        ("node.no:C", "task node.no:C: expected a Python module node.no, none is installed or on PYTHONPATH"),
        ("node.study.x:C", "task node.study.x:C: expected a Python module node.study.x, none is installed or on "
         "PYTHONPATH"),
        ("node.study.node:C",
         "task node.study.node:C: expected a Python module node.study.node, none is installed or "
         "on PYTHONPATH"),
        ("sys:C", "task sys:C: expected a Python module sys, none is installed or on PYTHONPATH"),
        ("node.study:C", "task node.study:C: expected a class C in node.study, came none"),
        ("node.study:Debug", "task node.study:Debug: expected a class with the methods of a task, it lacks "
         "check_options, statistics_spec, statistics, initial, train, evaluate"),
        ("node.tasks.base:Task", "task node.tasks.base:Task: expected a class with the methods of a task, it "
         "lacks initial, train, evaluate"),
    ],
)  # fmt: skip
def test_what_is_no_task_is_one_line(name: str, message: str) -> None:
    for find in (load_task_class, task_digest) if "expected a Python module" in message else (load_task_class,):
        with pytest.raises(TaskError) as caught:
            find(name)
        assert str(caught.value) == message


@pytest.mark.parametrize("module", ["import no_such_library\n"], indirect=True)
def test_a_module_that_cannot_be_imported_says_why(module: str) -> None:
    with pytest.raises(TaskError, match=rf"^task {module}:A: importing {module} failed: ModuleNotFoundError: .*$"):
        load_task_class(f"{module}:A")


BASE = "from node.tasks.synthetic import SyntheticTask\nclass A(SyntheticTask):\n    def __init__(self, setup):\n"


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (BASE + "        raise ValueError('secretvalue')", "loading the data failed with ValueError"),
        (BASE + "        self.examples = 3", "expected parameters to be a whole number above 0, came NoneType"),
        (BASE + "        self.examples = 0", "expected examples to be a whole number above 0, came 0"),
    ],
    indirect=["module"],
    ids=["raises", "no parameters", "no examples"],
)
def test_a_task_that_fails_to_load_names_the_party_and_no_value(module: str, message: str) -> None:
    with pytest.raises(TaskError) as caught:
        load_task(f"{module}:A", setup())
    assert str(caught.value) == f"north: task {module}:A: {message}"


def test_the_digest_follows_the_source_and_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "digested" / "deep"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("raise SystemExit('this must not run')")
    (package / "task.py").write_text("class A: ...")
    (tmp_path / "alone.py").write_text("class A: ...")
    digests = [task_digest("digested.deep.task:A"), task_digest("alone:A"), task_digest("tabular")]
    assert len(set(digests)) == 3
    assert all(len(bytes.fromhex(digest)) == 32 for digest in digests)
    (package.parent / "helper.py").write_text("# a helper of the task counts")
    (tmp_path / "beside.py").write_text("# what lies beside a lone module does not")
    assert task_digest("digested.deep.task:A") != digests[0]
    assert task_digest("alone:A") == digests[1]
    (tmp_path / "spaced").mkdir()  # a namespace package: no __init__.py
    (tmp_path / "spaced" / "task.py").write_text("class A: ...")
    assert task_digest("spaced.task:A") != task_digest("alone:A")
    (tmp_path / "alone.py").write_text("class A: ... # changed")
    assert task_digest("alone:A") != digests[1]


def test_code_that_a_built_in_task_runs_counts_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "app").mkdir()
    for name in ("__init__", "client", "task"):
        (tmp_path / "app" / f"{name}.py").write_text("raise SystemExit('this must not run')")
    (tmp_path / "alone.py").write_text("raise SystemExit('this must not run')")
    options = {"client": "app.client:client_fn"}
    assert task_source("flower", options) == tmp_path / "app"
    assert task_source("flower", {"client": "alone:Client"}) == tmp_path / "alone.py"
    digests = {
        task_digest("flower", options),
        task_digest("flower", {"client": "alone:Client"}),
        task_digest("tabular"),
    }
    assert len(digests) == 3
    (tmp_path / "app" / "task.py").write_text("# what the client imports from its own package counts")
    assert task_digest("flower", options) not in digests
    with pytest.raises(TaskError, match="expected a Python module absent, none is installed"):
        task_digest("flower", {"client": "absent:client_fn"})


def test_the_documented_task_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXAMPLES)
    study = read_study(EXAMPLES / "stay.toml")
    tasks = [
        load_task(study.task.class_name, Setup(party, {}, {"csv": f"{party}.csv"}, 1, EXAMPLES / "readmission"))
        for party in ("north", "south", "west")
    ]
    model = first = tasks[0].initial()
    for number in range(1, study.rounds + 1):
        round = TrainingRound(number, study.rounds, None, len(tasks))
        updates = [task.train(model, round) for task in tasks]
        assert max(np.abs(update).max() for update in updates) < study.aggregation.clip
        model = model + np.mean(updates, axis=0, dtype=np.float32)
    for task in tasks:
        after, before = (task.evaluate(each, ROUND).measures["days_off"] for each in (model, first))
        assert after < 0.5 * before
    with pytest.raises(OptionsError, match=r"^depth: unknown key; this task has no options$"):
        load_task_class(study.task.class_name).check_options({"depth": 3})
    with pytest.raises(TaskError, match=r"^north: expected a CSV of numbers, came KeyError$"):
        load_task(study.task.class_name, setup())
