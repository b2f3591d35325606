"""Which round is what: training rounds are all there, evaluations come where they are promised."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from node.protocol.messages import ENERGIES, EVALUATE, STATISTICS, TRAIN
from node.protocol.schedule import Schedule


@given(st.integers(1, 200), st.integers(0, 210))
def test_every_training_is_there_and_an_evaluation_after_every_few_and_the_last(training: int, every: int) -> None:
    schedule = Schedule(training, every)
    purposes = [schedule.purpose(number) for number in range(schedule.last + 1)]
    expected = [STATISTICS]
    for done in range(1, training + 1):
        expected.append(TRAIN)
        if every and (done % every == 0 or done == training):
            expected.append(EVALUATE)
    assert purposes == expected
    counted = [sum(purpose == TRAIN for purpose in purposes[: number + 1]) for number in range(len(purposes))]
    assert [schedule.trained(number) for number in range(len(purposes))] == counted
    assert schedule.trained(schedule.last + 5) == training
    assert schedule.evaluated(schedule.last) == purposes.count(EVALUATE)
    assert schedule.trained(-1) == 0
    assert schedule.purpose(schedule.last + 1) == TRAIN


@given(st.integers(1, 60), st.integers(0, 70))
def test_with_energies_each_training_follows_the_round_that_chooses_its_mask(training: int, every: int) -> None:
    schedule = Schedule(training, every, energies=True)
    expected = [STATISTICS]
    for done in range(1, training + 1):
        expected += [ENERGIES, TRAIN]
        if every and (done % every == 0 or done == training):
            expected.append(EVALUATE)
    assert [schedule.purpose(number) for number in range(schedule.last + 1)] == expected
    trained = [sum(purpose == TRAIN for purpose in expected[: number + 1]) for number in range(len(expected))]
    assert [schedule.trained(number) for number in range(len(expected))] == trained
