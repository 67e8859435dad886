"""An index that cannot be read for a while, and tiers that cannot take what moves."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import lmdb
import pytest

from kvtier import FlushError, Key, Store
from kvtier.fs import OsFileSystem
from kvtier.index.lmdb_index import LmdbIndex
from kvtier.testing import Call, FaultyFileSystem
from kvtier.tiers.drafts import NewBlock
from kvtier.tiers.ledger import Ledger
from kvtier.tiers.order import Order
from kvtier.vault import KeyMissing
from tests.clocks import HandClock
from tests.stores import KIB, MIB, config, disk_tier, fill, names, noise, settle, tier, value_of

SIZE = 200 * KIB


class FailsToCommit:
    """An LMDB environment whose next commit fails, and which refuses everything after that, as LMDB does."""

    def __init__(self, env: Any) -> None:
        self._env = env
        self._is_dead = False

    def begin(self, write: bool = False) -> Any:
        self._is_dead |= write
        self._check()
        return self._env.begin()

    def info(self) -> Any:
        self._check()
        return self._env.info()

    def _check(self) -> None:
        if self._is_dead:
            raise lmdb.PanicError("Update of meta page failed or environment had fatal error")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)


@contextmanager
def failing(index: LmdbIndex) -> Iterator[None]:
    """Inside, the next commit fails, and the index cannot be opened anew."""

    def refuse(lock: bool) -> NoReturn:
        raise lmdb.DiskError("no")

    index._env = FailsToCommit(index._env)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(index, "_open", refuse)
        yield


def index_of(store: Store) -> LmdbIndex:
    assert store._back is not None
    return store._back.parts.index


# -- the index ---------------------------------------------------------------------------------------


def test_an_index_that_could_not_be_opened_at_once_is_tried_again(tmp_path: Path) -> None:
    clock = HandClock()
    with Store.open(config(tmp_path), background=False, clock=clock) as store:
        values = fill(store, names(2), SIZE)
        with failing(index_of(store)):
            store.put(b"lost", noise("lost", SIZE))
            with pytest.raises(FlushError):
                store.flush()
            assert not store.get(b"k0000")
            stats = store.stats()
            assert (stats.blocks, stats.index_bytes) == (0, 0)
        clock.now += 10
        values |= fill(store, [b"new"], SIZE)
        assert {key: value_of(store.get(key)) for key in values} == values
        assert store.stats().index_bytes > 0


@pytest.mark.parametrize("keys_before", [[], names(2)])
def test_what_failed_while_the_index_could_not_be_read_does_not_come_back(
    tmp_path: Path, keys_before: list[bytes]
) -> None:
    clock = HandClock()
    with Store.open(config(tmp_path), background=False, clock=clock) as store:
        values = fill(store, keys_before, SIZE)
        with failing(index_of(store)):
            store.put(b"lost", noise("lost", SIZE))
            with pytest.raises(FlushError):
                store.flush()
        clock.now += 10
        store.delete(b"lost")
        store.flush()
    with Store.open(config(tmp_path)) as store:
        assert not store.get(b"lost")
        assert {key: value_of(store.get(key)) for key in values} == values


@pytest.mark.parametrize("use", ["keep_caps", "promote", "known"])
def test_whatever_comes_first_opens_the_index_anew(tmp_path: Path, use: str) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, names(2), SIZE)
        assert store._back is not None
        ladder, index = store._back.ladder, index_of(store)
        with failing(index), pytest.raises(OSError, match="index"), index.write():
            pass
        assert ladder.count_blocks() == 0
        ladder.keep_caps() if use == "keep_caps" else getattr(ladder, use)([1])
        assert ladder.count_blocks() == 2


# -- caps --------------------------------------------------------------------------------------------


def test_nothing_is_evicted_for_an_index_that_is_larger_than_the_cap(tmp_path: Path) -> None:
    keys = names(3000)
    with Store.open(config(tmp_path), background=False) as store:
        for key in keys:
            store.put(key, key, meta=bytes(1000))
        store.flush()
        assert store.stats().index_bytes > 2 * MIB
    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB)), background=False) as store:
        settle(store)
        assert store.stats().counters["caps_not_kept"] == 1
        store.put(b"new", b"new")
        with pytest.raises(FlushError):
            store.flush()
        assert store.stats().blocks == len(keys)


def test_a_lowered_cap_drops_nothing_while_the_tier_below_fails(tmp_path: Path) -> None:
    keys, clock, fs = names(20), HandClock(), FaultyFileSystem(OsFileSystem())

    def fail(call: Call) -> None:
        if call.op in ("create", "write_at") and Path(call.path).parent.name == "below":
            raise OSError(errno.EIO, "failing disk")

    with Store.open(config(tmp_path, tier(), tier("below")), background=False) as store:
        values = fill(store, keys, SIZE)
    lowered = config(tmp_path, tier(bytes_max=2 * MIB), tier("below"))
    with Store.open(lowered, fs=fs, background=False, clock=clock) as store:
        fs.on_call = fail
        settle(store)
        assert store.stats().blocks == len(keys)
        assert store.stats().counters["caps_not_kept"] == 1
        fs.on_call = None
        clock.now += 10
        values |= fill(store, [b"new"], SIZE)  # which needs what did not happen before
        assert {key: value_of(store.get(key)) for key in values} == values
        assert "evictions" not in store.stats().counters
        assert store.stats().tiers[0].bytes_used <= 2 * MIB


# -- moves -------------------------------------------------------------------------------------------


def test_a_key_that_is_missing_for_a_move_does_not_fail_a_put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_key(drafts: object) -> NoReturn:
        raise KeyMissing

    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB), tier("below")), background=False) as store:
        fill(store, names(6), SIZE)
        monkeypatch.setattr(disk_tier(store, 1), "append", no_key)
        new = fill(store, names(6, "new"), SIZE)
        assert {key: value_of(store.get(key)) for key in new} == new
        assert store.stats().counters["key_missing"] > 0


def test_an_eviction_that_fails_leaves_its_victims_to_a_later_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> NoReturn:
        raise RuntimeError

    with Store.open(config(tmp_path, tier(bytes_max=2 * MIB)), background=False) as store:
        fill(store, names(8), SIZE)
        assert store._back is not None
        with monkeypatch.context() as patch:
            patch.setattr(store._back.ladder, "_evict", fail)
            store.put(b"lost", noise("lost", SIZE))
            with pytest.raises(FlushError):
                store.flush()
        fill(store, [b"new"], SIZE)
        left = [store.contains(key) for key in names(8)]
        assert left == sorted(left)  # the oldest went first
        assert not all(left)


def test_a_rewritten_block_that_is_gone_stays_gone(tmp_path: Path) -> None:
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, [b"other"], SIZE)
        assert store._back is not None
        gone = NewBlock(12345, 1, b"", b"gone", 0, b"", (memoryview(b"value"),), bytes(16))
        store._back.ladder.rewrite([gone], disk_tier(store))
        assert store.stats().blocks == 1


def test_a_floor_is_not_kept_at_the_price_of_blocks_while_the_tier_below_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the order of all blocks read anew each time that is tried."""
    fs, clock = FaultyFileSystem(OsFileSystem()), HandClock()
    settings = config(tmp_path, tier("top", free_bytes_min=MIB), tier("low", free_bytes_min=0))
    with Store.open(settings, fs=fs, clock=clock, background=False) as store:
        fill(store, names(20), SIZE)
        settle(store)
        monkeypatch.setattr(fs, "disk_free", lambda path: 0)
        told: list[None] = []
        tell = Ledger._tell

        def counted(ledger: Ledger, orders: Sequence[Order]) -> None:
            told.append(None)
            tell(ledger, orders)

        monkeypatch.setattr(Ledger, "_tell", counted)

        def fail(call: Call) -> None:
            if call.op == "reserve" and "/low/" in call.path:
                raise OSError(errno.EIO, "no", call.path)

        fs.on_call = fail
        for _ in range(50):
            clock.advance(1)
            store._headroom.look()
            settle(store)
        assert store.match(names(20)) == 20
        assert len(told) < 10  # once for each time that the tier below is tried: after 1, 2, 4, ... s


def test_keys_that_cannot_be_had_now_cost_no_blocks(tmp_path: Path) -> None:
    """A cap that was lowered waits for them."""
    is_down = False

    def keys(namespace: bytes | None, key_id: str | None) -> Key:
        if is_down:
            raise ConnectionError("no answer")
        return Key(key_id or "only", bytes(32))

    two = tier("top", bytes_max=8 * MIB), tier("low")
    with Store.open(config(tmp_path, *two), keys=keys, background=False) as store:
        values = fill(store, names(20), SIZE)
    lowered = config(tmp_path, tier("top", bytes_max=2 * MIB), tier("low"))
    with Store.open(lowered, keys=keys, background=False) as store:
        is_down = True
        settle(store)
        assert store.stats().counters["caps_not_kept"] == 1
        is_down = False
        assert store.match(names(20)) == 20
        store.put(b"more", b"v")
        store.flush()
        assert {key: value_of(store.get(key)) for key in values} == values
        assert store.stats().counters["demotions"] > 5


def test_an_index_that_is_full_grows_for_new_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = "a"
    monkeypatch.setattr("kvtier.assembly._MAP_BYTES", 256 * KIB)
    settings = config(tmp_path, tier(), value_bytes_max=64)
    with Store.open(settings, keys=lambda ns, key_id: Key(key_id or current, bytes(32)), background=False) as store:
        index = index_of(store)
        keys: list[bytes] = []
        while index.disk_bytes() <= 7 * index._map_bytes // 8:
            keys.append(b"%d" % len(keys))
            store.put(keys[-1], keys[-1])
            store.flush()
        size = index._map_bytes
        for turn in "bcdefgh":
            current = turn
            assert store.rotate_keys() == len(keys)
        assert index._map_bytes > size
        assert [value_of(hit) for hit in store.get_many(keys)] == keys
