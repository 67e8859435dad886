"""Memory is used again exactly when nobody can see it any more, and no more than the bound is kept."""

from __future__ import annotations

import ctypes
import gc
import mmap
import threading
from collections.abc import Callable
from typing import Any

import pytest

import kvtier.pool
from kvtier import Config, Hit, Store
from kvtier.pool import LEAST_BYTES, BufferPool, _Memory

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SIZE = 256 << 10
PLENTY = 64 << 20


def address(view: memoryview) -> int:
    """Where the memory is that a writable view is of."""
    return ctypes.addressof(ctypes.c_ubyte.from_buffer(view))


def restock(pool: BufferPool) -> None:
    """All that it may."""
    while pool.restock():
        pass


@pytest.fixture(params=["mapped", "bytearrays"])
def pool(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> BufferPool:
    """With and without private mappings."""
    monkeypatch.setattr("kvtier.pool._MAPPED_BYTES_MIN", SIZE if request.param == "mapped" else PLENTY)
    return BufferPool(PLENTY)


def test_memory_is_used_again_once_every_view_of_it_is_gone(pool: BufferPool) -> None:
    view = pool.take(SIZE)
    first, part = address(view), view[10:20].toreadonly()
    del view
    assert address(pool.take(SIZE)) != first, "a part of it is still seen"
    del part
    assert first in {address(v) for v in [pool.take(SIZE), pool.take(SIZE)]}


@pytest.mark.parametrize("size", [LEAST_BYTES, SIZE - 1, SIZE, SIZE + 1])
def test_memory_begins_where_a_page_does(pool: BufferPool, size: int) -> None:
    kept = [pool.take(size) for _ in range(5)]
    assert {address(view) % mmap.PAGESIZE for view in kept} == {0}
    kept[0][:] = kept[-1][:] = bytes(size)


def test_a_view_keeps_its_bytes_for_as_long_as_it_lives(pool: BufferPool) -> None:
    held = []
    for n in range(20):
        view = pool.take(SIZE)
        view[:] = bytes([n]) * SIZE
        held.append(view.toreadonly()[5:9].cast("I") if n % 2 else pool.copy_of(view)[:4])
        del view
    gc.collect()
    assert [bytes(v) for v in held] == [bytes([n]) * 4 for n in range(20)]


def test_a_copy_is_of_the_bytes_alone_and_read_only(pool: BufferPool) -> None:
    for size in (0, 1, LEAST_BYTES, SIZE + 1):
        source = memoryview(bytearray(b"a" * size))
        copy = pool.copy_of(source)
        source[:] = b"b" * size
        assert (bytes(copy), copy.readonly) == (b"a" * size, True)


def test_views_have_the_size_that_was_asked_for_and_are_writable(pool: BufferPool) -> None:
    for size in (0, 1, LEAST_BYTES - 1, LEAST_BYTES, LEAST_BYTES + 1, 1 << 20):
        view = pool.take(size)
        assert (view.nbytes, view.readonly, view.format) == (size, False, "B")
        view[:] = b"x" * size


def test_what_is_kept_for_reuse_is_bounded() -> None:
    pool = BufferPool(3 * SIZE)
    views = [pool.take(SIZE) for _ in range(8)]
    assert pool.spare_bytes == 0
    views.clear()
    assert pool.spare_bytes == 3 * SIZE
    pool.keep_spare(False)
    assert pool.spare_bytes == 0
    one = pool.take(SIZE)
    del one
    pool.stock([SIZE])
    assert pool.spare_bytes == 0
    pool.keep_spare(True)
    big = pool.take(4 * SIZE)
    del big
    assert pool.spare_bytes == 0, "it alone is over the bound"


def test_memory_that_is_much_too_large_is_left_for_larger_values(pool: BufferPool) -> None:
    large = pool.take(2 * SIZE)
    where = address(large)
    del large
    assert address(pool.take(SIZE)) != where
    assert address(pool.take(2 * SIZE - 100)) == where


def test_what_did_not_come_back_is_made_ready_anew(pool: BufferPool) -> None:
    kept = [pool.take(SIZE) for _ in range(3)]
    returned = pool.take(2 * SIZE)
    del returned
    spare = pool.spare_bytes
    for count in (1, 2, 3):
        assert pool.restock(), "one at a time"
        assert pool.spare_bytes == spare + count * SIZE
    assert not pool.restock(), "once for each"
    kept += [pool.take(SIZE) for _ in range(3)]  # of what was ready, too: the next turn will take as much
    assert pool.spare_bytes == spare
    restock(pool)
    assert pool.spare_bytes == spare + 3 * SIZE
    assert len(kept) == 6


def test_what_is_taken_for_a_moment_is_not(pool: BufferPool) -> None:
    view = pool.take(SIZE, is_brief=True)
    pool.restock()
    assert (view.nbytes, pool.spare_bytes) == (SIZE, 0)


def test_restocking_stays_within_the_bound() -> None:
    pool = BufferPool(3 * SIZE)
    kept = [pool.take(4 * SIZE), *(pool.take(SIZE) for _ in range(10))]
    restock(pool)
    assert pool.spare_bytes == 3 * SIZE, "what is over the bound alone does not keep others away"
    pool.stock([SIZE])
    assert pool.spare_bytes == 3 * SIZE
    assert len(kept) == 11


def test_memory_that_comes_back_while_the_lock_is_held_is_found_later(pool: BufferPool) -> None:
    view = pool.take(SIZE)
    where = address(view)
    with pool._lock:
        del view  # as the garbage collector may, inside any of the pool's own methods
    assert address(pool.take(SIZE)) == where
    with pool._lock:
        pool._returned.append(_Memory(SIZE, False))
    pool.keep_spare(False)
    assert (pool.spare_bytes, len(pool._returned)) == (0, 0)


class _Cycle:
    """Garbage that only the collector finds, and that still uses what it holds at its end."""

    def __init__(self, view: memoryview, at_end: Callable[[memoryview], object]) -> None:
        self.me, self.view, self.at_end = self, view, at_end

    def __del__(self) -> None:
        self.at_end(self.view)


def test_what_a_finalizer_still_sees_is_not_used_again(pool: BufferPool) -> None:
    """The collector clears weak references first, and runs finalizers then."""
    saved: list[memoryview] = []
    _Cycle(pool.take(SIZE), saved.append)
    gc.collect()
    other = pool.take(SIZE)
    other[:] = b"o" * SIZE
    saved[0][:] = b"s" * SIZE
    assert bytes(other) == b"o" * SIZE
    where = address(saved.pop())
    assert address(pool.take(SIZE)) == where, "and is, once nothing sees it"


def test_large_mappings_are_not_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.pool._MAPPINGS_MAX", 3)
    monkeypatch.setattr("kvtier.pool._MAPPED_BYTES_MIN", SIZE)
    pool = BufferPool(0)
    views = [pool.take(SIZE) for _ in range(5)]
    assert len(pool._mappings) <= 3
    views.clear()
    assert len(pool._mappings) == 0


@pytest.mark.skipif(not hasattr(resource, "RUSAGE_THREAD"), reason="page faults of a thread are not counted here")
def test_what_was_made_ready_was_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvtier.pool._MAPPED_BYTES_MIN", SIZE)  # smaller than a huge page: a fault for each page
    pool, source = BufferPool(PLENTY), b"x" * SIZE
    pool.stock([SIZE])
    view = pool.take(SIZE)
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    view[:] = source
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < SIZE // mmap.PAGESIZE // 2


def test_threads_never_share_memory(pool: BufferPool) -> None:
    wrong = []

    def work(mark: int) -> None:
        for _ in range(100):
            view = pool.take(SIZE)
            view[:] = bytes([mark]) * SIZE
            pool.restock()
            if bytes(view) != bytes([mark]) * SIZE:
                wrong.append(mark)
            del view

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# -- as a store uses it --------------------------------------------------------------------------------


@pytest.fixture
def config(tmp_path: Any) -> Config:
    tier = {"name": "disk", "kind": "ssd", "bytes_max": "64MiB", "segment_bytes": "4MiB"}
    store = {"path": str(tmp_path), "value_bytes_max": "1MiB"}
    return Config.from_dict({"store": store, "ram": {"bytes_max": "1MiB"}, "tier": [tier]})


def test_a_value_is_written_to_where_an_evicted_one_was(config: Config) -> None:
    with Store.open(config, background=False) as store:
        seen = set()
        for n in range(20):
            buffer = store.buffer(SIZE)
            buffer[:] = bytes([n]) * SIZE
            seen.add(address(buffer))
            store.put(b"%d" % n, buffer, give=True)
            del buffer
            store.flush()
        assert len(seen) < 10
        for n in range(20):
            hit = store.get(b"%d" % n)
            assert isinstance(hit, Hit)
            assert bytes(hit.buffers[0]) == bytes([n]) * SIZE


def test_the_worker_makes_ready_what_the_next_turn_takes(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    new = kvtier.pool._new

    def counted(nbytes: int, may_map: bool) -> object:
        made.append(nbytes)
        return new(nbytes, may_map)

    monkeypatch.setattr("kvtier.pool._new", counted)
    roomy = config.model_copy(update={"ram": config.ram.model_copy(update={"bytes_max": PLENTY})})
    made_by_puts = []
    with Store.open(roomy, background=False) as store:
        for turn in range(3):
            store.flush()
            while store._back is not None and store._back._worker.step():
                pass
            made.clear()
            for n in range(4):
                store.put(b"%d %d" % (turn, n), bytearray([n]) * SIZE)
            made_by_puts.append(len(made))
        pool = store._pool
    assert made_by_puts == [4, 0, 0]
    assert pool.spare_bytes == 0, "a store that is closed keeps nothing"


def test_a_put_that_comes_while_memory_is_made_ready_is_written_before_the_rest_is(config: Config) -> None:
    roomy = config.model_copy(update={"ram": config.ram.model_copy(update={"bytes_max": PLENTY})})
    with Store.open(roomy, background=False) as store:
        assert store._back is not None
        step, pool = store._back._worker.step, store._pool
        for n in range(4):
            store.put(b"%d" % n, bytearray([n]) * SIZE)
        store.flush()
        assert step()
        assert pool.spare_bytes == SIZE, "one piece at a time"
        store.put(b"late", b"a small one, which takes none of it")
        assert step()
        assert store._front.queue.find(store._wanted(b"late", b"").block_id) is None, "it is durable"
        assert pool.spare_bytes == SIZE
        for ready in (2, 3, 4):
            assert step()
            assert pool.spare_bytes == ready * SIZE


def test_a_reader_that_keeps_a_block_keeps_its_bytes_whatever_is_evicted(config: Config) -> None:
    with Store.open(config, background=False) as store:
        kept = []
        for n in range(20):
            store.put(b"%d" % n, bytearray([n]) * SIZE)
            kept.append(store.get(b"%d" % n))
            store.flush()
        kept += [store.get(b"%d" % n) for n in range(20)]  # from disk, those that are not in RAM any more
        for n, hit in enumerate(kept):
            assert isinstance(hit, Hit)
            assert bytes(hit.buffers[0]) == bytes([n % 20]) * SIZE
