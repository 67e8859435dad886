"""What tells each policy from leaf-LRU."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from kvtier.policy.base import NO_PARENT, EvictionPolicy
from kvtier.policy.eviction.gdsf import Gdsf
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.eviction.s3_fifo import S3Fifo
from kvtier.policy.eviction.sieve import Sieve
from kvtier.policy.eviction.slru import Slru
from kvtier.policy.eviction.w_tinylfu import WTinyLfu

CAPACITY = 100


class Tier:
    """Keeps ``CAPACITY`` blocks."""

    def __init__(self, policy: EvictionPolicy) -> None:
        self.policy = policy
        self.blocks: set[int] = set()
        self._clock = 0

    def use(self, block: int, parent: int = NO_PARENT, nbytes: int = 1000) -> None:
        self._clock += 1
        if block in self.blocks:
            self.policy.touch(block, self._clock)
            return
        if len(self.blocks) == CAPACITY:
            victim = self.policy.pop()
            assert victim is not None
            self.blocks.remove(victim)
        self.policy.add(block, parent, self._clock, nbytes)
        self.blocks.add(block)

    def scan(self, start: int, count: int) -> None:
        for block in range(start, start + count):
            self.use(block)


RESISTANT: list[Callable[[], EvictionPolicy]] = [Slru, S3Fifo, Sieve, WTinyLfu, Gdsf]


def left_after_a_scan(policy: EvictionPolicy) -> int:
    """Of 20 blocks that are used often, how many are left after twice as many new ones as the tier holds."""
    tier = Tier(policy)
    tier.scan(1000, CAPACITY + 1)  # it is full, and knows how large it is
    for _ in range(3):
        tier.scan(1, 20)
    tier.scan(2000, 2 * CAPACITY)
    return len(tier.blocks & set(range(1, 21)))


def test_leaf_lru_forgets_all_for_a_scan() -> None:
    assert left_after_a_scan(LeafLru()) == 0


@pytest.mark.parametrize("make", RESISTANT)
def test_what_is_used_often_survives_a_scan(make: Callable[[], EvictionPolicy]) -> None:
    assert left_after_a_scan(make()) >= 18


def test_slru_gives_what_was_used_once_first() -> None:
    policy = Slru()
    for block in range(1, 11):
        policy.add(block, NO_PARENT, block, 1)
    policy.touch(1, 11)
    policy.touch(2, 12)
    assert [policy.pop() for _ in range(10)] == [3, 4, 5, 6, 7, 8, 9, 10, 1, 2]


def test_s3_fifo_takes_what_comes_back_soon_into_the_main_queue() -> None:
    tier = Tier(S3Fifo())
    tier.scan(1, CAPACITY + 20)  # 1 to 20 are gone
    tier.use(5)
    tier.scan(1000, CAPACITY - 1)
    assert 5 in tier.blocks
    tier.use(10_000)
    assert 1000 not in tier.blocks


def test_sieve_keeps_the_order_of_arrival() -> None:
    policy = Sieve()
    for block in (1, 2, 3, 4):
        policy.add(block, NO_PARENT, block, 1)
    policy.touch(1, 5)
    policy.touch(3, 6)
    assert policy.pop() == 2
    policy.touch(1, 7)  # behind the hand
    assert [policy.pop() for _ in range(3)] == [4, 3, 1]


def test_w_tinylfu_lets_nobody_in_for_one_use() -> None:
    tier = Tier(WTinyLfu())
    for _ in range(3):
        tier.scan(1, CAPACITY)
    tier.scan(1000, 50)
    assert len(tier.blocks & set(range(1, CAPACITY + 1))) == CAPACITY - 1


def test_gdsf_keeps_what_costs_most_for_its_size() -> None:
    policy = Gdsf()
    policy.add(1, NO_PARENT, 1, 1000)
    policy.add(2, NO_PARENT, 2, 4000)
    policy.add(3, NO_PARENT, 3, 2000)
    assert [policy.pop() for _ in range(3)] == [2, 3, 1]


def test_gdsf_keeps_the_deeper_chain() -> None:
    policy = Gdsf()
    for clock in range(1, 201):
        policy.add(clock, clock - 1, clock, 1000)
    policy.add(1001, NO_PARENT, 201, 1000)  # newer, and cheap
    policy.add(1002, 1001, 202, 1000)
    assert [policy.pop() for _ in range(2)] == [1002, 1001]


def test_gdsf_finds_the_depth_of_blocks_that_came_before_their_parents() -> None:
    policy = Gdsf()
    order = list(range(1, 201))
    random.Random(3).shuffle(order)
    for block in order:
        policy.add(block, block - 1, block, 1000)
    policy.add(1001, NO_PARENT, 201, 1000)
    assert policy.pop() == 1001


@pytest.mark.parametrize("make", [LeafLru, Slru, S3Fifo, Sieve, WTinyLfu])  # Gdsf: both ends cost most
def test_a_chain_is_eaten_before_the_next_one_is_begun(make: Callable[[], EvictionPolicy]) -> None:
    policy = make()
    for start in (100, 200):
        for block in range(start, start + 10):
            policy.add(block, block - 1 if block > start else NO_PARENT, block, 1000)
    assert [policy.pop() for _ in range(10)] == list(range(109, 99, -1))
