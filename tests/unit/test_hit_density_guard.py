"""Our own policy has at most 1 % fewer hits than leaf-LRU, and a few blocks, whatever comes."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvtier.policy.base import NO_PARENT, EvictionPolicy, Hint
from kvtier.policy.eviction.hit_density import HitDensity
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.eviction.lru_shadow import GRACE
from kvtier.replay.hints import Hints
from kvtier.replay.simulate import Simulation, TraceTime
from kvtier.replay.tier import Tier
from kvtier.replay.trace import Chains, Request, Trace, make_trace

#: The first request over the tier's size is evicted in another order than leaf-LRU's, and buckets are not exact.
SLACK = GRACE + 8


class Tree:
    """Chains by name: the same path is the same blocks."""

    def __init__(self) -> None:
        self.chains = Chains()
        self._blocks: dict[tuple[int, object], int] = {}

    def chain(self, *path: object) -> tuple[int, ...]:
        blocks, parent = [], NO_PARENT
        for name in path:
            if (parent, name) not in self._blocks:
                self._blocks[parent, name] = self.chains.extend(parent)
            parent = self._blocks[parent, name]
            blocks.append(parent)
        return tuple(blocks)

    def trace(self, paths: Iterator[tuple[object, ...]]) -> Trace:
        made = [Request(float(at), len(path), self.chain(*path), None) for at, path in enumerate(paths)]
        return make_trace("made", 1, made, self.chains.parents)


def hits(trace: Trace, capacity: int, policy: EvictionPolicy, hints: Hints | None = None) -> int:
    ids = trace.ids()
    tier = Tier(policy, capacity, ids, {b: n for n, b in enumerate(ids)}, 1000)
    return sum(Simulation(trace, ids, [tier], TraceTime()).run(hints).leads)


def path(root: object, length: int) -> tuple[object, ...]:
    return (root, *range(1, length))


def loop(rng: random.Random) -> Iterator[tuple[object, ...]]:
    """Round and round, over a little more than fits."""
    for at in range(1200):
        yield path(at % 60, 8)


def scans(rng: random.Random) -> Iterator[tuple[object, ...]]:
    """Some that are used all the time, and texts that come once."""
    for at in range(1200):
        yield path(("hot", rng.randrange(20)), 10) if at // 30 % 2 else path(("once", at), 12)


def newest(rng: random.Random) -> Iterator[tuple[object, ...]]:
    """What came last comes back, and grows."""
    lengths: list[int] = []
    for _ in range(1200):
        if lengths and rng.random() < 0.5:
            who = rng.randrange(max(0, len(lengths) - 25), len(lengths))
        else:
            who = len(lengths)
            lengths.append(0)
        lengths[who] += rng.randint(1, 5)
        yield path(who, lengths[who])


def turned(rng: random.Random) -> Iterator[tuple[object, ...]]:
    """First what is used twice comes back, then only what is new: what was learned is wrong."""
    for at in range(1600):
        if at < 800:
            yield path(rng.randrange(40), 8) if rng.random() < 0.5 else path(("once", at), 8)
        else:
            yield path(("new", at // 2 - rng.randrange(20)), 8)


def revenge(rng: random.Random) -> Iterator[tuple[object, ...]]:
    """Ends of requests that never come back, until all of them do."""
    for at in range(1200):
        since = at % 400
        yield path(at, 9) if since < 250 else path(at - rng.randint(1, 45), 9)


TRACES = (loop, scans, newest, turned, revenge)


@pytest.mark.parametrize("capacity", [12, 60, 300])
@pytest.mark.parametrize("kind", TRACES)
def test_never_one_percent_below_leaf_lru(kind: Callable[..., Iterator[tuple[object, ...]]], capacity: int) -> None:
    trace = Tree().trace(kind(random.Random(1)))
    assert hits(trace, capacity, HitDensity()) >= 0.99 * hits(trace, capacity, LeafLru()) - SLACK


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    capacity=st.integers(1, 200),
    roots=st.integers(1, 80),
    depth=st.integers(1, 12),
    branching=st.integers(1, 3),
    skew=st.floats(0.3, 4),
)
def test_never_one_percent_below_leaf_lru_in_any_tree(
    seed: int, capacity: int, roots: int, depth: int, branching: int, skew: float
) -> None:
    rng = random.Random(seed)

    def paths() -> Iterator[tuple[object, ...]]:
        for _ in range(250):
            root = int(roots * rng.random() ** skew)
            yield (root, *(rng.randrange(branching) for _ in range(rng.randint(0, depth))))

    trace = Tree().trace(paths())
    assert hits(trace, capacity, HitDensity()) >= 0.99 * hits(trace, capacity, LeafLru()) - SLACK


@pytest.mark.parametrize("kind", TRACES)
def test_wrong_hints_cost_no_more_than_a_tier(kind: Callable[..., Iterator[tuple[object, ...]]]) -> None:
    """A server that says of everything that it is over, or of what comes next that it comes last."""
    capacity = 300
    trace = Tree().trace(kind(random.Random(1)))
    lies = [Hint(ended=True), Hint(returns_at=1e6)]
    hints = Hints([lies[at // 7 % 2] if at % 3 else None for at in range(len(trace))], array("I", [0]) * len(trace))
    least = hits(trace, capacity, LeafLru())
    assert hits(trace, capacity, HitDensity(), hints) >= 0.99 * least - capacity
