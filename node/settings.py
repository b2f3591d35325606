"""Tables of a user's TOML checked by pydantic, with messages that a user can act on.

A field's ``description`` is what was *expected*, so that every message reads
``key.path: expected <description>, came <value>``.
"""

import json
from collections.abc import Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails


class Settings(BaseModel):
    """One TOML table: unknown keys, wrong types, infinities and NaN are refused; nothing is converted."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


def problems(model: type[Settings], error: ValidationError, under: str = "") -> list[str]:
    """What is wrong, one line for each problem; ``under`` is the key path of the table that was checked."""
    return [printable(_line(model, one, under)) for one in error.errors(include_url=False)]


def printable(text: str) -> str:
    """``text`` on one line and without control characters: a study may come from someone else."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(value: object) -> str:
    """A setting as a message may repeat it: short, on one line."""
    if isinstance(value, Mapping):
        return "a table"
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _line(model: type[Settings], error: ErrorDetails, under: str) -> str:
    loc = error["loc"]
    key = ".".join(str(part) for part in (under, *loc) if part != "") or "the file"
    if error["type"] == "extra_forbidden":
        known = _known_keys(_annotation(model, loc[:-1])[0])
        near = get_close_matches(str(loc[-1]), known, n=1)
        hint = f'did you mean "{near[0]}"?' if near else "known here: " + ", ".join(known)
        return f"{key}: unknown key; {hint}"
    if error["type"] == "value_error":  # a validator of ours, which says in full what it expected
        return f"{key}: {error['ctx']['error']}"
    expected = _annotation(model, loc)[1] or error["msg"]
    came = "nothing" if error["type"] == "missing" else shown(error["input"])
    return f"{key}: expected {expected}, came {came}"


def _known_keys(annotation: Any) -> list[str]:
    return [field.alias or name for name, field in annotation.model_fields.items()]


def _annotation(model: type[Settings], loc: tuple[int | str, ...]) -> tuple[Any, str | None]:
    """The type that stands at ``loc``, and the description nearest to it."""
    annotation: Any = model
    description: str | None = None
    for part in loc:
        if get_origin(annotation) in (Union, UnionType):  # only ``X | None`` is used
            annotation = get_args(annotation)[0]
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
            field = fields[str(part)]
            annotation, description = field.annotation, field.description
        elif get_args(annotation):  # dict[str, X] or tuple[X, ...]: go on with the element
            annotation = get_args(annotation)[1 if get_origin(annotation) is dict else 0]
    return annotation, description
