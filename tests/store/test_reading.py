"""get_into, get_many, match, info, prefetch: what they give, and what they read for it."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from kvtier import BlockInfo, Hit, HitInto, LimitError, Miss, MissReason, Store, StoreClosed, pool, reads, single_key
from kvtier.fs import OsFileSystem
from kvtier.testing import Call, FaultyFileSystem
from tests.stores import KIB, MIB, config, fill, flip, names, noise, only_segment, settle, tier, value_of


@pytest.fixture
def fs() -> FaultyFileSystem:
    return FaultyFileSystem(OsFileSystem())


class Reads:
    """The reads of payloads that a file system sees from here on."""

    def __init__(self, fs: FaultyFileSystem) -> None:
        self.calls: list[Call] = []
        fs.on_call = lambda call: self.calls.append(call) if call.op == "read_at" else None

    def __len__(self) -> int:
        return len(self.calls)

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for c in self.calls)


# -- get_into ----------------------------------------------------------------------------------------


def test_get_into_reads_straight_from_disk(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path, ram=MIB), fs=fs) as store:
        fill(store, [b"k"], 100 * KIB)
    with Store.open(config(tmp_path, ram=MIB), fs=fs) as store:
        reads = Reads(fs)
        targets = [bytearray(1), bytearray(60 * KIB), bytearray(40 * KIB - 1)]  # cut as the reader likes
        assert store.get_into(b"k", targets) == HitInto(b"k", 100 * KIB, b"", "disk")
        assert b"".join(targets) == noise(b"k", 100 * KIB)
        assert len(reads) == 1
        assert reads.nbytes - 100 * KIB < 256  # the head comes along
        assert store.stats().ram.blocks == 0  # and no copy was kept


def test_get_into_from_queue_and_ram_copies_into_any_cut(tmp_path: Path) -> None:
    for ram in (0, MIB):
        with Store.open(config(tmp_path / str(ram), ram=ram), background=False) as store:
            store.put(b"k", [b"", noise(1, 10), noise(2, 5), b""], meta=b"m")
            targets = [bytearray(3), bytearray(0), bytearray(12)]
            place = "ram" if ram else "queue"
            assert store.get_into(b"k", targets) == HitInto(b"k", 15, b"m", place)
            assert b"".join(targets) == noise(1, 10) + noise(2, 5)


@pytest.mark.parametrize("codec", ["none", "zstd", "zstd-planes"])
def test_get_into_of_another_size_is_refused(tmp_path: Path, codec: str) -> None:
    with Store.open(config(tmp_path, tier(codec=codec)), background=False) as store:
        store.put(b"k", bytes(1000))
        for _ in range(2):  # in the queue, then on disk
            for size in (0, 999, 1001):
                with pytest.raises(LimitError, match=f"{size} bytes, the block has 1000"):
                    store.get_into(b"k", bytearray(size))
            target = bytearray(b"?" * 1000)
            assert store.get_into(b"k", target)
            assert target == bytes(1000)
            store.flush()


def test_get_into_needs_writable_buffers(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        store.put(b"k", b"abc")
        with pytest.raises(LimitError, match="writable"):
            store.get_into(b"k", b"abc")


def test_bytes_and_metadata_of_get_into_belong_together(tmp_path: Path, fs: FaultyFileSystem) -> None:
    """The block is replaced while it is being read: the old one or the new one, never a mixture."""
    for codec in ("none", "zstd"):
        for new_size in (20_000, 30_000):
            folder = tmp_path / f"{codec}{new_size}"
            with Store.open(config(folder, tier(codec=codec)), fs=fs, background=False) as store:
                store.put(b"k", b"old " * 5000, meta=b"old")
                store.flush()

                def replace(call: Call, store: Store = store, size: int = new_size) -> None:
                    if call.op == "read_at":
                        fs.on_call = None
                        store.put(b"k", b"new " * (size // 4), meta=b"new")
                        store.flush()

                fs.on_call = replace
                target = bytearray(20_000)
                got = store.get_into(b"k", target)
                assert fs.on_call is None
                if isinstance(got, HitInto):
                    assert bytes(target) == (got.meta + b" ") * 5000
                else:  # only the other size does not fit
                    assert (got.reason, new_size) == (MissReason.ABSENT, 30_000)
                assert store.stats().quarantined == 0
                assert value_of(store.get(b"k")) == b"new " * (new_size // 4)


# -- get_many_into -----------------------------------------------------------------------------------


def room(count: int, size: int) -> list[bytearray]:
    return [bytearray(size) for _ in range(count)]


def test_get_many_into_fills_each_buffer_and_tells_what_is_missing(tmp_path: Path) -> None:
    keys = names(12)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        values = fill(store, keys[::2], 3000)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        store.get(keys[0])
        store.put(keys[1], noise(keys[1], 3000))
        values[keys[1]] = noise(keys[1], 3000)
        targets: list[bytearray | list[bytearray]] = [[bytearray(1000), bytearray(2000)] for _ in keys]
        asked = [*reversed(keys), keys[4]]  # one of them again
        targets.append(bytearray(3000))
        outcomes = store.get_many_into(asked, targets)
        assert [o.key for o in outcomes] == asked
        for key, outcome, target in zip(asked, outcomes, targets, strict=True):
            if key in values:
                assert isinstance(outcome, HitInto)
                assert outcome.tier == ("ram" if key in keys[:2] else "disk")
                assert b"".join(target if isinstance(target, list) else [target]) == values[key]
            else:
                assert outcome == Miss(key, MissReason.ABSENT)
        assert store.get_many_into([], []) == []


def test_neighbours_are_read_into_place_at_once(
    tmp_path: Path, fs: FaultyFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = names(16)
    with Store.open(config(tmp_path), fs=fs) as store:
        values = fill(store, keys, 10 * KIB)
        seen = Reads(fs)
        targets = room(16, 10 * KIB)
        assert all(store.get_many_into(keys[::-1], targets))
        assert [bytes(t) for t in targets[::-1]] == list(values.values())
        assert len(seen) == 1
        monkeypatch.setattr(reads, "_RUN_BYTES_MAX", 64 * KIB)
        assert all(store.get_many_into(keys, targets))
        assert len(seen) == 4  # six blocks in 64 KiB
        assert store.stats().tiers[0].hits == 32


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_damage_costs_its_own_block_only(tmp_path: Path, codec: str) -> None:
    keys = names(5)
    c = config(tmp_path, tier(codec=codec))
    with Store.open(c) as store:
        values = fill(store, keys, 10 * KIB)
    flip(only_segment(tmp_path), 2 * 10 * KIB + 5000)  # in the third one
    with Store.open(c) as store:
        targets = room(5, 10 * KIB)
        outcomes = store.get_many_into(keys, targets)
        assert [bool(o) for o in outcomes] == [True, True, False, True, True]
        assert [bytes(t) for t in targets[:2] + targets[3:]] == [values[k] for k in keys[:2] + keys[3:]]
        assert outcomes[2] == Miss(keys[2], MissReason.CORRUPT)


def test_a_read_that_fails_costs_no_block_that_can_be_read(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(3)
    with Store.open(config(tmp_path), fs=fs) as store:
        values = fill(store, keys, 10 * KIB)
        fs.fail_at(1, errno.EIO, op="read_at")
        targets = room(3, 10 * KIB)
        assert all(store.get_many_into(keys, targets))
        assert [bytes(t) for t in targets] == list(values.values())


class Meddling(FaultyFileSystem):
    """Someone writes to ``memory`` whenever something was read into it."""

    memory: bytearray | None = None

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        count = super().read_at(fd, buffers, offset)
        for view in buffers:
            if view.obj is self.memory:
                view[0] ^= 1
        return count


INTO: list[Callable[[Store, list[memoryview]], HitInto | Miss]] = [
    lambda store, targets: store.get_into(b"k", targets),
    lambda store, targets: store.get_many_into([b"k"], [targets])[0],
]


@pytest.mark.parametrize("read", INTO, ids=["get_into", "get_many_into"])
@pytest.mark.parametrize("how", ["others write to it", "it overlaps"])
def test_what_happens_to_the_memory_condemns_no_block(
    tmp_path: Path, how: str, read: Callable[[Store, list[memoryview]], HitInto | Miss]
) -> None:
    fs = Meddling(OsFileSystem())
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        value = fill(store, [b"k"], 10 * KIB)[b"k"]
        memory = bytearray(10 * KIB)
        targets = [memoryview(memory)]
        if how == "others write to it":
            fs.memory = memory
        else:
            targets = [targets[0][: 5 * KIB]] * 2
        assert read(store, targets) == HitInto(b"k", 10 * KIB, b"", "disk")
        assert memory == value or how == "it overlaps"
        settle(store)
        assert store.stats().quarantined == 0
        assert value_of(store.get(b"k")) == value


def test_only_blocks_that_are_stored_otherwise_cut_a_read(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(12)
    size = 10 * KIB
    for compressed, count in ((set[int](), 1), ({5}, 3), ({0, 1, 11}, 3), (set(range(12)), 1)):
        values = [bytes([i]) * size if i in compressed else noise(i, size) for i in range(12)]
        with Store.open(config(tmp_path / str(len(compressed)), tier(codec="zstd")), fs=fs) as store:
            for key, value in zip(keys, values, strict=True):
                store.put(key, value)
            store.flush()
            seen = Reads(fs)
            targets = room(12, size)
            assert all(store.get_many_into(keys, targets))
            assert targets == values
            assert len(seen) == count
            fs.on_call = None


def test_encrypted_neighbours_are_read_at_once(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(12)
    with Store.open(config(tmp_path), fs=fs, keys=single_key(bytes(32))) as store:
        values = fill(store, keys, 10 * KIB)
        seen = Reads(fs)
        targets = room(12, 10 * KIB)
        assert all(store.get_many_into(keys, targets))
        assert targets == list(values.values())
        assert len(seen) == 1


def test_what_is_read_into_place_is_held_meanwhile(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(3)
    with Store.open(config(tmp_path), fs=fs, background=False) as store:
        fill(store, keys, 10 * KIB, chain=True)
        held: list[int] = []

        def look(call: Call) -> None:
            if call.op == "read_at":
                settle(store)
                held.append(store.stats().being_read)

        fs.on_call = look
        assert all(store.get_many_into(keys, room(3, 10 * KIB)))
        fs.on_call = None
        assert held == [1]
        settle(store)
        assert store.stats().being_read == 0


def test_the_first_that_is_asked_for_stays_longest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reads, "_RUN_BYTES_MAX", 400 * KIB)  # one block a read
    with Store.open(config(tmp_path, tier(bytes_max=4 * MIB)), background=False) as store:
        keys = names(6)
        fill(store, keys, 400 * KIB)
        assert all(store.get_many_into(keys, room(6, 400 * KIB)))
        fill(store, names(6, "new"), 400 * KIB)
        there = [store.contains(key) for key in keys]
        assert there == sorted(there, reverse=True)
        assert 0 < sum(there) < 6


def test_sizes_are_compared_before_anything_is_filled(tmp_path: Path) -> None:
    keys = names(3)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        fill(store, keys, 1000)
    with Store.open(config(tmp_path, ram=MIB)) as store:
        assert store.get(keys[0])
        targets = [bytearray(1000), bytearray(1000), bytearray(999)]
        with pytest.raises(LimitError, match="999 bytes, the block has 1000"):
            store.get_many_into(keys, targets)
        assert not any(map(any, targets))
        (namespace,) = store.stats().namespaces
        assert (namespace.hits, namespace.misses) == (1, 0)


def test_get_many_into_refuses_what_does_not_fit(tmp_path: Path) -> None:
    with Store.open(config(tmp_path)) as store:
        fill(store, [b"a", b"b"], 1000)
        with pytest.raises(LimitError, match="2 keys and buffers for 1 blocks"):
            store.get_many_into([b"a", b"b"], room(1, 1000))
        with pytest.raises(LimitError, match="999 bytes, the block has 1000"):
            store.get_many_into([b"a", b"b"], [bytearray(1000), bytearray(999)])
        with pytest.raises(LimitError, match="writable"):
            store.get_many_into([b"a"], [bytes(1000)])


# -- get_many ----------------------------------------------------------------------------------------


def test_get_many_gives_the_blocks_in_order_with_their_gaps(tmp_path: Path) -> None:
    keys = names(20)
    with Store.open(config(tmp_path)) as store:
        values = fill(store, keys[::2], 3000)
        store.put(keys[1], b"queued, or just durable")
        outcomes = list(store.get_many(reversed(keys)))
        assert [o.key for o in outcomes] == keys[::-1]
        for key, outcome in zip(reversed(keys), outcomes, strict=True):
            if key in values:
                assert value_of(outcome) == values[key]
            elif key != keys[1]:
                assert outcome == Miss(key, MissReason.ABSENT)
        assert list(store.get_many([])) == []


@pytest.mark.parametrize("ram", [0, MIB])
def test_get_many_may_be_asked_for_a_key_again(tmp_path: Path, ram: int) -> None:
    c = config(tmp_path, ram=ram)
    with Store.open(c) as store:
        values = fill(store, [b"a", b"b", b"c"], 2000)
    asked = [b"a", b"b", b"a", b"x", b"c", b"c", b"b", b"x", b"a"]
    with Store.open(c) as store:
        for key, outcome in zip(asked, store.get_many(asked), strict=True):
            assert outcome.key == key
            assert value_of(outcome) == values[key] if key != b"x" else not outcome


def test_neighbours_come_in_one_read(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(16)
    with Store.open(config(tmp_path), fs=fs) as store:
        values = fill(store, keys, 10 * KIB)
        reads = Reads(fs)
        assert [value_of(h) for h in store.get_many(keys)] == list(values.values())
        assert len(reads) == 1
        assert [value_of(h) for h in store.get_many(keys[::-1])] == list(values.values())[::-1]
        assert len(reads) == 2, "in whatever order they are wanted"


def test_one_read_is_bounded(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(16)
    with Store.open(config(tmp_path, prefetch={"coalesce_bytes_max": 64 * KIB}), fs=fs) as store:
        fill(store, keys, 10 * KIB)
        reads = Reads(fs)
        assert all(store.get_many(keys))
        assert len(reads) == 3  # six blocks in 64 KiB
        assert max(c.nbytes for c in reads.calls) <= 64 * KIB


def test_get_many_reads_ahead_but_not_without_bound(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(40)
    limits = {"bytes_max": 64 * KIB, "coalesce_bytes_max": 16 * KIB, "threads": 1}
    with Store.open(config(tmp_path, prefetch=limits), fs=fs) as store:
        fill(store, keys, 15 * KIB)
        reads = Reads(fs)
        consumer = store.get_many(keys)
        assert len(reads) == 0  # nothing before it is asked for
        next(consumer)
        assert 1 <= len(reads) <= 4  # 64 KiB of blocks of 15 KiB
        for _ in range(9):
            next(consumer)
        assert 10 <= len(reads) <= 13
        assert isinstance(consumer, Iterator)
        del consumer  # abandoned: nothing breaks, nothing more is read but what was on its way
        assert value_of(store.get(keys[-1]))
        assert len(reads) <= 14


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_blocks_that_pass_through_stay_right_for_as_long_as_they_are_held(tmp_path: Path, codec: str) -> None:
    keys = names(40)
    limits = {"coalesce_bytes_max": 16 * KIB, "threads": 2}
    c = config(tmp_path, tier(codec=codec), ram=MIB, prefetch=limits)
    with Store.open(c) as store:
        values = fill(store, keys, 5000)
    with Store.open(c) as store:
        held = []
        for i, hit in enumerate(store.get_many(keys, keep=False)):
            assert value_of(hit) == values[keys[i]]
            if i % 3 == 0:
                held.append(hit)  # so its buffer must not be used again
        assert list(store.get_many(keys, keep=False))
        for hit in held:
            assert value_of(hit) == values[hit.key]
            assert isinstance(hit, Hit)
            assert hit.buffers[0].readonly
        assert store.stats().ram.blocks == 0  # nothing was kept


def test_buffers_of_blocks_that_passed_through_are_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []
    new = pool._new

    def counted(nbytes: int, may_map: bool) -> object:
        made.append(nbytes)
        return new(nbytes, may_map)

    monkeypatch.setattr(pool, "_new", counted)
    keys = names(60)
    limits = {"coalesce_bytes_max": 256 * KIB, "threads": 1}  # which lets go of a buffer before it takes another one
    with Store.open(config(tmp_path, prefetch=limits)) as store:
        fill(store, keys, 80 * KIB)
        made.clear()
        for hit in store.get_many(keys, keep=False):
            assert isinstance(hit, Hit)
            del hit
        assert len(made) <= 3 + 3  # for 20 reads of three blocks; those that are made ahead may come too late
        made.clear()
        store._pool.restock()
        assert made == [], "what passed through came back"


def test_get_many_outlasts_eviction_and_stops_at_close(tmp_path: Path) -> None:
    keys = names(2000)
    with Store.open(config(tmp_path), background=False) as store:
        fill(store, keys, 10)
        consumer = store.get_many(keys)
        next(consumer)
        for key in keys[1:]:
            store.delete(key)
        store.flush()
        later = list(consumer)  # those read ahead come still; the others are misses, not errors
        assert all(value_of(o) == noise(o.key, 10) for o in later if isinstance(o, Hit))
        assert not any(later[1100:])
        consumer = store.get_many(keys)
        next(consumer)
    with pytest.raises(StoreClosed):
        next(consumer)


# -- match, info: no payload is read -----------------------------------------------------------------


def test_match_counts_the_leading_run(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(200)
    with Store.open(config(tmp_path, ram=20 * KIB), fs=fs) as store:
        for key in keys:
            if key not in (keys[150], keys[70]):
                store.put(key, bytes(3000))
        store.flush()
        fs.counts.clear()
        assert store.match(keys) == 70
        assert store.match(keys[71:]) == 79
        assert store.match(keys[71:150]) == 79
        assert store.match(keys[70:]) == 0
        assert store.match([]) == 0
        store.put(keys[70], b"in the queue at first")
        assert store.match(keys) == 150
        store.delete(keys[69])
        assert store.match(keys) == 69
        assert fs.counts["read_at"] == 0


def test_info_and_contains_read_no_payload_and_count_as_no_use(tmp_path: Path, fs: FaultyFileSystem) -> None:
    with Store.open(config(tmp_path, ram=MIB), fs=fs, background=False) as store:
        store.put(b"k", [b"abc", b"", b"de"], meta=b"m")
        assert store.info(b"k") == BlockInfo(b"k", b"m", (3, 0, 2), "ram")
        store.flush()
        store.put(b"queued", b"x")
        store.put(b"deleted", b"x")
        store.delete(b"deleted")
        found = store.info_many([b"K", b"k", b"queued", b"deleted"])
        assert [info and info.key for info in found] == [None, b"k", b"queued", None]
    with Store.open(config(tmp_path, ram=MIB), fs=fs) as store:
        fs.counts.clear()
        info = store.info(b"k")
        assert info == BlockInfo(b"k", b"m", (3, 0, 2), "disk")
        assert info.nbytes == 5
        assert store.contains(b"k")
        assert not store.contains(b"K")
        assert store.info(b"K") is None
        assert store.info_many([b"k", b"K", b"k"]) == [info, None, info]
        assert store.info_many([]) == []
        assert fs.counts["read_at"] == 0
        assert store.stats().ram.blocks == 0
        assert store.stats().tiers[0].hits == 0


# -- prefetch ----------------------------------------------------------------------------------------


def test_prefetch_brings_blocks_into_ram(tmp_path: Path, fs: FaultyFileSystem) -> None:
    keys = names(10)
    c = config(tmp_path, ram=MIB)
    with Store.open(c, fs=fs) as store:
        values = fill(store, keys, 10 * KIB)
    with Store.open(c, fs=fs) as store:
        reads = Reads(fs)
        assert store.prefetch([b"absent", *keys]) == 10
        hits = [store.get(k) for k in keys]  # each waits for what is on its way, and reads nothing itself
        assert [value_of(h) for h in hits] == list(values.values())
        assert {h.tier for h in hits if isinstance(h, Hit)} == {"ram"}
        assert len(reads) == 1
        assert store.prefetch(keys) == 0  # all there
        assert store.stats().prefetch.requested == 10


def test_a_block_on_its_way_is_not_asked_for_twice(tmp_path: Path, fs: FaultyFileSystem) -> None:
    c = config(tmp_path, ram=MIB)
    with Store.open(c, fs=fs) as store:
        fill(store, [b"k"], 10 * KIB)
    with Store.open(c, fs=fs) as store:
        gate, at_gate = threading.Event(), threading.Event()

        def hold(call: Call) -> None:
            if call.op == "read_at":
                at_gate.set()
                gate.wait(60)

        fs.on_call = hold
        assert store.prefetch([b"k"]) == 1
        assert at_gate.wait(60)
        assert store.prefetch([b"k"]) == 0
        gate.set()
        assert store.get(b"k").tier == "ram"  # type: ignore[union-attr]


@pytest.mark.parametrize("act", ["put", "put and flush", "delete", "delete and flush"])
@pytest.mark.parametrize("size", [3000, 10_000])  # the old record stays readable, or becomes a hole
def test_a_late_prefetch_does_not_bring_an_old_value_back(
    tmp_path: Path, fs: FaultyFileSystem, act: str, size: int
) -> None:
    c = config(tmp_path, ram=size + 3 * KIB)  # room for one block
    with Store.open(c, fs=fs) as store:
        store.put(b"k", bytes(size))
    with Store.open(c, fs=fs, background=False) as store:
        gate, at_gate = threading.Event(), threading.Event()

        def hold(call: Call) -> None:
            if call.op == "read_at":
                at_gate.set()
                gate.wait(60)

        fs.on_call = hold
        store.prefetch([b"k"])
        assert at_gate.wait(60)
        if "put" in act:
            store.put(b"k", b"n" * size)
            store.put(b"other", bytes(size))  # pushes it out of RAM again
        else:
            store.delete(b"k")
        if "flush" in act:
            store.flush()
        gate.set()
        assert store._back is not None
        store._back.prefetching.wait_for(store._wanted(b"k", b"").block_id)
        fs.on_call = None
        assert value_of(store.get(b"k")) == b"n" * size if "put" in act else not store.get(b"k")


def test_what_a_prefetch_cannot_read_is_a_miss(tmp_path: Path) -> None:
    c = config(tmp_path, ram=MIB)
    with Store.open(c) as store:
        fill(store, [b"k"], 10 * KIB)
    flip(only_segment(tmp_path), 5000)
    with Store.open(c) as store:
        assert store.prefetch([b"k"]) == 1
        outcome = store.get(b"k")
        assert not outcome
        store.put(b"k", b"again")
        assert value_of(store.get(b"k")) == b"again"


def test_prefetch_waits_its_turn(tmp_path: Path, fs: FaultyFileSystem) -> None:
    """With room for one block in flight they still all come."""
    keys = names(30)
    limits = {"bytes_max": 10 * KIB, "coalesce_bytes_max": 10 * KIB, "threads": 4}
    c = config(tmp_path, ram=MIB, prefetch=limits)
    with Store.open(c, fs=fs) as store:
        values = fill(store, keys, 10 * KIB)
    with Store.open(c, fs=fs) as store:
        assert store.prefetch(keys) == 30
        assert store._back is not None
        for coming in list(store._back._prefetcher._flying.values()):
            coming.result(60)
        assert {k: value_of(store.get(k)) for k in reversed(keys)} == values
        assert store.stats().ram.hits == 30
