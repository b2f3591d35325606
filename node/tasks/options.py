"""Options of a task that is another one with something beside."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from node.settings import Settings, problems
from node.tasks.base import OptionsError

T = TypeVar("T", bound=Settings)


def apart(model: type[T], table: Mapping[str, Any]) -> tuple[T, dict[str, Any]]:
    """What ``model`` describes of ``[task.options]``, and the rest, for the task that it stands beside.

    Raises:
        OptionsError: of ``model``'s own keys one is wrong.
    """
    rest = dict(table)
    mine = {key: rest.pop(key) for key in model.model_fields if key in rest}
    try:
        return model.model_validate(mine), rest
    except ValidationError as error:
        raise OptionsError(problems(model, error)) from None
