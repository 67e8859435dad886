"""A block that is not there: ``Store.explain`` says why, from which tier, and since when."""

from __future__ import annotations

import errno
import random
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lmdb
import pytest

from kvtier import BlockState, Config, Explanation, FlushError, Hit, Miss, MissReason, Store
from kvtier.fs import OsFileSystem
from kvtier.index import schema
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.index.schema import DEPARTURES_A_ROW, DEPARTURES_MAX, Departure, Reason
from kvtier.testing import FaultyFileSystem
from tests.clocks import HandClock
from tests.stores import (
    KIB,
    MIB,
    commits,
    config,
    disk_tier,
    fill,
    flip,
    names,
    noise,
    only_segment,
    settle,
    tier,
    value_of,
)

LONG_AGO = 1_000_000_000.0  # 2001-09-09 01:46:40 UTC


def small(name: str = "disk", bytes_max: int = 768 * KIB) -> dict[str, Any]:
    """A tier with room for some 20 blocks of 20 KiB (its cap counts the index, and 256 KiB of slack)."""
    return tier(name, bytes_max=bytes_max, segment_bytes=64 * KIB)


def small_config(folder: Path, *tiers: dict[str, Any]) -> Config:
    return config(folder, *(tiers or (small(),)), value_bytes_max=32 * KIB)


def fill_singly(store: Store, keys: Iterable[bytes]) -> None:
    for key in keys:
        fill(store, [key], 20 * KIB)


def states(store: Store, keys: Iterable[bytes]) -> set[tuple[BlockState, str | None]]:
    return {((e := store.explain(key)).state, e.tier) for key in keys}


def gone(store: Store, keys: Iterable[bytes]) -> list[bytes]:
    return [key for key in keys if not store.contains(key)]


# -- where a block is --------------------------------------------------------------------------------


def test_a_block_that_is_there(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        store.put(b"k", b"value")
        assert store.explain(b"k") == Explanation(BlockState.QUEUED, "queue")
        store.flush()
        assert store.explain(b"k") == Explanation(BlockState.STORED, "disk")
        assert store.explain(b"k", namespace=b"other").state is BlockState.UNKNOWN
    with Store.open(config(tmp_path, ram=MIB), background=False) as store:
        assert store.get(b"k")
        assert store.explain(b"k") == Explanation(BlockState.RAM, "ram")


def test_what_was_never_stored(tmp_path: Path) -> None:
    for c in (config(tmp_path), Config.from_dict({})):
        with Store.open(c) as store:
            assert store.explain(b"k") == Explanation(BlockState.UNKNOWN, None, None)


def test_it_is_no_use_of_the_block_and_reads_no_payload(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB)) as store:
        fill(store, [b"k"], 100)
    fs = FaultyFileSystem(OsFileSystem())
    with Store.open(config(tmp_path, ram=MIB), fs=fs, background=False) as store:
        fs.counts.clear()
        assert store.explain(b"k").state is BlockState.STORED
        assert fs.counts["read_at"] == 0
        assert store.stats().counters.get("hits:disk", 0) == 0
        assert store._back is not None
        assert store._back.ladder.ledger.touches_waiting == 0


def test_a_tier_that_is_not_configured(tmp_path: Path) -> None:
    both = small_config(tmp_path, small("top"), tier("low"))
    with Store.open(both, background=False) as store:
        fill_singly(store, names(30))
        assert states(store, names(1)) == {(BlockState.STORED, "low")}
    with Store.open(small_config(tmp_path, small("top")), background=False) as store:
        assert store.explain(names(1)[0]).state is BlockState.UNAVAILABLE


# -- why it is not there -----------------------------------------------------------------------------


def test_an_eviction(tmp_path: Path) -> None:
    clock = HandClock()
    with Store.open(small_config(tmp_path), clock=clock, background=False) as store:
        fill_singly(store, names(40))
        first = gone(store, names(40))
        clock.wall += 3600.9
        fill_singly(store, names(20, "later"))
        second = [key for key in gone(store, names(40)) if key not in first]
        assert first
        assert second
        assert {store.explain(key) for key in first} == {Explanation(BlockState.EVICTED, "disk", LONG_AGO)}
        assert {store.explain(key) for key in second} == {Explanation(BlockState.EVICTED, "disk", LONG_AGO + 3600)}
        there = set(names(40)) - {*first, *second}
        assert states(store, there) <= {(BlockState.STORED, "disk")}
    with Store.open(small_config(tmp_path)) as store:
        assert store.explain(first[0]) == Explanation(BlockState.EVICTED, "disk", LONG_AGO)


def test_the_tier_is_the_one_that_it_left_for_good(tmp_path: Path) -> None:
    """Moving from tier to tier is no departure."""
    c = small_config(tmp_path, small("top"), small("low", 256 * KIB))
    with Store.open(c, background=False) as store:
        fill_singly(store, names(60))
        assert states(store, gone(store, names(60))) == {(BlockState.EVICTED, "low")}
        left = set(names(60)) - set(gone(store, names(60)))
        assert states(store, left) == {(BlockState.STORED, "top"), (BlockState.STORED, "low")}


def test_a_demotion_that_fails(tmp_path: Path) -> None:
    fs = FaultyFileSystem(OsFileSystem())
    c = small_config(tmp_path, small("top"), tier("low"))
    with Store.open(c, fs=fs, background=False) as store:
        fill_singly(store, names(10))
        disk_tier(store, 1).suspend(OSError(errno.EIO, "the lower disk"))
        fill_singly(store, names(20, "more"))
        assert store.stats().counters["move_errors"] > 0
        assert states(store, gone(store, names(10))) == {(BlockState.EVICTED, "top")}


def test_a_deletion(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), clock=HandClock(), background=False) as store:
        fill(store, [b"k"], 100)
        store.delete(b"k")
        assert store.explain(b"k") == Explanation(BlockState.DELETED)  # nobody has done it yet
        store.flush()
        assert store.explain(b"k") == Explanation(BlockState.DELETED, "disk", LONG_AGO)


def test_a_deletion_of_what_was_not_written_yet(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), clock=HandClock(), background=False) as store:
        store.put(b"k", b"short-lived")
        store.delete(b"k")
        store.flush()
        assert store.explain(b"k") == Explanation(BlockState.DELETED, None, LONG_AGO)


def test_damage(tmp_path: Path) -> None:
    """It costs all blocks that share the bytes."""
    value = noise("shared", 9000)
    with Store.open(config(tmp_path), clock=HandClock(), background=False) as store:
        for key in (b"k", b"same"):
            store.put(key, value)
        store.flush()
        file = only_segment(tmp_path)
        flip(file, file.read_bytes().find(value) + 5000)
        assert store.get(b"k") == Miss(b"k", MissReason.CORRUPT)
        assert store.explain(b"k") == Explanation(BlockState.DAMAGED)  # seen, and not taken out yet
        settle(store)
        for key in (b"k", b"same"):
            assert store.explain(key) == Explanation(BlockState.DAMAGED, "disk", LONG_AGO)


def test_a_lost_segment(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, [b"k"], 100)
    only_segment(tmp_path).unlink()
    with Store.open(config(tmp_path), clock=HandClock()) as store:
        assert store.explain(b"k") == Explanation(BlockState.LOST, "disk", LONG_AGO)


def test_what_was_not_admitted(tmp_path: Path) -> None:
    """At once in memory, and durably with the next commit."""
    chain = names(60)
    with Store.open(small_config(tmp_path), clock=HandClock(), background=False) as store:
        for parent, key in zip([None, *chain], chain, strict=False):
            store.put(key, noise(key, 20 * KIB), parent=parent)
            try:
                store.flush()
            except FlushError:
                break
        for key in (b"orphan", b"orphan of an orphan"):
            store.put(key, noise(key, 20 * KIB), parent=b"orphan" if key != b"orphan" else b"never stored")
        before = commits(store)
        store.flush()
        assert commits(store) == before
        refused = Explanation(BlockState.NOT_ADMITTED, "disk", LONG_AGO)
        assert store.explain(b"orphan") == store.explain(b"orphan of an orphan") == refused
        store.delete(chain[0])
        store.flush()
        assert store.explain(b"orphan") == refused
    with Store.open(small_config(tmp_path)) as store:
        assert store.explain(b"orphan") == store.explain(b"orphan of an orphan") == refused


def test_what_was_not_admitted_in_place_of_an_older_value(tmp_path: Path) -> None:
    """Nobody deleted it, even if room was made for others between the decision and its commit."""
    with Store.open(small_config(tmp_path), background=False) as store:
        fill_singly(store, [*names(25), b"k"])
        for key in (b"k", *names(3, "others")):
            store.put(key, noise(("newer", key), 20 * KIB), parent=b"never stored" if key == b"k" else None)
        evictions = store.stats().counters["evictions"]
        store.flush()
        assert store.stats().counters["not_admitted"] == 1
        assert store.stats().counters["evictions"] > evictions
        assert states(store, [b"k"]) == {(BlockState.NOT_ADMITTED, "disk")}
        assert states(store, names(3, "others")) == {(BlockState.STORED, "disk")}


def test_a_failed_write(tmp_path: Path) -> None:
    """Its older value goes with it: not because anyone deleted it."""
    fs, clock = FaultyFileSystem(OsFileSystem()), HandClock()
    with Store.open(config(tmp_path), fs=fs, clock=clock, background=False) as store:
        fill(store, [b"older", b"deleted"], 100)
        fs.counts.clear()
        fs.fail_at(1, errno.EIO, op="write_at")
        for key in (b"older", b"new"):
            store.put(key, b"lost")
        store.delete(b"deleted")
        with pytest.raises(FlushError):
            store.flush()
        failed = Explanation(BlockState.WRITE_FAILED, "disk", LONG_AGO)
        assert store.explain(b"older") == store.explain(b"new") == failed
        assert store.explain(b"deleted").state is BlockState.DELETED
        clock.now += 60
        store.put(b"other", b"later")
        store.flush()
        assert store.explain(b"new") == failed
    with Store.open(config(tmp_path)) as store:
        assert store.explain(b"older") == store.explain(b"new") == failed


# -- what is remembered ------------------------------------------------------------------------------


def test_a_block_that_is_stored_again_has_not_departed(tmp_path: Path) -> None:
    clock = HandClock()
    with Store.open(config(tmp_path), clock=clock, background=False) as store:
        for times in range(3):
            clock.wall = LONG_AGO + times
            fill(store, [b"k"], 100)
            assert store.explain(b"k") == Explanation(BlockState.STORED, "disk")
            store.delete(b"k")
            store.flush()
            assert store.explain(b"k").when == LONG_AGO + times  # the latest counts
        fill(store, [b"k"], 100)
    with Store.open(config(tmp_path)) as store:
        assert store.explain(b"k") == Explanation(BlockState.STORED, "disk")


def remembered(index: LmdbIndex, block_ids: Iterable[int]) -> dict[int, Departure]:
    with index.read() as view:
        return {b: d for b in block_ids if (d := view.departure(b)) is not None}


def departures(block_ids: Iterable[int], when: int = 7) -> list[Departure]:
    return [Departure(b, when, Reason.EVICTED, 0) for b in block_ids]


def test_the_newest_are_remembered_and_the_oldest_forgotten(tmp_path: Path) -> None:
    """Exactly as many as may be, whatever the commits they came in."""
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    rng, last = random.Random(0), 0
    while last < 2 * DEPARTURES_MAX + 1000:
        size = rng.choice([1, 2, 63, 64, 65, 5000])
        with index.write() as txn:
            txn.add_departures(departures(range(last + 1, last + size + 1)))
        last += size
    with index.read() as view:
        rows = [schema.decode_row(k, v) for k, v in view._txn.cursor(db=index.departures)]
    kept = sorted(fields[0] for row in rows for fields in schema._DEPARTURE.iter_unpack(row))
    assert kept == list(range(last - DEPARTURES_MAX + 1, last + 1))
    oldest = kept[0]
    assert list(remembered(index, range(oldest - 3, oldest + 3))) == [oldest, oldest + 1, oldest + 2]
    assert list(remembered(index, (last, last + 1))) == [last]
    index.close()


@pytest.mark.parametrize("size", [1, 63, 300, 5000])
def test_a_small_ring_keeps_the_newest(tmp_path: Path, size: int) -> None:
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    begin = DEPARTURES_MAX - 1000  # where the count of departures starts anew, rows do not come out even
    with index.write() as txn:
        txn.add_departures(departures(range(1, begin)), 3)
    for first in range(begin, DEPARTURES_MAX + 1000, size):
        with index.write() as txn:
            txn.add_departures(departures(range(first, first + size)), 3)
    last = first + size - 1
    with index.read() as view:
        assert view._txn.stat(index.departures)["entries"] == 3
    kept = list(remembered(index, range(last - 3 * DEPARTURES_A_ROW, last + 1)))
    assert kept == list(range(kept[0], last + 1))
    assert len(kept) > 2 * DEPARTURES_A_ROW
    index.close()


def test_departures_do_not_fill_a_small_tier(tmp_path: Path) -> None:
    """Whose cap the index counts against: after a long life nothing else would have room."""
    small = config(tmp_path, tier(bytes_max=MIB, segment_bytes=256 * KIB), value_bytes_max=64 * KIB)
    with Store.open(small, background=False) as store:
        assert store._back is not None
        ledger = store._back.ladder.ledger
        for first in range(1, DEPARTURES_MAX, 4000):
            ledger.note(range(first, first + 4000), Reason.EVICTED, store._back.ladder.tiers[0])
            store.put(b"k", noise(first, 1000))
            store.flush()
        assert store.stats().index_bytes < MIB // 4
        assert isinstance(store.get(b"k"), Hit)


def test_of_one_block_the_newest_counts_wherever_it_stands(tmp_path: Path) -> None:
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    for when, others in enumerate([1, DEPARTURES_A_ROW, 40_000, 40_000, 10, 3]):  # the ring is passed once
        with index.write() as txn:
            txn.add_departures([*departures(range(10, 10 + others)), *departures([5], when)])
        assert remembered(index, [5])[5].when == when
    index.close()


def test_more_departures_in_one_commit_than_are_remembered(tmp_path: Path) -> None:
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    with index.write() as txn:
        txn.add_departures(departures(range(1, DEPARTURES_MAX + 11)))
    assert list(remembered(index, [1, 10, 11, DEPARTURES_MAX + 10])) == [11, DEPARTURES_MAX + 10]
    index.close()


def test_bytes_that_look_like_a_block_id_are_none(tmp_path: Path) -> None:
    """The search is for bytes; only what stands where an id stands is one."""
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    with index.write() as txn:
        txn.add_departures([Departure(0x1122334455667788, 0x99AABBCC, Reason.EVICTED, 3)])
    across = int.from_bytes(bytes.fromhex("44332211ccbbaa99"), "little")
    assert remembered(index, [across, 0x1122334455667788]).keys() == {0x1122334455667788}
    index.close()


def test_a_new_index_has_forgotten(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, [b"k", b"gone"], 100)
        store.delete(b"gone")
        store.flush()
    shutil.rmtree(tmp_path / "store" / "index")
    with Store.open(config(tmp_path), background=False) as store:
        assert store.explain(b"k").state is BlockState.STORED
        assert store.explain(b"gone") == Explanation(BlockState.UNKNOWN)
        store.delete(b"k")
        store.flush()
        assert store.explain(b"k").state is BlockState.DELETED


def test_so_has_one_that_is_made_anew_in_place(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, [b"gone"], 100)
        store.delete(b"gone")
        store.flush()
        assert store._back is not None
        with store._back.parts.index.write() as txn:
            txn.clear()
        assert store.explain(b"gone") == Explanation(BlockState.UNKNOWN)


def test_a_store_from_before_departures(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, [b"k"], 100)
    with lmdb.open(str(tmp_path / "store" / "index"), max_dbs=5) as env:
        db = env.open_db(b"departures")
        with env.begin(write=True) as txn:
            txn.drop(db)
    with Store.open(config(tmp_path), read_only=True) as store:
        assert store.explain(b"k").state is BlockState.STORED
        assert store.explain(b"gone").state is BlockState.UNKNOWN
    with Store.open(config(tmp_path), background=False) as store:
        assert store.explain(b"gone").state is BlockState.UNKNOWN
        store.delete(b"k")
        store.flush()
        assert store.explain(b"k").state is BlockState.DELETED


def test_damage_to_what_is_remembered_costs_no_more_than_that(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, [b"before", b"after", b"k"], 100)
        store.delete(b"before")
        store.flush()
        assert store._back is not None
        index = store._back.parts.index
        with index.write() as txn:
            key = schema.row_key(0)
            value = bytearray(txn._txn.get(key, db=index.departures))
            value[9] ^= 1
            txn._txn.put(key, bytes(value), db=index.departures)
        assert store.explain(b"before").state is BlockState.UNKNOWN
        store.delete(b"after")
        store.flush()
        assert store.explain(b"after").state is BlockState.DELETED
        assert store.explain(b"k").state is BlockState.STORED


def test_a_reason_of_a_later_version(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        assert store._back is not None
        with store._back.parts.index.write() as txn:
            txn.add_departures([Departure(store._identity.block_id(b"", b"k"), 7, 99, 0)])
        assert store.explain(b"k") == Explanation(BlockState.UNKNOWN)


def test_another_process_that_only_reads(tmp_path: Path) -> None:
    code = "import sys, kvtier; s = kvtier.Store.open(sys.argv[1], read_only=True); print(s.explain(b'gone'))"
    with Store.open(config(tmp_path), clock=HandClock(), background=False) as store:
        fill(store, [b"gone"], 100)
        store.delete(b"gone")
        store.flush()
        other = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=True
        )
    assert other.stdout == "The block was deleted, at 2001-09-09 01:46:40 UTC.\n"


# -- what it costs -----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 10])
def test_it_takes_no_commit_of_its_own(tmp_path: Path, count: int) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, names(3 * count), 100)
        assert store._back is not None
        ladder, top = store._back.ladder, disk_tier(store)
        before = commits(store)
        ladder._evict(top, [store._identity.block_id(b"", key) for key in names(count)])
        assert commits(store) == before + 1
        for key in names(2 * count)[count:]:
            store.delete(key)
        store.flush()
        assert commits(store) == before + 2
        assert states(store, names(count)) == {(BlockState.EVICTED, "disk")}
        assert states(store, names(2 * count)[count:]) == {(BlockState.DELETED, "disk")}
        fill(store, names(count), 100)
        assert commits(store) == before + 3


def test_it_rewrites_one_row_or_two_a_commit(tmp_path: Path) -> None:
    """However many blocks leave, and however they are called: the pages that change are next to each other."""
    index = LmdbIndex(str(tmp_path), map_bytes=1 << 24, read_only=False)
    rng = random.Random(0)

    def row_versions() -> dict[bytes, bytes]:
        with index.read() as view:
            return dict(view._txn.cursor(db=index.departures))

    for _ in range(40):
        before = row_versions()
        with index.write() as txn:
            txn.add_departures(departures(rng.randrange(1, 2**64) for _ in range(64)))
        after = row_versions()
        assert len([key for key in after if after[key] != before.get(key)]) <= 2
    index.close()


@pytest.mark.parametrize("wall", [-5.0, 2.0**40])
def test_a_clock_that_is_far_off_fails_no_commit(tmp_path: Path, wall: float) -> None:
    with Store.open(config(tmp_path), clock=HandClock(wall), background=False) as store:
        fill(store, [b"k", b"gone"], 100)
        store.delete(b"gone")
        store.flush()
        assert value_of(store.get(b"k")) == noise(b"k", 100)
        assert store.explain(b"gone").when == min(max(wall, 0), 2**32 - 1)
        assert str(store.explain(b"gone"))


# -- threads -----------------------------------------------------------------------------------------


def test_no_moment_at_which_nothing_is_known(tmp_path: Path) -> None:
    """On its way from the queue to the disk and out again, a block is always in one of the states."""
    keys, put, unknown = names(300), list[bytes](), list[bytes]()
    done = threading.Event()

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        while not done.is_set():
            for key in rng.sample(put, min(len(put), 20)) + put[-5:]:
                if store.explain(key).state is BlockState.UNKNOWN:
                    unknown.append(key)

    with Store.open(small_config(tmp_path, small(bytes_max=4 * MIB))) as store:  # readers may make the index grow
        readers = [threading.Thread(target=ask, args=(seed,)) for seed in range(2)]
        for reader in readers:
            reader.start()
        try:
            for key in keys:
                store.put(key, noise(key, 20 * KIB))
                put.append(key)
            store.flush()
        finally:
            done.set()
            for reader in readers:
                reader.join()
        assert store.stats().counters["evictions"] > 50
        assert unknown == []
        assert (BlockState.EVICTED, "disk") in states(store, keys)


# -- in words ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", BlockState)
def test_every_state_has_a_sentence(state: BlockState) -> None:
    assert str(Explanation(state)).startswith("The block ")


@pytest.mark.parametrize(
    ("explanation", "sentence"),
    [
        (Explanation(BlockState.STORED, "ssd"), "The block is stored in tier 'ssd'."),
        (
            Explanation(BlockState.EVICTED, "ssd", LONG_AGO),
            "The block was evicted from tier 'ssd', at 2001-09-09 01:46:40 UTC.",
        ),
        (Explanation(BlockState.DAMAGED), "The block was found damaged in a disk tier."),
        (Explanation(BlockState.UNKNOWN), "The block was never stored, or it left too long ago to be remembered."),
    ],
)
def test_sentences(explanation: Explanation, sentence: str) -> None:
    assert str(explanation) == sentence
