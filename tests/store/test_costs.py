"""What single operations cost, counted: calls of the file system, bytes, index transactions, copies of a block.

Without a background thread, so that every count is exact. A count that rises needs a reason; one that falls is to be
written down here.
"""

from __future__ import annotations

import threading
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvtier import Hit, Store, reads
from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.pool import PAGE, BufferPool, _Memory
from kvtier.testing import FaultyFileSystem
from tests.stores import KIB, MIB, config, fill, names, noise, settle, tier, value_of

BLOCK = 64 * KIB
LARGE = 2 * MIB  #: in memory of the pool, which Python's allocator does not see, and read past the system's cache
SMALL = 32 * KIB  #: more than all that is allocated beside a block: its head, a few times
HEAD_MAX = 256  #: bytes of a record beside its payload, padding included
LARGE_HEAD_MAX = HEAD_MAX + PAGE  #: the same, where the payload starts with a page
READERS = 2  #: threads that read ahead
SLAB_BYTES = 8 * MIB + 2 * PAGE  #: what one of them reads into


class Costs:
    """What has happened since the last question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fs = FaultyFileSystem(OsFileSystem())
        self._index: Counter[str] = Counter()
        self._fs_before: Counter[str] = Counter()
        self._bytes_before = (0, 0)
        for name in ("read", "write"):
            monkeypatch.setattr(LmdbIndex, name, self._counted(name, getattr(LmdbIndex, name)))

    def _counted(self, name: str, method: Callable[[LmdbIndex], Any]) -> Callable[[LmdbIndex], Any]:
        def counted(index: LmdbIndex) -> Any:
            self._index[f"index {name}"] += 1
            return method(index)

        return counted

    def taken(self) -> dict[str, int]:
        """Calls of the file system by name, and transactions of the index."""
        found = Counter(self.fs.counts) - self._fs_before + self._index
        self._fs_before = Counter(self.fs.counts)
        self._index.clear()
        return dict(found)

    def nbytes(self) -> tuple[int, int]:
        """Bytes written and read through the file system."""
        now = self.fs.bytes_written, self.fs.bytes_read
        written, read = (a - b for a, b in zip(now, self._bytes_before, strict=True))
        self._bytes_before = now
        return written, read


@pytest.fixture
def costs(monkeypatch: pytest.MonkeyPatch) -> Costs:
    return Costs(monkeypatch)


def small_store(folder: Path, costs: Costs, *, ram: int = 0) -> Store:
    one = tier(bytes_max=192 * MIB, segment_bytes=64 * MIB)
    sizes = config(folder, one, ram=ram, value_bytes_max=LARGE, prefetch={"threads": READERS})
    return Store.open(sizes, fs=costs.fs, background=False)


@contextmanager
def opened(folder: Path, costs: Costs, *, ram: int = 0) -> Iterator[Store]:
    """A store that has done all there is to do at first; what that took is not counted."""
    with small_store(folder, costs, ram=ram) as store:
        store.put(b"first", b"x")  # makes the segment
        store.flush()
        store.get_into(b"first", bytearray(1))  # opens it
        store.flush()
        settle(store)  # that it was used is saved
        costs.taken()
        costs.nbytes()
        yield store


def allocated(work: Callable[[], object]) -> int:
    """Bytes that Python has allocated at the most while ``work`` ran."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def memory_of(store: Store, key: bytes) -> object:
    """What the bytes are kept in that ``get`` gives."""
    hit = store.get(key)
    assert isinstance(hit, Hit)
    return memoryview(hit.buffers[0]).obj


# -- writing -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 16, 256])
def test_put_and_flush(tmp_path: Path, costs: Costs, count: int) -> None:
    """One write, one sync, one commit, for any number of blocks; the index is looked at once before."""
    with opened(tmp_path, costs) as store:
        fill(store, names(count), BLOCK // 16)
        assert costs.taken() == {"reserve": 1, "write_at": 1, "sync_data": 1, "index read": 1, "index write": 1}
        written, read = costs.nbytes()
        assert 0 < written - count * BLOCK // 16 <= count * HEAD_MAX
        assert read == 0


def test_a_flush_after_uses_commits_these_before(tmp_path: Path, costs: Costs) -> None:
    """One commit more: whatever the blocks displace is chosen by what was used before them."""
    with opened(tmp_path, costs) as store:
        store.get_into(b"first", bytearray(1))
        costs.taken()
        fill(store, names(16), KIB)
        assert costs.taken() == {"reserve": 1, "write_at": 1, "sync_data": 1, "index read": 1, "index write": 2}


def test_put_touches_no_disk(tmp_path: Path, costs: Costs) -> None:
    with opened(tmp_path, costs, ram=16 * MIB) as store:
        for key in names(16):
            store.put(key, noise(key, BLOCK))
        assert costs.taken() == {}


def test_the_same_bytes_again_are_not_written(tmp_path: Path, costs: Costs) -> None:
    with opened(tmp_path, costs) as store:
        fill(store, names(16), BLOCK)
        costs.taken()
        costs.nbytes()
        fill(store, names(16), BLOCK)
        taken = costs.taken()
        assert {name: n for name, n in taken.items() if not name.startswith("index")} == {}
        assert costs.nbytes() == (0, 0)


def test_put_copies_once_or_not_at_all(tmp_path: Path, costs: Costs) -> None:
    with opened(tmp_path, costs) as store:
        mine, given, whole = bytearray(BLOCK), bytearray(noise(1, BLOCK)), noise(2, BLOCK)
        assert allocated(lambda: store.put(b"a", mine)) < BLOCK + SMALL
        assert allocated(lambda: store.put(b"b", given, give=True)) < SMALL
        assert allocated(lambda: store.put(b"c", whole)) < SMALL
        assert memory_of(store, b"b") is given
        assert memory_of(store, b"c") is whole


def test_flush_copies_nothing(tmp_path: Path, costs: Costs) -> None:
    with opened(tmp_path, costs) as store:
        store.put(b"a", noise(1, BLOCK))
        store.flush()
        for key in names(8):
            store.put(key, noise(key, BLOCK))
        assert allocated(store.flush) < BLOCK  # of half a megabyte


# -- reading -----------------------------------------------------------------------------------------


def test_get_from_memory_takes_and_copies_nothing(tmp_path: Path, costs: Costs) -> None:
    """From RAM, and from the queue before anything is durable."""
    for ram in (0, MIB):
        with opened(tmp_path / str(ram), costs, ram=ram) as store:
            store.put(b"k", noise(1, BLOCK))
            assert allocated(lambda store=store: store.get(b"k")) < SMALL  # type: ignore[misc]
            assert memory_of(store, b"k") is memory_of(store, b"k")
            assert costs.taken() == {}


def test_get_from_disk(tmp_path: Path, costs: Costs) -> None:
    """One read, into memory of its own. The index is asked again before it enters RAM, if that can take it."""
    for ram, index_reads in ((0, 1), (16 * MIB, 2)):
        _get_from_disk(tmp_path / str(ram), costs, ram, index_reads)


def _get_from_disk(folder: Path, costs: Costs, ram: int, index_reads: int) -> None:
    with opened(folder, costs, ram=ram) as store:
        values = fill(store, names(2), BLOCK)
        store.forget_keys()  # and what is in RAM
        costs.taken()
        costs.nbytes()
        hits: list[Any] = []
        assert allocated(lambda: hits.append(store.get(b"k0001"))) < BLOCK + SMALL
        assert value_of(hits[0]) == values[b"k0001"]
        taken = costs.taken()
        assert taken["read_at"] == 1
        assert taken["index read"] == index_reads
        assert 0 < costs.nbytes()[1] - BLOCK < HEAD_MAX


def test_get_many_into_from_disk(tmp_path: Path, costs: Costs) -> None:
    """One read for all, to where they are wanted; the index is asked once."""
    with opened(tmp_path, costs) as store:
        fill(store, names(16), BLOCK)
        costs.taken()
        costs.nbytes()
        targets = [bytearray(BLOCK) for _ in range(16)]
        assert allocated(lambda: store.get_many_into(names(16), targets)) < 16 * SMALL
        assert costs.taken() == {"read_at": 1, "index read": 1}
        assert 0 < costs.nbytes()[1] - 16 * BLOCK < 16 * HEAD_MAX


def test_get_many_into_looks_up_some_at_a_time(tmp_path: Path, costs: Costs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_LOCATE_AT_ONCE", 5)
    with opened(tmp_path, costs) as store:
        fill(store, names(16), BLOCK)
        costs.taken()
        assert all(store.get_many_into(names(16), [bytearray(BLOCK) for _ in range(16)]))
        assert costs.taken() == {"read_at": 1, "index read": 4}


def test_get_into_from_disk(tmp_path: Path, costs: Costs) -> None:
    """One read, to where it is wanted; the index is asked once."""
    with opened(tmp_path, costs) as store:
        fill(store, names(2), BLOCK)
        target = bytearray(BLOCK)
        costs.taken()
        costs.nbytes()
        assert allocated(lambda: store.get_into(b"k0001", target)) < SMALL
        assert target == noise(b"k0001", BLOCK)
        assert costs.taken() == {"read_at": 1, "index read": 1}
        assert 0 < costs.nbytes()[1] - BLOCK < HEAD_MAX


@pytest.mark.parametrize("count", [8, 64])
def test_get_many_of_a_chain(tmp_path: Path, costs: Costs, count: int) -> None:
    """Neighbours come in few reads, found by one look at the index."""
    with opened(tmp_path, costs) as store:
        fill(store, names(count), BLOCK, chain=True)
        costs.taken()
        costs.nbytes()
        assert all(isinstance(hit, Hit) for hit in store.get_many(names(count), keep=False))
        taken = costs.taken()
        reads = taken.pop("read_at")
        assert reads <= 1 + count * BLOCK // MIB
        assert taken == {"index read": 1}
        assert 0 < costs.nbytes()[1] - count * BLOCK < count * HEAD_MAX + reads * 2 * PAGE  # as they lie, whole pages


@pytest.mark.parametrize("count", [1, 64])
def test_match_asks_the_index_once(tmp_path: Path, costs: Costs, count: int) -> None:
    with opened(tmp_path, costs) as store:
        fill(store, names(count), KIB, chain=True)
        costs.taken()
        assert store.match(names(count)) == count
        assert costs.taken() == {"index read": 1}


def test_reopening_takes_as_much_for_any_number_of_blocks(tmp_path: Path, costs: Costs) -> None:
    taken = {}
    for count in (4, 400):
        with opened(tmp_path / str(count), costs) as store:
            fill(store, names(count), KIB)
        costs.taken()
        costs.nbytes()
        with small_store(tmp_path / str(count), costs) as store:
            taken[count] = costs.taken()
            assert store.match(names(count)) == count
    assert taken[4] == taken[400]
    assert taken[4].get("index write", 0) == 0
    assert taken[4]["index read"] <= 6
    assert taken[4]["open"] <= 8


# -- locks -------------------------------------------------------------------------------------------


class CountedLock:
    """A lock that counts how often it is asked for: to wait for it, and to have it only if it is free."""

    def __init__(self, counts: Counter[str]) -> None:
        self._lock = _LOCK()
        self._counts = counts

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        self._counts["wait" if blocking else "try"] += 1
        return self._lock.acquire(blocking, timeout)

    def release(self) -> None:
        self._lock.release()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *error: object) -> None:
        self.release()


_LOCK = threading.Lock


@pytest.mark.parametrize(
    ("read", "waits"),
    [
        (lambda store, keys: [store.get(k) for k in keys], 0),
        (lambda store, keys: [store.get_into(k, bytearray(BLOCK)) for k in keys], 0),
        (lambda store, keys: list(store.get_many(keys)), 1),  # what was asked for is told to the prefetch policy
        (lambda store, keys: store.match(keys), 0),
    ],
    ids=["get", "get_into", "get_many", "match"],
)
def test_reads_from_ram_wait_for_no_lock(
    tmp_path: Path,
    costs: Costs,
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[Store, list[bytes]], object],
    waits: int,
) -> None:
    """Where all that a read does runs under Python's global lock, threads that wait for a second one hand it to each
    other at every read: two threads read half as much. Uses and outcomes are noted, and worked off 256 at a time."""
    counts: Counter[str] = Counter()
    monkeypatch.setattr(threading, "Lock", lambda: CountedLock(counts))
    keys = names(16)
    with opened(tmp_path, costs, ram=16 * MIB) as store:
        fill(store, keys, BLOCK)
        store.stats()
        before = store.stats().ram.hits
        counts.clear()
        for _ in range(40):
            read(store, keys)
        assert counts["wait"] == 40 * waits
        assert counts["try"] <= 2 * (40 * 16 // 256)
        assert store.stats().ram.hits - before in (0, 40 * 16)  # match is no use


# -- large blocks ------------------------------------------------------------------------------------


class Memory:
    """What the pools have lent, and what was new of that, since the last question."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lent: list[int] = []
        self._new_bytes = 0
        take, make = BufferPool.take, _Memory.__init__

        def counted_take(pool: BufferPool, nbytes: int, **options: bool) -> memoryview:
            self._lent.append(nbytes)
            return take(pool, nbytes, **options)

        def counted_make(memory: _Memory, nbytes: int, may_map: bool) -> None:
            self._new_bytes += nbytes
            make(memory, nbytes, may_map)

        monkeypatch.setattr(BufferPool, "take", counted_take)
        monkeypatch.setattr(_Memory, "__init__", counted_make)

    def taken(self) -> tuple[list[int], int]:
        """Bytes of each piece of memory that was lent, and bytes that came from the system for that."""
        found = self._lent, self._new_bytes
        self._lent, self._new_bytes = [], 0
        return found


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    return Memory(monkeypatch)


def test_put_of_a_large_block_copies_once_or_not_at_all(tmp_path: Path, costs: Costs, memory: Memory) -> None:
    with opened(tmp_path, costs) as store:
        mine, given, whole = bytearray(LARGE), bytearray(noise(1, LARGE)), noise(2, LARGE)
        memory.taken()
        assert allocated(lambda: store.put(b"a", mine)) < SMALL
        assert memory.taken() == ([LARGE], LARGE)
        assert allocated(lambda: store.put(b"b", given, give=True)) < SMALL
        assert allocated(lambda: store.put(b"c", whole)) < SMALL
        assert allocated(store.flush) < LARGE // 4
        assert memory.taken() == ([], 0)
        assert costs.taken()["write_at"] == 1


def test_a_large_block_is_read_once_into_its_own_memory_or_to_where_it_is_wanted(
    tmp_path: Path, costs: Costs, memory: Memory
) -> None:
    with opened(tmp_path, costs) as store:
        values = fill(store, names(2), LARGE)
        hits: list[Any] = []
        costs.taken()
        costs.nbytes()
        memory.taken()
        assert allocated(lambda: hits.append(store.get(b"k0001"))) < SMALL
        assert value_of(hits[0]) == values[b"k0001"]
        assert memory.taken() == ([LARGE], LARGE)
        assert costs.taken()["read_at"] == 1
        assert 0 < costs.nbytes()[1] - LARGE < LARGE_HEAD_MAX
        target = bytearray(LARGE)
        assert allocated(lambda: store.get_into(b"k0000", target)) < SMALL
        assert target == values[b"k0000"]
        assert memory.taken() == ([], 0)
        assert costs.taken() == {"read_at": 1, "index read": 1}
        assert 0 < costs.nbytes()[1] - LARGE < LARGE_HEAD_MAX


@pytest.mark.parametrize("count", [8, 24])
def test_a_chain_of_large_blocks_passes_through_a_few_buffers(
    tmp_path: Path, costs: Costs, memory: Memory, count: int
) -> None:
    """Three blocks a read, but for the first few; no more memory for a longer chain."""
    with opened(tmp_path, costs) as store:
        fill(store, names(count), LARGE, chain=True)
        costs.taken()
        costs.nbytes()
        memory.taken()
        for key, hit in zip(names(count), store.get_many(names(count), keep=False), strict=True):
            assert value_of(hit) == noise(key, LARGE)
        lent, new_bytes = memory.taken()
        taken = costs.taken()
        assert taken["read_at"] == len(lent) <= 3 + count // 3
        assert taken["index read"] == 1
        assert new_bytes <= (READERS + 2) * SLAB_BYTES
        assert 0 < costs.nbytes()[1] - count * LARGE < count * LARGE_HEAD_MAX + len(lent) * 2 * PAGE
