"""Many threads, and readers in another process, while blocks are replaced, evicted, moved and deleted."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from kvtier import Hit, HitInto, Store, StoreClosed
from kvtier.fs import OsFileSystem, PortableFileSystem
from tests.concurrency.mixture import KEYS, SIZES, Versions, small, version_of, work
from tests.concurrency.processes import running
from tests.stores import MIB, config, noise, value_of

THREADS = 16


@pytest.mark.slow
@pytest.mark.parametrize(("make_fs", "codec"), [(OsFileSystem, "zstd"), (PortableFileSystem, "none")])
def test_threads_never_see_wrong_torn_or_older_bytes(
    tmp_path: Path, make_fs: Callable[[], OsFileSystem], codec: str
) -> None:
    versions = Versions()
    with Store.open(small(tmp_path, codec), fs=make_fs()) as store:
        with ThreadPoolExecutor(THREADS) as pool:
            hits = list(
                pool.map(lambda seed: work(store, versions, seed, 150, pins=make_fs is OsFileSystem), range(THREADS))
            )
        store.flush()
        stats = store.stats()
        assert min(hits) > 0
        assert (stats.quarantined, stats.queue.failed, stats.pinned) == (0, 0, 0)
        assert set(stats.misses) <= {"absent"}
        before = {k: store.get(k) for k in KEYS}
        for key, outcome in before.items():
            versions.check(key, versions.done[key], outcome)
        for key in KEYS:  # more than there is room for, however much the queue has spared the disk so far
            versions.put(store, key, None)
        store.flush()
        counters = store.stats().counters
        assert counters["evictions"] > 0
        assert counters["demotions"] > 0
    with Store.open(small(tmp_path, codec), fs=make_fs()) as store:
        for key, outcome in zip(KEYS, store.get_many(KEYS), strict=True):
            versions.check(key, versions.done[key], outcome)


def test_readers_race_overwrites_and_eviction(tmp_path: Path) -> None:
    """One thread replaces and evicts blocks, round after round, while four others read them."""
    hot, rounds = KEYS[40:44], 4
    versions = Versions()
    over = threading.Event()
    with Store.open(small(tmp_path, ram=0)) as store, ThreadPoolExecutor(4) as pool:

        def read(key: bytes) -> None:
            target = bytearray(SIZES[key])
            is_last = False
            while not is_last:
                is_last = over.is_set()  # then all is on disk
                known = versions.done[key]
                versions.check(key, known, store.get(key))
                into = store.get_into(key, target)
                if isinstance(into, HitInto):
                    assert version_of(key, bytes(target), into.meta) >= known

        readers = [pool.submit(read, key) for key in hot]
        try:
            for n in range(rounds):
                for key in hot + KEYS[12 * n : 12 * n + 24]:
                    versions.put(store, key, None)
                store.flush()
        finally:
            over.set()
        for reader in readers:
            reader.result()
        stats = store.stats()
        assert sum(t.hits for t in stats.tiers) > 0
        assert stats.counters["demotions"] > 0
        assert stats.quarantined == 0


def test_threads_that_put_the_same_key_agree_in_the_end(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB)) as store:
        for round_ in range(20):
            start = threading.Barrier(4)

            def put(n: int, round_: int = round_, start: threading.Barrier = start) -> None:
                start.wait()
                store.put(b"k", noise((round_, n), 5000), meta=b"%d" % n)

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(put, range(4)))
            first = store.get(b"k")
            assert isinstance(first, Hit)
            assert value_of(first) == noise((round_, int(first.meta)), 5000)
            store.flush()
            store._front.forget(store._wanted(b"k", b"").block_id)
            second = store.get(b"k")
            assert isinstance(second, Hit)
            assert (second.tier, second.meta, value_of(second)) == ("disk", first.meta, value_of(first))


def test_closing_under_load_raises_store_closed_and_nothing_else(tmp_path: Path) -> None:
    for n in range(5):
        c = small(tmp_path / str(n))
        store = Store.open(c)
        versions = Versions()
        busy = threading.Barrier(9)

        def use(seed: int, store: Store = store, versions: Versions = versions, busy: threading.Barrier = busy) -> bool:
            work(store, versions, seed, 20)
            busy.wait()
            try:
                work(store, versions, seed, 100_000)
            except StoreClosed:
                return True
            return False

        with ThreadPoolExecutor(8) as pool:
            users = [pool.submit(use, seed) for seed in range(8)]
            busy.wait()
            store.close()
            assert [u.result() for u in users] == [True] * 8
        with Store.open(c) as store:
            for key, outcome in zip(KEYS, store.get_many(KEYS), strict=True):
                if isinstance(outcome, Hit):
                    version_of(key, value_of(outcome), outcome.meta)
            assert store.stats().quarantined == 0


# -- another process ---------------------------------------------------------------------------------

READER = """
import sys
from kvtier import Config, Hit, Store
from tests.concurrency.mixture import KEYS, SIZES, small, version_of
from pathlib import Path

with Store.open(small(Path(sys.argv[1])), read_only=True) as store:
    newest = dict.fromkeys(KEYS, 0)
    hits = 0
    print("ready", flush=True)
    for line in sys.stdin:
        for i, key in enumerate(KEYS):
            store._front.forget(store._wanted(key, b"").block_id)  # as if there were no RAM tier
        for key, outcome in zip(KEYS, store.get_many(KEYS)):
            if isinstance(outcome, Hit):
                version = version_of(key, b"".join(outcome.buffers), outcome.meta)
                assert version >= newest[key], (key, version, newest[key])
                newest[key] = version
                hits += 1
            target = bytearray(SIZES[key])
            into = store.get_into(key, target)
            if into:
                version_of(key, bytes(target), into.meta)
        print("looked", flush=True)
    stats = store.stats()
    assert set(stats.misses) <= {"absent"}, stats.misses
    print(hits, max(newest.values()), flush=True)
"""


@pytest.mark.slow
def test_a_reading_process_sees_only_whole_and_newer_values(tmp_path: Path) -> None:
    versions = Versions()
    with Store.open(small(tmp_path)) as store:
        for key in KEYS:
            versions.put(store, key, None)
        store.flush()
        with running(READER, tmp_path) as reader:
            assert reader.line() == "ready"
            rng = random.Random(1)
            for _ in range(30):
                reader.tell("look")
                for _ in range(5):  # no more: the index grows with each commit that the reader sleeps through
                    versions.put(store, rng.choice(KEYS), None)
                store.flush()
                assert reader.line() == "looked"
            assert reader.end() == 0
            hits, newest = map(int, reader.line().split())
            assert hits > 0
            assert newest > 1  # it saw what was written while it was open
        assert store.stats().quarantined == 0
