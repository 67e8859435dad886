"""The ladder: demotion, promotion, codecs and pins, on two and three disk tiers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import Config, FlushError, Hit, HitInto, MissReason, Store
from kvtier.codec import CODEC_IDS
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.segment.format import PAGE, RecordHead
from kvtier.segment.scanner import Found, scan
from tests.stores import (
    KIB,
    MIB,
    config,
    disk_tier,
    fill,
    flip,
    names,
    noise,
    occupied,
    segments,
    settle,
    tier,
    value_of,
)

SIZE = 200 * KIB


def ladder(folder: Path, count: int = 3, **changes: object) -> Config:
    """Tiers of 2, 4 and 64 MiB: about 8, 19 and 300 blocks of 200 KiB."""
    caps = (2 * MIB, 4 * MIB, 64 * MIB)
    tiers = [
        tier(f"t{i}", bytes_max=caps[i], segment_bytes=MIB, **changes) for i in (range(3) if count == 3 else (0, 2))
    ]
    return config(folder, *tiers)


def where(store: Store, keys: list[bytes]) -> str:
    """The number of the tier of each key; ``-`` for none."""
    infos = [store.info(k) for k in keys]
    return "".join(i.tier.removeprefix("t") if i else "-" for i in infos)


# -- down --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3])
def test_the_oldest_move_down_and_nothing_is_lost(tmp_path: Path, count: int) -> None:
    keys = names(60)
    c = ladder(tmp_path, count)
    with Store.open(c, background=False) as store:
        values = fill(store, keys, SIZE)
        order = where(store, keys)
        assert "".join(sorted(order, reverse=True)) == order  # by age, tier by tier
        assert set(order) == set("012" if count == 3 else "02")
        for t in store.stats().tiers:
            assert t.bytes_used <= t.bytes_max
        stats = store.stats()
        assert stats.counters.get("evictions", 0) == 0
        assert stats.blocks == 60
        assert [t.segments for t in stats.tiers] == [len(segments(tmp_path, t.name)) for t in stats.tiers]
        assert {k: value_of(h) for k, h in zip(keys, store.get_many(keys), strict=True)} == values
    with Store.open(c, background=False) as store:
        assert where(store, keys) == order
        assert {k: value_of(store.get(k)) for k in keys} == values


def test_the_last_tier_evicts(tmp_path: Path) -> None:
    keys = names(40)
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1", bytes_max=3 * MIB)]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        values = fill(store, keys, SIZE)
        order = where(store, keys)
        kept = len(order.lstrip("-"))
        assert order == "-" * (40 - kept) + order[-kept:]
        assert 15 < kept < 25
        assert store.stats().counters["evictions"] == 40 - kept
        assert occupied(tmp_path) <= 5 * MIB
        assert [value_of(store.get(k)) for k in keys[-kept:]] == list(values.values())[-kept:]


@pytest.mark.parametrize("make_fs", [OsFileSystem, PortableFileSystem])
def test_caps_hold_on_every_tier_under_churn(tmp_path: Path, make_fs: Callable[[], FileSystem]) -> None:
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1", bytes_max=3 * MIB, codec="zstd"), tier("t2", bytes_max=2 * MIB)]
    with Store.open(config(tmp_path, *tiers), fs=make_fs(), background=False) as store:
        last: dict[bytes, bytes] = {}
        for i in range(300):
            key = b"%d" % (i * 31 % 70)
            last[key] = noise(i, i * 7919 % (150 * KIB))
            store.put(key, last[key])
            if i % 5 == 0:
                store.flush()
                again = b"%d" % (i * 17 % 70)
                hit = store.get(again)
                assert not hit or value_of(hit) == last[again]
                settle(store)
                for t in store.stats().tiers:
                    assert t.bytes_used <= t.bytes_max
                    bookkeeping = t.segments * PAGE  # of holes, which some file systems make room for later
                    assert occupied(tmp_path / "store" / t.name) <= t.bytes_max + bookkeeping
        store.flush()
        found = {k: h for k in last if (h := store.get(k))}
        assert len(found) > 20
        assert all(value_of(h) == last[k] for k, h in found.items())
        assert store.stats().quarantined == 0


def test_damage_met_on_the_way_down_is_dropped_not_spread(tmp_path: Path) -> None:
    keys = names(4)
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1")]
    c = config(tmp_path, *tiers)
    with Store.open(c, background=False) as store:
        values = fill(store, keys, SIZE)
    flip(segments(tmp_path, "t0")[0], 1000)
    with Store.open(c, background=False) as store:
        fill(store, names(20, "new"), SIZE)
        assert where(store, keys) == "-111"
        assert not store.get(keys[0])
        assert [value_of(store.get(k)) for k in keys[1:]] == list(values.values())[1:]
        assert store.stats().counters["corrupt_on_move"] == 1


# -- up ----------------------------------------------------------------------------------------------


def test_a_hit_moves_up_one_tier(tmp_path: Path) -> None:
    keys = names(40)
    with Store.open(ladder(tmp_path), background=False) as store:
        values = fill(store, keys, SIZE)
        assert where(store, keys[:2]) == "22"
        for key, expected in ((keys[0], "1"), (keys[0], "0"), (keys[0], "0")):
            assert value_of(store.get(key)) == values[key]
            settle(store)
            assert where(store, [key]) == expected
        assert where(store, keys[1:2]) == "2"
        assert store.get_into(keys[1], bytearray(SIZE))  # so do the other ways to read
        assert all(store.get_many(keys[2:4]))
        settle(store)
        assert where(store, keys[1:4]) == "111"
        assert store.stats().counters["promotions"] == 5
        assert {k: value_of(store.get(k)) for k in keys} == values
        for t in store.stats().tiers:
            assert t.bytes_used <= t.bytes_max


def test_blocks_stay_where_they_are_if_the_tier_never_promotes(tmp_path: Path) -> None:
    keys = names(40)
    with Store.open(ladder(tmp_path, promotion="never"), background=False) as store:
        fill(store, keys, SIZE)
        before = where(store, keys)
        assert all(store.get_many(keys))
        settle(store)
        assert where(store, keys) == before


def test_a_moved_block_keeps_its_name_and_parent(tmp_path: Path) -> None:
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1", codec="zstd-planes")]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        store.put(b"p", [noise(1, 10), bytes(100_000)], meta=b"meta", namespace=b"ns")
        store.put(b"c", b"child", parent=b"p", namespace=b"ns")
        fill(store, names(20), SIZE)
        info = store.info(b"p", namespace=b"ns")
        assert info is not None
        assert (info.tier, info.meta, info.lengths) == ("t1", b"meta", (10, 100_000))
        hit = store.get(b"p", namespace=b"ns")
        assert isinstance(hit, Hit)
        assert [bytes(b) for b in hit.buffers] == [noise(1, 10), bytes(100_000)]
        parents = [h.parent_id for h in heads(store, 1) if h.key == b"c"]
        assert parents == [store._wanted(b"p", b"ns").block_id]


def heads(store: Store, number: int) -> list[RecordHead]:
    t, fs = disk_tier(store, number), OsFileSystem()
    found: list[RecordHead] = []
    for no in t.list_segments():
        fd = fs.open(t.path_of(no))
        found += [i.head for i in scan(fs, fd, store._identity.store_id, t.tier_no, no) if isinstance(i, Found)]
        fs.close(fd)
    return found


# -- codecs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", CODEC_IDS)
@pytest.mark.parametrize("above", CODEC_IDS)
def test_bytes_survive_every_pair_of_codecs(tmp_path: Path, above: str, below: str) -> None:
    tiers = [tier("t0", bytes_max=2 * MIB, codec=above), tier("t1", codec=below)]
    soft = [[bytes(i % 7 for i in range(s))] for s in (0, 1, 2, 9999, 100_001)] + [[b"ab" * 500, b"", b"c" * 77]]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        for i, value in enumerate(soft):
            store.put(b"%d" % i, value)
        fill(store, names(15), SIZE)  # pushes them down
        for tier_name in ("t1", "t0"):
            for i, value in enumerate(soft):
                hit = store.get(b"%d" % i)
                assert isinstance(hit, Hit)
                assert [bytes(b) for b in hit.buffers] == value
                target = bytearray(sum(map(len, value)))
                assert store.get_into(b"%d" % i, target) == HitInto(b"%d" % i, len(target), b"", tier_name)
                assert bytes(target) == b"".join(value)
            settle(store)  # and the reads bring them up again


def test_a_codec_saves_space_where_it_can(tmp_path: Path) -> None:
    written = {}
    for codec in CODEC_IDS:
        with Store.open(config(tmp_path / codec, tier(codec=codec)), background=False) as store:
            store.put(b"soft", bytes(range(256)) * 1000)
            store.put(b"hard", noise(1, 100_000))
            store.flush()
            written[codec] = store.stats().bytes_written
    assert written["zstd"] < 110_000 < written["zstd-planes"] < 250_000 < 356_000 < written["none"]


def test_a_tier_may_change_its_codec(tmp_path: Path) -> None:
    value = {codec: codec.encode() * 20_000 for codec in CODEC_IDS}
    for codec in CODEC_IDS:
        with Store.open(config(tmp_path, tier(codec=codec))) as store:
            store.put(codec.encode(), value[codec])
    with Store.open(config(tmp_path)) as store:
        assert {codec: value_of(store.get(codec.encode())) for codec in CODEC_IDS} == value


# -- tiers come and go -------------------------------------------------------------------------------


def test_a_tier_that_the_configuration_lost_is_unavailable_and_comes_back(tmp_path: Path) -> None:
    keys = names(15)
    t0, t1 = tier("t0", bytes_max=2 * MIB), tier("t1")
    with Store.open(config(tmp_path, t0, t1), background=False) as store:
        values = fill(store, keys, SIZE)
        order = where(store, keys)
        assert set(order) == {"0", "1"}
    with Store.open(config(tmp_path, t0), background=False) as store:
        for key, place in zip(keys, order, strict=True):
            outcome = store.get(key)
            if place == "0":
                assert value_of(outcome) == values[key]
            else:
                assert outcome.reason is MissReason.UNAVAILABLE  # type: ignore[union-attr]
        store.put(keys[0], b"new")
        store.flush()
    with Store.open(config(tmp_path, t0, t1), background=False) as store:
        values[keys[0]] = b"new"
        assert {k: value_of(store.get(k)) for k in keys} == values


def test_a_new_tier_may_be_put_on_top(tmp_path: Path) -> None:
    keys = names(10)
    old = tier("old")
    with Store.open(config(tmp_path, old)) as store:
        values = fill(store, keys, SIZE)
    with Store.open(config(tmp_path, tier("new"), old), background=False) as store:
        assert {k: value_of(store.get(k)) for k in keys} == values
        settle(store)
        assert {i.tier for k in keys if (i := store.info(k))} == {"new"}
        assert {k: value_of(store.get(k)) for k in keys} == values


# -- pins --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_fs", [OsFileSystem, PortableFileSystem])
def test_a_pinned_block_and_its_ancestors_outlast_everything(tmp_path: Path, make_fs: Callable[[], FileSystem]) -> None:
    chain = names(4, "chain")
    with Store.open(config(tmp_path, tier(bytes_max=6 * MIB)), fs=make_fs(), background=False) as store:
        store.pin([chain[2], b"later"])
        assert store.stats().pinned == 2
        parent = None
        for i, key in enumerate([*chain, b"later"]):  # each in a segment with others, which will die
            store.put(key, noise(key, SIZE), parent=None if key == b"later" else parent)
            fill(store, names(4, f"between{i}"), SIZE)
            parent = key
        for i in range(4):
            fill(store, names(15, f"other{i}"), SIZE)
        assert [store.contains(k) for k in chain] == [True, True, True, False]
        assert all(value_of(store.get(k)) == noise(k, SIZE) for k in [*chain[:3], b"later"])
        store.unpin([chain[2], b"later"])
        assert store.stats().pinned == 0
        fill(store, names(60, "more"), SIZE)
        assert not any(store.contains(k) for k in [*chain, b"later"])


def test_a_pinned_block_is_not_moved_down(tmp_path: Path) -> None:
    tiers = [tier("t0", bytes_max=2 * MIB), tier("t1")]
    with Store.open(config(tmp_path, *tiers), background=False) as store:
        fill(store, [b"k"], SIZE)
        store.pin([b"k"])
        fill(store, names(20), SIZE)
        assert where(store, [b"k", *names(20)[:1]]) == "01"


def test_pins_protect_in_ram(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB), background=False) as store:
        fill(store, [b"root", b"leaf"], 10 * KIB, chain=True)
        store.pin([b"leaf"])
        fill(store, names(40), 100 * KIB)
        hits = [store.get(k) for k in (b"root", b"leaf", b"k0000")]
        assert [h.tier for h in hits if isinstance(h, Hit)] == ["ram", "ram", "disk"]
        store.unpin([b"leaf"])
        fill(store, names(40, "more"), 100 * KIB)
        assert store.get(b"leaf").tier == "disk"  # type: ignore[union-attr]


def test_pins_count_and_other_unpins_are_ignored(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB)), background=False) as store:
        fill(store, [b"k"], SIZE)
        store.unpin([b"k", b"nobody"])
        store.pin([b"k"])
        store.pin([b"k"])
        store.unpin([b"k"])
        fill(store, names(20), SIZE)
        assert store.contains(b"k")
        store.unpin([b"k"])
        store.unpin([b"k"])
        fill(store, names(20, "more"), SIZE)
        assert not store.contains(b"k")


def test_when_all_is_pinned_writes_fail_and_the_pinned_stays(tmp_path: Path) -> None:
    keys = names(12)
    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB)), background=False) as store:
        store.pin(keys)
        for key in keys:
            store.put(key, noise(key, SIZE))
        with pytest.raises(FlushError, match="nothing to evict"):
            store.flush()
        kept = [k for k in keys if store.contains(k)]
        assert 5 < len(kept) < 12
        assert all(value_of(store.get(k)) == noise(k, SIZE) for k in kept)
        assert occupied(tmp_path) <= 2 * MIB
        assert not store.stats().tiers[0].suspended  # a full tier is no broken one
        store.unpin(keys)
        fill(store, [b"now"], SIZE)
        assert store.contains(b"now")


def test_pins_end_with_the_process(tmp_path: Path) -> None:
    c = config(tmp_path, tier(bytes_max=2 * MIB))
    with Store.open(c) as store:
        fill(store, [b"k"], SIZE)
        store.pin([b"k"])
    with Store.open(c) as store:
        assert store.stats().pinned == 0
        fill(store, names(20), SIZE)
        assert not store.contains(b"k")
