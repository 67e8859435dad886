"""Which blocks a tier takes in, and which go up: by policy, and within a budget of bytes a day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kvtier import BlockState, Hit, Store
from kvtier.events import Event, PolicyDisabled, WriteBudgetSpent
from kvtier.policy.base import Candidate
from tests.clocks import HandClock
from tests.stores import KIB, MIB, config, disk_tier, fill, names, noise, settle, tier, value_of

SIZE = 100 * KIB
DAY_S = 86_400.0


def opened(folder: Path, *tiers: dict[str, Any], ram: int = 8 * MIB, **options: Any) -> Store:
    return Store.open(config(folder, *tiers, ram=ram), background=False, **options)


def on_disk(store: Store, keys: list[bytes]) -> list[bytes]:
    """Those of the keys that a disk tier has, whatever RAM has."""
    assert store._back is not None
    return [k for k in keys if store._back.has(store._wanted(k, b""))]


def again(store: Store, keys: list[bytes]) -> None:
    """Put the same values once more, as someone does who did not find them."""
    parent = None
    for key in keys:
        store.put(key, noise(key, SIZE), parent=parent)
        parent = key
    store.flush()


# -- second touch ------------------------------------------------------------------------------------


def test_what_is_put_once_is_not_written(tmp_path: Path) -> None:
    keys = names(5)
    with opened(tmp_path, tier(admission="second-touch")) as store:
        fill(store, keys, SIZE, chain=True)
        stats = store.stats()
        assert (stats.bytes_written, stats.counters["not_admitted"], stats.ram.waiting) == (0, 5, 5)
        assert store.match(keys) == 5  # in RAM, and to look is not to use
        assert store.explain(keys[0]).state is BlockState.RAM
    with opened(tmp_path, tier(admission="second-touch")) as store:
        assert store.match(keys) == 0


def test_what_was_not_admitted_says_so(tmp_path: Path) -> None:
    with opened(tmp_path, tier(admission="second-touch"), ram=0) as store:
        fill(store, [b"k"], SIZE)
        assert store.explain(b"k").state is BlockState.NOT_ADMITTED
        assert "not admitted to tier 'disk'" in str(store.explain(b"k"))


def test_the_second_put_is_written(tmp_path: Path) -> None:
    keys = names(5)
    with opened(tmp_path, tier(admission="second-touch"), ram=0) as store:
        fill(store, keys, SIZE, chain=True)
        assert store.match(keys) == 0
        again(store, keys)
        assert on_disk(store, keys) == keys
        again(store, keys)
        assert store.stats().counters["not_admitted"] == 5


def test_a_hit_in_ram_writes_what_was_put_off(tmp_path: Path) -> None:
    keys = names(6)
    with opened(tmp_path, tier(admission="second-touch")) as store:
        values = fill(store, keys, SIZE, chain=True)
        assert all(store.get_many(keys[:4]))
        assert store.contains(keys[5])  # no use
        settle(store)
        assert on_disk(store, keys) == keys[:4]
        assert store.stats().ram.waiting == 2
    with opened(tmp_path, tier(admission="second-touch"), ram=0) as store:
        assert [value_of(store.get(k)) for k in keys[:4]] == list(values.values())[:4]


def test_a_hit_on_the_end_of_a_chain_writes_its_beginning_too(tmp_path: Path) -> None:
    keys = names(5)
    with opened(tmp_path, tier(admission="second-touch")) as store:
        fill(store, keys, SIZE, chain=True)
        assert store.get(keys[3])
        settle(store)
        assert on_disk(store, keys) == keys[:4]
        assert store.stats().ram.waiting == 1


def test_another_value_of_a_stored_block_is_written_at_once(tmp_path: Path) -> None:
    with opened(tmp_path, tier(admission="second-touch"), ram=0) as store:
        store.put(b"k", b"one")
        store.flush()
        store.put(b"k", b"one")
        store.flush()
        store.put(b"k", b"two")
        store.flush()
        assert value_of(store.get(b"k")) == b"two"


def test_what_was_put_off_and_deleted_does_not_come_back(tmp_path: Path) -> None:
    keys = names(3)
    with opened(tmp_path, tier(admission="second-touch")) as store:
        fill(store, keys, SIZE, chain=True)
        assert store.delete(keys[0])
        assert store.get(keys[2])
        settle(store)
        assert on_disk(store, keys) == keys[1:]
        assert not store.get(keys[0])


# -- the shortest chain ------------------------------------------------------------------------------


def test_a_chain_is_written_as_soon_as_it_is_long_enough(tmp_path: Path) -> None:
    keys = names(6)
    with opened(tmp_path, tier(admission="min-chain", admission_blocks_min=4)) as store:
        values = {}
        parent = None
        for i, key in enumerate(keys):
            values[key] = noise(key, SIZE)
            store.put(key, values[key], parent=parent)
            store.flush()
            assert on_disk(store, keys) == ([] if i < 3 else keys[: i + 1])
            parent = key
        assert store.stats().ram.waiting == 0
    with opened(tmp_path, tier(admission="min-chain"), ram=0) as store:
        assert {k: value_of(store.get(k)) for k in keys} == values


def test_a_short_branch_of_a_stored_chain_is_not_written(tmp_path: Path) -> None:
    keys = names(4)
    with opened(tmp_path, tier(admission="min-chain", admission_blocks_min=4)) as store:
        fill(store, keys, SIZE, chain=True)
        store.put(b"third", b"x", parent=keys[1])
        store.put(b"fifth", b"x", parent=keys[3])
        store.flush()
        assert on_disk(store, [b"third", b"fifth"]) == [b"fifth"]


def test_without_ram_a_chain_has_to_come_at_once(tmp_path: Path) -> None:
    keys = names(4)
    with opened(tmp_path, tier(admission="min-chain", admission_blocks_min=4), ram=0) as store:
        fill(store, keys[:3], SIZE, chain=True)
        assert on_disk(store, keys) == []
        fill(store, keys, SIZE, chain=True)  # one group
        assert on_disk(store, keys) == keys


def test_a_ring_of_parents_ends(tmp_path: Path) -> None:
    with opened(tmp_path, tier(admission="min-chain", admission_blocks_min=3)) as store:
        store.put(b"a", b"1", parent=b"b")
        store.put(b"b", b"2", parent=b"a")
        store.put(b"c", b"3", parent=b"c")
        store.flush()
        assert value_of(store.get(b"a")) == b"1"
        assert store.stats().counters["not_admitted"] == 3


# -- the budget --------------------------------------------------------------------------------------


def test_a_day_of_writing_is_bounded(tmp_path: Path) -> None:
    keys = names(30)
    clock, events = HandClock(), list[Event]()
    t = tier(admission="write-budget", write_bytes_per_day=MIB)
    with opened(tmp_path, t, ram=0, clock=clock, listeners=[events.append]) as store:
        fill(store, keys[:5], SIZE)
        fill(store, keys[5:20], SIZE, chain=True)
        written = store.stats().bytes_written
        assert MIB - 2 * SIZE < written <= MIB
        stored = on_disk(store, keys)
        assert stored == keys[: len(stored)]  # a chain keeps its beginning
        assert store.explain(keys[19]).state is BlockState.NOT_ADMITTED
        assert [e for e in events if isinstance(e, WriteBudgetSpent)] == [WriteBudgetSpent("disk", MIB)]
        clock.advance(DAY_S / 2)
        fill(store, keys[20:], SIZE)
        more = store.stats().bytes_written - written
        assert MIB // 2 - 2 * SIZE < more <= MIB // 2 + 2 * SIZE
        assert len([e for e in events if isinstance(e, WriteBudgetSpent)]) == 1
        clock.advance(DAY_S)
        fill(store, names(20, "later"), SIZE)
        assert len([e for e in events if isinstance(e, WriteBudgetSpent)]) == 2


def test_what_extends_a_block_without_a_budget_has_none_either(tmp_path: Path) -> None:
    with opened(tmp_path, tier(write_bytes_per_day=MIB), ram=0, clock=HandClock()) as store:
        fill(store, names(8), SIZE)
        store.put(b"large", noise(1, 400 * KIB))
        store.put(b"small", b"x", parent=b"large")
        store.put(b"other", b"x")
        store.flush()
        assert on_disk(store, [b"large", b"small", b"other"]) == [b"other"]


def test_a_read_asks_again_only_if_there_is_a_budget(tmp_path: Path) -> None:
    clock, keys = HandClock(), names(20)
    with opened(tmp_path, tier(write_bytes_per_day=MIB), clock=clock) as store:
        fill(store, keys, SIZE)
        waiting = next(k for k in keys if k not in on_disk(store, keys))
        budget = disk_tier(store).gate.budget
        assert budget is not None
        budget.spend(budget.left)  # to the last byte
        assert store.get(waiting)
        assert store.stats().queue.blocks == 0
        clock.advance(DAY_S)
        assert store.get(waiting)
        assert store.stats().queue.blocks == 1


@pytest.mark.parametrize(("seconds", "blocks"), [(0, 0), (DAY_S / 2, 5), (-DAY_S, 0), (1000 * DAY_S, 10)])
def test_a_budget_outlives_the_process_and_any_jump_of_the_clock(tmp_path: Path, seconds: float, blocks: int) -> None:
    t = tier(write_bytes_per_day=10 * SIZE + 20 * KIB)
    clock = HandClock()
    with opened(tmp_path, t, ram=0, clock=clock) as store:
        fill(store, names(20), SIZE)
        assert len(on_disk(store, names(20))) == 10
    clock.wall += seconds
    with opened(tmp_path, t, ram=0, clock=clock) as store:
        more = names(20, "more")
        fill(store, more, SIZE)
        assert len(on_disk(store, more)) in (blocks, blocks - 1 if blocks else 0)


def test_what_is_stored_stays_when_it_is_put_again_without_a_budget(tmp_path: Path) -> None:
    keys = names(20)
    with opened(tmp_path, tier(write_bytes_per_day=MIB), ram=0, clock=HandClock()) as store:
        fill(store, keys, SIZE)
        stored = on_disk(store, keys)
        again(store, stored[:1])
        assert on_disk(store, keys) == stored
        store.put(stored[0], noise("other", SIZE))  # this one cannot be written, so the old value must go
        store.flush()
        assert not store.get(stored[0])


# -- lower tiers -------------------------------------------------------------------------------------


def ladder(folder: Path, **lower: Any) -> Store:
    return opened(folder, tier("t0", bytes_max=2 * MIB), tier("t1", **lower), ram=0, clock=HandClock())


def test_what_is_not_admitted_below_is_dropped(tmp_path: Path) -> None:
    keys = names(40)
    with ladder(tmp_path, admission="second-touch") as store:
        fill(store, keys, SIZE)
        assert disk_tier(store, 1).bytes_written == 0
        assert store.stats().counters["evictions"] == store.stats().counters["not_admitted"] > 20
        assert store.explain(keys[0]).state is BlockState.EVICTED
        fill(store, keys[:15], SIZE)  # the ones that come a second time
        fill(store, names(40, "more"), SIZE)
        assert len(on_disk(store, keys[:15])) >= 14  # one in 60 times, another id falls on the slot of one


def test_what_was_read_above_is_admitted_below_with_its_chain(tmp_path: Path) -> None:
    keys = names(8)
    with ladder(tmp_path, admission="second-touch") as store:
        values = fill(store, keys, SIZE, chain=True)
        assert all(store.get_many(keys[:5]))
        fill(store, names(40, "more"), SIZE)
        assert on_disk(store, keys) == keys[:5]
        assert [value_of(store.get(k)) for k in keys[:5]] == list(values.values())[:5]
        assert {i.tier for k in keys[:5] if (i := store.info(k))} == {"t1"}


def test_a_long_chain_goes_down_whole_and_a_short_one_not_at_all(tmp_path: Path) -> None:
    long, short = names(6, "long"), names(3, "short")
    with ladder(tmp_path, admission="min-chain", admission_blocks_min=5) as store:
        fill(store, long, SIZE, chain=True)
        fill(store, short, SIZE, chain=True)
        fill(store, names(40, "more"), SIZE)
        assert on_disk(store, long) == long
        assert on_disk(store, short) == []


def test_nothing_goes_up_or_down_beyond_the_budget(tmp_path: Path) -> None:
    keys = names(60)
    upper = tier("t0", bytes_max=2 * MIB, write_bytes_per_day=8 * MIB)
    clock = HandClock()
    with opened(tmp_path, upper, tier("t1", write_bytes_per_day=3 * MIB), ram=0, clock=clock) as store:
        fill(store, keys, SIZE)
        t0, t1 = store.stats().tiers
        assert 2 * MIB < t1.bytes_written <= 3 * MIB
        kept = [k for k in on_disk(store, keys) if store.info(k).tier == "t1"]  # type: ignore[union-attr]
        for key in kept * 3:  # up, and what makes room for it down, or out
            store.get(key)
            settle(store)
        t0, t1 = store.stats().tiers
        assert t0.bytes_written <= 8 * MIB
        assert t1.bytes_written <= 3 * MIB
        assert store.stats().counters["promotions"] > 5


# -- promotion ---------------------------------------------------------------------------------------


def test_the_second_hit_moves_a_block_up(tmp_path: Path) -> None:
    keys = names(40)
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1", promotion="second-hit")]
    with opened(tmp_path, *tiers, ram=0) as store:
        fill(store, keys, SIZE)
        places = []
        for _ in range(2):
            assert store.get(keys[0])
            settle(store)
            places.append(store.info(keys[0]).tier)  # type: ignore[union-attr]
        assert places == ["t1", "t0"]
        assert store.get(keys[1])
        settle(store)
        assert store.stats().counters["promotions"] == 1


# -- policies of others ------------------------------------------------------------------------------


class OnlyEven:
    """Takes in every other block."""

    def __init__(self) -> None:
        self.count = 0

    def admit(self, block: Candidate) -> bool:
        self.count += 1
        return self.count % 2 == 0

    def used(self, block: int) -> bool:
        return False


class Fails:
    """Raises whenever it is asked."""

    def admit(self, block: Candidate) -> bool:
        raise RuntimeError("no idea")

    def used(self, block: int) -> bool:
        raise RuntimeError("no idea")

    def promote(self, block: int) -> bool:
        raise RuntimeError("no idea")


def test_a_policy_of_another_package(tmp_path: Path) -> None:
    keys = names(6)
    with opened(tmp_path, tier(admission=f"{__name__}:OnlyEven")) as store:
        fill(store, keys, SIZE)
        assert on_disk(store, keys) == keys[1::2]


def test_a_policy_that_fails_is_replaced_by_the_default(tmp_path: Path) -> None:
    keys = names(40)
    events = list[Event]()
    top = tier("t0", bytes_max=2 * MIB, admission=f"{__name__}:Fails")
    tiers = [top, tier("t1", admission=f"{__name__}:Fails", promotion=f"{__name__}:Fails")]
    with opened(tmp_path, *tiers, ram=0, listeners=[events.append]) as store:
        values = fill(store, keys, SIZE)
        for key in keys:
            assert value_of(store.get(key)) == values[key]
            settle(store)
        told = [(e.tier, e.policy, e.reason) for e in events if isinstance(e, PolicyDisabled)]
        assert told == [(t, "Fails", "RuntimeError: no idea") for t in ("t0", "t1", "t1")]
        assert store.stats().counters["policies_disabled"] == 3
        assert store.stats().counters["promotions"] > 0
        assert isinstance(store.get(keys[0]), Hit)


def test_what_a_budget_has_no_room_for_does_not_fill_the_queue(tmp_path: Path) -> None:
    """A budget that is spent is never far from a block; what is asked for again together wants the same of it."""
    clock = HandClock()
    a_day = 20 * (SIZE + KIB)
    limited = tier(admission="write-budget", write_bytes_per_day=a_day)
    with opened(tmp_path, limited, ram=16 * MIB, clock=clock) as store:
        keys = names(80)
        fill(store, keys, SIZE)
        refused = [key for key in keys if key not in on_disk(store, keys)]
        assert len(refused) == 60
        for _ in range(5):
            clock.advance(DAY_S / 20 * 1.5)
            before = len(on_disk(store, keys))
            assert all(store.get_many(keys))
            assert store.stats().queue.blocks <= 2
            settle(store)
            assert len(on_disk(store, keys)) > before
