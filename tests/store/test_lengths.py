"""A length that is read from disk is not believed before memory is made for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from kvtier import ConfigError, CorruptStore, HitInto, Miss, MissReason, Store
from kvtier.blocks import Hit
from kvtier.fs import OsFileSystem
from kvtier.identity import Identity, dump_identity, load_identity
from kvtier.index import format1
from kvtier.index.lmdb_index import ENGINE
from kvtier.index.schema import FORM, IndexDamaged, _sealed, decode_row, decode_segment
from tests.stores import MIB, config, disk_tier, fill, names, settle, tier

#: No machine has so much memory: to ask for it raises MemoryError.
TOO_MUCH = 1 << 60
KEYS = names(3)
HUGE = KEYS[1]
Read = Callable[[Store], Hit | HitInto | Miss]


def claim(store: Store, *, stored: int | None = None, raw: int | None = None) -> None:
    """Let the index, with a right checksum, say that a block is as long."""
    assert store._back is not None
    wanted = store._wanted(HUGE, b"")
    with store._back.parts.index.write() as txn:
        entry = txn.block(wanted.block_id)
        assert entry is not None
        content = txn.content(entry.tier_no, entry.content_id)
        assert content is not None
        if stored is not None:
            txn.put_content(entry.tier_no, entry.content_id, content._replace(stored_len=stored))
        if raw is not None:
            txn.put_block(wanted.block_id, entry._replace(lengths=(raw,)))


def get(store: Store) -> Hit | Miss:
    return store.get(HUGE)


def get_many(store: Store) -> Hit | Miss:
    before, outcome, after = store.get_many(KEYS)
    assert isinstance(before, Hit)
    assert isinstance(after, Hit)
    return outcome


def get_once(store: Store) -> Hit | Miss:
    before, outcome, after = store.get_many(KEYS, keep=False)
    assert isinstance(before, Hit)
    assert isinstance(after, Hit)
    return outcome


def get_into(store: Store) -> HitInto | Miss:
    return store.get_into(HUGE, bytearray(5000))


@pytest.mark.parametrize("read", [get, get_many, get_once, get_into])
@pytest.mark.parametrize("stored", [TOO_MUCH, 6 * MIB, 20_000])
def test_a_stored_length(tmp_path: Path, read: Read, stored: int) -> None:
    with Store.open(config(tmp_path, tier(codec="zstd")), background=False) as store:
        for key in KEYS:
            store.put(key, key * 1000 + bytes(5000 - 1000 * len(key)))
        store.flush()
        claim(store, stored=stored)
        assert read(store) == Miss(HUGE, MissReason.CORRUPT)
        settle(store)
        assert store.stats().quarantined == 1
        store.put(HUGE, b"again")
        store.flush()
        assert isinstance(store.get(HUGE), Hit)


@pytest.mark.parametrize("read", [get, get_many, get_once])
@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_a_decoded_length(tmp_path: Path, read: Read, codec: str) -> None:
    with Store.open(config(tmp_path, tier(codec=codec)), background=False) as store:
        for key in KEYS:
            store.put(key, key + bytes(5000))
        store.flush()
        claim(store, raw=TOO_MUCH)
        assert read(store) == Miss(HUGE, MissReason.CORRUPT)


def test_a_value_that_compresses_well_is_no_lie(tmp_path: Path) -> None:
    zeros = bytes(500_000)
    with Store.open(config(tmp_path, tier(codec="zstd"))) as store:
        store.put(HUGE, zeros)
        store.flush()
        assert disk_tier(store).bytes_written < 10_000
        hit = store.get(HUGE)
        assert isinstance(hit, Hit)
        assert bytes(hit.buffers[0]) == zeros


@pytest.mark.parametrize("lie", [{"stored": TOO_MUCH}, {"raw": TOO_MUCH}])
def test_a_move_between_tiers(tmp_path: Path, lie: dict[str, int]) -> None:
    with Store.open(config(tmp_path, tier("top", codec="zstd"), tier("low")), background=False) as store:
        for key in KEYS:
            store.put(key, key + bytes(5000))
        store.flush()
        claim(store, **lie)
        assert store._back is not None
        ladder = store._back.ladder
        ids = [store._wanted(k, b"").block_id for k in KEYS]
        assert ladder._move(ids, *ladder.tiers) == {ids[0], ids[2]}
        assert store.stats().counters["corrupt_on_move"] == 1


def test_segments_that_came_after_it_was_opened(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, KEYS, 5000)
        disk_tier(store).segments.clear()  # as in a reading process, which learns of none after it opened
        assert all(isinstance(hit, Hit) for hit in store.get_many(KEYS))


@pytest.mark.parametrize(
    ("decode", "seed"),
    [
        (FORM.decode_block, FORM.seed),
        (FORM.decode_content, FORM.seed),
        (format1.decode_block, 0),
        (format1.decode_content, 0),
        (decode_segment, 0),
        (decode_row, 0),
    ],
)
@pytest.mark.parametrize("length", [0, 5, 16, 70, 71, 72, 200, 897])
def test_an_index_entry_of_a_wrong_length(decode: Callable[[bytes, bytes], object], seed: int, length: int) -> None:
    with pytest.raises(IndexDamaged):
        decode(b"key", _sealed(b"key", bytes((255,)) * length, seed))


@pytest.mark.parametrize("changed", [Identity(bytes(15), bytes(32), ENGINE), Identity(bytes(16), bytes(31), ENGINE)])
def test_an_identity_with_a_wrong_length(tmp_path: Path, changed: Identity) -> None:
    (tmp_path / "STORE").write_bytes(dump_identity(changed))
    with pytest.raises(CorruptStore, match="lengths"):
        load_identity(OsFileSystem(), str(tmp_path / "STORE"), ENGINE)


def test_a_saved_configuration_without_end(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)):
        pass
    saved = tmp_path / "store" / "CONFIG"
    fields = json.loads(saved.read_bytes())
    saved.write_text(json.dumps({**fields, "more": "x" * (2 * MIB)}))
    with pytest.raises(ConfigError, match="CONFIG: cannot be read"):
        Store.open(tmp_path / "store")
