"""The study medhe: its arms, two ways of computing a study's rounds, equivalence by two one-sided tests, its page."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from keys.errors import WardtreeError
from node.reproduce import medhe, medhe_page
from node.reproduce import medhe_wire as wire
from node.reproduce.equivalence import from_summary, paired
from node.reproduce.output import Results
from node.reproduce.simulated import load_tasks, train
from node.simulation import STUDIES, LocalError, template_text, templates
from node.study import parse_study
from node.tasks.base import Evaluation, StatisticsSpec, Task, TrainingRound
from tests.end_to_end.commands import wardtree

STUDY = """\
[study]
name = "it"
rounds = {rounds}
seed = 1
[task]
class = "synthetic"
[task.options]
params = 40
"""


class Walk(Task):
    """An update is +1 or -1 in every place: which, depends on the place and the party only."""

    examples, parameters = 1, 40

    def __init__(self, party: int) -> None:
        self.update = np.where(np.arange(40) % (party + 2) == 0, 0.5, -0.25).astype(np.float32)

    def initial(self) -> NDArray[np.float32]:
        return np.ones(40, np.float32)

    def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
        return self.update

    def evaluate(self, model: NDArray[np.float32], round: TrainingRound) -> Evaluation:
        return Evaluation(1)


def trained(text: str, tasks: list[Walk]) -> Iterator[tuple[NDArray[np.float32], int]]:
    for model, sent in train(parse_study(text, "it"), tasks):
        yield model.parameters.copy(), sent


def test_a_simulated_round_moves_the_model_by_the_mean() -> None:
    tasks = [Walk(party) for party in range(3)]
    mean = np.mean([task.update for task in tasks], axis=0)
    for number, (model, sent) in enumerate(trained(STUDY.format(rounds=3), tasks), start=1):
        assert sent == 40
        assert model == pytest.approx(1 + number * mean, abs=1e-3)


@pytest.mark.parametrize("feedback", [True, False])
def test_in_a_simulated_round_what_was_left_out_waits_unless_it_is_lost(feedback: bool) -> None:
    tasks = [Walk(party) for party in range(3)]
    mean = np.mean([task.update for task in tasks], axis=0)
    table = {"mask": "cyclic", "density": 0.25, "feedback": feedback}
    text = STUDY.format(rounds=8) + "[aggregation]\nclip = 8.0\n" + wire.table_of(table)
    models = [model for model, sent in trained(text, tasks) if sent == 10]
    assert len(models) == 8
    # After two turns a place was sent twice, the last time between round 5 and round 8, with all up to then.
    times = np.repeat([5, 6, 7, 8], 10) if feedback else np.full(40, 2)
    assert models[-1] == pytest.approx(1 + times * mean, abs=0.02)


def test_a_simulated_round_counts_the_energies_that_choose_its_mask() -> None:
    table = {"mask": "energy", "density": 0.25, "block": 8}
    text = STUDY.format(rounds=2) + wire.table_of(table)
    assert [sent for _, sent in trained(text, [Walk(0), Walk(1), Walk(1)])] == [15, 15]


def test_simulated_statistics_come_before_the_first_round_and_are_not_counted() -> None:
    class Counting(Walk):
        seen: NDArray[np.float64] | None = None

        def statistics_spec(self) -> StatisticsSpec | None:
            return StatisticsSpec(2, 10.0)

        def statistics(self) -> NDArray[np.float64]:
            return np.array([1.0, 2.0])

        def train(self, model: NDArray[np.float32], round: TrainingRound) -> NDArray[np.float32]:
            self.seen = round.statistics
            return self.update

    tasks = [Counting(party) for party in range(3)]
    assert [sent for _, sent in trained(STUDY.format(rounds=1), tasks)] == [40]
    assert tasks[0].seen == pytest.approx([3.0, 6.0], abs=0.01)


def test_simulated_privacy_adds_its_noise() -> None:
    private = '[privacy]\nmode = "hospital"\nepsilon = 1.0\ndelta = 1e-5\nclip = 1.0\n'
    quiet = next(trained(STUDY.format(rounds=1), [Walk(0), Walk(0), Walk(0)]))[0]
    noisy = next(trained(STUDY.format(rounds=1) + private, [Walk(0), Walk(0), Walk(0)]))[0]
    assert np.std(noisy - quiet) > 1


def test_batches_of_a_seed_are_those_of_its_pair() -> None:
    """Dense twice: the same patients, split and batches, so that only the rounding differs."""
    text = medhe.study_text(medhe.ACCURACY, medhe.HEART, medhe.THREE, medhe.DENSE, 4)
    data = medhe.parties_data(medhe.HEART, 4, Path(), None)
    study = parse_study(text, "it")
    ends = [[model.parameters.copy() for model, _ in train(study, load_tasks(study, data))][-1] for _ in range(2)]
    assert np.abs(ends[0] - ends[1]).max() < 0.01 < np.abs(ends[0]).max() / 10


# ---- the studies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", medhe.SETS)
def test_arms_differ_from_the_study_in_what_they_are_named_for(name: str) -> None:
    for schedule in medhe.SCHEDULES:
        dense, sparse = (
            parse_study(medhe.study_text(medhe.ACCURACY, name, schedule, arm, 7), arm)
            for arm in (medhe.DENSE, medhe.SPARSE)
        )
        assert (dense.seed, sparse.seed) == (7, 7)
        assert dense.rounds == (3 if schedule == medhe.THREE else sparse.rounds)
        assert dense.model_copy(update={"compression": sparse.compression}) == sparse
        assert (dense.compression.mask, sparse.compression.density) == ("none", 0.025)
    for arm in medhe._possible(name):
        study = parse_study(medhe.study_text(medhe.ABLATION, name, medhe.LONG, arm, 7), arm)
        changes = dict(medhe.ABLATIONS[arm])
        assert study.aggregation.value_bits == changes.pop("value_bits", 14)
        assert study.compression.model_dump().items() >= changes.items()
    private = parse_study(medhe.study_text(medhe.PRIVACY, name, medhe.THREE, medhe.SPARSE, 7), "it")
    assert (private.privacy.mode, private.privacy.epsilon) == ("hospital", 1.0)


def test_kinds_of_the_wire_are_studies() -> None:
    for kind in wire.KINDS.values():
        federation = wire.federation(1000, kind, Path("out"))
        assert federation.study.compression.is_sparse == bool(kind.compression)
        assert (federation.study.rounds, len(federation.names)) == (kind.rounds, 5)


def test_bytes_of_a_real_round_dense_and_sparse() -> None:
    dense, sparse = (wire.cell(60_000, kind) for kind in (wire.DENSE, "cyclic"))
    assert dense["exact"]
    assert sparse["exact"]
    assert 8.0 < dense["apex"] / 60_000 < 9.5
    assert dense["down"] == pytest.approx(4 * 4 * 60_000, rel=0.05)
    assert sparse["up"] < dense["up"] / 5  # a whole ciphertext, however few values are in it
    assert sparse["down"] < dense["down"] / 10


def test_a_common_ciphertext_is_as_large_as_it_is_known_to_be() -> None:
    row = wire._common(3 * 4096 + 1, 2)
    assert (row["ciphertexts"], row["made"]) == (4, 2)
    assert row["apex"] == pytest.approx(4 * 331e3, rel=0.01)


# ---- equivalence ----------------------------------------------------------------------------------------


def test_two_one_sided_tests_by_hand() -> None:
    """Differences 0.1, 0.3, 0.5: mean 0.3, standard error 0.2 / sqrt(3); Student's t with 2 degrees of freedom has the
    closed form F(t) = 1/2 + t / (2 sqrt(2 + t^2))."""
    found = paired([1.1, 2.3, 3.5], [1.0, 2.0, 3.0], 1.0)
    assert found.difference == pytest.approx(0.3)
    error = 0.2 / 3**0.5

    def above(t: float) -> float:
        return float(0.5 - t / (2 * (2 + t * t) ** 0.5))

    assert found.p_same == pytest.approx(2 * above(0.3 / error))
    assert found.p_apart == pytest.approx(above(0.7 / error))
    assert found.is_equivalent
    t90 = 2.91998558
    assert (found.low, found.high) == pytest.approx((0.3 - t90 * error, 0.3 + t90 * error))


def test_the_interval_is_inside_the_margin_just_where_the_test_rejects() -> None:
    draw = np.random.default_rng(3)
    seen = set()
    for _ in range(200):
        found = paired(draw.normal(draw.uniform(-1.5, 1.5), 1, 10).tolist(), [0.0] * 10, 1.0)
        assert found.is_equivalent == (found.low > -1 and found.high < 1)
        seen.add(found.is_equivalent)
    assert seen == {True, False}


def test_figures_that_are_all_alike() -> None:
    same, worse = paired([1.0, 2.0], [1.0, 2.0], 1.0), paired([1.0, 2.0], [4.0, 5.0], 1.0)
    assert (same.p_same, same.p_apart, same.is_equivalent) == (1.0, 0.0, True)
    assert (worse.p_same, worse.p_apart, worse.is_equivalent) == (0.0, 1.0, False)


def test_published_means_of_few_runs_show_neither() -> None:
    same, apart = from_summary((89.5, 0.8), (89.9, 0.7), 8, 1.0)
    assert same == pytest.approx(0.32, abs=0.03)
    assert apart > 0.05
    assert from_summary((89.5, 0.8), (89.9, 0.7), 100, 1.0)[1] < 1e-6


# ---- rows and page --------------------------------------------------------------------------------------


def test_seeds_are_added_to_what_was_measured(tmp_path: Path) -> None:
    key = {"part": medhe.ACCURACY, "set": medhe.HEART, "schedule": medhe.THREE, "arm": medhe.SPARSE}
    first = medhe.more_seeds(key, None, [1], None)
    both = medhe.more_seeds(key, first, [2], None)
    assert (first["seeds"], both["seeds"]) == ([1], [1, 2])
    assert both["accuracy"][0] == first["accuracy"][0]
    assert [len(both[name]) for name in ("accuracy", "auc", "curves")] == [2, 2, 2]
    assert (both["sent"], both["parameters"], both["at"]) == (1.0, 26, [1, 2, 3])


def made_up(tmp_path: Path, seeds: int = 20, lost: float = 0.1) -> Results:
    results = Results(tmp_path, "medhe", ("part", "set", "schedule", "arm"))
    draw = np.random.default_rng(1)
    accuracies = draw.normal(80, 1, seeds)
    for arm, shift in ((medhe.DENSE, 0.0), (medhe.SPARSE, -lost)):
        rows = {"seeds": list(range(1, seeds + 1)), "accuracy": (accuracies + shift).tolist(), "auc": [None] * seeds}
        rows |= {"curves": [[1.0, 2.0]] * seeds, "sent": 1.0, "parameters": 26, "rounds": 9}
        results.rows.append({"part": medhe.ACCURACY, "set": medhe.HEART, "schedule": medhe.LONG, "arm": arm} | rows)
    for kind, size in ((wire.DENSE, 1000.0), ("cyclic", 20.0), ("random blocks of 64", 30.0)):
        row = {"up": size, "down": size, "apex": size / 4, "seconds": [1.0], "peak_memory": 1, "exact": True}
        key = {"part": medhe.WIRE, "set": "x", "schedule": "", "arm": kind, "params": wire.PARAMS}
        results.rows.append(key | row)
    return results


def test_the_page_judges_what_it_shows(tmp_path: Path) -> None:
    page = medhe_page.write_page(made_up(tmp_path))
    assert "| 98.00 | yes |" in page
    assert "| 97.00 | **no** |" in page
    assert "(cyclic) | 98.00 % | at least 97.5 % | kept |" in page
    assert "of dense (TOST), 20 seeds | p = 0 | below 0.05 | kept |" in page
    assert "= 1,277 MiB" in page
    assert "not judged by 5 seeds of 20" in medhe_page.write_page(made_up(tmp_path, seeds=5))
    worse = medhe_page.write_page(made_up(tmp_path, lost=1.5))
    assert "**worse by more than 1**" in worse
    assert "below 0.05 | **not kept** |" in worse


def test_the_page_can_be_made_of_nothing(tmp_path: Path) -> None:
    medhe_page.publish(replace(made_up(tmp_path), rows=[]))
    assert {file.suffix for file in tmp_path.iterdir()} == {".md", ".csv", ".svg"}


def tried(tmp_path: Path, last_tenth: float, twice: float) -> str:
    """A page of which 400 rounds are judged: by what their last tenth and by what 800 rounds bring the sparse way."""
    results = made_up(tmp_path)
    for trial, gained in zip(("400 rounds, rate 0.002", "800 rounds, rate 0.002"), (0.0, twice), strict=True):
        for arm in (medhe.DENSE, medhe.SPARSE):
            end = 80.0 + (gained if arm == medhe.SPARSE else 0.0)
            row = {"seeds": [1, 2], "accuracy": [end] * 2, "curves": [[70.0, end - last_tenth, end]] * 2}
            results.rows.append({"part": medhe.TRIAL, "set": medhe.HEAD, "schedule": trial, "arm": arm} | row)
    return medhe_page.write_page(results)


def test_a_schedule_is_long_enough_where_its_end_and_twice_its_rounds_bring_little(tmp_path: Path) -> None:
    page = tried(tmp_path, 0.1, 0.4)
    assert "| 80.00 ± 0.00 | 80.00 ± 0.00 | +0.00 | +0.10, +0.10 | +0.00, +0.40 |" in page
    assert "By this, long enough: 400 rounds, rate 0.002." in page
    for rising in (tried(tmp_path, 0.3, 0.4), tried(tmp_path, 0.1, 0.6)):
        assert "**None was long enough by this.**" in rising


def test_schedules_are_tried_on_images_of_which_no_accuracy_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(medhe, "IMAGES", 40)
    monkeypatch.setattr(medhe, "CACHE", tmp_path / "kept")
    names = np.arange(100)  # of an image, in its first pixel
    images = np.zeros((100, 28, 28, 3), np.uint8)
    images[:, 0, 0, 0] = names
    np.savez(tmp_path / "all.npz", images=images, labels=names % 8)
    used = [set(np.load(medhe._some(tmp_path / "all.npz", others))["images"][:, 0, 0, 0]) for others in (False, True)]
    assert [len(each) for each in used] == [40, 40]
    assert not used[0] & used[1]
    monkeypatch.setattr(medhe, "IMAGES", 60)
    with pytest.raises(WardtreeError, match="expected at least 120 images, came 100"):
        medhe._some(tmp_path / "all.npz", False)


# ---- templates ------------------------------------------------------------------------------------------


def test_every_packaged_study_is_a_template_and_sound() -> None:
    assert set(templates()) >= {"heart", "medhe", "dpresnet", "adpfl"}
    for name in templates():
        text, _ = template_text(name)
        assert parse_study(text, name).name == name
    assert template_text("medhe")[1] == (STUDIES / "medhe.data.toml").read_text()
    with pytest.raises(LocalError, match="--template: expected one of adpfl, .* came '../x'"):
        template_text("../x")
    assert issubclass(LocalError, WardtreeError)


def test_study_new_writes_a_template_and_its_parties(tmp_path: Path) -> None:
    done = wardtree("study", "new", "--template", "medhe", "--out", tmp_path / "mine.toml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.toml").read_text() == (STUDIES / "medhe.toml").read_text()
    assert "key_holder" in (tmp_path / "mine.data.toml").read_text()
    checked = wardtree("study", "check", tmp_path / "mine.toml", "--json")
    assert json.loads(checked.stdout)["compression"]["mask"] == "cyclic"
    wrong = wardtree("study", "new", "--template", "nope", "--out", tmp_path / "other.toml")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("wardtree: --template: expected one of adpfl, dpresnet, heart, medhe, ")
    assert len(wrong.stderr.splitlines()) == 1
    assert not (tmp_path / "other.toml").exists()
