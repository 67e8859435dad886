"""Coalescing, and reading ahead with a reader whose reads wait to be let through."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvtier.background.prefetcher import Prefetcher
from kvtier.background.read_order import coalesce
from kvtier.blocks import MissReason
from kvtier.errors import StoreClosed
from kvtier.index.schema import BlockEntry, ContentEntry
from kvtier.pool import BufferPool
from kvtier.tiers.habits import HABITS
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, Raw, Wanted

HEAD = 100


class Disk:
    """What is asked of a tier here."""

    tier_no = 0

    def __init__(self, kind: str = "ssd") -> None:
        self.habits = HABITS[kind]


TIER = Disk()
GAP_BYTES_MAX = TIER.habits.gap_bytes
ROOM = 1 << 40


def located(block_id: int, offset: int, size: int = 900, segment_no: int = 1, tier: Any = TIER) -> Located:
    key = b"%d" % block_id
    entry = BlockEntry(0, 0, 0, segment_no, offset, HEAD + size, 0, 1, bytes(16), b"", key, b"", (size,))
    content = ContentEntry(0, segment_no, offset, HEAD, size, 1)
    return Located(Wanted(block_id, b"", key, key), entry, content, tier)


def row(count: int, size: int = 900) -> list[Located]:
    """Neighbours, each of ``size`` and a head."""
    return [located(i + 1, 64 + i * (HEAD + size), size) for i in range(count)]


def ids(batches: list[list[Located]]) -> list[list[int]]:
    return [[b.wanted.block_id for b in batch] for batch in batches]


# -- coalesce ----------------------------------------------------------------------------------------


def test_neighbours_go_together_up_to_the_bound() -> None:
    assert ids(coalesce(row(5), 10_000)) == [[1, 2, 3, 4, 5]]
    assert ids(coalesce(row(5), 2000)) == [[1, 2], [3, 4], [5]]
    assert ids(coalesce(row(5), 2999)) == [[1, 2], [3, 4], [5]]
    assert ids(coalesce(row(3), 1)) == [[1], [2], [3]]  # one at least
    assert coalesce([], 1) == []


def test_a_run_ends_where_one_read_cannot_go_on() -> None:
    a = located(1, 64)
    assert ids(coalesce([a, located(2, 1064, segment_no=2)], 10**6)) == [[1], [2]]
    assert ids(coalesce([a, located(2, 1064, tier=Disk())], 10**6)) == [[1], [2]]
    assert ids(coalesce([located(2, 1064), a], 10**6)) == [[2], [1]]  # backwards
    assert ids(coalesce([a, a], 10**6)) == [[1], [1]]
    near, far = located(2, 1064 + GAP_BYTES_MAX), located(2, 1065 + GAP_BYTES_MAX)
    assert ids(coalesce([a, near], 10**6)) == [[1, 2]]
    assert ids(coalesce([a, far], 10**6)) == [[1], [2]]


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 3)), max_size=40), st.integers(1, 400_000))
def test_order_is_kept_and_every_run_can_be_read(places: list[tuple[int, int]], bytes_max: int) -> None:
    blocks = [located(i + 1, 64 + 1000 * place, segment_no=no) for i, (place, no) in enumerate(places)]
    batches = coalesce(blocks, bytes_max)
    assert [b for batch in batches for b in batch] == blocks
    for batch in batches:
        assert len({b.content.segment_no for b in batch}) == 1
        extents = [b.extent for b in batch]
        for before, after in pairwise(extents):
            assert 0 <= after.offset - before.end <= GAP_BYTES_MAX
        assert len(batch) == 1 or extents[-1].end - extents[0].offset <= bytes_max


# -- reading ahead -----------------------------------------------------------------------------------


class GatedReader:
    """Reads block after block when it is let; says what was asked of it."""

    def __init__(self, *, open: bool = True) -> None:
        self.asked: list[list[int]] = []
        self.gate = threading.Event()
        self.arrived = threading.Semaphore(0)
        if open:
            self.gate.set()

    def fetch(self, batch: list[Located], memory: object = None) -> Raw:
        self.asked.append([b.wanted.block_id for b in batch])
        self.arrived.release()
        assert self.gate.wait(60)
        return Raw(batch, [], OSError())

    def blocks(self, raw: Raw, some: slice = slice(None)) -> list[RamBlock | MissReason]:
        return [block_of(b) if b.wanted.block_id != 13 else MissReason.CORRUPT for b in raw.batch[some]]


def block_of(b: Located) -> RamBlock:
    return RamBlock(b"", b.wanted.key, 0, b"", (memoryview(b.wanted.key),))


class Bench:
    def __init__(self, reader: GatedReader, *, bytes_max: int = 10**6, coalesce: int = 1000, threads: int = 1) -> None:
        self.reader = reader
        self.delivered: list[tuple[int, bool]] = []
        self.fetcher = Prefetcher(
            reader,  # type: ignore[arg-type]
            lambda b, block, prefetched: self.delivered.append((b.wanted.block_id, prefetched)),
            BufferPool(1 << 26),
            threads=threads,
            bytes_max=bytes_max,
            coalesce_bytes_max=coalesce,
        )


@pytest.fixture
def make() -> Iterator[Any]:
    benches: list[Bench] = []

    def build(**options: Any) -> Bench:
        benches.append(Bench(GatedReader(open=options.pop("open", True)), **options))
        return benches[-1]

    yield build
    for b in benches:
        b.reader.gate.set()
        b.fetcher.close()


@pytest.mark.parametrize("threads", [1, 4])
def test_blocks_come_in_order_misses_included(make: Any, threads: int) -> None:
    b = make(threads=threads)
    outcomes = list(b.fetcher.read_ahead(row(20), keep=True))
    assert outcomes[12] is MissReason.CORRUPT
    assert [o.key for o in outcomes if isinstance(o, RamBlock)] == [b"%d" % i for i in range(1, 21) if i != 13]
    assert sorted(b.delivered) == [(i, False) for i in range(1, 21) if i != 13]


def test_at_most_so_many_bytes_are_ahead_of_the_consumer(make: Any) -> None:
    b = make(bytes_max=3000)
    blocks = b.fetcher.read_ahead(row(20), keep=True)
    assert b.reader.asked == []  # nothing before it is asked for
    for i in range(1, 18):
        next(blocks)
        assert i <= len(b.reader.asked) <= i + 2
    assert len(list(blocks)) == 3
    assert len(b.reader.asked) == 20


def test_what_passes_through_is_not_delivered(make: Any) -> None:
    b = make()
    assert len(list(b.fetcher.read_ahead(row(5), keep=False))) == 5
    assert b.delivered == []


def test_one_block_over_the_bound_is_read_all_the_same(make: Any) -> None:
    b = make(bytes_max=500, coalesce=500)
    assert len(list(b.fetcher.read_ahead(row(3), keep=True))) == 3
    assert b.fetcher.request(row(3), ROOM) == 3
    assert all(b.fetcher.wait_for(i) or True for i in (1, 2, 3))


def test_an_abandoned_consumer_harms_nobody(make: Any) -> None:
    b = make(bytes_max=3000)
    first = b.fetcher.read_ahead(row(20), keep=True)
    next(first)
    first.close()
    assert len(list(b.fetcher.read_ahead(row(20), keep=True))) == 20


# -- prefetching -------------------------------------------------------------------------------------


def test_requests_are_brought_in_order_and_waited_for(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    b = make(open=False)
    assert b.fetcher.request(row(5), ROOM) == 5
    assert b.fetcher.is_flying(5)
    assert not b.fetcher.wait_for(99)
    last = b.fetcher._flying[5]
    wait = last.result

    def begin_to_wait() -> None:
        assert b.delivered == []
        b.reader.gate.set()
        wait(60)

    monkeypatch.setattr(last, "result", begin_to_wait)
    assert b.fetcher.wait_for(5)
    assert b.delivered == [(i, True) for i in range(1, 6)]
    assert not b.fetcher.is_flying(5)
    assert not b.fetcher.wait_for(5)


def test_a_block_on_its_way_is_not_asked_for_again(make: Any) -> None:
    b = make(open=False)
    assert b.fetcher.request(row(3), ROOM) == 3
    assert b.fetcher.request(row(4), ROOM) == 1
    b.reader.gate.set()
    for i in (1, 2, 3, 4):
        b.fetcher.wait_for(i)
    assert sorted(i for batch in b.reader.asked for i in batch) == [1, 2, 3, 4]
    assert b.fetcher.request(row(1), ROOM) == 1  # it may be gone again by now


def test_bytes_in_flight_are_bounded(make: Any) -> None:
    b = make(open=False, bytes_max=2000, threads=8)
    b.fetcher.request(row(10), ROOM)
    for _ in range(2):
        assert b.reader.arrived.acquire(timeout=60)
    assert len(b.reader.asked) == 2  # of 1000 bytes each, though eight threads are idle
    assert b.fetcher._flying_bytes == 2000
    coming = list(b.fetcher._flying.values())
    b.reader.gate.set()
    for future in coming:
        future.result(60)
    assert sorted(b.delivered) == [(i, True) for i in range(1, 11)]


def test_closing_gives_up_what_has_not_begun(make: Any) -> None:
    b = make(open=False, bytes_max=1000)
    b.fetcher.request(row(10), ROOM)
    assert b.reader.arrived.acquire(timeout=60)
    waiting = b.fetcher._flying[9]
    assert not b.fetcher.wait_for(9), "a block that only waits to be read is not waited for"
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(b.fetcher.close)
        waiting.result(60)  # given up, though it never came
        b.reader.gate.set()
        closing.result(60)
    assert b.delivered == [(1, True)]
    assert not any(b.fetcher.is_flying(i) for i in range(1, 11))
    with pytest.raises(StoreClosed):
        next(b.fetcher.read_ahead(row(1), keep=True))


def test_a_reader_that_fails_leaves_nobody_waiting(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    b = make()

    def fail(batch: list[Located], into: memoryview | None = None) -> Raw:
        raise RuntimeError("mine")

    monkeypatch.setattr(b.reader, "fetch", fail)
    b.fetcher.request(row(3), ROOM)
    for i in (1, 2, 3):
        b.fetcher.wait_for(i)
    assert not b.fetcher.is_flying(3)
    monkeypatch.undo()
    b.fetcher.request(row(3), ROOM)
    b.fetcher.wait_for(3)
    assert len(b.delivered) == 3
