"""Caps and dead space, measured on the real files."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import Hit, Store
from kvtier.fs import FileSystem, OsFileSystem, PortableFileSystem
from kvtier.testing import Call, FaultyFileSystem
from tests.stores import KIB, MIB, config, fill, names, noise, occupied, segments, settle, tier, value_of

both_file_systems = pytest.mark.parametrize("make_fs", [OsFileSystem, PortableFileSystem])


def sizes(kind: str, count: int) -> list[int]:
    rng = random.Random(kind)
    if kind == "tiny":
        return [rng.randrange(64) for _ in range(count)]
    return [rng.choice((100, 5_000, 60_000, 300_000)) for _ in range(count)]


@both_file_systems
@pytest.mark.parametrize("kind", ["tiny", "mixed"])
def test_the_cap_holds_at_every_moment(tmp_path: Path, make_fs: Callable[[], FileSystem], kind: str) -> None:
    """``du`` of the whole store, index included, before every call of the file system and after every group."""
    fs, peak, cap = FaultyFileSystem(make_fs()), 0, (2 if kind == "tiny" else 6) * MIB
    count = 6_000 if kind == "tiny" else 300

    def look(call: Call | None = None) -> None:
        nonlocal peak
        if call is None or call.nbytes != 1:  # to mark a record changes no size
            peak = max(peak, occupied(tmp_path))

    with Store.open(config(tmp_path, tier(bytes_max=cap)), fs=fs, background=False) as store:
        fs.on_call = look
        for i, (key, size) in enumerate(zip(names(count), sizes(kind, count), strict=True)):
            store.put(key, noise(key, size))
            if i % (count // 60) == 0:
                store.flush()
                look()
                assert store.stats().bytes_on_disk <= cap
        store.flush()
        settle(store)
        look()
        stats = store.stats()
        assert stats.queue.failed == 0
        assert stats.counters["evictions"] > 0
        assert stats.blocks > 10
        last = names(count)[-1]
        assert value_of(store.get(last)) == noise(last, sizes(kind, count)[-1])
        assert occupied(tmp_path) <= stats.bytes_on_disk + 128 * KIB  # its own count is close to what is there
    assert peak <= cap
    assert peak > 0.8 * cap


@both_file_systems
def test_the_cap_counts_what_was_there_before(tmp_path: Path, make_fs: Callable[[], FileSystem]) -> None:
    with Store.open(config(tmp_path, tier(bytes_max=12 * MIB)), fs=make_fs()) as store:
        fill(store, names(30), 300 * KIB)
        assert store.stats().blocks == 30
    with Store.open(config(tmp_path, tier(bytes_max=6 * MIB)), fs=make_fs()) as store:  # and a cap may shrink
        fill(store, names(3, "new"), 300 * KIB)
        assert occupied(tmp_path) <= 6 * MIB
        assert store.match(names(3, "new")) == 3
        assert 5 < store.stats().blocks < 20


@both_file_systems
def test_overwriting_one_key_for_ever_needs_no_eviction(tmp_path: Path, make_fs: Callable[[], FileSystem]) -> None:
    with Store.open(config(tmp_path, tier(bytes_max=6 * MIB)), fs=make_fs(), background=False) as store:
        fill(store, [b"other"], 300 * KIB)
        for i in range(60):
            store.put(b"k", noise(i, 300 * KIB))
            store.flush()
            assert occupied(tmp_path) <= 6 * MIB
        assert value_of(store.get(b"k")) == noise(59, 300 * KIB)
        if make_fs is OsFileSystem:
            assert store.stats().counters.get("evictions", 0) == 0
            assert store.contains(b"other")


def test_space_of_deleted_blocks_comes_back(tmp_path: Path) -> None:
    keys = names(40)
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, keys, 100 * KIB)
        full = occupied(tmp_path)
        for key in keys[::2]:
            store.delete(key)
        store.flush()
        assert full - occupied(tmp_path) > 20 * 90 * KIB  # holes
        assert all(store.get(k) for k in keys[1::2])
        for key in keys[1::2]:
            store.delete(key)
        store.flush()
        settle(store)
        assert len(segments(tmp_path)) <= 1  # only the one being written may stay
        assert occupied(tmp_path) < MIB
        assert store.stats().tiers[0].bytes_live == 0


@both_file_systems
def test_a_segment_with_nothing_alive_goes_away(tmp_path: Path, make_fs: Callable[[], FileSystem]) -> None:
    keys = names(18)
    with Store.open(config(tmp_path), fs=make_fs(), background=False) as store:
        fill(store, keys, 150 * KIB)  # six a segment
        before = segments(tmp_path)
        assert len(before) == 3
        for key in keys[:6]:
            store.delete(key)
        store.flush()
        assert segments(tmp_path) == before[1:]
        assert [bool(h) for h in store.get_many(keys)] == [False] * 6 + [True] * 12
        fill(store, names(6, "new"), 150 * KIB)
        assert not before[0].exists()  # its number is not used again


def test_stats_agree_with_the_files(tmp_path: Path) -> None:
    for make_fs in (OsFileSystem, PortableFileSystem):
        folder = tmp_path / make_fs.__name__
        with Store.open(config(folder), fs=make_fs(), background=False) as store:
            fill(store, names(50), 77_777)
            for key in names(50)[::3]:
                store.delete(key)
            store.flush()
            files = segments(folder)
            stats = store.stats()
            on_disk = sum(f.stat().st_blocks * 512 for f in files)
            assert stats.tiers[0].segments == len(files)
            assert stats.tiers[0].bytes_used == on_disk + stats.index_bytes
            assert stats.tiers[0].bytes_live == 33 * 77_888  # 77,777 bytes, a head of 96 + 5 + 8, and padding to 64


def test_ram_holds_its_cap_at_every_moment(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=MIB), background=False) as store:
        for i in range(500):
            key = b"%d" % (i * 7 % 130)
            store.put(key, noise(i, i * 7919 % 100_000))
            store.get(b"%d" % (i % 50))
            stats = store.stats().ram
            assert stats.bytes_used <= MIB
            held = [b for b in map(store._front.ram.peek, list(store._front.ram._blocks)) if b]
            assert stats.bytes_used == sum(b.nbytes + 1024 for b in held)
            if i % 50 == 0:
                store.flush()
        assert store.stats().ram.evictions > 100


def test_a_block_over_the_ram_cap_still_reaches_the_disk(tmp_path: Path) -> None:
    with Store.open(config(tmp_path, ram=100 * KIB), background=False) as store:
        fill(store, [b"small"], 10 * KIB)
        fill(store, [b"big"], 200 * KIB)
        hits = [store.get(k) for k in (b"small", b"big", b"big")]
        assert [h.tier for h in hits if isinstance(h, Hit)] == ["ram", "disk", "disk"]


def test_leaves_go_before_the_prefix_that_they_extend(tmp_path: Path) -> None:
    trunk, branch = names(5, "trunk"), names(6, "branch")
    with Store.open(config(tmp_path, tier(bytes_max=4 * MIB)), background=False) as store:
        fill(store, trunk + branch, 300 * KIB, chain=True)
        fill(store, names(5, "other"), 300 * KIB)
        kept = store.match(trunk + branch)  # eaten from its end, though its start is the oldest of all
        assert 5 < kept < 11
        assert not any(store.contains(k) for k in (trunk + branch)[kept:])
        assert store.match(names(5, "other")) == 5
