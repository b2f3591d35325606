"""One accountant over all rounds, and training that stops before its budget is passed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from opacus.accountants import RDPAccountant, create_accountant

from node.privacy.accountant import (
    MECHANISMS,
    ORDERS,
    Accountant,
    Mechanism,
    Spent,
    StateError,
    noise_for,
    prv_error,
)  # fmt: skip
from node.privacy.budget import Budget, BudgetError, PrivacyError
from node.privacy.clipping import AdaptiveClip
from node.privacy.dpsgd import Recipe, train

DELTA = 1e-5
HISTORY = (Spent(2.0, 0.1, 30), Spent(1.5, 0.1, 20), Spent(4.0, 1.0, 3))


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_epsilon_is_opacuss_own(mechanism: Mechanism) -> None:
    theirs = create_accountant(mechanism)
    for each in HISTORY:
        for _ in range(each.steps):
            theirs.step(noise_multiplier=each.noise_multiplier, sample_rate=each.sample_rate)
    options = {"alphas": list(ORDERS)} if mechanism == "rdp" else {"eps_error": prv_error(HISTORY, DELTA)}
    epsilon = Accountant(Budget(100, DELTA), mechanism, HISTORY).epsilon()
    assert epsilon == pytest.approx(theirs.get_epsilon(DELTA, **options), abs=1e-9)
    assert 1 < epsilon < 10


def test_opacuss_default_orders_are_too_few_for_a_small_epsilon_and_ours_are_enough() -> None:
    budget = Budget(0.1, DELTA)
    default = RDPAccountant()
    default.history = [(1e6, 1.0, 5)]
    with pytest.warns(UserWarning, match="Optimal order is the largest alpha"):
        assert default.get_epsilon(DELTA) > 0.1  # whatever the noise
    assert Accountant(budget, history=[Spent(noise_for(budget, 1.0, 5), 1.0, 5)]).epsilon() <= 0.1


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.1, 1.0, 5), (1.0, 1 / 13, 65), (30.0, 1.0, 5)])
def test_the_noise_for_a_budget_keeps_it_and_a_little_less_does_not(
    mechanism: Mechanism, epsilon: float, rate: float, steps: int
) -> None:
    budget = Budget(epsilon, DELTA)
    sigma = noise_for(budget, rate, steps, mechanism)
    assert 0.98 * epsilon <= Accountant(budget, mechanism, [Spent(sigma, rate, steps)]).epsilon() <= epsilon
    with pytest.raises(BudgetError):
        Accountant(budget, mechanism).spend(0.97 * sigma, rate, steps)


def test_rounds_spend_from_one_budget_and_what_would_pass_it_is_not_spent() -> None:
    a_round = Spent(1.2, 0.05, 20)
    budget = Budget(Accountant(Budget(math.inf, DELTA), history=[a_round.times(3)]).epsilon(), DELTA)
    accountant = Accountant(budget)
    for _ in range(3):
        accountant.spend(a_round.noise_multiplier, a_round.sample_rate, a_round.steps)
    assert accountant.history == (a_round.times(3),)
    with pytest.raises(BudgetError, match=r"1 more step would spend epsilon .* nothing was done"):
        accountant.spend(a_round.noise_multiplier, a_round.sample_rate)
    assert accountant.history == (a_round.times(3),)
    again = Accountant(budget, history=accountant.history)  # the history is all the state there is
    assert again.epsilon() == accountant.epsilon() == budget.epsilon


def test_an_accountant_goes_on_from_its_state_and_is_never_begun_anew() -> None:
    budget = Budget(Accountant(Budget(math.inf, DELTA), history=HISTORY).epsilon(), DELTA)
    state = Accountant(budget).state()
    for each in HISTORY:  # a round each, in a process of its own
        accountant = Accountant.from_state(budget, state)
        accountant.spend(each.noise_multiplier, each.sample_rate, each.steps)
        state = accountant.state()
    last = Accountant.from_state(budget, state)
    assert last.history == HISTORY
    assert last.epsilon() == budget.epsilon
    with pytest.raises(BudgetError):
        last.spend(4.0, 1.0)


@pytest.mark.parametrize(
    "state",
    [
        b"",
        b"3",
        b"{}",
        b'{"version":2,"history":[]}',
        *(b'{"version":1,"history":[[%s]]}' % each for each in (b"1,2", b"1.0,2.0,1", b"1.0,0.5,-1", b"1,1,true")),
    ],
)
def test_an_accountant_takes_its_own_state_only(state: bytes) -> None:
    with pytest.raises(StateError, match="expected the history of an accountant"):
        Accountant.from_state(None, state)


def test_no_noise_and_no_budget() -> None:
    assert Accountant(Budget(1, DELTA)).epsilon() == 0
    with pytest.raises(ValueError, match="a delta is needed"):
        Accountant(None).epsilon()
    with pytest.raises(BudgetError, match="no noise keeps"):
        noise_for(Budget(1e-9, 1e-9), 1.0, 10_000)
    with pytest.raises(BudgetError):
        Accountant(Budget(1e6, DELTA)).spend(0.0, 1.0)


# ---- training -------------------------------------------------------------------------------------------

ROWS, FEATURES = 64, 9
FULL = Recipe(learning_rate=1.0, batch_size=None, epochs=1, clip=1.0, noise_multiplier=0.0)


def data(scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = scale * torch.randn(ROWS, FEATURES, generator=generator)
    return x, (x[:, 0] > 0).float()


def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], y)


def flat(module: torch.nn.Module) -> np.ndarray:
    return torch.cat([part.detach().flatten() for part in module.parameters()]).numpy()


def zeros() -> torch.nn.Module:
    module = torch.nn.Linear(FEATURES, 1)
    for part in module.parameters():
        torch.nn.init.zeros_(part)
    return module


def test_the_step_that_would_pass_the_budget_is_not_taken() -> None:
    x, y = data()
    recipe = replace(FULL, epochs=10, noise_multiplier=3.0)
    budget = Budget(Accountant(Budget(math.inf, DELTA), history=[Spent(3.0, 1.0, 4)]).epsilon(), DELTA)
    accountant, module = Accountant(budget), zeros()
    with pytest.raises(BudgetError):
        train(module, x, y, loss, recipe, accountant, torch.Generator().manual_seed(2))
    assert accountant.history == (Spent(3.0, 1.0, 4),)
    same, enough = zeros(), Accountant(None)
    assert train(same, x, y, loss, replace(recipe, epochs=4), enough, torch.Generator().manual_seed(2)).steps == 4
    assert np.array_equal(flat(module), flat(same))  # four steps, not five
    with pytest.raises(BudgetError):  # the same hospital's next round
        train(module, x, y, loss, recipe, accountant)
    assert np.array_equal(flat(module), flat(same))


def test_no_row_moves_the_model_further_than_the_clip() -> None:
    x, y = data(scale=1000.0)
    module = zeros()
    train(module, x[:1], y[:1], loss, replace(FULL, noise_multiplier=1e-9, clip=0.5), Accountant(None))
    assert np.linalg.norm(flat(module)) == pytest.approx(0.5, rel=1e-3)
    train(free := zeros(), x[:1], y[:1], loss, FULL, Accountant(None))
    assert np.linalg.norm(flat(free)) > 100


def test_noise_is_the_multiplier_times_the_clip_over_the_batch() -> None:
    x, y = data()
    recipe = replace(FULL, noise_multiplier=8.0, clip=0.5)
    without = zeros()
    train(without, x, y, loss, replace(recipe, noise_multiplier=1e-9), Accountant(None))
    draws = []
    for seed in range(200):
        train(module := zeros(), x, y, loss, recipe, Accountant(None), torch.Generator().manual_seed(seed))
        draws.append(flat(module) - flat(without))
    assert np.std(draws) == pytest.approx(8.0 * 0.5 / ROWS, rel=0.06)  # 2,000 draws: 4 sigma
    assert abs(np.mean(draws)) < 4 * 8.0 * 0.5 / ROWS / math.sqrt(2_000)


def test_noise_and_batches_are_not_torchs_where_no_generator_is_asked_for() -> None:
    """torch's generator has 32 bits of seed: whoever finds it subtracts the noise."""
    x, y = data()
    recipe = Recipe(learning_rate=1.0, batch_size=16, epochs=1, clip=0.5, noise_multiplier=8.0)
    drawn = []
    for _ in range(2):
        torch.manual_seed(1)
        train(module := zeros(), x, y, loss, recipe, Accountant(None))
        drawn.append(flat(module))
    assert not np.array_equal(*drawn)
    wide = torch.nn.Linear(4000, 1)
    torch.nn.init.zeros_(wide.weight)
    train(wide, torch.zeros(ROWS, 4000), y, loss, replace(FULL, noise_multiplier=8.0, clip=0.5), Accountant(None))
    assert np.std(flat(wide)[:4000]) == pytest.approx(8.0 * 0.5 / ROWS, rel=0.06)  # 4,000 draws: 5 sigma


def test_batches_are_poisson_samples_and_counted_as_such() -> None:
    x, y = data()
    recipe = Recipe(learning_rate=0.1, batch_size=20, epochs=3, clip=1.0, noise_multiplier=2.0)
    accountant = Accountant(None)
    assert train(zeros(), x, y, loss, recipe, accountant).steps == 12
    assert accountant.history == (Spent(2.0, 1 / 4, 12),)


def test_without_noise_there_is_nothing_to_account_for() -> None:
    x, y = data()
    accountant = Accountant(Budget(1e-6, DELTA))
    assert train(zeros(), x, y, loss, replace(FULL, epochs=3), accountant).steps == 3
    assert accountant.history == ()


def test_a_clip_follows_the_median_of_the_gradients_and_its_numbers_are_paid_for() -> None:
    """Andrew et al., theorem 1: the gradients have more noise, and both together cost what the accountant is charged.
    A row more or less changes the sum of its halves by a half."""
    adaptive = AdaptiveClip(quantile=0.5, rate=0.3, count_noise=2.0, lowest=0.01, highest=1000.0)
    recipe = replace(FULL, noise_multiplier=1.5, clip=100.0, epochs=60, learning_rate=1e-9, adaptive=adaptive)
    assert adaptive.update_multiplier(1.5) == pytest.approx((1.5**-2 - 4.0**-2) ** -0.5)
    x, y = torch.randn(ROWS, 9, generator=torch.Generator().manual_seed(1)), torch.ones(ROWS)
    accountant = Accountant(None)
    done = train(zeros(), x, y, loss, recipe, accountant)
    # At zero weights a row's gradient is (p - y) times (x, 1), half as long as that.
    median = float((0.5 * (x.square().sum(1) + 1).sqrt()).median())
    assert done.clip == pytest.approx(median, rel=0.2)
    assert accountant.history == (Spent(1.5, 1.0, 60),)
    with pytest.raises(PrivacyError, match="count_noise above 0.75 was expected"):
        train(zeros(), x, y, loss, replace(recipe, adaptive=replace(adaptive, count_noise=0.7)), Accountant(None))
