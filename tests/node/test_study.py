"""A study file is read exactly, or refused with every problem named."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import node
from node.study import StudyError, check_options, new_study_text, parse_study, read_study

MINIMAL = """
[study]
name = "small"
rounds = 3
seed = 7
[task]
class = "synthetic"
"""
HEART = Path(node.__file__).parent / "studies" / "heart.toml"


def problems_of(text: str) -> list[str]:
    with pytest.raises(StudyError) as caught:
        parse_study(text, "study.toml")
    return str(caught.value).splitlines()


def test_a_minimal_study_has_the_documented_defaults() -> None:
    study = parse_study(MINIMAL, "study.toml")
    assert (study.name, study.rounds, study.seed) == ("small", 3, 7)
    assert (study.task.class_name, study.task.options) == ("synthetic", {})
    assert study.aggregation.model_dump() == {
        "weights": "equal",
        "clip": 1.0,
        "value_bits": 14,
        "max_parties": 64,
        "min_hidden": 2,
        "allow_two_parties": False,
        "tree": "balanced",
        "segment_ciphertexts": None,
        "max_openings": 100_000,
        "sample": 1.0,
    }
    assert study.privacy.mode == "none"
    assert (study.deadlines.round_seconds, study.deadlines.join_seconds) == (120.0, 60.0)
    assert study.debug.check_sums is False


def test_the_study_to_start_from_and_the_default_study_are_valid() -> None:
    assert parse_study(new_study_text(), "new").task.class_name == "tabular"
    heart = read_study(HEART)
    assert (heart.rounds, heart.aggregation.weights, heart.debug.check_sums) == (10, "examples", True)
    assert len(heart.task.options["features"]) == 13


@pytest.mark.parametrize(
    ("table", "line", "problem"),
    [
        ("aggregation", "clip = -1", "aggregation.clip: expected a number above 0, came -1"),
        ("aggregation", 'clip = "1"', 'aggregation.clip: expected a number above 0, came "1"'),
        ("aggregation", "clip = nan", "aggregation.clip: expected a number above 0, came NaN"),
        ("aggregation", "clip = true", "aggregation.clip: expected a number above 0, came true"),
        ("aggregation", "value_bits = 25",
         "aggregation.value_bits: expected a whole number from 4 to 24, came 25"),
        ("aggregation", "value_bits = 8.0",
         "aggregation.value_bits: expected a whole number from 4 to 24, came 8.0"),
        ("aggregation", "max_parties = 1025",
         "aggregation.max_parties: expected a whole number from 2 to 1024, came 1025"),
        ("aggregation", "min_hidden = 1", "aggregation.min_hidden: expected a whole number of at least 2, came 1"),
        ("aggregation", "min_hidden = 64", "aggregation: expected min_hidden below max_parties, came 64 and 64"),
        ("aggregation", 'weights = "size"', 'aggregation.weights: expected "examples" or "equal", came "size"'),
        ("aggregation", 'tree = "star"', 'aggregation.tree: expected "balanced" or "chain", came "star"'),
        ("aggregation", "segment_ciphertexts = 2000",
         "aggregation.segment_ciphertexts: expected a whole number from 1 to 1024, came 2000"),
        ("aggregation", "cilp = 1.0", 'aggregation.cilp: unknown key; did you mean "clip"?'),
        ("privacy", 'mode = "dp"', 'privacy.mode: expected "none", "record" or "hospital", came "dp"'),
        ("deadlines", "round_seconds = 0",
         "deadlines.round_seconds: expected a number of seconds above 0, came 0"),
        ("debug", "check_sums = 1", "debug.check_sums: expected true or false, came 1"),
        ("debug", "zzzz = 1", "debug.zzzz: unknown key; known here: check_sums, two_parties"),
        ("debgu", "check_sums = true", 'debgu: unknown key; did you mean "debug"?'),
        ("task.options", "params = 0", "task.options.params: expected a whole number of parameters from 1 to "
         "1000000000, came 0"),
        ("task.options", "parms = 5", 'task.options.parms: unknown key; did you mean "params"?'),
    ],
)  # fmt: skip
def test_one_wrong_line_gives_one_problem(table: str, line: str, problem: str) -> None:
    assert problems_of(f"{MINIMAL}\n[{table}]\n{line}\n") == [f"study.toml: {problem}"]


def test_every_problem_is_listed() -> None:
    text = MINIMAL.replace('name = "small"', "").replace("rounds = 3", "rounds = 0").replace("synthetic", "a b")
    assert problems_of(text) == [
        "study.toml: study.name: expected a name of 1 to 80 characters on one line, came nothing",
        "study.toml: study.rounds: expected a whole number from 1 to 10000, came 0",
        'study.toml: task.class: expected "image", "segmentation", "tabular", "synthetic", '
        '"flower", "flare" or "module:Class", came "a b"',
    ]


def test_a_message_keeps_to_its_line() -> None:
    text = MINIMAL + "[task.options]\n" + r'"a\n\u001b[2Jb" = 1'
    known = "params, scale, seconds"
    assert problems_of(text) == [rf"study.toml: task.options.a\n\x1b[2Jb: unknown key; known here: {known}"]


def test_a_missing_or_wrong_table_is_named() -> None:
    assert problems_of("task = 3") == [
        "study.toml: study: expected a table, came nothing",
        "study.toml: task: expected a table, came 3",
    ]


def test_two_parties_are_refused_without_noise_of_their_own() -> None:
    (problem,) = problems_of(MINIMAL + "[aggregation]\nallow_two_parties = true")
    assert "aggregation.allow_two_parties: expected false without [privacy]" in problem


def test_sums_that_cannot_be_exact_are_refused_by_the_planner() -> None:
    table = MINIMAL + "[aggregation]\nvalue_bits = 24\nmax_parties = "
    assert parse_study(table + "256", "study.toml").aggregation.value_bits == 24
    (problem,) = problems_of(table + "257")
    assert problem.startswith("study.toml: aggregation: plan: sums over 257 parties of 24-bit values")
    assert "at most 256 parties with 24 bits" in problem


def test_a_file_that_is_no_study_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'[study]\nname = "\xe5"')
    for name, expected in (("absent.toml", "No such file"), (".", "directory"), ("latin.toml", "UTF-8")):
        with pytest.raises(StudyError, match=expected) as caught:
            read_study(tmp_path / name)
        assert len(str(caught.value).splitlines()) == 1
    assert problems_of("[study") == [
        "study.toml: expected TOML, came a syntax error: Expected ']' at the end of a table declaration "
        "(at end of document)"
    ]


def test_a_users_module_is_imported_only_when_its_options_are_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "proud_task.py").write_text(
        "from pathlib import Path\n"
        "from node.tasks.synthetic import SyntheticTask\n"
        "Path(__file__).with_suffix('.ran').touch()\n"
        "class Mine(SyntheticTask): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    text = MINIMAL.replace("synthetic", "proud_task:Mine") + "[task.options]\nscale = 0\n"
    study = parse_study(text, "study.toml")
    assert not (tmp_path / "proud_task.ran").exists()
    with pytest.raises(StudyError, match=r"^study.toml: task.options.scale: expected a number above 0, came 0$"):
        check_options(study, "study.toml")
    assert (tmp_path / "proud_task.ran").exists()


@given(st.text(max_size=200))
def test_any_text_is_a_study_or_a_study_error(text: str) -> None:
    with pytest.raises(StudyError):  # no text of 200 random characters is a study
        parse_study(text, "study.toml")


VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(-(2**40), 2**40), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5,
)
KEYS = [
    (table, key)
    for table, keys in tomllib.loads(new_study_text()).items()
    for key in keys
    if (table, key) != ("task", "class")
]


@given(st.sampled_from(KEYS), VALUES)
def test_any_value_anywhere_is_taken_or_named(where: tuple[str, str], value: Any) -> None:
    tables = tomllib.loads(new_study_text())
    tables[where[0]][where[1]] = value
    lines: list[str] = []
    try:
        parse_study("\n".join(_toml(tables)), "s")
    except StudyError as error:
        lines = str(error).splitlines()
    # A rule between two keys of a table names the table.
    assert all(line.startswith((f"s: {'.'.join(where)}", f"s: {where[0]}: ")) for line in lines)
    assert "".join(lines).isprintable()


def _toml(tables: dict[str, Any]) -> list[str]:
    return [f"{table} = {_inline(keys)}" for table, keys in tables.items()]


def _inline(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_inline(key)} = {_inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_inline, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(character):08x}" for character in value) + '"'
    return repr(value)
