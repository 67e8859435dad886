"""Replays with admission, budgets, RAM, times to live, pins, quotas and restores that last."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kvtier.config.tier_model import ModeledNamespace, TierModelFile
from kvtier.errors import ConfigError
from kvtier.policy.base import Candidate, Hint
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.replay.capacity import Capacity
from kvtier.replay.cost import CostModel
from kvtier.replay.generator import generate
from kvtier.replay.hints import HintKind, make_hints, with_priorities
from kvtier.replay.measure import Replay, Row
from kvtier.replay.namespaces import assigned
from kvtier.replay.tier_model import TierModel, read_tier_model
from kvtier.replay.trace import Chains, Request, Trace, make_trace
from kvtier.tiers.limits import BLOCK_OVERHEAD_BYTES

SIZE = 1000
QUOTA = SIZE + BLOCK_OVERHEAD_BYTES  # what a block counts
DAY_S = 86_400.0
ONE = {"name": "disk", "share": 1}


def trace_of(*requests: str, times: dict[int, float] | None = None, namespaces: str = "") -> Trace:
    """A request is a chain of letters, which stand for themselves and all before them; one a second."""
    chains, numbers, made = Chains(), dict[tuple[int, str], int](), []
    for at, names in enumerate(requests):
        parent, blocks = 0, []
        for name in names:
            if (parent, name) not in numbers:
                numbers[parent, name] = chains.extend(parent)
            parent = numbers[parent, name]
            blocks.append(parent)
        namespace = namespaces[at] if namespaces else ""
        made.append(Request((times or {}).get(at, float(at)), len(blocks), blocks, f"s{at}", namespace.strip()))
    return make_trace("made", 1, made, chains.parents)


def model_of(**said: Any) -> TierModel:
    file = TierModelFile.model_validate({"block_bytes": SIZE, "tier": [ONE], **said})
    return TierModel(CostModel("test", 1.0, 1.0, 1), file)


def row_of(trace: Trace, capacity: int, policy: Any = LeafLru, **said: Any) -> Row:
    row = Replay(trace, model_of(**said), {"p": policy, "leaf-lru": LeafLru}).run("p", Capacity("c", capacity))
    assert row.error is None, row.error
    return row


def hits(row: Row, trace: Trace) -> int:
    assert row.hit_ratio is not None
    return round(row.hit_ratio * trace.references)


def blocks(row: Row, name: str, tier: int = 0) -> int:
    nbytes = row.tiers[tier][f"bytes_{name}"]
    assert isinstance(nbytes, int)
    return nbytes // SIZE


# -- admission and wear ----------------------------------------------------------------------------------------------


def test_second_touch_writes_what_comes_again() -> None:
    trace = trace_of("ab", "cd", "ab", "ab")
    row = row_of(trace, 6, tier=[ONE | {"admission": "second-touch"}])
    assert (hits(row, trace), blocks(row, "written"), blocks(row, "not_admitted")) == (2, 2, 4)


def test_what_is_not_admitted_is_in_ram_and_comes_in_when_it_is_read_there() -> None:
    trace = trace_of("ab", "ab", "cdefgh", "ab")
    said: dict[str, Any] = {"tier": [{"name": "disk", "share": 4, "admission": "second-touch"}]}
    row = row_of(trace, 6, ram={"share": 2}, **said)
    assert hits(row, trace) == 4  # from RAM, and from disk when RAM has had others
    assert (blocks(row, "read", 0), blocks(row, "read", 1), blocks(row, "written", 1)) == (2, 2, 2)
    assert hits(row_of(trace, 6, tier=[ONE | {"admission": "second-touch"}]), trace) == 2


def test_a_chain_is_taken_in_from_its_start_as_soon_as_it_is_long_enough() -> None:
    trace = trace_of("ab", "abc", "x", "abc")
    long = {"name": "disk", "share": 10, "admission": "min-chain", "admission_blocks_min": 3}
    row = row_of(trace, 14, ram={"share": 4}, tier=[long])
    assert blocks(row, "written", 1) == 3
    assert blocks(row, "not_admitted", 1) == 3  # a and b at first, and x


@pytest.mark.parametrize("ram", [{}, {"ram": {"share": 1}}])
def test_no_more_is_written_than_the_budget_allows(ram: dict[str, Any]) -> None:
    trace = generate("generate:conversation?requests=300&rate=0.0003")  # for some days
    days = trace.times[-1] / DAY_S
    free = row_of(trace, 200, tier=[ONE], **ram)
    budget = 100 * SIZE
    row = row_of(trace, 200, tier=[ONE | {"write_bytes_per_day": budget}], **ram)
    assert free.bytes_written is not None
    assert row.bytes_written is not None
    assert days > 1
    assert free.bytes_written > 2 * budget * (1 + days)
    assert 0.5 * budget * (1 + days) < row.bytes_written <= budget * (1 + days)
    assert blocks(row, "not_admitted", len(ram)) > 0
    assert "bytes_not_admitted" not in free.tiers[-1]


def test_a_lower_tier_takes_in_what_was_read_above() -> None:
    trace = trace_of("a", "b", "a", "c", "d", "e", "a", "b")
    lower = {"name": "t1", "share": 4, "admission": "second-touch", "promotion": "never"}
    row = row_of(trace, 6, tier=[{"name": "t0", "share": 2}, lower])
    assert hits(row, trace) == 2  # a, above and below; b was used once
    assert blocks(row, "written", 1) == 1
    assert blocks(row, "not_admitted", 1) > 0


def test_the_second_hit_goes_up() -> None:
    trace = trace_of("a", "b", "c", "a", "a", "a")
    flows = []
    for promotion in ("always", "second-hit", "never"):
        row = row_of(trace, 5, tier=[{"name": "t0", "share": 1}, {"name": "t1", "share": 4, "promotion": promotion}])
        flows.append((blocks(row, "read", 0), blocks(row, "read", 1), blocks(row, "promoted", 1)))
    assert flows == [(2, 1, 1), (1, 2, 1), (0, 3, 0)]


class Picky:
    """Takes in every other block."""

    def __init__(self) -> None:
        self.count = 0

    def admit(self, block: Candidate) -> bool:
        self.count += 1
        return self.count % 2 == 0

    def used(self, block: int) -> bool:
        return False


class Broken(Picky):
    def admit(self, block: Candidate) -> bool:
        raise ZeroDivisionError("by zero")


def test_a_policy_of_ones_own_decides() -> None:
    trace = trace_of(*"abcdef")
    row = row_of(trace, 6, tier=[ONE | {"admission": f"{__name__}:Picky"}])
    assert (blocks(row, "written"), blocks(row, "not_admitted")) == (3, 3)


def test_an_admission_policy_that_raises_is_an_error() -> None:
    model = model_of(tier=[ONE | {"admission": f"{__name__}:Broken"}])
    row = Replay(trace_of("ab"), model, {"p": LeafLru}).run("p", Capacity("c", 2))
    assert row.error == "PolicyFault: ZeroDivisionError: by zero"


# -- times to live, pins, priorities ---------------------------------------------------------------------------------


def test_what_has_expired_is_a_miss_and_lives_anew_once_it_is_put_again() -> None:
    trace = trace_of("ab", "ab", "ab", "ab", times={1: 9.0, 2: 11.0, 3: 20.0})
    row = row_of(trace, 2, ttl_s=10)
    assert (hits(row, trace), blocks(row, "expired"), blocks(row, "written")) == (4, 2, 4)


def test_a_gap_in_a_chain_is_filled() -> None:
    trace = trace_of("a", "ab", "abc", "abc", times={0: 0.0, 1: 5.0, 2: 11.0, 3: 12.0})
    row = row_of(trace, 3, ttl_s=10)  # of abc, a has expired when it comes, and b has not
    assert (hits(row, trace), blocks(row, "expired"), blocks(row, "written")) == (1 + 0 + 3, 1, 4)


def test_a_namespace_has_a_time_of_its_own() -> None:
    trace = trace_of("a", "a", "a", "a", times={1: 1.0, 2: 20.0, 3: 21.0}, namespaces="x x ")
    row = row_of(trace, 2, ttl_s=10, namespace=[{"name": "x", "ttl_s": 0}])
    assert [(n["name"], n["hit_ratio"]) for n in row.namespaces] == [("", 0.0), ("x", 0.5)]
    assert blocks(row, "expired") == 1


@pytest.mark.parametrize("ram", [{}, {"ram": {"share": 2}, "tier": [{"name": "disk", "share": 1}]}])
def test_what_is_pinned_stays(ram: dict[str, Any]) -> None:
    trace = trace_of("ab", "vw", "xy", "z", "ab")
    assert hits(row_of(trace, 3, **ram), trace) == 0
    trace = trace_of("ab", "vw", "xy", "z", "ab", namespaces="p   p")
    row = row_of(trace, 3, namespace=[{"name": "p", "pin_blocks": 1}], **ram)
    assert hits(row, trace) == 1


class Told(LeafLru):
    """Remembers what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.hints: list[Hint] = []

    def hint(self, block: int, hint: Hint) -> None:
        self.hints.append(hint)


def test_priorities_go_with_any_hints_and_from_tier_to_tier() -> None:
    trace = trace_of("a", "b", "c", namespaces="x  ")
    for kind, said in ((HintKind.NONE, Hint(priority=2)), (HintKind.SESSIONS, Hint(ended=True, priority=2))):
        made: list[Told] = []

        def policy(made: list[Told] = made) -> Told:
            made.append(Told())
            return made[-1]

        hints = with_priorities(trace, make_hints(trace, kind, 1), {"x": 2})
        model = model_of(tier=[{"name": "t0", "share": 1}, {"name": "t1", "share": 2}])
        row = Replay(trace, model, {"p": policy}, hints).run("p", Capacity("c", 3))
        assert row.error is None
        upper, lower = made
        assert said in upper.hints
        assert said in lower.hints


# -- quotas and namespaces -------------------------------------------------------------------------------------------


def test_who_is_at_a_quota_evicts_its_own() -> None:
    trace = trace_of("ab", "xy", "cd", "xy", "cd", "ab", namespaces="qnqnqq")
    row = row_of(trace, 6, quota=[{"namespace": "q", "bytes_max": 2 * QUOTA}])
    assert {n["name"]: n["hit_ratio"] for n in row.namespaces} == {"q": 0.25, "n": 0.5}
    assert blocks(row, "quota_evicted") == 4
    assert hits(row_of(trace, 6), trace) == 6


def test_a_chain_longer_than_its_quota_keeps_its_beginning() -> None:
    trace = trace_of("abcde", "abcde")
    row = row_of(trace, 5, quota=[{"bytes_max": "60%"}])
    assert (hits(row, trace), blocks(row, "over_quota"), blocks(row, "written")) == (3, 2 + 2, 3)


def test_namespaces_share_no_blocks() -> None:
    trace = trace_of("ab", "ab", "ab", namespaces="x x")
    assert trace.unique == 4
    assert [list(trace.chain(r)) for r in range(3)] == [[1, 2], [3, 4], [1, 2]]


def test_sessions_are_put_in_namespaces_by_name_and_by_share() -> None:
    trace = trace_of(*["ab"] * 200)
    rules = [ModeledNamespace(name="one", sessions="s1?"), ModeledNamespace(name="some", sessions="25%")]
    made = assigned(trace, rules)
    names = [made.namespace_names[n] for n in made.namespaces]
    assert names[10:20] == ["one"] * 10
    assert 30 < Counter(names)["some"] < 70
    assert names == [assigned(trace, rules).namespace_names[n] for n in made.namespaces]
    assert made.unique == 2 * 3
    said = trace_of("a", "b", namespaces="z ")
    everyone = assigned(said, [ModeledNamespace(name="all", sessions="100%")])
    assert [everyone.namespace_names[n] for n in everyone.namespaces] == ["z", "all"]


# -- restores that last ----------------------------------------------------------------------------------------------


def test_a_chain_is_protected_while_it_is_restored() -> None:
    trace = trace_of("ab", "cd", "ab", "cd", "x", "ab", times={4: 3.5, 5: 4.0})
    slow = [ONE | {"read_bytes_per_second": SIZE // 2}]
    row = row_of(trace, 4, tier=slow)  # ab is being read until 6, cd until 7: nothing else is left when x comes
    assert row.restores_cut == 2
    trace = trace_of("ab", "cd", "ab", "e", "x", "y", "cd", "ab", times={4: 3.1, 5: 3.2, 6: 3.3, 7: 3.4})
    assert [hits(row_of(trace, 4, tier=t), trace) for t in (slow, [ONE])] == [4, 2]
    assert row_of(trace, 4, tier=slow).restores_cut == 0
    assert row_of(trace, 4).restores_cut is None


# -- what is wrong ---------------------------------------------------------------------------------------------------

WRONG = {
    '[[tier]]\nname = "a"\nshare = 1\nadmission = "often"': 'tier[0].admission: unknown admission "often"',
    '[[tier]]\nname = "a"\nshare = 1\nadmission_blocks_min = 3': "tier[0].admission_blocks_min: means nothing with",
    '[[tier]]\nname = "a"\nshare = 1\nadmission = "write-budget"': "tier[0].write_bytes_per_day: required key",
    '[[tier]]\nname = "a"\nshare = 1\nwrite_bytes_per_day = 0': "tier[0].write_bytes_per_day: 0B a day cannot hold",
    '[[tier]]\nname = "ram"\nshare = 1': "tier[0].name: 'ram' is reserved",
    "[ram]\nshare = 1": "ram: there is no tier below it",
    "ttl_s = -1": "ttl_s: input should be greater than or equal to 0",
    "[[quota]]\nbytes_max = 0": "quota[0].bytes_max: 0B leaves no room for a block at --capacity 50%",
    '[[quota]]\nbytes_max = "1TiB"': "quota[0].bytes_max: 1TiB is more than all tiers together at --capacity 50%",
    '[[quota]]\nnamespace = "x"\nbytes_max = "10%"': "quota[0].namespace: no request is in 'x'",
    '[[quota]]\nbytes_max = "50%"\n[[quota]]\nbytes_max = "50%"': "quota[1].namespace: the other namespaces have",
    '[[namespace]]\nname = "x"\nsessions = "no-*"': "namespace[0]: no request is in namespace 'x'",
    '[[namespace]]\nname = "x"\nsessions = 5': "namespace[0].sessions: 5 says no sessions",
    '[[namespace]]\nname = "x"\n[[namespace]]\nname = "x"': "namespace[1].name: 'x' is used twice",
    '[[namespace]]\nname = "x"\nsessions = "70%"\n[[namespace]]\nname = "y"\nsessions = "31%"': (
        "namespace: the shares of sessions are 101% together"
    ),
    '[[namespace]]\nname = "x"\npin_block = 3': "namespace[0].pin_block: unknown key (did you mean 'pin_blocks'?",
}


@pytest.mark.parametrize(("text", "says"), WRONG.items())
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "tiers.toml"
    file.write_text(text)
    trace = trace_of("ab", "cd")

    def read() -> None:
        model = read_tier_model(file, None)
        model.check(assigned(trace, model.said.namespace), {"50%": 2})

    with pytest.raises(ConfigError) as caught:
        read()
    assert any(str(p).startswith(f"{file}: {says}") for p in caught.value.problems), str(caught.value)
