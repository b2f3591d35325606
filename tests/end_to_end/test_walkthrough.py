"""docs/ceremony.md, typed by its people at their terminals: it works, and what it shows is what is shown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from node.published import load_model
from tests.end_to_end.walkthrough import PAGE, Page, comparable, walk


def test_a_page_comes_back_as_it_was() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert Page.parse(text).render() == text


@pytest.mark.confined
@pytest.mark.timeout(900)  # some seventy commands, a minute on an idle machine
def test_five_parties_from_nothing_to_a_federation_by_the_page_alone(tmp_path: Path) -> None:
    page = Page.parse(PAGE.read_text(encoding="utf-8"))
    done = walk(page, tmp_path)
    homes = [tmp_path / name / "home" for name in ("uppsala", "lund", "umea", "linkoping", "orebro")]
    models = [load_model(home / "model.npz") for home in homes]
    assert {model.round for model in models} == {2}
    assert all(np.array_equal(model.parameters, models[0].parameters) for model in models)
    assert [(home / "base.npz").exists() for home in homes] == [True] * 4 + [False], "orebro left"
    assert not list((tmp_path / "uppsala" / "home").glob("secret-key-*"))
    for expected, really in zip(page.turns(), done.turns(), strict=True):
        for before, after in zip(expected, really, strict=True):
            assert comparable(before) == comparable(after), (
                f"scripts/ceremony_walkthrough renews the page: {before.lines}"
            )
