"""How rounds follow from each other under privacy and compression: the same at every party, from what is published."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keys.plan import Plan
from node.carry import join, split
from node.compression.density import MovingThreshold
from node.compression.feedback import Feedback
from node.compression.masks import Mask
from node.compression.rounds import Published
from node.compression.settings import CompressionSettings
from node.course import Course, Regime, Terms
from node.privacy.account import HospitalAccount, releases_of
from node.privacy.settings import PrivacySettings
from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.protocol.schedule import Schedule
from node.published import load_model, save_model, state_from, state_part, state_size
from node.tasks.base import Evaluation, Task, TrainingRound
from node.update import Model, Recipe, Waiting, apply, contribution

SIZE, PARTIES, ROUNDS = 1000, 4, 6
NAMES = ("ada", "bo", "cy", "di")
PLAN = Plan()
PRIVATE = {"mode": "hospital", "epsilon": 8.0, "delta": 1e-5, "clip": 2.0}
ADAPTIVE = {"count_noise": 8.0, "lowest": 0.1, "highest": 100.0}


def regime(mask: dict[str, Any] | None = None, privacy: dict[str, Any] | None = None, rounds: int = ROUNDS) -> Regime:
    compression = CompressionSettings.model_validate(mask or {})
    schedule = Schedule(rounds, 0, compression.mask == "energy")
    return Regime(PrivacySettings.model_validate(privacy or {}), compression, PLAN, schedule, 2, b"m" * 32)


class Leaning(Task):
    """An update that moves everything by a little, and its first tenth by more: masks have something to find."""

    examples, parameters = 1, SIZE

    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def initial(self) -> Any:
        return np.zeros(SIZE, np.float32)

    def train(self, model: Any, round: TrainingRound) -> Any:
        target = np.where(np.arange(SIZE) < SIZE // 10, 1.0, 0.1)
        return (0.5 * (target - model) + self._random.normal(0, 0.01, SIZE)).astype(np.float32)

    def evaluate(self, model: Any, round: TrainingRound) -> Evaluation:
        return Evaluation(0)


def study(asked: Regime, rounds: int = ROUNDS) -> list[Model]:
    """Every party computes for itself; gives the models, which all of them have after each round."""
    recipe = Recipe(PLAN, 1.0, dict.fromkeys(NAMES, 1), regime=asked)
    models = [Model(-1, np.zeros(SIZE, np.float32), course=asked.begin()) for _ in NAMES]
    tasks = [Leaning(seed) for seed in range(PARTIES)]
    sparse = asked.compression.is_sparse
    feedback = [Feedback.start(SIZE) if sparse else None for _ in NAMES]
    applied, history = [0] * PARTIES, []
    for number in range(1, asked.schedule.last + 1):
        purpose, total = asked.schedule.purpose(number), np.zeros(0, np.int64)
        for party, model in enumerate(models):
            base = model.digest(b"m" * 32)
            terms = asked.terms(purpose, model, SIZE, base)
            told = asked.told(purpose, SIZE, SIZE, {**terms.job()})
            waiting = Waiting(feedback[party], applied[party])
            training = TrainingRound(number, rounds, None, 0)
            integers = contribution(tasks[party], purpose, model, training, recipe, 1.0, told, waiting)
            assert integers.shape == (terms.length,)
            total = integers if not total.size else total + integers
            if purpose == TRAIN:
                feedback[party], applied[party] = waiting.feedback, terms.length
        staged = [part.astype("<i4").tobytes() for part in np.array_split(total, [700]) if part.size]
        models = [
            apply(replace(model, parameters=model.parameters.copy()), number, purpose, staged, NAMES, recipe,
                  asked.terms(purpose, model, SIZE, model.digest(b"m" * 32)))
            for model in models
        ]  # fmt: skip
        assert len({model.digest(b"m" * 32) for model in models}) == 1, "the same state at every party"
        history.append(models[0])
    return history


MASKS: dict[str, dict[str, Any]] = {
    "cyclic": {"mask": "cyclic", "density": 0.25},
    "random": {"mask": "random", "density": 0.25, "block": 10, "warm_up": 2},
    "top": {"mask": "top", "density": 0.25, "block": 10, "explore": 0.5},
    "moving": {"mask": "top", "density": 0.25, "block": 10, "schedule": "moving", "warm_up": 1},
    "energy": {"mask": "energy", "density": 0.25, "block": 10},
}


@pytest.mark.parametrize("name", MASKS)
def test_every_mask_moves_the_model_towards_where_everything_would_move_it(name: str) -> None:
    dense, sparse = (study(regime(mask, rounds=20))[-1] for mask in (None, MASKS[name]))  # rounding is never of a seed
    begun = np.linalg.norm(dense.parameters)
    assert np.linalg.norm(sparse.parameters - dense.parameters) < 0.7 * begun
    assert np.count_nonzero(sparse.parameters) > 0.25 * SIZE, "not the same quarter in every round"


def test_the_length_of_a_round_follows_from_the_state_alone() -> None:
    asked = regime(MASKS["moving"])
    models = study(asked)
    lengths = [asked.terms(TRAIN, model, SIZE, model.digest(b"m" * 32)).length for model in models[:-1]]
    assert len(set(lengths)) > 1
    assert all(125 <= length <= 500 for length in lengths)
    assert [each.round for each in models] == list(range(1, ROUNDS + 1))
    assert asked.terms(EVALUATE, models[0], 12, b"").length == 12
    failed = replace(models[2], round=2)  # round 3 failed: the next works on the same state
    assert asked.terms(TRAIN, failed, SIZE, b"s" * 32).mask is not None


def test_energies_come_before_each_training_and_a_lost_one_leaves_a_mask() -> None:
    asked = regime(MASKS["energy"])
    assert [asked.schedule.purpose(number) for number in range(5)] == [STATISTICS, ENERGIES, TRAIN, ENERGIES, TRAIN]
    model = Model(-1, np.zeros(SIZE, np.float32))
    assert asked.terms(ENERGIES, model, SIZE, b"").length == SIZE // 10
    without = asked.terms(TRAIN, model, SIZE, b"s" * 32)
    assert without.length == SIZE // 4
    norms = np.zeros(SIZE // 10, np.int64)
    norms[-25:] = 5
    known = asked.terms(TRAIN, replace(model, course=Course(norms=norms)), SIZE, b"s" * 32)
    assert known.mask is not None
    assert known.mask.indices.tolist() == list(range(SIZE - 250, SIZE))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("mask", [None, "moving"])
def test_what_is_spent_is_in_the_state_and_lasts_for_the_study(mask: str | None, adaptive: bool) -> None:
    asked = regime(MASKS[mask] if mask else None, PRIVATE | ({"adaptive": ADAPTIVE} if adaptive else {}))
    models = study(asked)
    spent = [asked.account(model.course).epsilon() for model in models]
    assert all(before < after for before, after in pairwise(spent))
    assert spent[-1] == pytest.approx(8.0, rel=1e-3)
    assert spent[-1] <= 8.0
    spendable = [asked.is_spent(m.course, asked.terms(TRAIN, m, SIZE, m.digest(b"m" * 32))) for m in models]
    assert spendable == [False] * (ROUNDS - 1) + [True]
    assert (models[-1].course.clip != 0.0) is adaptive
    if adaptive:
        assert models[0].course.clip != 2.0


def test_a_round_of_which_only_a_part_was_opened_is_charged_whole_and_moves_no_clip() -> None:
    asked = regime(None, PRIVATE | {"adaptive": ADAPTIVE})
    recipe = Recipe(PLAN, 1.0, dict.fromkeys(NAMES, 1), regime=asked)
    model = Model(0, np.zeros(SIZE, np.float32), course=asked.begin())
    terms = asked.terms(TRAIN, model, SIZE, b"")
    assert terms.length == SIZE + 1
    prefix = [np.full(700, 8191, "<i4").tobytes()]
    after = apply(model, 1, TRAIN, prefix, NAMES, recipe, terms)
    account = HospitalAccount(asked.account(model.course).budget)
    account.charge(*terms.releases)
    assert after.course.account == account.state()
    assert after.course.clip == 2.0
    np.testing.assert_allclose(after.parameters[:700], 2.0 / 4, rtol=1e-6)
    assert not after.parameters[700:].any()


def test_an_entry_of_the_ledger_has_all_that_an_account_is_made_of() -> None:
    asked = regime(None, PRIVATE | {"adaptive": ADAPTIVE})
    account = asked.account(Course())
    terms = asked.terms(TRAIN, Model(0, np.zeros(SIZE, np.float32), course=asked.begin()), SIZE, b"")
    epsilon = account.spend(*terms.releases)
    entry = account.entry(1, {"bo", "ada"}, terms.releases)
    assert (entry["listed"], entry["epsilon"], entry["unit"]) == (["ada", "bo"], epsilon, "hospital")
    again = asked.account(Course())
    again.charge(*releases_of(entry))
    assert again.history == account.history
    assert releases_of({"what": "opening", "round": 1}) == []


def test_a_key_made_for_shorter_updates_is_refused_by_name() -> None:
    asked = regime(None, PRIVATE)
    message = asked.lacking(TRAIN, SIZE)
    assert message == f"privacy.values: expected at least {SIZE}, as many as a train round of this task sums"
    arranged = asked.arranged(TRAIN, SIZE)
    assert arranged is not None
    wide = replace(PLAN, digits=1, digit_bits=32, max_noise=arranged.room(64), prime_bits=(60, 30))
    assert replace(asked, plan=wide).lacking(TRAIN, SIZE) is None


# ---- outside of memory ----------------------------------------------------------------------------------


@st.composite
def courses(draw: st.DrawFn) -> Course:
    chosen = draw(st.sets(st.integers(0, 40), min_size=1))
    mask = Mask(41, np.array(sorted(chosen), np.int64))
    total = np.array(draw(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=mask.size, max_size=mask.size)), np.int64)
    level = draw(st.none() | st.integers(0, 2**40))
    threshold = draw(st.sampled_from([None, MovingThreshold(0.9, level)]))
    sent = draw(st.sampled_from([None, Published(mask, total, draw(st.integers(1, 64)), threshold)]))
    norms = np.array(draw(st.lists(st.integers(-(2**40), 2**40), max_size=5)), np.int64)
    return Course(draw(st.floats(0, 1e6)), draw(st.binary(max_size=20)), norms, sent)


@given(courses())
def test_a_course_survives_the_disk_and_the_wire(course: Course) -> None:
    data = course.to_bytes()
    again = Course.from_bytes(data)
    assert again.to_bytes() == data
    assert (again.clip, again.account) == (course.clip, course.account)
    if course.sent:
        assert again.sent is not None
        assert again.sent.threshold == course.sent.threshold
        assert again.sent.total.tolist() == course.sent.total.tolist()


@given(courses(), st.binary(max_size=30), st.integers(0, 200))
def test_bytes_that_are_no_course_are_refused(course: Course, noise: bytes, place: int) -> None:
    data = course.to_bytes()
    for wrong in (data[:place] + noise + data[place + len(noise) :], data[:place], data + noise, noise):
        try:
            Course.from_bytes(wrong)
        except ValueError:
            continue  # or it happens to be one


def test_a_rejoining_node_and_a_file_get_the_course(tmp_path: Any) -> None:
    model = study(regime(MASKS["moving"], PRIVATE | {"adaptive": ADAPTIVE}))[-1]
    assert model.course.sent is not None
    size = state_size(model)
    parts = [state_part(model, number, 1000) for number in range(-(-size // 1000))]
    handed = state_from(parts)
    save_model(tmp_path / "model.npz", model)
    for again in (handed, load_model(tmp_path / "model.npz")):
        assert again is not None
        assert again.digest(b"") == model.digest(b"")
    asked = regime(MASKS["moving"], PRIVATE | {"adaptive": ADAPTIVE})
    assert len(model.course.to_bytes()) <= asked.largest_course(SIZE)


def test_what_a_task_carries_and_what_waits_are_told_apart() -> None:
    for task in (None, b"", b"state"):
        for feedback in (None, b"residual"):
            assert split(join(task, feedback)) == (task, feedback)
    assert split(None) == (None, None)
    assert join(None, None) == b""


def test_without_privacy_and_compression_nothing_is_carried() -> None:
    model = Model(0, np.zeros(SIZE, np.float32))
    assert Regime().begin().to_bytes() == b""
    assert isinstance(Regime().terms(TRAIN, model, SIZE, b""), Terms)
    assert study(regime())[-1].course.to_bytes() == b""
