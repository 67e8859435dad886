"""Replays with the real policies: what is a hit, what goes where, what a policy is told."""

from __future__ import annotations

import os
import random
from array import array
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from kvtier.policy.base import NO_PARENT, Hint
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.policy.promotion import AlwaysPromote, NeverPromote
from kvtier.policy.registry import EVICTION
from kvtier.replay import belady, simulate
from kvtier.replay.footprint import policy_bytes
from kvtier.replay.generator import generate
from kvtier.replay.hints import NOISE_SIGMA, HintKind, make_hints
from kvtier.replay.reader import read_trace
from kvtier.replay.simulate import Simulation, TraceTime
from kvtier.replay.tier import Faults, PolicyFault, Tier
from kvtier.replay.trace import Chains, Request, Trace, make_trace
from kvtier.tiers.promotion import Lift


def trace_of(*requests: Sequence[object], sessions: str = "") -> Trace:
    """Each request a chain of names; a name stands for itself and all before it. One a second."""
    chains, numbers, made = Chains(), dict[tuple[int, object], int](), []
    for time, names in enumerate(requests):
        parent, blocks = NO_PARENT, []
        for name in names:
            if (parent, name) not in numbers:
                numbers[parent, name] = chains.extend(parent)
            parent = numbers[parent, name]
            blocks.append(parent)
        made.append(Request(float(time), 10 * len(blocks), blocks, sessions[time] if sessions else None))
    return make_trace("made", 10, made, chains.parents)


def random_trace(seed: int, requests: int = 300) -> Trace:
    chance = random.Random(seed)
    return trace_of(*["".join(chance.choices("abc", k=chance.randint(1, 8))) for _ in range(requests)])


def tiers_of(trace: Trace, *capacities: int, promote: bool = True, policy: type = LeafLru) -> list[Tier]:
    ids = trace.ids()
    numbers = {block_id: n for n, block_id in enumerate(ids)}
    lift = Lift("t", AlwaysPromote() if promote else NeverPromote(), Faults())
    return [Tier(policy(), capacity, ids, numbers, 100, lift=lift) for capacity in capacities]


def leads(trace: Trace, *capacities: int, promote: bool = True) -> list[int]:
    tiers = tiers_of(trace, *capacities, promote=promote)
    return list(Simulation(trace, trace.ids(), tiers, TraceTime()).run().leads)


class LruModel:
    """Leaf-LRU as it is defined, and nothing about how to be quick."""

    def __init__(self, trace: Trace, capacity: int) -> None:
        self._trace = trace
        self._capacity = capacity
        self._used_at: dict[int, int] = {}

    def leads(self) -> list[int]:
        return [self._request(r, list(self._trace.chain(r))) for r in range(len(self._trace))]

    def _request(self, number: int, chain: list[int]) -> int:
        lead = next((i for i, b in enumerate(chain) if b not in self._used_at), len(chain))
        stays = chain[: self._capacity]
        for block in stays:
            self._used_at[block] = number
        while len(self._used_at) > self._capacity:
            parents = {self._trace.parents[b] for b in self._used_at}
            leaves = [b for b in self._used_at if b not in parents and b not in stays]
            del self._used_at[min(leaves, key=lambda b: self._used_at[b])]
        return lead


@pytest.mark.parametrize("group", [1, 3, 16])
@pytest.mark.parametrize("capacity", [1, 2, 5, 20, 200])
def test_leaf_lru_is_what_it_is_defined_to_be(capacity: int, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "GROUP_BLOCKS", group)
    chance = random.Random(capacity)
    trace = trace_of(*["".join(chance.choices("ab", k=chance.randint(1, 6))) for _ in range(200)])
    ties = LruModel(trace, capacity).leads()
    assert abs(sum(leads(trace, capacity)) - sum(ties)) <= 0.05 * sum(ties) + 2  # leaves of one request are equals
    assert sum(leads(trace, trace.unique)) == trace.references - trace.unique


def test_only_the_leading_run_counts() -> None:
    trace = trace_of("ab", "cd", "ab", "xb")
    assert leads(trace, 4) == [0, 0, 2, 0]


def test_a_request_keeps_its_own_blocks() -> None:
    assert leads(trace_of("abc", "xyz", "abd", "abd"), 3) == [0, 0, 0, 3]


def test_a_chain_longer_than_the_tier_keeps_its_beginning() -> None:
    long = range(100)
    assert leads(trace_of(long, long, long), 7) == [0, 7, 7]


@pytest.mark.parametrize("shares", [(7, 30), (1, 36), (20, 10, 7)])
def test_a_chain_longer_than_all_tiers_keeps_its_beginning(shares: tuple[int, ...]) -> None:
    long = range(100)
    assert leads(trace_of(long, long, long), *shares)[1:] == [37, 37]


def test_without_promotion_a_hit_below_stays_there() -> None:
    trace = trace_of("ab", "cd", "ab", "ab")
    tiers = tiers_of(trace, 2, 2, promote=False)
    assert list(Simulation(trace, trace.ids(), tiers, TraceTime()).run().leads) == [0, 0, 2, 2]
    upper, lower = (t.flows for t in tiers)
    assert (upper.read, lower.read, lower.promoted, upper.demoted) == (0, 4, 0, 2)


def test_with_promotion_the_tiers_swap() -> None:
    trace = trace_of("ab", "cd", "ab", "ab")
    tiers = tiers_of(trace, 2, 2)
    assert list(Simulation(trace, trace.ids(), tiers, TraceTime()).run().leads) == [0, 0, 2, 2]
    upper, lower = (t.flows for t in tiers)
    assert (upper.read, lower.read, lower.promoted) == (2, 2, 2)
    assert (upper.written, lower.written, upper.demoted) == (6, 4, 4)


@pytest.mark.parametrize("shares", [(40,), (10, 30), (30, 10), (5, 10, 25)])
@pytest.mark.parametrize("name", sorted(EVICTION))
def test_no_block_gets_lost_or_doubled(name: str, shares: tuple[int, ...]) -> None:
    trace = random_trace(1)
    ids = trace.ids()
    numbers = {block_id: n for n, block_id in enumerate(ids)}
    tiers = [Tier(EVICTION[name](), share, ids, numbers, 100) for share in shares]
    outcome = Simulation(trace, ids, tiers, TraceTime()).run()
    flows = [t.flows for t in tiers]
    assert sum(f.read for f in flows) == sum(outcome.leads)
    for at, (tier, f) in enumerate(zip(tiers, flows, strict=True)):
        assert f.written == tier.used + f.demoted + f.promoted + f.dropped
        from_below = flows[at + 1].promoted if at + 1 < len(flows) else 0
        if at:
            assert f.written == flows[at - 1].demoted + from_below
        assert len(tier.policy) == tier.used <= tier.capacity
        left = [tier.policy.pop() for _ in range(tier.used)]
        assert len({b for b in left if b is not None}) == tier.used


@pytest.mark.parametrize("name", sorted(EVICTION))
@pytest.mark.parametrize("capacity", [5, 30, 100])
def test_no_policy_beats_the_bound(name: str, capacity: int) -> None:
    for trace in (random_trace(2), generate("generate:conversation?requests=200&rate=1")):
        tiers = tiers_of(trace, capacity, policy=EVICTION[name])  # type: ignore[arg-type]
        outcome = Simulation(trace, trace.ids(), tiers, TraceTime()).run()
        assert sum(outcome.leads) <= sum(belady.leads(trace, capacity))


class Newest:
    """Gives away the leaf that was used last: what is not held of a request goes first."""

    def __init__(self) -> None:
        self.parents: dict[int, int] = {}
        self.clocks: dict[int, int] = {}
        self.held = Counter[int]()

    def __len__(self) -> int:
        return len(self.parents)

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        self.parents[block], self.clocks[block] = parent, clock

    def touch(self, block: int, clock: int) -> None:
        self.clocks[block] = clock

    def remove(self, block: int) -> None:
        del self.parents[block]

    def pop(self) -> int | None:
        leaves = set(self.parents) - set(self.parents.values()) - set(+self.held)
        victim = max(leaves, key=lambda b: self.clocks[b], default=None)
        if victim is not None:
            self.remove(victim)
        return victim

    def hold(self, block: int) -> None:
        self.held[block] += 1

    def release(self, block: int) -> None:
        self.held[block] -= 1

    def hint(self, block: int, hint: Hint) -> None:
        pass


def test_what_a_new_block_extends_is_held() -> None:
    trace = trace_of("ab", "xy", "abcde", "abcde")
    tiers = tiers_of(trace, 4, policy=Newest)
    assert list(Simulation(trace, trace.ids(), tiers, TraceTime()).run().leads) == [0, 0, 2, 4]


def test_the_lead_is_held_in_the_last_tier() -> None:
    trace = trace_of("ab", "cd", "e", "abf", "abf")
    tiers = tiers_of(trace, 2, 3, promote=False, policy=Newest)
    assert list(Simulation(trace, trace.ids(), tiers, TraceTime()).run().leads) == [0, 0, 0, 2, 3]


def test_nothing_is_stored_behind_what_found_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulate, "GROUP_BLOCKS", 1)
    trace = trace_of("x", "y", "z", "abcdef")
    tiers = tiers_of(trace, 4, 2, policy=Newest)
    Simulation(trace, trace.ids(), tiers, TraceTime()).run()
    stored = {b for t in tiers for b in t.policy.parents}  # type: ignore[attr-defined]
    ids = trace.ids()
    assert [ids[b] in stored for b in trace.chain(3)] == [True, True, False, True, False, False]


class Spy(LeafLru):
    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[int, int, int, int]] = []
        self.clocks: list[int] = []
        self.hints: list[tuple[int, Hint]] = []

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        self.added.append((block, parent, clock, nbytes))
        self.clocks.append(clock)
        super().add(block, parent, clock, nbytes)

    def touch(self, block: int, clock: int) -> None:
        self.clocks.append(clock)
        super().touch(block, clock)

    def hint(self, block: int, hint: Hint) -> None:
        self.hints.append((block, hint))
        super().hint(block, hint)


def spied(trace: Trace, kind: HintKind = HintKind.NONE) -> Spy:
    (tier,) = tiers_of(trace, trace.unique, policy=Spy)
    Simulation(trace, trace.ids(), [tier], TraceTime()).run(make_hints(trace, kind, seed=3))
    assert isinstance(tier.policy, Spy)
    return tier.policy


def test_a_policy_sees_ids_parents_sizes_and_a_clock_that_rises() -> None:
    trace = trace_of("ab", "ac")
    a, b, c = trace.ids()[1:]
    spy = spied(trace)
    assert {(block, parent, nbytes) for block, parent, _, nbytes in spy.added} == {
        (a, 0, 100),
        (b, a, 100),
        (c, a, 100),
    }
    assert spy.clocks == sorted(set(spy.clocks))


def test_hints_say_which_sessions_are_over_and_leave_out_what_is_shared() -> None:
    trace = trace_of("pab", "pxy", "pabc", sessions="121")
    p, a, b, x, y, c = trace.ids()[1:]
    assert spied(trace, HintKind.SESSIONS).hints == [(n, Hint(ended=True)) for n in (y, x, c, b, a)]
    assert p not in dict(spied(trace, HintKind.SESSIONS).hints)


def test_full_hints_say_when_the_next_request_comes_about() -> None:
    trace = trace_of("ab", "ab", "ab", sessions="111")
    b, a = reversed(trace.ids()[1:])
    hints = spied(trace, HintKind.FULL).hints
    assert [block for block, _ in hints] == [b, a] * 3
    assert hints[-1][1] == Hint(ended=True)
    assert hints[:4] == spied(trace, HintKind.FULL).hints[:4]
    assert all(
        h.returns_at is not None and r < h.returns_at < r + 1 * 2.72 ** (5 * NOISE_SIGMA)
        for r, (_, h) in zip((0, 0, 1, 1), hints, strict=False)
    )


def test_no_hints_unless_asked() -> None:
    assert spied(trace_of("ab", "ab", sessions="11")).hints == []


def test_the_clock_of_a_policy_is_that_of_the_trace() -> None:
    seen, now = [], TraceTime()

    class Timed(LeafLru):
        def touch(self, block: int, clock: int) -> None:
            seen.append(now())
            super().touch(block, clock)

    trace = trace_of("a", "a", "b", "a")
    Simulation(trace, trace.ids(), tiers_of(trace, 2, policy=Timed), now).run()
    assert seen == [1.0, 3.0]


class Inventor(LeafLru):
    def pop(self) -> int | None:
        return 12345


class Repeater(LeafLru):
    def pop(self) -> int | None:
        victim = super().pop()
        if victim is not None:
            self.first = getattr(self, "first", victim)
        return self.first


class Forgetter(LeafLru):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("policy", "says"),
    [(Inventor, "gave 12345, which is not"), (Repeater, "which is not in the tier"), (Forgetter, r"len\(\) is 0")],
)
def test_a_policy_that_does_what_none_may(policy: type, says: str) -> None:
    trace = random_trace(3)
    with pytest.raises(PolicyFault, match=says):
        Simulation(trace, trace.ids(), tiers_of(trace, 20, policy=policy), TraceTime()).run()


def test_memory_of_a_policy_is_what_it_says_or_what_it_reaches() -> None:
    class Says:
        nbytes = 77

    class Holds:
        def __init__(self, count: int) -> None:
            self.ids = array("Q", range(count))
            self.more = [bytearray(count), bytearray(count)]
            self.code = random

    assert policy_bytes(Says()) == 77  # type: ignore[arg-type]
    small, large = (policy_bytes(Holds(n)) for n in (0, 10_000))  # type: ignore[arg-type]
    assert large - small >= 100_000
    assert small < 5_000


TABLE = {
    "mooncake_synthetic.jsonl": ((0.038, 0.157, 0.262, 0.393), (0.185, 0.396, 0.506, 0.608)),
    "agent_miniswe": ((0.236, 0.665, 0.792, 0.927), (0.236, 0.665, 0.792, 0.927)),
}


@pytest.mark.slow
@pytest.mark.skipif("KVTIER_TRACES" not in os.environ, reason="KVTIER_TRACES names a folder with the public traces")
@pytest.mark.parametrize("name", TABLE)
def test_the_published_figures(name: str) -> None:
    trace = read_trace(Path(os.environ["KVTIER_TRACES"]) / name)
    for share, lru, bound in zip((0.01, 0.05, 0.1, 0.2), *TABLE[name], strict=True):
        capacity = int(trace.unique * share)
        assert sum(leads(trace, capacity)) / trace.references == pytest.approx(lru, abs=0.001)
        assert sum(belady.leads(trace, capacity)) / trace.references == pytest.approx(bound, abs=0.001)
