"""Restores of compressed blocks: what is right, who decodes, and what that costs in memory. Counted, not timed."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from kvtier import Config, HitInto, Miss, MissReason, Store, codec
from kvtier.background.prefetcher import slabs
from kvtier.index.lmdb_index import View
from kvtier.pool import BufferPool
from tests.stores import KIB, MIB, config, disk_tier, flip, names, noise, only_segment, tier, value_of

KEYS = names(12)
SIZE = 512 * KIB
THREADS = 2


def value(number: int, size: int = SIZE) -> bytes:
    """Little-endian 16-bit numbers: noise below, little of it above."""
    planes = bytearray(size)
    planes[0::2] = noise(number, (size + 1) // 2)
    planes[1::2] = bytes(b & 3 for b in noise(-number, size // 2))
    return bytes(planes)


VALUES = [value(n) for n in range(len(KEYS))]


def compressed(folder: Path, *, ram: int = 0, **changes: Any) -> Config:
    """One segment that holds everything; batches of four blocks as they are decoded."""
    ahead = {"threads": THREADS, "coalesce_bytes_max": 4 * SIZE, "bytes_max": 32 * MIB}
    disk = tier(**{"codec": "zstd-planes", "bytes_max": 64 * MIB, "segment_bytes": 32 * MIB, **changes})
    return config(folder, disk, prefetch=ahead, value_bytes_max=MIB, ram=ram)


def filled(c: Config, values: Sequence[bytes] = VALUES) -> Config:
    with Store.open(c) as store:
        for key, one in zip(KEYS, values, strict=False):
            store.put(key, one)
        store.flush()
        assert disk_tier(store).bytes_written < 0.9 * sum(map(len, values))
    return c


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("order", [1, -1])
def test_blocks_come_whole_and_in_order(tmp_path: Path, keep: bool, order: int) -> None:
    with Store.open(filled(compressed(tmp_path, ram=32 * MIB * keep))) as store:
        outcomes = store.get_many(KEYS[::order], keep=keep)
        assert [value_of(o) for o in outcomes] == VALUES[::order]


@pytest.mark.parametrize("keep", [False, True])
def test_hits_stay_what_they_are_while_later_blocks_are_decoded(tmp_path: Path, keep: bool) -> None:
    with Store.open(filled(compressed(tmp_path))) as store:
        hits = list(store.get_many(KEYS, keep=keep))
        list(store.get_many(KEYS, keep=keep))
        assert [value_of(h) for h in hits] == VALUES


def test_raw_and_compressed_blocks_side_by_side(tmp_path: Path) -> None:
    values = [one if n % 3 else noise(n, 777 + n) for n, one in enumerate(VALUES)]
    values[4] = values[4][:-1]  # an odd length: what is decoded after it in the same memory is aligned all the same
    with Store.open(filled(compressed(tmp_path), values)) as store:
        for keep in (False, True):
            assert [value_of(o) for o in store.get_many(KEYS, keep=keep)] == values
        assert [value_of(store.get(key)) for key in KEYS] == values


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("plane", ["high", "low"])
def test_a_damaged_block_among_its_neighbours_is_a_miss(tmp_path: Path, keep: bool, plane: str) -> None:
    c = filled(compressed(tmp_path))
    with Store.open(c) as store:
        content = content_of(store, KEYS[5])
    end = content.offset + content.head_len + content.stored_len
    flip(only_segment(tmp_path), end - 9 if plane == "low" else content.offset + content.head_len + 99)
    with Store.open(c) as store:
        outcomes = list(store.get_many(KEYS, keep=keep))
        assert outcomes[5] == Miss(KEYS[5], MissReason.CORRUPT)
        assert [value_of(o) for o in outcomes if o] == [v for n, v in enumerate(VALUES) if n != 5]


def content_of(store: Store, key: bytes) -> Any:
    assert store._back is not None
    (located,) = store._back.locate([store._wanted(key, b"")])
    return located.content  # type: ignore[union-attr]


def index_says(monkeypatch: pytest.MonkeyPatch, codec_id: int) -> None:
    true_content = View.content

    def content(self: View, *args: Any) -> Any:
        found = true_content(self, *args)
        return found and found._replace(codec=codec_id)

    monkeypatch.setattr(View, "content", content)


@pytest.mark.parametrize("said", [codec.NONE, codec.ZSTD, 77])
def test_a_record_of_another_codec_than_the_index_says_is_a_miss(
    tmp_path: Path, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = filled(compressed(tmp_path), VALUES[:1])
    index_says(monkeypatch, said)
    with Store.open(c, read_only=True) as store:
        assert store.get(KEYS[0]) == Miss(KEYS[0], MissReason.CORRUPT)
    with Store.open(c, read_only=True) as store:
        assert list(store.get_many(KEYS[:1], keep=False)) == [Miss(KEYS[0], MissReason.CORRUPT)]
    with Store.open(c, read_only=True) as store:
        assert store.get_into(KEYS[0], [bytearray(SIZE)]) == Miss(KEYS[0], MissReason.CORRUPT)


@pytest.mark.parametrize("name", ["none", "zstd-planes"])
@pytest.mark.parametrize("damage", ["payload", "codec", "short"])
def test_no_error_holds_on_to_memory(tmp_path: Path, name: str, damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = compressed(tmp_path, codec=name)
    with Store.open(c) as store:
        store.put(KEYS[0], VALUES[0])
        store.flush()
        content = content_of(store, KEYS[0])
    if damage == "payload":
        flip(only_segment(tmp_path), content.offset + content.head_len + content.stored_len - 9)
    elif damage == "codec":
        index_says(monkeypatch, 77)
    else:
        os.truncate(only_segment(tmp_path), content.offset + content.head_len + 99)

    target = bytearray(SIZE)
    miss = Miss(KEYS[0], MissReason.CORRUPT)
    ways: list[Callable[[Store], object]] = [
        lambda store: store.get_into(KEYS[0], target),
        lambda store: store.get(KEYS[0]),
        lambda store: next(store.get_many(KEYS[:1], keep=False)),
    ]
    for way in ways:
        with Store.open(c, read_only=True) as store:
            gc.disable()
            try:
                before = len(store._pool._lent)
                assert way(store) == miss
                target.append(0)  # which fails while anyone sees its memory
                assert len(store._pool._lent) == before
            finally:
                gc.enable()
            target.pop()


# -- who decodes -------------------------------------------------------------------------------------


def test_readers_and_the_consumer_decode_and_no_other_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = filled(compressed(tmp_path))
    decoders: list[str] = []
    at_once, most = 0, 0
    lock = threading.Lock()
    decode_into = codec.decode_into

    def counted(*args: Any) -> None:
        nonlocal at_once, most
        with lock:
            decoders.append(threading.current_thread().name)
            at_once += 1
            most = max(most, at_once)
        decode_into(*args)
        with lock:
            at_once -= 1

    monkeypatch.setattr(codec, "decode_into", counted)
    with Store.open(c) as store:
        for _ in range(5):
            assert all(store.get_many(KEYS, keep=False))
        before = threading.active_count()
        assert all(store.get_many(KEYS, keep=False))
        assert threading.active_count() == before
    consumer = threading.current_thread().name
    assert len(decoders) == 6 * len(KEYS), "each block once"
    assert {name for name in decoders if not name.startswith("kvtier-read")} <= {consumer}
    assert len({*decoders} - {consumer}) <= THREADS
    assert most <= THREADS + 1


# -- memory ------------------------------------------------------------------------------------------


def made_by(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of all memory that pools ask the system for from here on."""
    made: list[int] = []
    true_made = BufferPool._made

    def counted(self: BufferPool, nbytes: int) -> Any:
        made.append(nbytes)
        return true_made(self, nbytes)

    monkeypatch.setattr(BufferPool, "_made", counted)
    return made


def test_a_restore_that_passes_through_needs_only_what_was_made_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = filled(compressed(tmp_path))
    made = made_by(monkeypatch)
    with Store.open(c, background=False) as store:
        store._pool.stock(slabs(THREADS, 4 * SIZE, decodes=True))
        ready = len(made)
        for _ in range(3):
            for key, outcome in zip(KEYS, store.get_many(KEYS, keep=False), strict=True):
                assert outcome.key == key
        assert len(made) - ready <= 2, "for 36 blocks"


def test_what_is_decoded_from_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = filled(compressed(tmp_path))
    target = bytearray(SIZE)
    with Store.open(c, background=False) as store:
        assert all(store.get_into(key, [target]) for key in KEYS)
        made = made_by(monkeypatch)
        for key, one in zip(KEYS, VALUES, strict=True):
            assert isinstance(store.get_into(key, [target]), HitInto)
            assert target == one
        assert made == []
        kept = [store.get(key) for key in KEYS]
        assert len(made) == len(kept), "the values, and nothing beside them"
