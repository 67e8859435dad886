"""Leaf-LRU against a naive model: of the leaves that nobody holds, the one used longest ago."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.policy.eviction.leaf_lru import LeafLru

BLOCKS = st.integers(1, 8)
calls = st.lists(
    st.one_of(
        st.tuples(st.just("add"), BLOCKS, st.integers(0, 8)),
        st.tuples(st.sampled_from(["touch", "remove", "hold", "release"]), BLOCKS, st.just(0)),
        st.tuples(st.just("pop"), st.just(0), st.just(0)),
    ),
    max_size=80,
)


class Model:
    def __init__(self) -> None:
        self.clock: dict[int, int] = {}
        self.parent: dict[int, int] = {}
        self.holds: dict[int, int] = {}

    def leaves(self) -> list[int]:
        parents = {p for b, p in self.parent.items() if b in self.clock and p != b}
        return [b for b in self.clock if b not in parents and not self.holds.get(b)]

    def is_below(self, block: int, ancestor: int) -> bool:
        while block not in (0, ancestor):
            block = self.parent.get(block, 0)
        return block == ancestor

    def pop(self) -> int | None:
        oldest = min(self.leaves(), key=lambda b: self.clock[b], default=None)
        if oldest is not None:
            self.remove(oldest)
        return oldest

    def remove(self, block: int) -> None:
        self.clock.pop(block, None)
        self.parent.pop(block, None)


@settings(max_examples=400)
@given(calls)
def test_it_gives_what_the_model_gives(calls: list[tuple[str, int, int]]) -> None:
    policy, model = LeafLru(), Model()
    for clock, (call, block, parent) in enumerate(calls, 1):
        if call == "add":
            policy.add(block, parent, clock, 1)
            model.clock[block], model.parent[block] = clock, 0 if model.is_below(parent, block) else parent
        elif call == "touch":
            policy.touch(block, clock)
            if block in model.clock:
                model.clock[block] = clock
        elif call == "remove":
            policy.remove(block)
            model.remove(block)
        elif call == "hold":
            policy.hold(block)
            model.holds[block] = model.holds.get(block, 0) + 1
        elif call == "release" and model.holds.get(block):
            policy.release(block)
            model.holds[block] -= 1
        elif call == "pop":
            assert policy.pop() == model.pop()
        assert len(policy) == len(model.clock)
    for block, holds in model.holds.items():
        for _ in range(holds):
            policy.release(block)
    model.holds.clear()
    while (expected := model.pop()) is not None:
        assert policy.pop() == expected
    assert policy.pop() is None


def test_the_order_is_exact_whatever_order_clocks_come_in() -> None:
    rng = random.Random(1)
    policy = LeafLru()
    clocks: dict[int, int] = {}
    ticks = iter(rng.sample(range(1, 10_000), 5_000))
    for block in range(1, 5_001):
        clocks[block] = next(ticks)
        policy.add(block, 0, clocks[block], 1)
        if block % 3 == 0:
            oldest = min(clocks, key=clocks.__getitem__)
            assert policy.pop() == oldest
            del clocks[oldest]
    assert [policy.pop() for _ in tuple(clocks)] == sorted(clocks, key=clocks.__getitem__)


def test_a_chain_is_eaten_from_its_end_and_old_chains_first() -> None:
    policy = LeafLru()
    for block in (1, 2, 3, 11, 12, 13):
        policy.add(block, block - 1 if block not in (1, 11) else 0, block, 1)
    for clock, block in enumerate((3, 2, 1), 100):  # the first chain was used again, its end first
        policy.touch(block, clock)
    assert [policy.pop() for _ in range(6)] == [13, 12, 11, 3, 2, 1]


def test_a_shared_prefix_outlives_its_branches_though_it_is_oldest() -> None:
    policy = LeafLru()
    policy.add(1, 0, 1, 1)
    for block in (2, 3, 4):
        policy.add(block, 1, block, 1)
    policy.touch(2, 10)
    assert [policy.pop() for _ in range(4)] == [3, 4, 2, 1]


def test_what_waits_stays_as_few_as_the_tier() -> None:
    policy = LeafLru()
    for clock in range(1, 20_000):
        policy.add(clock % 10 + 1, 0, clock, 1)
        policy.touch(clock % 7 + 1, clock)
    assert len(policy._late) <= 64 + 10


def test_a_block_that_is_added_again_keeps_its_place_in_a_chain_without_a_walk_along_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    policy = LeafLru()
    for block in (1, 2, 3, 4):
        policy.add(block, block - 1, block, 1)
    with monkeypatch.context() as patch:
        patch.setattr(policy._table, "_descends", lambda *_: pytest.fail("it walked"))
        policy.add(2, 1, 5, 1)
    policy.add(4, 0, 6, 1)  # it extends another one now
    assert [policy.pop() for _ in range(4)] == [3, 2, 1, 4]
