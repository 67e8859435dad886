"""A store leaves disks and memory to others, as far as it is told to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kvtier import Config, FlushError, Store
from kvtier.events import Event, RamShrunk, TierGrown, TierShrunk
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.memory import Memory
from kvtier.testing import Call, FaultyFileSystem
from tests.clocks import HandClock
from tests.stores import KIB, MIB, config, disk_tier, fill, names, noise, occupied, settle, tier, value_of

DISK, FLOOR = 20 * MIB, 4 * MIB
GIB = 1 << 30


class Shared:
    """A disk of 20 MiB, which others use too."""

    def __init__(self, folder: Path, inner: FileSystem) -> None:
        self._folder = folder
        self.size = DISK
        self.others = 0
        self.clock = HandClock()
        self.events: list[Event] = []
        self.fs = FaultyFileSystem(inner)
        setattr(inner, "disk_free", lambda path: self.free)  # noqa: B010

    @property
    def free(self) -> int:
        return max(0, self.size - self.others - occupied(self._folder))

    def open(self, *tiers: dict[str, Any]) -> Store:
        settings = config(self._folder, *(tiers or (tier(bytes_max=14 * MIB, free_bytes_min=FLOOR),)))
        return Store.open(settings, fs=self.fs, clock=self.clock, background=False, listeners=[self.events.append])


def look(store: Store) -> int:
    """Do what is done in the background once a second; how many steps that took."""
    steps = 0
    for look_again in (True, False):
        while store._headroom.look() or look_again:
            look_again = False
            if store._back is not None:
                settle(store)
                steps += store._back._may_shrink
    return steps


@pytest.fixture(params=[OsFileSystem, PortableFileSystem])
def shared(tmp_path: Path, request: pytest.FixtureRequest) -> Shared:
    return Shared(tmp_path, request.param())


def test_a_tier_shrinks_as_others_fill_its_disk(shared: Shared) -> None:
    keys = names(120)
    with shared.open() as store:
        fill(store, keys, 100 * KIB)
        assert look(store) == 0
        shared.others = 8 * MIB
        assert look(store) > 0
        stats = store.stats()
        assert FLOOR <= shared.free < FLOOR + 2 * MIB
        assert 0 < stats.blocks < 100
        assert [k for k in keys if store.contains(k)] == keys[-stats.blocks :]  # the oldest are gone
        assert stats.tiers[0].bytes_used <= stats.tiers[0].bytes_max_effective < stats.tiers[0].bytes_max
        assert stats.tiers[0].free_bytes == shared.free
        assert stats.counters["floor_bytes_evicted"] > 3 * MIB
        shared.others = DISK
        look(store)
        assert store.stats().blocks == 0
        assert [type(e) for e in shared.events] == [TierShrunk]


def test_it_shrinks_in_steps_between_which_there_is_time_for_others(shared: Shared) -> None:
    shared.size = 2 * DISK
    with shared.open(tier(bytes_max=14 * MIB, free_bytes_min=12 * MIB)) as store:
        fill(store, names(130), 100 * KIB)
        shared.others = 2 * DISK  # so that 12 MiB are too much
        before = store.stats().tiers[0].bytes_used
        store._headroom.look()
        assert store._back is not None
        store._back._worker.step()
        assert 7 * MIB < before - store.stats().tiers[0].bytes_used < 10 * MIB
        look(store)
        assert store.stats().blocks == 0


def test_what_is_written_leaves_the_floor_alone(shared: Shared) -> None:
    lowest = DISK

    def watch(call: Call) -> None:
        nonlocal lowest
        lowest = min(lowest, shared.free)

    with shared.open() as store:
        shared.fs.on_call = watch
        for i, key in enumerate(names(250)):
            store.put(key, noise(key, 100 * KIB))
            if i % 3 == 0:
                if shared.free > FLOOR + MIB:  # others take little at a time, and nothing below the floor
                    shared.others = min(shared.others + 200 * KIB, 10 * MIB)
                store.flush()
        store.flush()
        shared.fs.on_call = None
        assert lowest >= FLOOR - 64 * KIB  # what the index needs to forget blocks
        assert store.stats().queue.failed == 0
        assert store.stats().counters["evictions"] > 50
        last = names(250)[-1]
        assert value_of(store.get(last)) == noise(last, 100 * KIB)


def test_where_there_is_no_room_it_is_said_once(shared: Shared) -> None:
    with shared.open() as store:
        fill(store, names(5), 100 * KIB)
        shared.others = DISK
        for i in range(3):
            store.put(b"lost %d" % i, noise(i, 100 * KIB))
            with pytest.raises(FlushError):
                store.flush()
        assert store.stats().queue.failed == 3
        assert [type(e) for e in shared.events] == [TierShrunk]
        shared.others = 0
        shared.clock.now += 61
        fill(store, names(5, "new"), 100 * KIB)
        assert store.match(names(5, "new")) == 5
        assert [type(e) for e in shared.events] == [TierShrunk, TierGrown]


def test_the_disk_is_asked_once_an_append_at_most(shared: Shared) -> None:
    asked = []

    def watch(call: Call) -> None:
        if call.op == "disk_free":
            asked.append(call)

    with shared.open() as store:
        shared.fs.on_call = watch
        for key in names(100):
            fill(store, [key], 100 * KIB)
        assert len(asked) == 100
        for key in names(100, "more"):  # and once more after evictions
            fill(store, [key], 100 * KIB)
        shared.fs.on_call = None
        assert len(asked) - 200 <= store.stats().counters["evictions"]


def test_two_tiers_on_one_disk_leave_its_floor_alone(shared: Shared) -> None:
    tiers = [tier(name, bytes_max=12 * MIB, free_bytes_min=FLOOR) for name in ("fast", "slow")]
    lowest = DISK

    def watch(call: Call) -> None:
        nonlocal lowest
        lowest = min(lowest, shared.free)

    keys = names(200)
    with shared.open(*tiers) as store:
        shared.fs.on_call = watch
        for key in keys:
            fill(store, [key], 100 * KIB)
        shared.fs.on_call = None
        assert lowest >= FLOOR - 64 * KIB
        fast, slow = store.stats().tiers
        assert fast.bytes_live + slow.bytes_live > 10 * MIB
        assert slow.bytes_max_effective < slow.bytes_max
        assert store.stats().queue.failed == 0
        newest = [k for k in keys if store.contains(k)]
        assert newest == keys[-len(newest) :]
        shared.others = 2 * MIB
        look(store)
        assert shared.free >= FLOOR
        after = store.stats().tiers
        assert after[0].bytes_live == fast.bytes_live  # what is coldest goes first
        assert 0 < after[1].bytes_live < slow.bytes_live


def test_what_is_pinned_stays(shared: Shared) -> None:
    keys = names(100)
    with shared.open() as store:
        fill(store, keys, 100 * KIB)
        store.pin(keys[:3])
        shared.others = DISK
        look(store)
        assert [k for k in keys if store.contains(k)] == keys[:3]
        look(store)  # once more, in vain
        assert store.match(keys[:3]) == 3


def test_without_a_floor_the_disk_is_not_asked(shared: Shared) -> None:
    shared.others = DISK
    with shared.open(tier(free_bytes_min=0)) as store:
        fill(store, names(20), 100 * KIB)
        assert store.match(names(20)) == 20
        assert disk_tier(store).room.is_short is False
        assert shared.fs.counts["disk_free"] == 0


# -- memory -----------------------------------------------------------------------------------------


class Machine:
    """1 GiB of memory, of which a store and others take some."""

    def __init__(self) -> None:
        self.others = 0
        self.used: Callable[[], int] = lambda: 0
        self.asked = threading.Event()

    def __call__(self) -> Memory:
        self.asked.set()
        return Memory(GIB, max(0, GIB - self.others - self.used()))


def in_memory(**ram: object) -> Config:
    return Config.from_dict({"ram": {"bytes_max": 16 * MIB, "available_bytes_min": 64 * MIB, **ram}})


def test_ram_shrinks_while_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    machine, clock = Machine(), HandClock()
    events: list[Event] = []
    keys, trims = names(100), list[str]()
    monkeypatch.setattr("kvtier.headroom.give_back", lambda: trims.append("trim"))
    with Store.open(in_memory(), memory=machine, clock=clock, background=False, listeners=[events.append]) as store:
        machine.used = lambda: store._front.ram.bytes_used
        fill(store, keys, 100 * KIB)
        store.pin(keys[:3])
        store.buffer(MIB).release()
        look(store)
        assert trims == []
        assert store._pool.spare_bytes == MIB
        machine.others = GIB - 70 * MIB  # so that 6 MiB are left above the floor
        look(store)
        assert trims == ["trim"]
        assert store._pool.spare_bytes == 0
        stats = store.stats()
        assert stats.ram.bytes_used <= stats.ram.bytes_max_effective < stats.ram.bytes_max
        assert 5 * MIB < stats.ram.bytes_used <= 6 * MIB
        assert stats.counters["ram_pressure_evictions"] == 100 - stats.ram.blocks
        assert store.match(keys[:3]) == 3
        assert store.contains(keys[-1])
        machine.others = GIB
        look(store)
        assert [k for k in keys if store.contains(k)] == keys[:3]  # never what is pinned
        assert [type(e) for e in events] == [RamShrunk]
        machine.others = 0
        for _ in range(40):
            clock.now += 11
            look(store)
        assert store.stats().ram.bytes_max_effective == 16 * MIB
        store.buffer(MIB).release()
        assert store._pool.spare_bytes == MIB
        fill(store, keys, 100 * KIB)
        assert store.match(keys) == 100


def test_a_put_does_not_pay_for_all_that_is_too_much() -> None:
    machine = Machine()
    with Store.open(in_memory(), memory=machine, background=False) as store:
        fill(store, names(100), 100 * KIB)
        store._front.ram.cap = MIB
        store.put(b"new", noise(b"new", 100 * KIB))
        assert store.stats().ram.blocks == 100
        assert store.contains(b"new")


def test_a_share_of_memory() -> None:
    with Store.open(in_memory(bytes_max="1%", available_bytes_min=0)) as store:
        whole = Config.from_dict({"ram": {"bytes_max": "100%"}}).ram.bytes_max_resolved()
        assert store.stats().ram.bytes_max == whole // 100


def test_memory_is_looked_at_in_the_background() -> None:
    machine = Machine()
    with Store.open(in_memory(), memory=machine):
        assert machine.asked.wait(60)
    machine = Machine()
    with Store.open(in_memory(available_bytes_min=0), memory=machine) as store:
        assert store._headroom._watch is None
