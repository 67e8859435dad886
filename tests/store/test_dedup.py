"""Equal bytes are stored once in a namespace, counted, and never shared between namespaces."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvtier import Hit, Store
from tests.stores import (
    KIB,
    MIB,
    config,
    fill,
    flip,
    names,
    noise,
    occupied,
    only_segment,
    segments,
    settle,
    tier,
    value_of,
)

VALUE = noise("shared", 100 * KIB)


def test_equal_bytes_are_stored_once(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        for key in names(5):
            store.put(key, VALUE, meta=key)
        store.flush()  # in one group
        for key in names(5, "later"):
            store.put(key, [VALUE[:10], VALUE[10:]], meta=key)  # cut elsewhere
            store.flush()  # and one by one
        stats = store.stats()
        assert stats.bytes_written < 110 * KIB
        assert (stats.dedup.blocks, stats.dedup.bytes_saved) == (9, 9 * 100 * KIB)
        assert stats.blocks == 10
    with Store.open(config(tmp_path)) as store:
        for key in names(5) + names(5, "later"):
            hit = store.get(key)
            assert isinstance(hit, Hit)
            assert (value_of(hit), hit.meta) == (VALUE, key)
            assert len(hit.buffers) == (2 if b"later" in key else 1)


def test_two_namespaces_share_nothing(tmp_path: Path) -> None:
    """Else a tenant could tell by space or time that another one has stored the same bytes."""
    with Store.open(config(tmp_path), background=False) as store:
        for namespace in (b"", b"a", b"b"):
            store.put(b"k", VALUE, namespace=namespace)
        store.flush()
        stats = store.stats()
        assert (stats.dedup.blocks, stats.dedup.bytes_saved) == (0, 0)
        assert stats.bytes_written > 300 * KIB
        ids = {store._identity.content_hasher(n).update(VALUE).digest() for n in (b"", b"a", b"b")}
        assert len(ids) == 3


def test_the_bytes_live_as_long_as_anyone_needs_them(tmp_path: Path) -> None:
    keys = names(4)
    for order in (keys, keys[::-1], [keys[1], keys[0], keys[3], keys[2]]):
        folder = tmp_path / b"-".join(order).decode()
        with Store.open(config(folder), background=False) as store:
            fill(store, [b"other"], 10)
            for key in keys:
                store.put(key, VALUE)
            store.flush()
            for i, key in enumerate(order):
                store.delete(key)
                store.flush()
                assert [store.contains(k) for k in order] == [False] * (i + 1) + [True] * (3 - i)
                assert all(value_of(store.get(k)) == VALUE for k in order[i + 1 :])
            assert occupied(folder / "store" / "disk") < 64 * KIB  # the last one took the bytes along
            assert value_of(store.get(b"other")) == noise(b"other", 10)


def test_sharing_survives_reopening(tmp_path: Path) -> None:
    c = config(tmp_path)
    with Store.open(c) as store:
        store.put(b"a", VALUE)
        store.put(b"b", VALUE)
    with Store.open(c) as store:
        store.delete(b"a")
        store.put(b"c", VALUE)
    with Store.open(c, background=False) as store:
        assert store.stats().bytes_written == 0
        assert [value_of(store.get(k)) for k in (b"b", b"c")] == [VALUE] * 2
        store.delete(b"b")
        store.flush()
        assert value_of(store.get(b"c")) == VALUE
        store.delete(b"c")
        store.flush()
        settle(store)
        assert occupied(tmp_path / "store" / "disk") < 64 * KIB


def test_a_replaced_value_leaves_the_shared_one_alone(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        store.put(b"a", VALUE)
        store.put(b"b", VALUE)
        store.flush()
        for i in range(3):  # the owner of the bytes changes its mind, more than once
            store.put(b"a", noise(i, 1000))
            store.flush()
            store.put(b"a", VALUE)
            store.flush()
        assert [value_of(store.get(k)) for k in (b"a", b"b")] == [VALUE] * 2
        assert store.stats().bytes_written < 120 * KIB
        store.delete(b"a")
        store.delete(b"b")
        store.flush()
        assert occupied(tmp_path / "store" / "disk") < 64 * KIB


def test_sharing_holds_on_the_way_down_and_up(tmp_path: Path) -> None:
    keys = names(6)
    c = config(tmp_path, tier("t0", bytes_max=2 * MIB), tier("t1"))
    with Store.open(c, background=False) as store:
        for key in keys:
            store.put(key, VALUE, meta=key)
        fill(store, names(30, "other"), 100 * KIB)
        assert {i.tier for k in keys if (i := store.info(k))} == {"t1"}
        others = sum(i.tier == "t1" for k in names(30, "other") if (i := store.info(k)))
        below = sum(f.stat().st_size for f in segments(tmp_path, "t1"))
        assert below < (others + 1.5) * 100 * KIB
        assert store.get(keys[3])
        settle(store)
        places = [info.tier for info in map(store.info, keys) if info]
        assert places == ["t1"] * 3 + ["t0"] + ["t1"] * 2
        for n, key in enumerate(keys):
            hit = store.get(key)
            assert isinstance(hit, Hit)
            assert (value_of(hit), hit.meta) == (VALUE, key)
            store.delete(key)
            store.flush()
            assert all(store.contains(k) for k in keys[n + 1 :])


def test_damage_to_shared_bytes_is_a_miss_for_all_and_each_can_be_put_again(tmp_path: Path) -> None:
    keys = names(3)
    c = config(tmp_path)
    with Store.open(c) as store:
        for key in keys:
            store.put(key, VALUE)
        fill(store, [b"other"], 1000)
    flip(only_segment(tmp_path), 50_000)
    with Store.open(c, background=False) as store:
        assert [bool(store.get(k)) for k in keys] == [False] * 3
        settle(store)
        assert not any(store.contains(k) for k in keys)
        assert store.stats().quarantined == 1
        for key in keys:
            store.put(key, VALUE)
            store.flush()
            assert value_of(store.get(key)) == VALUE
        assert store.stats().dedup.blocks == 2
        assert value_of(store.get(b"other")) == noise(b"other", 1000)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_pinned_block_keeps_bytes_that_another_brought(tmp_path: Path, codec: str) -> None:
    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB, codec=codec)), background=False) as store:
        store.put(b"owner", VALUE)
        store.put(b"pinned", VALUE)
        store.pin([b"pinned"])
        store.flush()
        fill(store, names(40), 100 * KIB)
        assert not store.contains(b"owner")
        assert value_of(store.get(b"pinned")) == VALUE
