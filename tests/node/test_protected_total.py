"""Hospital-level privacy through the real encryption: what is opened is the sum of the noisy integers, and no other."""

from __future__ import annotations

import numpy as np
import pytest

from keys.ckks import Opener, Sealer, generate_keys
from keys.packing import PackingError
from keys.plan import Plan
from keys.planner import choose
from node import update
from node.privacy.account import HospitalAccount
from node.privacy.arrange import arrange, budget
from node.privacy.budget import BudgetError, PrivacyError
from node.privacy.settings import PrivacySettings

NAMES = ("ada", "bo", "cy", "di", "eva")
VALUES, ROUNDS, HIDDEN = 20_000, 2, 3
SETTINGS = PrivacySettings(
    mode="hospital", epsilon=6.0, delta=1e-5, clip=1.0,
    adaptive={"count_noise": 3.0, "lowest": 0.1, "highest": 9.0},  # type: ignore[arg-type]
)  # fmt: skip


def test_rounds_with_a_dropped_party_are_opened_exactly_until_the_budget_is_spent() -> None:
    arranged = arrange(SETTINGS, Plan(), VALUES, ROUNDS, HIDDEN)
    plan = choose(8, 14, max_noise=arranged.room(8))
    assert arrange(SETTINGS, plan, VALUES, ROUNDS, HIDDEN) == arranged  # the room changes nothing
    public, secret = generate_keys(plan)
    opener, account = Opener(plan, secret), HospitalAccount(budget(SETTINGS))
    keys = {name: bytes([number]) * 32 for number, name in enumerate(NAMES)}
    for listed in (NAMES, NAMES[1:]):
        integers = {name: arranged.protect(np.zeros(VALUES)) for name in listed}
        sealed = [list(update.seal_segments(integers[name], Sealer(plan, public), keys[name])) for name in listed]
        merged = [update.merge(plan, parts) for parts in zip(*sealed, strict=True)]
        arranged.check(listed)  # before the first opening
        account.spend(*arranged.releases)
        opened = [
            update.open_total(opener, total, number, [keys[name] for name in listed], None, part.stop - part.start)
            for number, (total, part) in enumerate(zip(merged, plan.segments(arranged.length), strict=True))
        ]
        total = np.frombuffer(b"".join(opened), "<i4")
        assert np.array_equal(total, sum(integers.values()))
        release = arranged.protection.release
        # Of the guaranteed shares and of what arrived beyond them; 1% of standard error: 5% once in 10^6.
        target = len(listed) * release.share_variance  # type: ignore[union-attr]
        assert np.var(total[:-1]) == pytest.approx(target, rel=0.05)
    assert account.epsilon() == pytest.approx(6.0, rel=1e-4)
    with pytest.raises(PrivacyError, match="it is not opened"):
        arranged.check(NAMES[:HIDDEN])
    with pytest.raises(BudgetError, match="it is not opened"):
        account.spend(*arranged.releases)


def test_a_plan_without_room_for_noise_refuses_it() -> None:
    arranged = arrange(SETTINGS, Plan(), VALUES, ROUNDS, HIDDEN)
    public, _ = generate_keys(Plan())
    with pytest.raises(PackingError, match="exceeds the 14 bits"):
        next(update.seal_segments(arranged.protect(np.zeros(VALUES)), Sealer(Plan(), public), b"k" * 32))
