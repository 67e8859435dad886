"""Where direct writes end: records share the pages at both ends with others, which are written, marked and punched
through the page cache; payloads are where a page starts, wherever their records go, but for those of older versions."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kvtier import Config, Miss, MissReason, Store
from kvtier.check import repair, verify
from kvtier.compacting import compact
from kvtier.fs import OsFileSystem
from kvtier.segment.format import ALIGNED_BYTES_MIN, PAGE, RecordHead
from kvtier.segment.scanner import Found, scan
from tests.direct import LONG, LONG_MAX, counted, length_of, why_not_direct
from tests.stores import MIB, config, flip, names, noise, occupied, segments, settle, tier, value_of

pytestmark = pytest.mark.skipif(why_not_direct() is not None, reason=str(why_not_direct()))

KEYS = names(12)


def settings(folder: Path, **changes: Any) -> Config:
    """No RAM, so that every answer comes from disk."""
    big = tier(**{"bytes_max": 64 * MIB, "segment_bytes": 4 * MIB, "compaction_dead_ratio": 0.1} | changes)
    return config(folder, big, value_bytes_max=LONG_MAX)


class NoHoles(OsFileSystem):
    """Where nothing can be punched: what is sparse is compacted by copying."""

    def punch(self, fd: int, offset: int, length: int) -> bool:
        return False


def forget_pages(folder: Path) -> None:
    """What is read next comes from the disk, and directly if it is long."""
    fs = OsFileSystem()
    for file in segments(folder):
        fd = fs.open(str(file))
        fs.sync_data(fd)
        fs.drop_cache(fd)
        fs.close(fd)


class Record(NamedTuple):
    file: Path
    offset: int
    head: RecordHead

    @property
    def is_aligned(self) -> bool:
        return (self.offset + self.head.head_len) % PAGE == 0


def records(folder: Path) -> list[Record]:
    """All that stand in its segments, which have nothing else in them."""
    with Store.open(settings(folder), read_only=True) as store:
        store_id = store._identity.store_id
    fs, found = OsFileSystem(), []
    for file in segments(folder):
        fd = fs.open(str(file))
        for item in scan(fs, fd, store_id, 0, int(file.stem), payloads=True):
            assert isinstance(item, Found), (file, item)
            found.append(Record(file, item.offset, item.head))
        fs.close(fd)
    return found


def check(store: Store, values: dict[bytes, bytes], absent: Sequence[bytes] = ()) -> None:
    for key, value in values.items():
        assert value_of(store.get(key)) == value, key
    assert [value_of(hit) for hit in store.get_many(list(values), keep=False)] == list(values.values())
    for key in absent:
        outcome = store.get(key)
        assert isinstance(outcome, Miss)
        assert outcome.reason is MissReason.ABSENT


def check_again(folder: Path, values: dict[bytes, bytes], absent: Sequence[bytes] = ()) -> None:
    """Nothing is damaged, and neither the store as it is nor a new index says anything else."""
    assert verify(settings(folder)).is_sound
    forget_pages(folder)
    with Store.open(settings(folder), background=False) as store:
        check(store, values, absent)
    shutil.rmtree(folder / "store" / "index")
    with Store.open(settings(folder), background=False) as store:
        check(store, values, absent)


@pytest.mark.parametrize("seed", range(2))
def test_appends_marks_and_holes_around_one_another_while_others_read(tmp_path: Path, seed: int) -> None:
    """Groups of long and short blocks that end anywhere in a page; what they replace is marked, and punched, where the
    next one begins, while two threads read what lies between."""
    rng, values, stop = random.Random(seed), dict[bytes, bytes](), threading.Event()
    ever: dict[bytes, set[bytes]] = {key: set() for key in KEYS}
    wrong: list[bytes] = []

    def read(store: Store) -> None:
        while not stop.is_set():
            for key, outcome in zip(KEYS, store.get_many(KEYS, keep=False), strict=True):
                if isinstance(outcome, Miss):
                    is_right = outcome.reason is MissReason.ABSENT
                else:
                    is_right = value_of(outcome) in ever[key]
                if not is_right:
                    wrong.append(key)

    with counted() as found, Store.open(settings(tmp_path)) as store:
        readers = [threading.Thread(target=read, args=(store,)) for _ in range(2)]
        for reader in readers:
            reader.start()
        for step in range(20):
            for key in rng.sample(KEYS, rng.randint(1, 3)):
                if key in values and rng.random() < 0.3:
                    del values[key]
                    store.delete(key)
                else:
                    value = noise((seed, step, key), length_of((seed, step, key)))
                    ever[key] = {*ever[key], value}
                    store.put(key, bytearray(value) if rng.random() < 0.5 else value)
                    values[key] = value
            store.flush()
            if step % 5 == 4:
                forget_pages(tmp_path)
        stop.set()
        for reader in readers:
            reader.join()
        check(store, values, [key for key in KEYS if key not in values])
        assert store.stats().quarantined == 0
    assert not wrong
    assert found["direct_writes"] > 5
    assert found["direct_reads"] > 5
    check_again(tmp_path, values, [key for key in KEYS if key not in values])


@pytest.mark.parametrize("size", LONG)
def test_what_is_punched_is_the_payload_of_the_dead_and_nothing_else(tmp_path: Path, size: int) -> None:
    """Every other record of a segment dies: its pages go, those that it shares stay."""
    keys = names(5)
    values = {key: noise(key, size + n) for n, key in enumerate(keys)}
    with Store.open(settings(tmp_path, segment_bytes=8 * MIB), background=False) as store:
        for key, value in values.items():
            store.put(key, value)
            store.flush()
        before = occupied(tmp_path / "store" / "disk")
        for key in keys[::2]:
            store.delete(key)
            del values[key]
        store.flush()
        settle(store)
        freed = before - occupied(tmp_path / "store" / "disk")
        assert 0 <= 3 * size - freed <= 3 * 2 * PAGE + PAGE
        check(store, values, keys[::2])
    check_again(tmp_path, values, keys[::2])


@pytest.mark.parametrize("by_hand", [False, True])
def test_copies_are_padded_for_their_new_place(tmp_path: Path, by_hand: bool) -> None:
    """Compaction copies what lives to somewhere else in another segment."""
    made, values = settings(tmp_path, compaction="copy"), dict[bytes, bytes]()
    with Store.open(made, fs=NoHoles(), background=False) as store, counted() as found:
        store.pause_compaction()
        for n, key in enumerate(names(24)):
            values[key] = noise(key, LONG[n % 4] if n % 2 else 5000 + n)
            store.put(key, values[key])
        store.flush()
        for key in names(24)[::3]:
            store.delete(key)
            del values[key]
        store.flush()
        old = {file.name for file in segments(tmp_path)}
        if not by_hand:
            store.resume_compaction()
            settle(store)
    if by_hand:
        with counted() as found:
            compact(made, fs=NoHoles())
    assert len({file.name for file in segments(tmp_path)} - old) >= 2
    assert found["direct_writes"]
    assert all(r.is_aligned for r in records(tmp_path) if r.head.stored_len >= ALIGNED_BYTES_MIN)
    assert len({r.head.padding for r in records(tmp_path)}) > 5
    check_again(tmp_path, values, names(24)[::3])


@pytest.mark.parametrize("in_padding", [True, False])
def test_a_damaged_head_of_a_long_record_is_found_and_taken_out(tmp_path: Path, in_padding: bool) -> None:
    values = {key: noise(key, LONG[n % 4]) for n, key in enumerate(KEYS)}
    with Store.open(settings(tmp_path), background=False) as store:
        for key, value in values.items():
            store.put(key, value)
        store.flush()
    bad = max(records(tmp_path), key=lambda r: r.head.padding)
    assert bad.head.padding > 1
    flip(bad.file, bad.offset + (bad.head.head_len - 2 if in_padding else 100))
    del values[bad.head.key]
    report = verify(settings(tmp_path))
    assert [(f.segment, f.offset) for f in report.findings] == [(int(bad.file.stem), bad.offset)]
    assert report.blocks_damaged == 1
    repair(settings(tmp_path))
    assert verify(settings(tmp_path)).is_sound
    with Store.open(settings(tmp_path), background=False) as store:
        check(store, values, [bad.head.key])
        store.put(bad.head.key, b"again")
        store.flush()
        check(store, {**values, bad.head.key: b"again"})


# -- older versions ----------------------------------------------------------------------------------


@pytest.fixture
def older(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Until it is undone, heads are not padded, as before there were direct writes."""
    monkeypatch.setattr(RecordHead, "at", lambda head, offset: head)
    return monkeypatch


def test_a_store_of_an_older_version_is_read_appended_to_and_compacted(
    tmp_path: Path, older: pytest.MonkeyPatch
) -> None:
    made, values = settings(tmp_path, compaction="copy"), dict[bytes, bytes]()
    with Store.open(made, background=False) as store:
        for n, key in enumerate(names(12, "old")):
            values[key] = noise(key, LONG[n % 4] + n)
            store.put(key, values[key])
        store.flush()
    assert not any(r.head.padding for r in records(tmp_path))
    older.undo()
    check_again(tmp_path, values)
    with Store.open(made, background=False) as store:
        store.pause_compaction()
        for n, key in enumerate(names(6, "new")):  # behind them, in the same segment first
            values[key] = noise(key, LONG[n % 4])
            store.put(key, values[key])
        store.flush()
        check(store, values)
    assert {r.is_aligned for r in records(tmp_path)} == {True, False}
    check_again(tmp_path, values)
    with Store.open(made, fs=NoHoles(), background=False) as store:
        for key in names(12, "old")[::2]:
            store.delete(key)
            del values[key]
        store.flush()
    compact(made, fs=NoHoles())
    assert sum(not r.is_aligned for r in records(tmp_path)) < 6, "some of it was copied"
    check_again(tmp_path, values, names(12, "old")[::2])
