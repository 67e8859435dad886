"""Compaction, counted: what is written, what comes back, in how many steps."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kvtier import ReadOnlyStore, Store, single_key
from kvtier.check import verify
from kvtier.events import Event, SegmentsCompacted
from kvtier.fs import PortableFileSystem
from kvtier.testing import Call, FaultyFileSystem
from tests.clocks import HandClock
from tests.sparse import KEYS, SIZE, copying, intact, steps, thin_out
from tests.stores import (
    KIB,
    MIB,
    config,
    disk_tier,
    fill,
    names,
    noise,
    occupied,
    settle,
    tier,
    value_of,
)

# -- what it gives -----------------------------------------------------------------------------------


def test_dead_space_comes_back_where_holes_cannot_be_punched(tmp_path: Path) -> None:
    events: list[Event] = []
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False, listeners=[events.append]) as store:
        values = thin_out(store)
        before, live = store.stats(), store.stats().tiers[0].bytes_live
        store.resume_compaction()
        settle(store)
        after = store.stats()
        assert intact(store, values)
        copied = after.counters["compaction_bytes_copied"]
        assert copied == after.bytes_written - before.bytes_written == 12 * (SIZE + 128)
        assert after.counters["compaction_segments"] == 4
        gained = before.tiers[0].bytes_used - before.index_bytes - after.tiers[0].bytes_used + after.index_bytes
        assert abs(after.counters["compaction_bytes_reclaimed"] - gained) < 16 * KIB
        assert gained > 23 * SIZE
        assert after.tiers[0].bytes_live == live
        done = [e for e in events if isinstance(e, SegmentsCompacted)]
        assert sum(e.segments for e in done) == 4
        assert sum(e.bytes_copied for e in done) == copied
    assert verify(copying(tmp_path)).is_sound


def test_nothing_is_copied_by_default_or_where_holes_do_it(tmp_path: Path) -> None:
    for name, settings in (("a", config(tmp_path / "a")), ("b", copying(tmp_path / "b"))):
        with Store.open(settings, background=False) as store:
            values = thin_out(store)
            store.resume_compaction()
            assert steps(store) <= 1
            assert intact(store, values)
            assert "compaction_bytes_copied" not in store.stats().counters, name


def test_a_block_keeps_its_place_in_the_order_its_parent_and_its_metadata(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        store.put(b"p", noise("p", SIZE), meta=b"meta", namespace=b"ns")
        store.put(b"c", noise("c", SIZE), parent=b"p", namespace=b"ns")
        store.get(b"p", namespace=b"ns")
        thin_out(store)
        assert store._back is not None

        def known() -> list[tuple[Any, ...]]:
            with store._back.parts.index.read() as view:  # type: ignore[union-attr]
                return [(b, e.clock, e.seq, e.parent_id, e.meta, e.namespace, e.lengths) for b, e in view.blocks()]

        before, first = known(), disk_tier(store).segments.keys() & {1}
        store.resume_compaction()
        settle(store)
        assert known() == before
        assert first
        assert 1 not in disk_tier(store).segments


def test_blocks_that_share_their_bytes_share_them_afterwards(tmp_path: Path) -> None:
    """Also when the block whose record it is has got another value."""
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        values = thin_out(store)
        values |= {b"twin": values[KEYS[0]], b"heir": values[KEYS[3]], KEYS[3]: noise("new", SIZE)}
        for key in (b"twin", b"heir", KEYS[3]):
            store.put(key, values[key])
            store.flush()
        store.resume_compaction()
        settle(store)
        assert 1 not in disk_tier(store).segments
        assert intact(store, values)
        copied = store.stats().counters["compaction_bytes_copied"]
        assert copied < 15 * SIZE  # each payload once
    settings = copying(tmp_path)
    assert verify(settings).is_sound
    with Store.open(settings, background=False) as store:
        assert intact(store, values)
        for key in (KEYS[0], KEYS[3]):
            store.delete(key)
        store.flush()
        assert value_of(store.get(b"twin")) == values[b"twin"]
        assert value_of(store.get(b"heir")) == values[b"heir"]


def test_an_encrypted_store(tmp_path: Path) -> None:
    keys = single_key(bytes(range(32)))
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False, keys=keys) as store:
        values = thin_out(store)
        store.resume_compaction()
        settle(store)
        assert store.stats().counters["compaction_segments"] == 4
        assert intact(store, values)
    with Store.open(copying(tmp_path), background=False, keys=keys) as store:
        assert intact(store, values)
    assert verify(copying(tmp_path)).is_sound


def test_at_the_cap_live_blocks_are_copied_not_evicted(tmp_path: Path) -> None:
    """Segments of which one block is alive: to evict those would lose them all."""
    evicted = {}
    for name in ("reclaim", "copy"):
        settings = config(tmp_path / name, tier(compaction=name, bytes_max=6 * MIB, compaction_bytes_per_s=1))
        with Store.open(settings, fs=PortableFileSystem(), background=False) as store:
            kept: dict[bytes, bytes] = {}
            for i in range(100):
                key = b"keep %d" % i if i % 10 == 0 else b"again and again"
                store.put(key, noise(i, SIZE))
                store.flush()
                if key != b"again and again":
                    kept[key] = noise(i, SIZE)
                assert occupied(tmp_path / name) <= 6 * MIB
            evicted[name] = store.stats().counters.get("evictions", 0)
            if name == "copy":
                assert intact(store, kept)
                assert store.stats().bytes_written < 1.5 * 100 * SIZE
    assert evicted["copy"] == 0 < evicted["reclaim"]


# -- in the background -------------------------------------------------------------------------------


def test_writes_come_first_and_wait_for_one_step(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        assert store._back is not None
        values = thin_out(store, every=2)
        store.resume_compaction()
        between = 0
        while store._back._worker.step():
            if between < 8:
                between += 1
                key = b"new %d" % between
                values[key] = noise(key, 100)
                store.put(key, values[key])
                store._back._worker.step()
                assert len(store._front.queue) == 0  # the next step was to write it
        assert between >= 4
        assert intact(store, values)
        assert store.stats().counters["compaction_segments"] > 2


def test_a_step_copies_a_bounded_batch(tmp_path: Path) -> None:
    fs = FaultyFileSystem(PortableFileSystem())
    big = copying(tmp_path, bytes_max=64 * MIB, segment_bytes=16 * MIB)
    with Store.open(big, fs=fs, background=False) as store:
        assert store._back is not None
        store.pause_compaction()
        keys = names(400)
        values = fill(store, keys, SIZE)
        for key in keys[::2]:
            store.delete(key)
            del values[key]
        store.flush()
        store.resume_compaction()
        sizes = []
        while True:
            before = store.stats().bytes_written
            if not store._back._worker.step():
                break
            sizes.append(store.stats().bytes_written - before)
        assert max(sizes) <= 4 * MIB + SIZE + KIB
        assert sum(s > 0 for s in sizes) >= 4
        assert intact(store, values)


def test_bandwidth_is_limited_by_the_clock_and_stepping_ends(tmp_path: Path) -> None:
    clock = HandClock()
    slow = copying(tmp_path, bytes_max=64 * MIB, segment_bytes=16 * MIB, compaction_bytes_per_s=MIB)
    with Store.open(slow, fs=PortableFileSystem(), clock=clock, background=False) as store:
        store.pause_compaction()
        keys = names(200)
        values = fill(store, keys, SIZE)
        for key in keys[::2]:
            store.delete(key)
            del values[key]
        store.flush()
        start = store.stats().bytes_written

        def copied_after(seconds: float) -> int:
            clock.now += seconds
            settle(store)
            return store.stats().bytes_written - start

        store.resume_compaction()
        batch = copied_after(0)
        assert 4 * MIB <= batch <= 4 * MIB + SIZE + KIB  # of which one second's worth was there
        assert store._back is not None
        assert store._back._when_idle() == pytest.approx((batch - MIB) / MIB)  # when the worker goes on by itself
        assert copied_after(2.9) == batch
        assert copied_after(0.5) > batch
        second = copied_after(-1000)  # a clock that jumps back gives nothing, and takes nothing
        assert copied_after(2.9) == second < copied_after(1.5)
        for _ in range(3):
            copied_after(1000)
        assert store.stats().tiers[0].bytes_live == store.stats().bytes_written - start
        assert intact(store, values)


def test_a_copy_is_no_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        assert store._back is not None
        thin_out(store)
        order = disk_tier(store).order
        store._back.ladder.ledger.load([order])
        told: list[int] = []
        monkeypatch.setattr(type(order), "arrive", lambda self, block_id, entry: told.append(block_id))
        store.resume_compaction()
        settle(store)
        assert store.stats().counters["compaction_segments"] == 4
        assert told == []


def test_paused_and_resumed(tmp_path: Path) -> None:
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        values = thin_out(store)
        store.resume_compaction()
        assert store._back is not None
        for _ in range(2):
            store._back._worker.step()
        store.pause_compaction()
        settle(store)
        written = store.stats().bytes_written
        assert "compaction_segments" not in store.stats().counters
        settle(store)
        assert store.stats().bytes_written == written
        store.resume_compaction()
        settle(store)
        assert store.stats().counters["compaction_segments"] == 4
        assert intact(store, values)
    with Store.open(copying(tmp_path), read_only=True) as store:
        for call in (store.pause_compaction, store.resume_compaction):
            with pytest.raises(ReadOnlyStore):
                call()
    with Store.open(config(tmp_path / "ram", ram=MIB, value_bytes_max=KIB)) as store:
        store.pause_compaction()


def test_the_worker_thread_compacts_by_itself(tmp_path: Path) -> None:
    done = threading.Event()

    def listen(event: Event) -> None:
        if isinstance(event, SegmentsCompacted):
            done.set()

    with Store.open(copying(tmp_path), fs=PortableFileSystem(), listeners=[listen]) as store:
        values = fill(store, KEYS, SIZE)
        for key in KEYS[::2]:
            store.delete(key)
            del values[key]
        store.flush()
        assert done.wait(60)
        assert intact(store, values)


def test_what_goes_or_changes_meanwhile_does_not_come_back(tmp_path: Path) -> None:
    """Between any two steps a block is deleted and another one overwritten."""
    with Store.open(copying(tmp_path), fs=PortableFileSystem(), background=False) as store:
        assert store._back is not None
        values = thin_out(store, every=2)
        store.resume_compaction()
        gone = iter(list(values))
        for n, key in enumerate(gone):
            store._back._worker.step()
            other = next(gone)
            store.delete(key)
            del values[key]
            values[other] = noise(("newer", n), SIZE)
            store.put(other, values[other])
            store.flush()
        settle(store)
        assert store.stats().counters["compaction_segments"] > 0
        assert [k for k in KEYS if store.get(k)] == sorted(values)
        assert intact(store, values)
    with Store.open(copying(tmp_path), background=False) as store:
        assert [k for k in KEYS if store.get(k)] == sorted(values)
        assert intact(store, values)
    assert verify(copying(tmp_path)).is_sound


def test_a_reader_finds_a_block_again_that_moves_under_it(tmp_path: Path) -> None:
    """The compaction runs to its end between the look-up of a block and the reading of it."""
    fs = FaultyFileSystem(PortableFileSystem())
    with Store.open(copying(tmp_path), fs=fs, background=False) as store:
        values = thin_out(store)
        store.resume_compaction()

        def meanwhile(call: Call) -> None:
            if call.op == "read_at":
                fs.on_call = None
                settle(store)

        fs.on_call = meanwhile
        assert value_of(store.get(KEYS[0])) == values[KEYS[0]]
        assert 1 not in disk_tier(store).segments
        assert store.stats().quarantined == 0
