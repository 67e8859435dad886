"""Writing behind: nothing on the caller's thread, groups, the bound of the queue, and where errors surface."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier import FlushError, Hit, Miss, MissReason, PutOutcome, Store
from kvtier.events import Event, TierResumed, TierSuspended, WriteFailed, WriteSkipped
from kvtier.fs import OsFileSystem
from kvtier.testing import Call, FaultyFileSystem
from tests.clocks import HandClock
from tests.stores import KIB, MIB, commits, config, disk_tier, fill, names, noise, settle, tier, value_of

#: What one block takes of the queue besides its bytes.
OVERHEAD = 1024


@pytest.fixture
def fs() -> FaultyFileSystem:
    return FaultyFileSystem(OsFileSystem())


@contextmanager
def held_disk(fs: FaultyFileSystem) -> Iterator[threading.Event]:
    """Inside, whoever writes to a segment stands still until the event is set."""
    gate = threading.Event()

    def hold(call: Call) -> None:
        if call.op in ("create", "write_at"):
            gate.wait(60)

    fs.on_call = hold
    try:
        yield gate
    finally:
        gate.set()


# -- the calling thread ------------------------------------------------------------------------------


@pytest.mark.parametrize("ram", [0, MIB])
def test_put_and_delete_do_no_io_on_the_calling_thread(tmp_path: Path, fs: FaultyFileSystem, ram: int) -> None:
    with Store.open(config(tmp_path, ram=ram), fs=fs) as store:
        mine, calls = threading.get_ident(), []
        fs.on_call = lambda call: calls.append(call) if threading.get_ident() == mine else None
        for key in names(200):
            store.put(key, bytes(100))
            store.put(key, noise(key, 20 * KIB))
        store.delete(b"k0001")
        store.pin([b"k0002"])
        assert calls == []
        store.flush()
        assert calls == []
        assert store.get(b"k0002")
        assert store.stats().queue.failed == 0


def test_a_slow_disk_stops_neither_put_nor_get(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path), fs=fs) as store, held_disk(fs):
        for key in names(50):
            assert store.put(key, noise(key, 100))
        for key in names(50):
            hit = store.get(key)
            assert isinstance(hit, Hit)
            assert (hit.tier, value_of(hit)) == ("queue", noise(key, 100))
        assert store.stats().queue.blocks == 50


# -- groups ------------------------------------------------------------------------------------------


def test_a_group_costs_one_sync_and_one_commit(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        fill(store, [b"first"], 100)
        settle(store)
        for count in (1, 100):
            for key in names(count, "a" * count):
                store.put(key, noise(key, 1000))
            fs.counts.clear()
            before = commits(store)
            store.flush()
            assert (fs.counts["write_at"], fs.counts["sync_data"], fs.counts["sync_dir"]) == (1, 1, 0)
            assert commits(store) - before == 1


def test_a_new_segment_costs_one_folder_sync_more(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        fs.counts.clear()
        before = commits(store)
        fill(store, names(4), 400 * KIB)  # two segments of 1 MiB, one group
        assert (fs.counts["create"], fs.counts["sync_data"], fs.counts["sync_dir"]) == (2, 2, 1)
        assert commits(store) - before == 1


def test_a_block_that_was_replaced_in_the_queue_is_written_once(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        for i in range(10):
            store.put(b"k", noise(i, 10 * KIB))
        store.put(b"gone", noise(b"gone", 10 * KIB))
        store.delete(b"gone")
        store.flush()
        assert store.stats().bytes_written < 11 * KIB
        assert value_of(store.get(b"k")) == noise(9, 10 * KIB)


def test_writes_reach_the_disk_without_flush(tmp_path: Path, fs: FaultyFileSystem) -> None:
    synced = threading.Event()
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.on_call = lambda call: synced.set() if call.op == "sync_data" else None
        store.put(b"k", b"abc")
        assert synced.wait(60)


def test_close_writes_what_is_queued(tmp_path: Path) -> None:
    for background in (True, False):
        c = config(tmp_path / str(background))
        with Store.open(c, background=background) as store:
            for key in names(100):
                store.put(key, noise(key, 1000))
            store.delete(b"k0050")
        with Store.open(c) as store:
            found = [h for h in store.get_many(names(100)) if h]
            assert len(found) == 99
            assert all(value_of(h) == noise(h.key, 1000) for h in found)


# -- the bound ---------------------------------------------------------------------------------------


def test_a_full_queue_makes_put_wait(tmp_path: Path, fs: FaultyFileSystem) -> None:
    limit = 4 * (100 * KIB + OVERHEAD)
    c = config(tmp_path, queue=limit, value_bytes_max=100 * KIB)
    with Store.open(c, fs=fs) as store, held_disk(fs) as gate, futures.ThreadPoolExecutor(1) as pool:
        for key in names(4):
            assert store.put(key, bytes(100 * KIB))
        fifth = pool.submit(store.put, b"fifth", bytes(100 * KIB))
        assert futures.wait([fifth], timeout=0.2).not_done  # it may only be found waiting, never done
        assert store.get(b"k0000")  # readers go on
        assert not store.contains(b"fifth")
        gate.set()
        assert fifth.result(60) is PutOutcome.QUEUED
        store.flush()
        assert store._front.queue.bytes_peak <= limit
        assert value_of(store.get(b"fifth")) == bytes(100 * KIB)


def test_the_queue_is_bounded_whatever_is_put(tmp_path: Path) -> None:
    limit = 200 * KIB
    for background in (True, False):
        c = config(tmp_path / str(background), queue=limit, value_bytes_max=100 * KIB)
        with Store.open(c, background=background) as store:
            for i, key in enumerate(names(300)):
                store.put(key, noise(key, (7919 * i) % (100 * KIB)))
            store.flush()
            assert store._front.queue.bytes_peak <= limit
            assert store.stats().queue.bytes_used == 0
            assert store.stats().blocks == 300


def test_a_value_as_large_as_the_queue_gets_through(tmp_path: Path) -> None:
    c = config(tmp_path, queue=100 * KIB, value_bytes_max=100 * KIB)
    with Store.open(c, background=False) as store:
        store.put(b"a", bytes(10))
        store.put(b"b", bytes(100 * KIB))
        store.put(b"c", bytes(100 * KIB))
        store.flush()
        assert store.match([b"a", b"b", b"c"]) == 3


def test_a_full_queue_skips_if_told_to(tmp_path: Path, fs: FaultyFileSystem) -> None:
    events: list[Event] = []
    limit = 2 * (100 * KIB + OVERHEAD)
    for ram in (0, MIB):
        c = config(tmp_path / str(ram), ram=ram, queue=limit, value_bytes_max=100 * KIB, when_full="skip")
        with Store.open(c, fs=fs, listeners=[events.append], background=False) as store:
            fill(store, [b"old"], 100 * KIB)
            outcomes = [store.put(k, noise(k, 100 * KIB)) for k in (b"a", b"b", b"c", b"old", b"d")]
            assert [o.name for o in outcomes] == ["QUEUED"] * 2 + ["SKIPPED"] * 3
            assert [bool(o) for o in outcomes] == [True] * 2 + [False] * 3
            assert store.stats().queue.skipped == 3
            assert events == [WriteSkipped(limit)]  # once an episode
            # A new key stays in RAM, if there is any; an old one keeps its old value everywhere.
            assert store.contains(b"c") is bool(ram)
            if store.contains(b"old"):
                assert value_of(store.get(b"old")) == noise(b"old", 100 * KIB)
            store.flush()  # no failure: the caller was told
            assert store.put(b"e", bytes(100 * KIB))
            assert [store.put(k, bytes(100 * KIB)).name for k in (b"f", b"g")] == ["QUEUED", "SKIPPED"]
            assert events == [WriteSkipped(limit)] * 2
        with Store.open(c, fs=fs) as store:
            assert [store.contains(k) for k in (b"a", b"b", b"c", b"d")] == [True, True, False, False]
            assert value_of(store.get(b"old")) == noise(b"old", 100 * KIB)
        events.clear()
        fs.on_call = None


def test_a_skipped_put_of_a_block_that_waits_in_the_queue_keeps_the_queued_one(tmp_path: Path) -> None:
    c = config(tmp_path, ram=MIB, queue=100 * KIB, value_bytes_max=90 * KIB, when_full="skip")
    with Store.open(c, background=False) as store:
        assert store.put(b"k", noise(1, 90 * KIB))
        assert not store.put(b"k", noise(2, 90 * KIB))
        assert value_of(store.get(b"k")) == noise(1, 90 * KIB)
        store.delete(b"k")
        assert not store.put(b"other", bytes(90 * KIB)) or store.contains(b"other")
        assert not store.contains(b"k")


# -- errors ------------------------------------------------------------------------------------------


def test_a_failed_write_surfaces_in_stats_events_and_flush_only(tmp_path: Path, fs: FaultyFileSystem) -> None:
    for op in ("create", "write_at", "sync_data", "sync_dir", "reserve"):
        for background in (True, False):
            _fail_once(tmp_path / f"{op}-{background}", op, background)


def _fail_once(folder: Path, op: str, background: bool) -> None:
    fs, events, clock = FaultyFileSystem(OsFileSystem()), list[Event](), HandClock()
    c = config(folder, ram=MIB)
    with Store.open(c, fs=fs, listeners=[events.append], clock=clock, background=background) as store:
        fs.counts.clear()
        fs.fail_at(1, errno.EIO, op=op)
        store.put(b"a", b"lost")
        with pytest.raises(FlushError, match="1 blocks") as e:
            store.flush()
        assert (e.value.failed, type(e.value.__cause__)) == (1, OSError)
        assert events == [
            TierSuspended("disk", str(e.value.__cause__)),
            WriteFailed("disk", 1, f"OSError: {e.value.__cause__}"),
        ]
        stats = store.stats()
        assert stats.queue.failed == 1
        assert stats.tiers[0].suspended
        assert "Input/output error" in stats.tiers[0].last_error
        store.flush()  # it was said once
        assert value_of(store.get(b"a")) == b"lost"  # still in RAM
        fs.heal()
        store.put(b"b", b"too early: the tier rests for a second")
        with pytest.raises(FlushError):
            store.flush()
        clock.now += 1.5
        store.put(b"c", b"durable")
        store.flush()
        assert isinstance(events[-1], TierResumed)
        assert len([e for e in events if isinstance(e, TierSuspended)]) == 1
        assert not store.stats().tiers[0].suspended
    with Store.open(c) as store:
        assert value_of(store.get(b"c")) == b"durable"
        for key in (b"a", b"b"):
            hit = store.get(key)
            assert not hit or value_of(hit) in (b"lost", b"too early: the tier rests for a second")


def test_a_tier_that_goes_on_failing_waits_longer_each_time(tmp_path: Path, fs: FaultyFileSystem) -> None:
    clock = HandClock()
    with Store.open(config(tmp_path), fs=fs, clock=clock, background=False) as store:
        fs.counts.clear()
        fs.fail_at(1, errno.ENOSPC, op="reserve", lasting=True)
        waits = []
        for i in range(9):
            store.put(b"%d" % i, b"x")
            with pytest.raises(FlushError):
                store.flush()
            waits.append(disk_tier(store).health.wait_s)
            clock.now += waits[-1]
        assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
        fs.heal()
        store.put(b"k", b"x")
        store.flush()
        assert disk_tier(store).health.wait_s == 0


def test_an_older_value_does_not_come_back_after_a_lost_write(tmp_path: Path, fs: FaultyFileSystem) -> None:
    c = config(tmp_path)
    with Store.open(c, fs=fs, clock=HandClock(), background=False) as store:
        fill(store, [b"k", b"other"], 100)
        fs.counts.clear()
        fs.fail_at(1, errno.EIO, op="write_at")
        store.put(b"k", b"newer")
        with pytest.raises(FlushError):
            store.flush()
        assert not store.get(b"k")
        assert not store.get_into(b"k", bytearray(100))
        assert value_of(store.get(b"other")) == noise(b"other", 100)
    with Store.open(c) as store:
        assert not store.get(b"k")
        assert value_of(store.get(b"other")) == noise(b"other", 100)


def test_nor_does_it_if_even_the_deletion_of_the_older_one_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, [b"k", b"other"], 100)

        def fail(*args: object) -> None:
            raise OSError(errno.EIO, "index")

        assert store._back is not None
        monkeypatch.setattr(store._back.ladder, "write", fail)
        store.put(b"k", b"newer")
        with pytest.raises(FlushError):
            store.flush()
        for outcome in (store.get(b"k"), store.get_into(b"k", bytearray(100)), next(store.get_many([b"k"]))):
            assert outcome == Miss(b"k", MissReason.UNAVAILABLE)
        assert store.match([b"k"]) == 0
        assert value_of(store.get(b"other")) == noise(b"other", 100)
        monkeypatch.undo()
        store.put(b"k", b"newest")
        store.flush()
        assert value_of(store.get(b"k")) == b"newest"


def test_a_listener_that_raises_harms_nobody(tmp_path: Path, fs: FaultyFileSystem) -> None:
    def bad(event: Event) -> None:
        raise RuntimeError("mine")

    with Store.open(config(tmp_path), fs=fs, listeners=[bad], background=False) as store:
        fs.counts.clear()
        fs.fail_at(1, errno.EIO, op="sync_data")
        store.put(b"a", b"x")
        with pytest.raises(FlushError):
            store.flush()
        assert store.stats().counters["listener_errors"] == 2


# -- flush -------------------------------------------------------------------------------------------


def test_flush_times_out(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path), fs=fs) as store, held_disk(fs) as gate:
        store.put(b"k", b"x")
        with pytest.raises(TimeoutError):
            store.flush(timeout=0)
        with pytest.raises(TimeoutError):
            store.flush(timeout=0.01)
        gate.set()
        store.flush(timeout=60)
        store.flush(timeout=0)


def test_flush_waits_for_what_was_put_before_it_only(tmp_path: Path, fs: FaultyFileSystem) -> None:
    """Each write lets another put in; a flush that waited for an empty queue would never return."""
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        count = 0

        def another(call: Call) -> None:
            nonlocal count
            if call.op == "sync_data" and count < 100:
                count += 1
                store.put(b"%d" % count, b"x")

        store.put(b"k", b"x")
        fs.on_call = another
        store.flush()
        assert count == 1
        fs.on_call = None


def test_recency_survives(tmp_path: Path) -> None:
    """What was read before the store was closed is evicted last after it is opened again."""
    c = config(tmp_path, tier(bytes_max=4 * MIB))
    with Store.open(c, background=False) as store:
        fill(store, names(6), 400 * KIB)
    with Store.open(c, background=False) as store:
        for key in (b"k0000", b"k0001"):
            assert store.get(key)
    with Store.open(c, background=False) as store:
        fill(store, names(6, "new"), 400 * KIB)
        assert [store.contains(k) for k in names(4)] == [True, True, False, False]
