"""What our own policy learns, and what it makes of hints."""

from __future__ import annotations

import random

import pytest

from kvtier.policy import registry
from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint
from kvtier.policy.eviction.hit_density import HitDensity
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.replay.capacity import Capacity
from kvtier.replay.generator import generate
from kvtier.replay.hints import HintKind, make_hints
from kvtier.replay.measure import Replay
from kvtier.replay.tier_model import read_tier_model


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def leaves(policy: EvictionPolicy, count: int = 20) -> list[int]:
    for block in range(1, count + 1):
        policy.add(block, NO_PARENT, block, 1000)
    return list(range(1, count + 1))


def order(policy: EvictionPolicy) -> list[int]:
    return list(iter(policy.pop, None))


def hits(policy: type, capacity: int, requests: int = 3000, seed: int = 5) -> int:
    """Of the blocks of a request, those that were there from its beginning on."""
    rng = random.Random(seed)
    cache, there, found, clock = policy(), set[int](), 0, 0
    sessions: list[list[int]] = []
    block = 1 << 40
    for _ in range(requests):
        comes_back = sessions and rng.random() < 0.4
        chain = rng.choice(sessions[-40:]) if comes_back else []
        lead = 0
        while lead < len(chain) and chain[lead] in there:
            lead += 1
        found += lead
        for _ in range(rng.randint(2, 6)):
            block += rng.randrange(1 << 20) | 1
            chain.append(block)
        if not comes_back:
            sessions.append(chain)
        for at in range(len(chain) - 1, -1, -1):
            clock += 1
            if chain[at] in there:
                cache.touch(chain[at], clock)
            else:
                there.add(chain[at])
                cache.add(chain[at], chain[at - 1] if at else NO_PARENT, clock, 1000)
        while len(there) > capacity:
            victim = cache.pop()
            assert victim is not None
            there.remove(victim)
    return found


def test_what_ended_goes_first() -> None:
    policy = HitDensity()
    blocks = leaves(policy)
    for block in blocks[15:]:
        policy.hint(block, Hint(ended=True))
    assert sorted(order(policy)[:5]) == blocks[15:]


def test_what_ended_and_is_used_again_has_not() -> None:
    policy = HitDensity()
    leaves(policy)
    policy.hint(20, Hint(ended=True))
    policy.touch(20, 21)
    assert order(policy)[0] != 20


def test_priorities_go_from_low_to_high() -> None:
    policy = HitDensity()
    blocks = leaves(policy)
    for block in blocks:
        policy.hint(block, Hint(priority=block % 3 - 1))
    assert [block % 3 for block in order(policy)] == [0] * 6 + [1] * 7 + [2] * 7


def test_who_comes_back_later_goes_first() -> None:
    clock = Clock()
    policy = HitDensity(now=clock)
    blocks = leaves(policy, 5000)  # so many that it has learned how fast the clock ticks
    clock.now += 100
    for block in blocks:
        policy.touch(block, 5000 + block)
    policy.add(5001, NO_PARENT, 10_001, 1000)
    for block in (*blocks[10:], 5001):
        policy.remove(block)
    for block in blocks[:10]:
        policy.hint(block, Hint(returns_at=clock.now + 10_000 * block))
    assert order(policy) == blocks[:10][::-1]


def test_hints_on_what_is_not_there_are_ignored() -> None:
    policy = HitDensity()
    policy.hint(7, Hint(ended=True, priority=3))
    assert len(policy) == 0
    leaves(policy, 3)
    policy.hint(7, Hint(ended=True))
    assert len(order(policy)) == 3


def test_the_same_uses_give_the_same_order() -> None:
    first, second = HitDensity(now=Clock()), HitDensity(now=Clock())
    for policy in (first, second):
        leaves(policy, 3000)
    assert order(first) == order(second)


@pytest.mark.parametrize(("kind", "times"), [(HintKind.FULL, 1.1), (HintKind.NONE, 0.99)])
def test_hits_on_generated_conversations(kind: HintKind, times: float) -> None:
    """With hints clearly more than leaf-LRU, without any never clearly fewer."""
    trace = generate("generate:conversation?seed=3&requests=600")
    replay = Replay(trace, read_tier_model(None, None), registry.EVICTION, make_hints(trace, kind, 1))
    capacity = Capacity("5%", len(trace.ids()) // 20)
    ratios = [replay.run(name, capacity).hit_ratio for name in ("leaf-lru", "hit-density")]
    assert ratios[0] is not None
    assert ratios[1] is not None
    assert ratios[1] > times * ratios[0]


def test_what_it_costs_where_the_newest_comes_back() -> None:
    """Learning is not free: on a small tier, and a trace that leaf-LRU is right for, some hits."""
    assert hits(HitDensity, 400) > 0.99 * hits(LeafLru, 400)
