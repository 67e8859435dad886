"""The bound: against an exhaustive search over all that leaf eviction could keep, on tiny traces."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import combinations

import pytest

from kvtier.policy.base import NO_PARENT
from kvtier.replay import belady
from kvtier.replay.trace import Chains, Request, Trace, make_trace


def tiny_trace(seed: int) -> Trace:
    """Up to nine requests over a random tree of up to eight blocks."""
    chance = random.Random(seed)
    chains = Chains()
    for block in range(1, chance.randint(4, 8) + 1):
        chains.extend(chance.randrange(0, block) if chance.random() < 0.8 else NO_PARENT)
    requests = []
    for time in range(chance.randint(5, 9)):
        block = chance.randrange(1, len(chains.parents))
        chain = []
        while block != NO_PARENT:
            chain.append(block)
            block = chains.parents[block]
        requests.append(Request(float(time), len(chain), chain[::-1], None))
    return make_trace("tiny", 1, requests, chains.parents)


def best_hits(trace: Trace, capacity: int) -> int:
    """The most hits that any choice of what to keep after each request can give."""
    states = {frozenset[int](): 0}
    for request in range(len(trace)):
        chain = trace.chain(request)
        after: dict[frozenset[int], int] = {}
        for state, hits in states.items():
            total = hits + sum(b in state for b in chain)  # states are whole prefixes
            for kept in whole_prefixes(state | set(chain), trace, capacity):
                after[kept] = max(after.get(kept, 0), total)
        states = after
    return max(states.values())


def whole_prefixes(blocks: frozenset[int], trace: Trace, capacity: int) -> Iterator[frozenset[int]]:
    """What evicting leaves can leave of ``blocks``."""
    for size in range(min(capacity, len(blocks)) + 1):
        for kept in map(frozenset, combinations(sorted(blocks), size)):
            if all(trace.parents[b] in kept or trace.parents[b] == NO_PARENT for b in kept):
                yield kept


@pytest.mark.parametrize("seed", range(40))
def test_nothing_is_better(seed: int) -> None:
    trace = tiny_trace(seed)
    for capacity in range(1, trace.unique + 1):
        assert sum(belady.leads(trace, capacity)) == best_hits(trace, capacity)


def test_a_block_that_is_not_used_again_displaces_nothing() -> None:
    chains = Chains()
    a, b = chains.extend(NO_PARENT), chains.extend(NO_PARENT)
    trace = make_trace("t", 1, [Request(float(t), 1, [x], None) for t, x in enumerate([a, b, a])], chains.parents)
    assert list(belady.leads(trace, 1)) == [0, 0, 1]


def test_it_tells_how_far_it_is() -> None:
    told: list[int] = []
    belady.leads(tiny_trace(1), 2, told.append)
    assert told == [0]
