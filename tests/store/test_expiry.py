"""Blocks with a time to live: misses from then on, wherever they are, and gone from the disk some time later."""

from __future__ import annotations

import errno
import math
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier import BlockState, Config, FlushError, LimitError, Miss, MissReason, PutItem, Store, single_key
from kvtier.clock import StoreTime
from kvtier.index.lmdb_index import IndexFull, LmdbIndex, WriteTxn
from kvtier.tiers.expiry import Expiry
from tests.clocks import HandClock
from tests.stores import KIB, MIB, commits, config, fill, names, noise, settle, tier, value_of

SIZE = 100 * KIB
DAY_S = 86_400.0


def opened(folder: Path, clock: HandClock, *tiers: dict[str, Any], ram: int = 0, ttl_s: int = 0) -> Store:
    raw = config(folder, *tiers, ram=ram).model_dump(exclude_unset=True)
    raw["store"]["ttl_s"] = ttl_s
    return Store.open(Config.from_dict(raw), background=False, clock=clock)


def is_absent(store: Store, key: bytes) -> bool:
    outcomes = [store.get(key), *store.get_many([key]), store.get_into(key, bytearray(1))]
    assert [o.reason for o in outcomes if isinstance(o, Miss)] == [MissReason.ABSENT] * 3
    return not store.contains(key) and store.match([key]) == 0 and store.info(key) is None


@pytest.mark.parametrize("ram", [0, MIB])
@pytest.mark.parametrize("flush", [False, True])
def test_a_block_is_a_miss_once_its_time_is_up(tmp_path: Path, ram: int, flush: bool) -> None:
    clock = HandClock()
    with opened(tmp_path, clock, ram=ram) as store:
        store.put(b"k", b"v", ttl=10)
        store.put(b"other", b"v")
        if flush:
            store.flush()
            assert store.stats().expiring == 1
        clock.advance(9)
        assert value_of(store.get(b"k")) == b"v"
        clock.advance(1.5)
        assert is_absent(store, b"k")
        assert store.explain(b"k").state is BlockState.EXPIRED
        assert str(store.explain(b"k")) == "The block has expired."
        clock.advance(1000 * DAY_S)
        assert value_of(store.get(b"other")) == b"v"


def test_the_worker_removes_what_has_expired(tmp_path: Path) -> None:
    keys, clock = names(300), HandClock()
    with opened(tmp_path, clock) as store:
        for i, key in enumerate(keys):
            store.put(key, noise(key, 10 * KIB), ttl=10 + i % 2 * 100)
        store.flush()
        live = store.stats().tiers[0].bytes_live
        clock.advance(20)
        settle(store)
        stats = store.stats()
        assert (stats.blocks, stats.expiring, stats.counters["expired"]) == (150, 150, 150)
        assert stats.tiers[0].bytes_live < 0.6 * live
        assert store.explain(keys[0]).state is BlockState.EXPIRED
        assert store.explain(keys[0]).when == clock.wall
        assert store.contains(keys[1])
    with opened(tmp_path, clock) as store:
        assert store.explain(keys[0]).state is BlockState.EXPIRED  # it is remembered


def test_a_default_and_its_exceptions(tmp_path: Path) -> None:
    clock = HandClock()
    with opened(tmp_path, clock, ttl_s=100) as store:
        store.put(b"default", b"v")
        store.put_many(
            [PutItem(b"short", b"v", ttl=10), PutItem(b"long", b"v", ttl=1000), PutItem(b"ever", b"v", ttl=0)]
        )
        store.flush()
        left = []
        for seconds in (50, 100, 1000):
            clock.advance(seconds)
            left.append([k for k in (b"short", b"default", b"long", b"ever") if store.contains(k)])
        assert left == [[b"default", b"long", b"ever"], [b"long", b"ever"], [b"ever"]]


@pytest.mark.parametrize(("second", "lives"), [(1000, True), (0, True), (20, False), (10 * DAY_S, True)])
def test_the_last_put_says_how_long_a_block_lives(tmp_path: Path, second: float, lives: bool) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        store.put(b"k", b"v", ttl=100)
        store.flush()
        written = store.stats().bytes_written
        store.put(b"k", b"v", ttl=second)
        store.flush()
        assert store.stats().bytes_written - written <= 256  # no payload
        clock.advance(90)
        assert store.contains(b"k") == lives
    with opened(tmp_path, clock) as store:
        assert store.contains(b"k") == lives


def test_the_record_is_of_the_last_put_too(tmp_path: Path) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        for ttl in (100, 10 * DAY_S):
            store.put(b"k", b"v", ttl=ttl)
            store.flush()
    shutil.rmtree(tmp_path / "store" / "index")
    with opened(tmp_path, clock) as store:
        clock.advance(9 * DAY_S)
        assert store.contains(b"k")
        clock.advance(2.1 * DAY_S)
        assert not store.contains(b"k")


def test_a_block_that_has_expired_can_be_stored_again(tmp_path: Path) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        for _ in range(3):
            store.put(b"k", b"v", ttl=10)
            store.flush()
            assert value_of(store.get(b"k")) == b"v"
            clock.advance(20)
            assert not store.get(b"k")
        settle(store)
        assert store.stats().blocks == 0


def test_it_expires_on_every_tier_and_after_every_move(tmp_path: Path) -> None:
    keys, clock = names(10), HandClock()
    with opened(tmp_path, clock, tier("t0", bytes_max=2 * MIB), tier("t1")) as store:
        for key in keys:
            store.put(key, noise(key, SIZE), ttl=100)
        fill(store, names(30, "more"), SIZE)
        assert {i.tier for k in keys if (i := store.info(k))} == {"t1"}
        assert store.get(keys[0])
        settle(store)  # up again
        clock.advance(101)
        assert not any(store.contains(k) for k in keys)
        settle(store)
        assert store.stats().counters["expired"] == 10


@pytest.mark.parametrize("how", ["none", "later", "index lost"])
def test_it_outlives_the_process_and_the_index(tmp_path: Path, how: str) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        store.put(b"short", b"v", ttl=100)
        store.put(b"long", b"v", ttl=5 * DAY_S)
        store.put(b"ever", b"v")
    if how == "index lost":
        shutil.rmtree(tmp_path / "store" / "index")
        clock.advance(DAY_S)  # it knows the days only
    elif how == "later":
        clock.advance(101)
    with opened(tmp_path, clock) as store:
        assert store.contains(b"short") == (how == "none")
        assert store.stats().expiring == 2
        assert store.contains(b"long")
        clock.advance(3.9 * DAY_S)
        assert store.contains(b"long")
        clock.advance(2.1 * DAY_S)
        assert not store.contains(b"long")
        assert store.contains(b"ever")


@pytest.mark.parametrize(("ttls", "lives"), [((1000, 10), False), ((10, 1000), True)])
def test_what_was_found_before_a_renewal_is_not_kept_in_ram(
    tmp_path: Path, ttls: tuple[float, float], lives: bool
) -> None:
    """A chain that is read ahead of its consumer, whose last block is renewed meanwhile."""
    keys, clock = names(3), HandClock()
    few = {"threads": 1, "bytes_max": SIZE, "coalesce_bytes_max": SIZE}
    with Store.open(
        config(tmp_path, ram=10 * MIB, value_bytes_max=SIZE, prefetch=few), background=False, clock=clock
    ) as store:
        fill(store, keys[:2], SIZE)
        store.put(keys[2], b"value", ttl=ttls[0])
        store.flush()
        store.forget_keys()
        chain = store.get_many(keys)
        assert next(chain)
        store.put(keys[2], b"value", ttl=ttls[1])
        store.flush()
        store.forget_keys()
        assert [value_of(outcome) for outcome in chain][1:] == [b"value"]
        clock.advance(11)
        assert bool(store.get(keys[2])) == lives
        assert store.contains(keys[2]) == lives


@pytest.mark.parametrize("jump", [-1e9, -1e8, 3e9, 1e12])
def test_no_jump_of_the_wall_clock_takes_all_or_keeps_for_ever(tmp_path: Path, jump: float) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        store.put(b"k", b"v", ttl=8 * DAY_S)
        store.flush()
        clock.wall += jump
        assert store.contains(b"k")  # while it is open only the monotonic clock counts
    with opened(tmp_path, clock) as store:
        assert store.contains(b"k")
    clock.wall -= jump
    with opened(tmp_path, clock) as store:
        assert store.contains(b"k")
        clock.advance(8.1 * DAY_S)
        assert not store.contains(b"k")


def test_store_time_never_goes_back() -> None:
    clock = HandClock()
    passing = StoreTime(clock, last=2_000_000_000)
    assert passing.now() == 2_000_000_000
    clock.advance(10)
    assert passing.now() == 2_000_000_010
    clock.now = -1e6
    assert passing.now() == 2_000_000_010
    assert StoreTime(HandClock(0.0)).now() == 1.0
    assert StoreTime(HandClock(1e300)).after(1e9) == (1 << 32) - 1


@pytest.mark.parametrize("ttl", [-1, math.inf, math.nan])
def test_a_time_to_live_that_is_none_is_refused(tmp_path: Path, ttl: float) -> None:
    with opened(tmp_path, HandClock()) as store, pytest.raises(LimitError):
        store.put(b"k", b"v", ttl=ttl)


def test_a_store_without_disks_forgets_too() -> None:
    clock = HandClock()
    with Store.open(Config.from_dict({"ram": {"bytes_max": MIB}}), clock=clock) as store:
        store.put(b"k", b"v", ttl=10)
        assert store.get(b"k")
        clock.advance(11)
        assert not store.get(b"k")
        assert store.stats().ram.blocks == 0


def test_readers_in_other_processes_see_it_too(tmp_path: Path) -> None:
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        store.put(b"k", b"v", ttl=100)
        store.flush()
    with Store.open(config(tmp_path), read_only=True, clock=clock) as reader:
        assert reader.get(b"k")
        clock.advance(101)
        assert not reader.get(b"k")


def test_it_expires_where_all_is_encrypted(tmp_path: Path) -> None:
    clock, keys = HandClock(), single_key(bytes(range(32)))
    with Store.open(config(tmp_path), background=False, clock=clock, keys=keys) as store:
        store.put(b"k", b"v", ttl=2 * DAY_S)
    shutil.rmtree(tmp_path / "store" / "index")
    with Store.open(config(tmp_path), background=False, clock=clock, keys=keys) as store:
        store.rotate_keys()
        assert value_of(store.get(b"k")) == b"v"
        clock.advance(3.1 * DAY_S)
        assert is_absent(store, b"k")


def test_the_worker_wakes_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, removed = Expiry.step, threading.Event()

    def told(expiry: Expiry) -> float | None:
        wait = step(expiry)
        if wait == 0.0:
            removed.set()
        return wait

    monkeypatch.setattr(Expiry, "step", told)
    unwatched = config(tmp_path, tier(free_bytes_min=0))  # else it is woken once a second
    with Store.open(unwatched) as store:
        store.put(b"k", b"v", ttl=0.01)
        store.flush()
        assert removed.wait(60)
        assert store.stats().blocks == 0
        assert store.stats().counters["expired"] == 1


def test_a_renewal_that_failed_is_not_for_a_later_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that would renew the block fails, and so does the one that would delete it."""
    write, fails = LmdbIndex.write, [2]

    @contextmanager
    def failing(index: LmdbIndex) -> Iterator[WriteTxn]:
        with write(index) as txn:
            yield txn
            if fails[0]:
                fails[0] -= 1
                raise OSError(errno.ENOSPC, "no space")

    with Store.open(config(tmp_path), background=False) as store:
        store.put(b"k", b"value", ttl=3000)
        store.flush()
        monkeypatch.setattr(LmdbIndex, "write", failing)
        store.put(b"k", b"value", ttl=60)
        with pytest.raises(FlushError):
            store.flush()
        assert fails == [0]
        assert store._back is not None
        store._back.ladder.tiers[0].recovered()
        store.put(b"k", b"another", ttl=0)
        store.flush()
        with store._back.parts.index.read() as view:
            assert [entry.expires_at for _, entry in view.blocks()] == [0]


def test_a_busy_store_looks_once_a_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As often as there is more than one step can remove, else not with each group: it is a miss without that."""
    clock = HandClock()
    steps: list[None] = []
    step = Expiry.step

    def counted(expiry: Expiry) -> float | None:
        steps.append(None)
        return step(expiry)

    monkeypatch.setattr(Expiry, "step", counted)
    with opened(tmp_path, clock, ttl_s=100) as store:
        for number in range(600):
            store.put(b"%d" % number, b"v")
        store.flush()
        clock.advance(200)
        steps.clear()
        before = commits(store)
        for number in range(20):
            store.put(b"new%d" % number, b"v")
            store.flush()
        assert (len(steps), commits(store) - before) == (3, 23)
        clock.advance(1)
        store.put(b"one more", b"v")
        store.flush()
        assert len(steps) == 4


@pytest.mark.parametrize("error", [OSError("no"), IndexFull("no"), ValueError("no")])
def test_an_index_that_cannot_be_written_is_tried_again_a_second_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """And compaction has its turn meanwhile."""
    clock = HandClock()
    with opened(tmp_path, clock) as store:
        fill(store, names(3), SIZE)
        store.put(b"k", b"v", ttl=10)
        store.flush()
        settle(store)
        clock.advance(20)

        @contextmanager
        def no(index: LmdbIndex) -> Iterator[WriteTxn]:
            raise error
            yield

        back = store._back
        assert back is not None
        asked: list[None] = []
        monkeypatch.setattr(back.ladder.compactor, "step", lambda tiers: asked.append(None))
        with monkeypatch.context() as patch:
            patch.setattr(LmdbIndex, "write", no)
            assert back._when_idle() == 1.0
            assert (len(asked), store.stats().counters["expiry_errors"]) == (1, 1)
        settle(store)
        assert store.stats().expiring == 0
