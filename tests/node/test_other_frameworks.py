"""What docs/other-frameworks.md shows is what the tasks take, and its example is the one that runs."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from node.tasks.flare import FlareOptions, FlareTask
from node.tasks.flower import FlowerOptions, FlowerTask

DOCS = Path(__file__).parents[2] / "docs"


def test_the_options_of_the_page_are_all_there_are() -> None:
    blocks = re.findall(r"```toml\n(.*?)```", (DOCS / "other-frameworks.md").read_text(), re.S)
    flower, data, flare = (tomllib.loads(block) for block in blocks)
    for table, task in ((flower["task"], FlowerTask), (flare["task"], FlareTask)):
        task.check_options(table["options"])
    assert set(flower["task"]["options"]) == set(FlowerOptions.model_fields)
    assert set(flare["task"]["options"]) == set(FlareOptions.model_fields) - {"stays_local"}
    assert data["data"]["examples"] > 0
    example = tomllib.loads((DOCS / "examples" / "flare.toml").read_text())["task"]["options"]
    assert example.items() <= flare["task"]["options"].items()
