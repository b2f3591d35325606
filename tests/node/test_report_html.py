"""The page of a local run: what it says, and that it needs nothing else."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from node import report as reports
from node.report_html import render
from tests.node.reported import KEY_HOLDER, built, comparison, federation, run


class Page(HTMLParser):
    """The elements of a page, refusing what is not closed in order."""

    VOID = ("meta", "br", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page() -> str:
    return render(built(federation(), compared=True))


def test_the_page_is_written_beside_the_same_report(tmp_path: Path) -> None:
    report = built(federation(), compared=True)
    reports.write(tmp_path, report)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text) == report
    assert list(json.loads(text)) == sorted(report)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == render(report)


def test_the_same_report_gives_the_same_bytes(page: str) -> None:
    assert render(json.loads(json.dumps(built(federation(), compared=True)))) == page


def test_the_page_asks_nobody_for_anything(page: str) -> None:
    parsed = Page(page)
    assert not {"script", "link", "img", "iframe", "object", "a"} & {tag for tag, _ in parsed.elements}
    for _, attributes in parsed.elements:
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "#").startswith("#")
    assert not re.search(r"url\((?!#)|@import|https?:", page)
    assert "default-src 'none'" in page


def test_the_page_says_what_it_must(page: str) -> None:
    text = " ".join(Page(page).text)
    for part in (
        "never allowed in life",
        "A debug mode was on.",
        "2^61-1",
        "8 aggregates, one per segment and round, each over 3 parties; no other ciphertext.",
        "README",
        "Together with the parent of a leaf it can open that leaf's update",
        "OK: 3 of 3 rounds",
        "0.911",
        "One split only.",
    ):
        assert part in text, part


def test_pictures_and_tables_are_told_to_those_who_do_not_see_them(page: str) -> None:
    parsed = Page(page)
    pictures = parsed.all("svg")
    assert [(picture["role"], len(picture["aria-label"] or "") > 40) for picture in pictures] == [("img", True)] * 3
    assert "party-04) 0.870" in (pictures[0]["aria-label"] or "")
    assert len(parsed.all("caption")) == len(parsed.all("table")) == 5
    assert all(header.get("scope") in ("row", "col") for header in parsed.all("th"))
    ids = Counter(attributes["id"] for _, attributes in parsed.elements if "id" in attributes)
    assert set(ids.values()) <= {1}
    assert {"#" + name for name in ids if name} >= {use["xlink:href"] for use in parsed.all("use")}
    assert parsed.all("html") == [{"lang": "en"}]
    assert any(meta.get("name") == "viewport" for meta in parsed.all("meta"))


def test_pictures_follow_light_and_dark(page: str) -> None:
    assert "prefers-color-scheme: dark" in page
    drawn = page[page.index("<svg") :]
    assert not re.search(r"#[0-9a-f]{6}\b", drawn), "a colour of matplotlib's own"
    for name in set(re.findall(r"var\((--\w+)\)", page)):
        assert page.count(f"{name}: #") == 2, "one for light, one for dark"


def test_whatever_came_is_shown_as_text() -> None:
    nasty = "<script>alert('x')</script> & $\\\\frac$"
    of = federation(name=nasty)
    outcome = run(of)
    outcome.record.warnings.append(f"warned {nasty}")
    outcome.record.errors["party-02"] = f"failed {nasty}"
    outcome.record.dropped.append({"node": "party-01", "who": nasty, "expected": nasty, "came": nasty, "times": 1})
    compared = {**comparison(of), "notes": [nasty]}
    compared["hospitals"] = {f"{name} {nasty}": models for name, models in compared["hospitals"].items()}
    compared["curves"]["best_local_hospital"] = nasty
    page = render(reports.build(of, outcome, compared))
    assert "<script" not in page
    assert page.count(escape("<script>")) >= 10
    assert not Page(page).all("script")


@pytest.mark.parametrize("parties", [3, 16, 17, 64])
def test_trees_of_every_size_have_a_page(parties: int) -> None:
    of = federation(parties=parties)
    parsed = Page(render(built(of)))
    tree, stages = parsed.all("svg")
    assert f"The tree of {parties} parties: key holder {KEY_HOLDER} outside it" in (tree["aria-label"] or "")
    assert ("mean of 32" in (stages["aria-label"] or "")) == (parties == 64)
    assert ("Ciphertexts go from party-02 to" in (tree["aria-label"] or "")) == (parties <= reports.LISTED_NODES)
