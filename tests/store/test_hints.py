"""Hints reach the policies of all tiers, whenever their blocks come, and go with them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from kvtier import Config, Hint, Hit, LimitError, Store
from kvtier.policy import base
from kvtier.policy.eviction.leaf_lru import LeafLru
from tests.stores import KIB, MIB, config, fill, names, settle, tier

SIZE = 100 * KIB


class Important(LeafLru):
    """What has a priority above 0 is not evicted."""

    told: ClassVar[list[base.Hint]] = []

    def __init__(self) -> None:
        super().__init__()
        self._important: set[int] = set()

    def remove(self, block: int) -> None:
        super().remove(block)
        if block in self._important:
            self._important.remove(block)
            self.release(block)

    def hint(self, block: int, hint: base.Hint) -> None:
        self.told.append(hint)
        if hint.priority > 0 and block not in self._important:
            self._important.add(block)
            self.hold(block)
        elif hint.priority <= 0 and block in self._important:
            self._important.remove(block)
            self.release(block)


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    Important.told.clear()
    yield
    Important.told.clear()


def opened(folder: Path, *, ram: int = 0, tiers: int = 1) -> Store:
    made = [tier(f"t{i}", bytes_max=2 * MIB, eviction=f"{__name__}:Important") for i in range(tiers)]
    c = config(folder, *made, ram=ram)
    if ram:
        raw = c.model_dump(exclude_unset=True)
        raw["ram"]["eviction"] = f"{__name__}:Important"
        c = Config.from_dict(raw)
    return Store.open(c, background=False)


def test_a_hint_reaches_the_policy_of_a_disk_tier(tmp_path: Path) -> None:
    keys = names(3)
    with opened(tmp_path) as store:
        fill(store, keys, SIZE)
        store.hint(keys[:1], Hint(priority=1))
        fill(store, names(40, "more"), SIZE)
        assert [store.contains(k) for k in keys] == [True, False, False]
        store.hint(keys[:1], Hint())
        fill(store, names(40, "others"), SIZE)
        assert not store.contains(keys[0])
        assert store.stats().counters["hints"] == 2


def test_a_hint_waits_for_its_block_and_moves_with_it(tmp_path: Path) -> None:
    with opened(tmp_path, tiers=2) as store:
        fill(store, names(40), SIZE)  # so that the orders are loaded
        store.hint([b"later"], Hint(priority=1))
        settle(store)
        assert store.stats().hinted == 1
        fill(store, [b"later"], SIZE)
        fill(store, names(60, "more"), SIZE)
        assert store.contains(b"later")
        store.delete(b"later")
        store.flush()
        assert store.stats().hinted == 0  # it goes with its block
        fill(store, [b"later"], SIZE)
        fill(store, names(60, "others"), SIZE)
        assert not store.contains(b"later")


def test_a_hint_outlives_an_order_that_is_read_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, [b"k"], SIZE)
        store.hint([b"k"], Hint(priority=1))
        fill(store, names(20), SIZE)
        assert store._back is not None
        store._back.ladder.tiers[0].order.reset()
        fill(store, names(40, "more"), SIZE)
        assert store.contains(b"k")


def test_a_hint_reaches_the_policy_in_ram(tmp_path: Path) -> None:
    keys = names(3)
    with opened(tmp_path, ram=MIB, tiers=1) as store:
        store.hint(keys[:1], Hint(priority=1))
        fill(store, keys, SIZE)
        fill(store, names(15, "more"), SIZE)
        hit = store.get(keys[0])
        assert isinstance(hit, Hit)
        assert hit.tier == "ram"


def test_seconds_from_now_become_the_policys_clock(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        fill(store, names(40), SIZE)
        (key,) = [k for k in names(40) if store.contains(k)][:1]
        before = time.monotonic()
        store.hint([key], Hint(ended=True, returns_in=60.0, priority=-2))
        settle(store)
        (told,) = Important.told
        assert told.returns_at is not None
        assert before + 60 <= told.returns_at <= time.monotonic() + 60
        assert (told.ended, told.priority) == (True, -2)


@pytest.mark.parametrize("returns_in", [-1.0, float("inf"), float("nan")])
def test_a_time_that_is_none_is_refused(returns_in: float) -> None:
    with pytest.raises(LimitError):
        Hint(returns_in=returns_in)


def test_a_store_without_disks_takes_hints() -> None:
    raw = {"ram": {"bytes_max": 2 * MIB, "eviction": f"{__name__}:Important"}}
    with Store.open(Config.from_dict(raw)) as store:
        store.hint([b"k"], Hint(priority=1))
        fill(store, [b"k"], SIZE)
        fill(store, names(30), SIZE)
        assert store.get(b"k")
        assert store.stats().hinted == 1


def test_a_hint_is_not_for_what_is_put_after_a_deletion(tmp_path: Path) -> None:
    with opened(tmp_path, ram=MIB) as store:
        store.put(b"k", b"value")
        store.hint([b"k"], Hint(priority=1))
        store.flush()
        settle(store)
        store.delete(b"k")
        store.flush()
        Important.told.clear()
        store.put(b"k", b"another")
        store.flush()
        settle(store)
        assert Important.told == []
