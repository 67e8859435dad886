"""Admission and promotion policies, their memory, and the budget, without a store."""

from __future__ import annotations

import random

import pytest

from kvtier.errors import ConfigError
from kvtier.policy import registry
from kvtier.policy.admission import AlwaysAdmit, MinChain, SecondTouch
from kvtier.policy.base import Candidate
from kvtier.policy.promotion import SecondHit
from kvtier.policy.recent import RecentIds
from kvtier.tiers.budget import Budget
from tests.clocks import HandClock

DAY_S = 86_400.0


def candidate(block: int = 1, *, parent: int = 0, depth: int = 1, is_hit: bool = False) -> Candidate:
    return Candidate(block, parent, 1000, depth, is_hit)


def test_recent_ids_are_known_and_never_taken_for_others() -> None:
    rng, ids = random.Random(1), RecentIds()
    seen = [rng.getrandbits(64) for _ in range(20_000)]
    assert not any(ids.add(i) for i in seen)
    assert sum(i in ids for i in seen) > 0.9 * len(seen)  # exp(-n / 131072) on the average over n
    assert not any(rng.getrandbits(64) in ids for _ in range(20_000))
    assert ids.discard(seen[-1])
    assert not ids.discard(seen[-1])
    assert ids.nbytes < 1.1 * (1 << 20)


def test_recent_ids_stay_within_their_memory() -> None:
    rng, ids = random.Random(2), RecentIds()
    before = ids.nbytes
    for _ in range(200_000):
        ids.add(rng.getrandbits(64))
    assert ids.nbytes == before


def test_second_touch() -> None:
    policy = SecondTouch()
    assert not policy.admit(candidate(1))
    assert policy.admit(candidate(1))
    assert policy.used(2)
    assert policy.admit(candidate(2))
    assert policy.admit(candidate(3, is_hit=True))


def test_min_chain() -> None:
    policy = MinChain(3)
    assert [policy.admit(candidate(depth=d)) for d in (1, 2, 3, 4)] == [False, False, True, True]
    assert policy.admit(candidate(depth=1, is_hit=True))
    assert not policy.used(1)


def test_second_hit_counts_from_anew_after_each_move() -> None:
    policy = SecondHit()
    assert [policy.promote(7) for _ in range(5)] == [False, True, False, True, False]
    assert not policy.promote(8)


def test_policies_are_found_by_name() -> None:
    assert isinstance(registry.admission("min-chain", blocks_min=5)(), MinChain)
    assert isinstance(registry.admission("write-budget")(), AlwaysAdmit)
    assert registry.promotion("second-hit") is SecondHit
    assert registry.admission("kvtier.policy.admission:SecondTouch") is SecondTouch
    for find in (registry.admission, registry.promotion):
        with pytest.raises(ConfigError, match="there is no such policy"):
            find("sometimes")
        with pytest.raises(ConfigError, match="has no method"):
            find("kvtier.policy.recent:RecentIds")


def test_a_budget_fills_evenly_and_no_higher_than_a_day() -> None:
    clock = HandClock()
    budget = Budget(86_400, clock)
    assert budget.left == 86_400
    budget.spend(86_400)
    assert budget.left == 0
    clock.now += 100
    assert budget.left == 100
    clock.now -= 1e6  # a clock that goes back gives nothing, and takes nothing
    assert budget.left == 100
    clock.now += 10
    assert budget.left == 110
    clock.now += 10 * DAY_S
    assert budget.left == 86_400
    budget.spend(10**9)
    assert budget.left == -86_400  # never more than a day in debt


@pytest.mark.parametrize(("since", "left"), [(0, 50), (100, 150), (-100, 50), (1e9, 86_400), (-1e12, 50)])
def test_a_budget_goes_on_from_what_was_kept(since: float, left: int) -> None:
    clock = HandClock()
    budget = Budget(86_400, clock)
    budget.resume(50, int(clock.wall - since))
    assert budget.left == left
    budget.resume(10**12, int(clock.wall))  # it was larger
    assert budget.left == 86_400


def test_it_is_told_once_a_day() -> None:
    clock = HandClock()
    budget = Budget(1, clock)
    told = []
    for _ in range(5):
        told.append(budget.is_news())
        clock.now += DAY_S / 2
    assert told == [True, False, True, False, True]
