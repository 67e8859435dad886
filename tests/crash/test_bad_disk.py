"""Sectors and index pages that have gone bad: what they take with them, and how the store gets over it."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

import lmdb
import pytest

from kvtier import Config, Hit, Miss, MissReason, Store
from kvtier.fs import OsFileSystem

SIZE = 20_000
KEYS = [b"k%d" % n for n in range(10)]


class BadSectors(OsFileSystem):
    """Reading any byte of a bad range fails, as a dying disk does; writing elsewhere works."""

    def __init__(self) -> None:
        super().__init__()
        self.bad: list[range] = []

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        wanted = range(offset, offset + sum(b.nbytes for b in buffers))
        if any(b.start < wanted.stop and wanted.start < b.stop for b in self.bad):
            raise OSError(errno.EIO, "bad sector")
        return super().read_at(fd, buffers, offset)


def config(folder: Path) -> Config:
    tier = {"name": "t", "kind": "ssd", "bytes_max": "16MiB", "segment_bytes": "2MiB"}
    return Config.from_dict(
        {"store": {"path": folder, "value_bytes_max": "1MiB"}, "ram": {"bytes_max": 0}, "tier": [tier]}
    )


def filled(folder: Path) -> dict[bytes, bytes]:
    values = {key: os.urandom(SIZE) for key in KEYS}
    with Store.open(config(folder)) as store:
        for key, value in values.items():
            store.put(key, value)
    return values


def offset_of(folder: Path, value: bytes) -> int:
    return (folder / "t" / "00000001.seg").read_bytes().index(value)


def test_one_bad_sector_costs_one_block_of_a_coalesced_read(tmp_path: Path) -> None:
    values = filled(tmp_path)
    fs, at = BadSectors(), offset_of(tmp_path, values[b"k5"])
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.bad = [range(at + 4096, at + 8192)]
        for keep in (True, False):
            found = list(store.get_many(KEYS, keep=keep))
            assert [f.key for f in found if not f] == [b"k5"]
            assert all(bytes(f.buffers[0]) == values[f.key] for f in found if isinstance(f, Hit))
            assert isinstance(found[5], Miss)
            assert found[5].reason is MissReason.UNAVAILABLE


def test_what_cannot_be_read_can_be_stored_again(tmp_path: Path) -> None:
    values = filled(tmp_path)
    fs, at = BadSectors(), offset_of(tmp_path, values[b"k5"])
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.bad = [range(at + 4096, at + 8192)]
        assert not store.get(b"k5")
        store.put(b"k5", values[b"k5"])  # the very same bytes: they are written all the same
        store.flush()
        assert store.get(b"k5")
        assert store.stats().quarantined == 1
    with Store.open(config(tmp_path), fs=fs) as store:
        assert all(store.get_many(KEYS))


def test_an_error_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    values = filled(tmp_path)
    fs, at = BadSectors(), offset_of(tmp_path, values[b"k5"])
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.bad = [range(at, at + 1)]
        assert not store.get(b"k5")
        fs.bad = []
        assert store.get(b"k5")
        assert store.stats().quarantined == 0


def test_a_block_that_cannot_be_read_can_be_deleted(tmp_path: Path) -> None:
    values = filled(tmp_path)
    fs, at = BadSectors(), offset_of(tmp_path, values[b"k5"])
    with Store.open(config(tmp_path), fs=fs) as store:
        fs.bad = [range(at, at + 1)]
        assert not store.get(b"k5")
        assert store.delete(b"k5")
    with Store.open(config(tmp_path)) as store:
        assert not store.contains(b"k5")


@pytest.mark.parametrize("db", ["segments", "blocks", "contents"])
def test_a_damaged_index_entry_never_costs_a_segment(tmp_path: Path, db: str) -> None:
    """The index is derived: what is wrong in it must not destroy what is right in the segments."""
    values = filled(tmp_path)
    with lmdb.open(str(tmp_path / "index"), max_dbs=4) as env:
        table = env.open_db(db.encode())
        with env.begin(write=True, db=table) as txn, txn.cursor(table) as cursor:
            cursor.first()
            key, value = cursor.item()
            txn.put(key, value[:3] + bytes((value[3] ^ 1,)) + value[4:], db=table)
    with Store.open(config(tmp_path)) as store:
        found = list(store.get_many(KEYS))
        assert all(bytes(f.buffers[0]) == values[f.key] for f in found if isinstance(f, Hit))
        assert len([f for f in found if f]) == (len(KEYS) if db == "segments" else len(KEYS) - 1)
        for key in KEYS:
            store.put(key, values[key])
        store.flush()
        assert all(store.get_many(KEYS))
    assert (tmp_path / "t" / "00000001.seg").exists()


@pytest.mark.parametrize("problem", ["unreadable", "header"])
def test_an_index_made_anew_drops_no_segment_that_it_could_not_read(tmp_path: Path, problem: str) -> None:
    """Nor does the opening after that; and an index that is made anew when it can be read has all of it."""
    values = filled(tmp_path)
    segment, data = tmp_path / "t" / "00000001.seg", tmp_path / "index" / "data.mdb"
    good = segment.read_bytes()
    data.unlink()
    fs = BadSectors()
    if problem == "header":
        segment.write_bytes(good[:20] + b"x" + good[21:])
    else:
        fs.bad = [range(2000, len(good))]  # the smaller files are sound
    for _ in range(2):
        with Store.open(config(tmp_path), fs=fs) as store:
            assert not any(store.get(key) for key in values)
        assert segment.exists()
    segment.write_bytes(good)
    data.unlink()
    with Store.open(config(tmp_path)) as store:
        assert all(store.get(key) for key in values)
