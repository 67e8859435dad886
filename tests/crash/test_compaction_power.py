"""Losses of power that take the commit of a compaction's copies, and then that of the recovery: whoever shares what was
copied is still there."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvtier import Config, Store
from kvtier.events import Event, SegmentLost
from kvtier.index.lmdb_index import LmdbIndex, WriteTxn
from tests.stores import KIB, config, disk_tier, noise, tier, value_of

SHARED = noise("shared", 6000)


def settings(folder: Path) -> Config:
    small = tier(segment_bytes=64 * KIB, compaction="copy", compaction_dead_ratio=0.25)
    return config(folder, small, value_bytes_max=32 * KIB)


def store_to_compact(folder: Path) -> tuple[Store, dict[bytes, bytes]]:
    """A sparse segment with a block that another one shares, whose reference stands in a later segment."""
    store, values = Store.open(settings(folder), background=False), {}
    store.pause_compaction()

    def put(key: bytes, value: bytes) -> None:
        values[key] = value
        store.put(key, value)

    put(b"owner", SHARED)
    for i in range(18):
        put(b"dead%d" % i, noise(i, 3000))
    store.flush()
    for i in range(9):
        put(b"full%d" % i, noise(("full", i), 6000))
    put(b"heir", SHARED)
    store.flush()
    for i in range(18):
        store.delete(b"dead%d" % i)
        del values[b"dead%d" % i]
    store.flush()
    for i in range(12):
        put(b"more%d" % i, noise(("more", i), 6000))
    store.flush()
    return store, values


@contextmanager
def before_each_commit(look: Callable[[], None]) -> Iterator[None]:
    write = LmdbIndex.write

    @contextmanager
    def watched(index: LmdbIndex) -> Iterator[WriteTxn]:
        look()
        with write(index) as txn:
            yield txn

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LmdbIndex, "write", watched)
        yield


def copied(source: Path, target: Path, index: Path) -> Path:
    """The store as it is, with the index as it was."""
    shutil.copytree(source, target)
    shutil.rmtree(target / "store" / "index")
    shutil.copytree(index, target / "store" / "index")
    return target


def check(folder: Path, values: dict[bytes, bytes]) -> None:
    events: list[Event] = []
    with Store.open(settings(folder), background=False, listeners=[events.append]) as store:
        assert {key: value_of(store.get(key)) for key in values} == values
    assert not any(isinstance(event, SegmentLost) for event in events)


def test_two_losses_of_power_in_a_row_take_no_sharer(tmp_path: Path) -> None:
    life, indexes = tmp_path / "life", tmp_path / "indexes"
    life.mkdir()
    indexes.mkdir()
    store, values = store_to_compact(life)
    segments = disk_tier(store).next_segment_no

    def keep(folder: Path) -> None:
        shutil.copytree(folder / "store" / "index", indexes / str(len(list(indexes.iterdir()))))

    store.resume_compaction()
    assert store._back is not None
    with before_each_commit(lambda: keep(life)):
        while not list(indexes.iterdir()):
            assert store._back._worker.step()
    assert disk_tier(store).next_segment_no >= segments
    once = copied(life, tmp_path / "once", indexes / "0")
    store.close()
    check(copied(once, tmp_path / "first", indexes / "0"), values)

    with before_each_commit(lambda: keep(once)):
        recovered = Store.open(settings(once), background=False)
    last = len(list(indexes.iterdir())) - 1
    check(copied(once, tmp_path / "twice", indexes / str(last)), values)
    recovered.close()
