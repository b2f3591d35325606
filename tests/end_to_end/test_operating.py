"""The live page, the metrics and `wardtree status` of a running study of seven, of whom one is killed."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families

from node.operate.status import Report
from node.tasks.base import Evaluation, EvaluationSpec, Measure, TrainingRound
from node.tasks.synthetic import SyntheticTask
from tests.end_to_end.commands import wait_until, wardtree
from tests.end_to_end.watched import Watched, watched
from tests.node.operate.browser import CHROMIUM, browser

pytestmark = pytest.mark.confined

DOCS = Path(__file__).parents[2] / "docs"
PICTURE = os.environ.get("WARDTREE_PICTURE")
"""A folder for the picture of the live page (`scripts/live_page`); none: it is made and thrown away."""

DEAD_SECONDS = 5.0
PLANTED = -0.0314159
"""Every value of every update of every party, and no value of anything else: no time is below zero."""
CLOCKS = ("seconds", "seconds_since_word", ".last", "_at", "age")
"""How the names of what is measured in seconds end."""

STUDY = """\
[study]
name = "heart failure, 7 hospitals"
rounds = 400
seed = 1
[task]
class = "tests.end_to_end.test_operating:PlantedTask"
[task.options]
params = 60000
seconds = 0.3
[aggregation]
segment_ciphertexts = 1
[evaluation]
every = 1
allow_near_sets = true
[deadlines]
round_seconds = 25.0
join_seconds = 60.0
"""


class PlantedTask(SyntheticTask):
    """Trains as the synthetic task does, and gives what a search would find."""

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        return np.full_like(super().train(model, round), PLANTED)

    def evaluation_spec(self) -> EvaluationSpec:
        return EvaluationSpec(measures=(Measure("loss", 0.0, 1.0),))

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        return Evaluation(1, measures={"loss": 1 / (2 + round.number)})


class Page:
    """What a node serves."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.port = int(address.rstrip("/").rpartition(":")[2])
        self.answers: list[bytes] = []

    def get(self, path: str, method: str = "GET") -> bytes:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        connection.request(method, path)
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        assert answer.status == 200, body
        self.answers.append(body)
        return body

    def report(self) -> Report:
        return Report.model_validate_json(self.get("/status.json"))

    def until(self, condition: Callable[[Report], object], seconds: float = 60.0) -> Report:
        deadline = time.monotonic() + seconds
        while not condition(report := self.report()):
            assert time.monotonic() < deadline, f"it never was: {report}"
            time.sleep(0.05)
        return report


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Watched, dict[str, Page]]]:
    with watched(tmp_path_factory.mktemp("pages"), parties=7, study=STUDY, pages=True) as nodes:
        nodes.start()
        nodes.until_told(nodes.key_holder, "applied", round=2)
        told = {event["party"]: event["address"] for event in nodes.seen if event["kind"] == "page"}
        yield nodes, {name: Page(address) for name, address in told.items()}


def standing(report: Report, name: str) -> str:
    return next(party.standing for party in report.parties if party.name == name)


def test_the_page_in_a_browser_shows_a_killed_node_as_dead_within_five_seconds(
    study: tuple[Watched, dict[str, Page]], tmp_path: Path
) -> None:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    nodes, pages = study
    pictures = Path(PICTURE) if PICTURE else tmp_path
    everyone = len(nodes.names)
    with browser(tmp_path / "profile") as page:
        page.open(pages[nodes.key_holder].address)
        page.wait_for(f"document.querySelectorAll('.party.here').length == {everyone}")
        assert page.ask("document.getElementById('state').textContent") == "running"
        links = page.ask("[...document.querySelectorAll('.link')].map(l => [l.dataset.from, l.dataset.to])")
        assert dict(links) == dict(nodes.tree.parent)
        before = page.ask("document.getElementById('facts').innerText")
        nodes.kill(nodes.inner)
        took = page.wait_for(f"document.querySelector('.party[data-name={nodes.inner}].gone')", DEAD_SECONDS)
        print(f"shown as dead after {took:.1f} s")
        # Its children are drawn where they really sit now, and rounds go on without it.
        for child in nodes.tree.children[nodes.inner]:
            page.wait_for(f"document.querySelector('.link[data-from={child}]').dataset.to == '{nodes.apex}'")
        page.wait_for(f"document.getElementById('facts').innerText.includes('{everyone - 1} of {everyone}')")
        page.wait_for("document.querySelectorAll('#flow progress').length == 5")
        assert page.ask("document.getElementById('facts').innerText") != before
        assert page.ask("document.querySelectorAll('#stages tr, #rounds tr, #ledger tr').length") > 10
        page.wait_for("document.querySelector('#flow progress[value]')?.value > 0")
        page.picture(pictures / "live-page.png", 1180, 900)
        page.picture(tmp_path / "dark.png", 1180, 900, dark=True)
        page.picture(tmp_path / "narrow.png", 420, 1800)
        assert page.ask("document.documentElement.scrollWidth <= innerWidth"), "nothing is cut off on a telephone"
        assert page.ask("document.querySelectorAll('#scores svg').length") >= 1, "the learning curve"
        assert page.complaints() == []
        asked = {address.removeprefix(pages[nodes.key_holder].address) for address in page.requested()}
        assert asked == {"", "status.json"}, "it asks for nothing outside"


def test_other_nodes_show_it_as_well_and_where_their_parents_are(study: tuple[Watched, dict[str, Page]]) -> None:
    nodes, pages = study
    if nodes.inner in nodes.launcher.running:
        nodes.kill(nodes.inner)
    for name in sorted(nodes.everyone - {nodes.inner}):
        report = pages[name].until(lambda r: standing(r, nodes.inner) == "gone" and r.closed and r.running == "yes")
        assert [party.name for party in report.parties if party.standing == "here"] == sorted(
            nodes.everyone - {nodes.inner}
        )
    for child in nodes.tree.children[nodes.inner]:
        assert pages[child].until(lambda r: r.parent == nodes.apex).role == "leaf"
    apex = pages[nodes.apex].report()
    assert (apex.role, apex.parent) == ("apex", nodes.key_holder)
    assert set(nodes.tree.children[nodes.inner]) <= set(apex.children)


def test_metrics_are_what_prometheus_reads(study: tuple[Watched, dict[str, Page]]) -> None:
    nodes, pages = study
    page = pages[nodes.key_holder]
    closed = page.report().closed[-1].round
    families = {family.name: family for family in text_string_to_metric_families(page.get("/metrics").decode())}
    assert all(name.startswith("wardtree_") and family.documentation for name, family in families.items())
    values = {sample.name: sample.value for family in families.values() for sample in family.samples}
    assert values["wardtree_up"] == 1
    assert values["wardtree_closed_round"] >= closed >= 2
    steps = {sample.labels["stage"] for sample in families["wardtree_stage_seconds"].samples}
    assert steps == {"train", "open", "apply"}


def test_the_status_command_says_the_same_and_that_a_dead_node_does_not_run(
    study: tuple[Watched, dict[str, Page]],
) -> None:
    nodes, pages = study
    home = nodes.federation.home(nodes.key_holder)
    ended = wardtree("status", "--home", home, "--json")
    assert ended.returncode == 0, ended.stderr
    printed = json.loads(ended.stdout)
    schema = json.loads((DOCS / "status.schema.json").read_text(encoding="utf-8"))
    jsonschema.validate(printed, schema, cls=jsonschema.Draft202012Validator)
    assert printed["running"] == "yes"
    assert printed["epsilon"] is None
    served = json.loads(pages[nodes.key_holder].get("/status.json"))
    assert served.keys() == printed.keys()
    assert wardtree("status", "--home", home).stdout.startswith(f"{nodes.key_holder} (key holder)")
    if nodes.inner in nodes.launcher.running:
        nodes.kill(nodes.inner)
    dead = wardtree("status", "--home", nodes.federation.home(nodes.inner), "--json")
    assert dead.returncode == 1
    assert json.loads(dead.stdout)["running"] == "no"


def test_nothing_is_shown_that_is_not_published_anyway(study: tuple[Watched, dict[str, Page]]) -> None:
    """Design: everyone knows the manifest, the tree and the roster, and what is published. Each answer is compared
    with what an update, a ciphertext and the keys of this very study look like."""
    nodes, pages = study
    for name in sorted(nodes.launcher.running):
        page = pages[name]
        for path in ("/", "/status.json", "/metrics"):
            page.get(path)
            page.get(path, "HEAD")
        report = json.loads(page.get("/status.json"))
        shown = [(path, value) for path, value in leaves(report) if isinstance(value, float)]
        assert not [path for path, value in shown if abs(value - PLANTED) < 1e-4]
        assert not [path for path, value in shown if abs(value + PLANTED) < 1e-4 and not path.endswith(CLOCKS)]
        assert shape(report) <= SHOWN, shape(report) - SHOWN
        everything = b"".join(page.answers)
        home = nodes.federation.home(name)
        secrets = [nodes.federation.home(other).joinpath("identity.sealed").read_bytes() for other in nodes.names]
        text = everything.decode()
        assert all(secret[-48:] not in everything and secret[-24:].hex() not in text for secret in secrets)
        assert str(home) not in text, "not even where the home lies"
        grid = round(PLANTED * 8191)
        as_bytes = [np.full(4, PLANTED, kind).tobytes() for kind in ("<f4", "<f8")]
        as_bytes += [np.full(4, grid, kind).tobytes() for kind in ("<i4", "<i8")]
        for planted in as_bytes:
            assert planted not in everything
            assert planted.hex() not in text
        assert str(-PLANTED)[:8] not in text  # fewer digits are found in times of day


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from leaves(each, f"{path}.{key}")
    elif isinstance(value, list):
        for each in value:
            yield from leaves(each, f"{path}[]")
    else:
        yield path.removeprefix("."), value


def shape(report: dict[str, Any]) -> set[str]:
    return {path for path, _ in leaves(report)}


SHOWN = {
    # the manifest: known to everyone
    "format", "party", "role", "study", "rounds", "federation", "manifest_version", "manifest_digest",
    "parties[].name", "parties[].place", "epsilon", "budget",
    # published each round: openings, closes, the state's digest
    "round.round", "round.purpose", "round.members[]", "round.segments", "closed[].round",
    "closed[].contributors", "contributors[]",
    "closed[].left_out", "left_out[]", "left_out_count", "model", "parties[].contributed",
    "ledger[].what", "ledger[].round", "ledger[].contributors",
    # who is there: told to everyone by openings, to the key holder by joins and goodbyes, to neighbours by their links
    "parties[].parent", "parties[].standing", "parties[].since", "parent", "children[]",
    # this node's own doings: its state, counts and clocks
    "state", "running", "posture", "started_at", "written_at", "heard_at", "age", "seconds_since_word",
    "round.opened_at", "round.sealed", "round.merged", "round.sent", "round.opened", "round.applied",
    "closed[].closed_at", "closed[].seconds", "refused", "warnings[]", "error", "ledger[].time",
    *(f"stages.{stage}.{what}" for stage in ("train", "protect", "merge", "open", "apply")
      for what in ("count", "seconds", "last")),
    "evaluations[].round", "evaluations[].metrics.examples", "evaluations[].metrics.loss",
    "round",  # null between rounds
}  # fmt: skip
"""Every key that an answer may have, by why all may know it, or it is this node's own to show. A new key must be
argued for here."""


def test_a_complete_study_says_so(tmp_path: Path) -> None:
    with watched(tmp_path, parties=3, rounds=1, seconds=0.0, pages=True) as nodes:
        nodes.start()
        nodes.finish()
        for name in nodes.names:
            home = nodes.federation.home(name)
            ended = wardtree("status", "--home", home, "--json")
            assert ended.returncode == 0
            report = Report.model_validate_json(ended.stdout)
            assert (report.state, report.running, report.error) == ("ended", "no", None)
            assert report.closed[-1].round == 1
            assert {party.standing for party in report.parties} == {"here"}, "leaving at the end is not being gone"
        assert "complete" in wardtree("watch", "--home", home).stdout
        wait_until(lambda: not nodes.launcher.running)
