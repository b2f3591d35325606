"""What a user can get wrong with `wardtree local` and `study`: one line, a non-zero exit, nothing lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.commands import wardtree

pytestmark = pytest.mark.confined

STUDY = """\
[study]
name = "s"
rounds = 1
seed = 1
[task]
class = "tabular"
[task.options]
target = { column = "ill", positive_above = 0 }
max_examples = 64
test_fraction = 0.3
learning_rate = 0.1
local_epochs = 1
batch_size = 8
l2 = 0.0
[task.options.features]
age = { range = [0, 120] }
[aggregation]
weights = "WEIGHTS"
"""
GOOD = "age,ill\n" + "".join(f"{20 + i},{i % 2}\n" for i in range(40))


def files(folder: Path, tables: dict[str, str], study: str = STUDY, weights: str = "examples") -> tuple[object, ...]:
    (folder / "study.toml").write_text(study.replace("WEIGHTS", weights))
    lines = ['key_holder = "a"']
    for name, table in tables.items():
        (folder / f"{name}.csv").write_text(table)
        lines += [f"[{name}]", f'csv = "{name}.csv"']
    (folder / "data.toml").write_text("\n".join(lines))
    return "--study", folder / "study.toml", "--data", folder / "data.toml", "--out", folder / "run"


@pytest.mark.parametrize("weights", ["examples", "equal"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("age,sick\n30,1\n", "c.csv: expected a column ill"),
        ("age,ill\n30,1\nfifty,0\n", "c.csv: column age, row 3: expected a number"),
        ("", "c.csv"),
    ],
)
def test_a_data_file_that_is_not_right(tmp_path: Path, table: str, message: str, weights: str) -> None:
    """Found before the ceremony where examples are counted, and by the node itself where they are not."""
    result = wardtree("local", *files(tmp_path, {"a": GOOD, "b": GOOD, "c": table}, weights=weights))
    assert result.returncode in (1, 2)
    errors = [line for line in result.stderr.splitlines() if line.startswith("wardtree: ")]
    assert any(message in line for line in errors), result.stderr
    assert "fifty" not in result.stderr, "no value of a patient in a message"
    assert "Traceback" not in result.stderr


def test_a_study_with_an_unknown_key(tmp_path: Path) -> None:
    wrong = STUDY.replace("rounds = 1", "rounds = 1\nruonds = 2")
    result = wardtree("local", *files(tmp_path, {"a": GOOD, "b": GOOD, "c": GOOD}, wrong))
    assert result.returncode == 2
    assert result.stderr.strip().endswith('study.ruonds: unknown key; did you mean "rounds"?')
    assert not (tmp_path / "run").exists()
    checked = wardtree("study", "check", tmp_path / "study.toml")
    assert (checked.returncode, "study.ruonds" in checked.stderr) == (2, True)


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    result = wardtree("local", "--task", "synthetic", "--parties", 3, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert "an empty or new folder was expected" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--parties", 2, "--task", "synthetic"), "at least 3 are needed"),
        (("--parties", 1025, "--task", "synthetic"), "max_parties: expected a whole number from 2 to 1024"),
        (("--task", "synthetic"), "--parties or --data"),
        (("--task", "quantum", "--parties", 3), 'expected "synthetic"'),
        (("--study", "/no/such/study.toml"), "expected a study file"),
        (("--data", "/no/such/data.toml"), "cannot be read"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: tuple[object, ...], message: str) -> None:
    result = wardtree("local", *options, "--out", tmp_path / "run")
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_help_everywhere_has_examples() -> None:
    for command in (["local"], ["node"], ["study", "new"], ["study", "check"], ["ceremony", "identity", "new"]):
        result = wardtree(*command, "--help")
        assert result.returncode == 0
        assert "Example" in result.stdout
