"""Namespaces: apart from one another in all that a store tells, and counted exactly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import Config, Hit, LimitError, Store
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.stats import NamespaceStats
from kvtier.tally import NAMESPACES_MAX
from tests.stores import KIB, commits, config, fill, names, noise, only_segment, settle, tier

A, B = b"tenant-a", b"tenant-b"


def stats(store: Store) -> dict[bytes, NamespaceStats]:
    return {n.name: n for n in store.stats().namespaces}


def stored(store: Store) -> dict[bytes, tuple[int | None, int | None]]:
    """Blocks and bytes, by what the statistics say; a namespace without blocks is left out."""
    return {n.name: (n.blocks, n.bytes_stored) for n in store.stats().namespaces if n.blocks != 0}


def walked(store: Store) -> dict[bytes, tuple[int, int]]:
    """The same, by a walk over all blocks."""
    assert store._back is not None
    blocks: Counter[bytes] = Counter()
    nbytes: Counter[bytes] = Counter()
    with store._back.parts.index.read() as view:
        for _, entry in view.blocks():
            blocks[entry.namespace] += 1
            nbytes[entry.namespace] += entry.nbytes
    return {n: (count, nbytes[n]) for n, count in blocks.items()}


def put(store: Store, namespace: bytes, keys: list[bytes], size: int, seed: object = 0) -> None:
    for key in keys:
        store.put(key, noise((key, seed), size), namespace=namespace)
    store.flush()


def test_blocks_and_bytes_are_exact(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(5), 3000)
        put(store, B, names(2), 100)
        put(store, b"", names(1), 7)
        assert stored(store) == {A: (5, 15_000), B: (2, 200), b"": (1, 7)}
        put(store, A, names(1), 1000)  # overwritten
        put(store, A, [b"copy"], 1000, seed=0)
        store.put(b"shared", noise((b"k0001", 0), 3000), namespace=A)  # the same bytes as another block's
        store.delete(names(2)[1], namespace=B)
        store.delete(names(1)[0])
        store.flush()
        assert stored(store) == {A: (7, 17_000), B: (1, 100)} == walked(store)
    with Store.open(config(tmp_path), read_only=True) as reader:
        assert stored(reader) == {A: (7, 17_000), B: (1, 100)}


def test_they_are_exact_over_two_tiers_that_are_full(tmp_path: Path) -> None:
    two = [tier("top", bytes_max=3 << 20), tier("low", bytes_max=3 << 20)]
    with Store.open(config(tmp_path, *two)) as store:
        for i in range(120):
            put(store, (A, B, b"")[i % 3], [b"%d" % (i % 70)], 80 * KIB, seed=i)
        counters = store.stats().counters
        assert counters["demotions"] > 0
        assert counters["evictions"] > 0
        assert stored(store) == walked(store)


def test_a_quarantined_block_no_longer_counts(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        put(store, A, names(2), 3000)
        segment = only_segment(tmp_path)
        segment.write_bytes(segment.read_bytes().replace(noise((names(1)[0], 0), 3000)[:100], bytes(100)))
        assert not store.get(names(1)[0], namespace=A)
        settle(store)
        assert stored(store) == {A: (1, 3000)}


def test_nothing_is_counted_anew_without_need(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(5), 3000)
    with Store.open(config(tmp_path)) as store:
        before = commits(store)
    with Store.open(config(tmp_path)) as store:
        assert commits(store) == before
        assert stored(store) == {A: (5, 15_000)}


def as_older_kvtier(folder: Path) -> None:
    """Commit a change as one that does not know of namespaces would."""
    index = LmdbIndex(str(folder / "store" / "index"), map_bytes=1 << 30, read_only=False)
    with index.write() as txn:
        block_id, _ = next(txn.blocks())
        txn.del_block(block_id)
    index.close()


def without_database(folder: Path) -> None:
    index = LmdbIndex(str(folder / "store" / "index"), map_bytes=1 << 30, read_only=False)
    with index._env.begin(write=True) as txn:
        txn.drop(index.namespaces)
        txn.delete(b"counted", db=index.meta)
    index.close()


def damaged(folder: Path) -> None:
    index = LmdbIndex(str(folder / "store" / "index"), map_bytes=1 << 30, read_only=False)
    with index.write() as txn:
        txn._txn.put(b"\x08" + A, b"something else", db=index.namespaces)
        txn.set_counter("counted", txn.number)
    index.close()


@pytest.mark.parametrize("change", [as_older_kvtier, without_database, damaged])
def test_what_was_not_counted_is_unknown_until_it_is(tmp_path: Path, change: Callable[[Path], None]) -> None:
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(5), 3000)
    change(tmp_path)
    with Store.open(config(tmp_path), read_only=True) as reader:
        reader.get(b"any", namespace=A)
        assert stats(reader)[A] == NamespaceStats(A, None, None, None, None, 0, 1)
    with Store.open(config(tmp_path)) as store:
        if change is damaged:
            put(store, A, [b"more"], 10)  # it is noticed, and repaired when the store is opened next
            assert stored(store) == {}
        else:
            assert stored(store) == walked(store) != {}
    with Store.open(config(tmp_path)) as store:
        assert stored(store) == walked(store) != {}


def test_an_index_that_is_made_anew_counts(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(5), 3000)
        put(store, B, names(5), 100)
    (tmp_path / "store" / "index" / "data.mdb").unlink()
    with Store.open(config(tmp_path)) as store:
        assert stored(store) == {A: (5, 15_000), B: (5, 500)}


@pytest.mark.parametrize("was_counted", [True, False])
def test_blocks_that_no_commit_covered_count(tmp_path: Path, was_counted: bool) -> None:
    """As after a loss of power that took the last commits, but not the records."""
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(2), 3000)
    data = tmp_path / "store" / "index" / "data.mdb"
    before = data.read_bytes()
    with Store.open(config(tmp_path)) as store:
        put(store, A, names(5)[2:], 3000)
        put(store, B, names(5), 100)
    data.write_bytes(before)
    if not was_counted:
        as_older_kvtier(tmp_path)
    with Store.open(config(tmp_path)) as store:
        left = 5 if was_counted else 4
        assert stored(store) == {A: (left, left * 3000), B: (5, 500)}


def test_hits_and_misses(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=1 << 20)) as store:
        put(store, A, names(3), 3000)
        (key, *_) = names(3)
        store.get(key, namespace=A)  # from RAM
        store.get_into(key, bytearray(3000), namespace=A)
        store.get(key, namespace=B)
        store.get(b"none", namespace=A)
        list(store.get_many([*names(3), b"none"], namespace=A))
        assert stats(store)[A] == NamespaceStats(A, 3, 9000, 9000 + 3 * KIB, None, hits=5, misses=2)
        assert stats(store)[B] == NamespaceStats(B, 0, 0, 0, None, hits=0, misses=1)
    with Store.open(config(tmp_path)) as store:  # from disk
        store.get(key, namespace=A)
        store.get_into(key, bytearray(3000), namespace=A)
        list(store.get_many([*names(3), b"none"], namespace=A))
        assert stats(store)[A] == NamespaceStats(A, 3, 9000, 9000 + 3 * KIB, None, hits=5, misses=1)


def test_a_store_without_a_disk_counts_uses() -> None:
    with Store.open(Config(ram={"bytes_max": "1MiB"})) as store:
        store.put(b"k", b"v", namespace=A)
        store.get(b"k", namespace=A)
        assert store.stats().namespaces == (NamespaceStats(A, 0, 0, 0, None, hits=1, misses=0),)


def test_memory_for_names_is_bounded(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        for i in range(NAMESPACES_MAX + 50):
            store.put(b"k", b"v", namespace=b"%05d" % i)
            store.get(b"k", namespace=b"%05d" % (i + 100_000))
        store.flush()
        assert len(store.stats().namespaces) == 2 * NAMESPACES_MAX
        assert len(walked(store)) == NAMESPACES_MAX + 50


def test_as_json(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        put(store, b"\xff-", names(1), 10)
        shown = json.loads(json.dumps(store.stats().as_dict()["namespaces"]))
    assert shown == [
        {
            "name": "\\xff-",
            "blocks": 1,
            "bytes_stored": 10,
            "bytes_counted": 1034,
            "bytes_max": None,
            "hits": 0,
            "misses": 0,
        }
    ]


def test_the_same_bytes_in_two_namespaces_are_two(tmp_path: Path) -> None:
    """Whoever could see that they are shared could ask what another tenant has stored."""
    value = noise(0, 50_000)
    with Store.open(config(tmp_path)) as store:
        store.put(b"k", value, namespace=A)
        store.flush()
        before = store.stats()
        store.put(b"k", value, namespace=B)
        store.flush()
        assert store.stats().bytes_written - before.bytes_written > 50_000
        assert store.stats().dedup.blocks == 0
        store.delete(b"k", namespace=A)
        store.flush()
        assert isinstance(store.get(b"k", namespace=B), Hit)
        assert not store.contains(b"k", namespace=A)


@pytest.mark.parametrize("namespace", ["text", None, b"x" * 65, bytearray(b"x"), 7])
def test_what_is_no_namespace_is_refused(tmp_path: Path, namespace: bytes) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, names(1), 10)
        for call in (
            lambda: store.put(b"k", b"v", namespace=namespace),
            lambda: store.get(b"k", namespace=namespace),
            lambda: list(store.get_many([b"k"], namespace=namespace)),
            lambda: store.delete(b"k", namespace=namespace),
            lambda: store.match([b"k"], namespace=namespace),
            lambda: store.pin([b"k"], namespace=namespace),
        ):
            with pytest.raises(LimitError, match="namespace must be bytes of length 0 to 64"):
                call()
