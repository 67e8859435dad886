"""What is read at once and held at once, counted; reads happen when the test says so."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, cast

import pytest

from kvtier import StoreClosed
from kvtier.background import read_ahead
from kvtier.background.read_ahead import _PIECE_BYTES, Bounds, Outcome, ReadAhead
from kvtier.background.read_order import Batch
from kvtier.blocks import MissReason
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, Raw
from tests.unit.test_prefetcher import HEAD, row


class Pool:
    """Runs what was submitted when told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.reads: list[int] = []
        self.checked: list[int] = []
        self.closed = False
        self.waiting_at_check = 0

    def submit(self, run: Callable[..., None], *args: Any) -> None:
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self.waiting.append(lambda: run(*args))

    def fetch(self, batch: Batch) -> Raw:
        self.reads += [located.wanted.block_id for located in batch]
        return Raw(batch, [], OSError())

    def check(self, raw: Raw, some: slice) -> list[Outcome]:
        self.waiting_at_check = len(self.waiting)
        self.checked += [located.wanted.block_id for located in raw.batch[some]]
        return [MissReason.ABSENT for _ in raw.batch[some]]

    def run(self) -> None:
        self.waiting.pop(0)()


def ahead_of(pool: Pool, blocks: list[Located], bounds: Bounds) -> ReadAhead:
    return ReadAhead([[b] for b in blocks], pool.fetch, pool.check, pool.submit, bounds)


def started(ahead: ReadAhead, pool: Pool) -> Any:
    """The consumer, having taken the first block."""
    outcomes = ahead.outcomes()
    ahead._launch()
    pool.run()
    next(outcomes)
    return outcomes


def test_long_reads_take_turns() -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(5, 600), Bounds(4, 100_000, 1000)), pool)
    assert len(pool.waiting) == 1
    pool.run()
    assert len(pool.waiting) == 1, "the next one begins as soon as the one before it ends"
    assert pool.waiting_at_check == 1, "... and before that is checked"
    outcomes.close()


def test_short_reads_run_side_by_side() -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(9, 100), Bounds(100, 100_000, 1000)), pool)
    assert len(pool.waiting) == 1000 // (100 + HEAD)
    outcomes.close()


@pytest.mark.parametrize("bounds", [Bounds(3, 100_000, 100_000), Bounds(100, 3 * (100 + HEAD), 100_000)])
def test_only_so_much_is_held(bounds: Bounds) -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(9, 100), bounds), pool)
    assert len(pool.reads) + len(pool.waiting) == 3
    pool.run()
    assert len(pool.reads) + len(pool.waiting) == 3, "read is not consumed"
    next(outcomes)
    assert len(pool.reads) + len(pool.waiting) == 4


def test_blocks_larger_than_all_bounds_are_read_one_by_one() -> None:
    with ThreadPoolExecutor(1) as threads:
        pool = Pool()
        ahead = ReadAhead([[b] for b in row(2, 500)], pool.fetch, pool.check, threads.submit, Bounds(1, 10, 10))
        for number, _ in enumerate(ahead.outcomes()):
            assert pool.reads == [1, 2][: number + 1]


def test_nothing_more_is_read_for_a_consumer_that_went_away() -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(5, 600), Bounds(4, 100_000, 1000)), pool)
    outcomes.close()
    pool.run()
    assert (pool.waiting, pool.reads) == ([], [1])


def test_what_is_being_read_when_the_consumer_goes_away_is_not_checked() -> None:
    class Gone(Pool):
        def fetch(self, batch: Batch) -> Raw:
            if self.reads:
                outcomes.close()
            return super().fetch(batch)

    pool = Gone()
    outcomes = started(ahead_of(pool, row(5, 600), Bounds(4, 100_000, 1000)), pool)
    pool.run()
    assert (pool.waiting, pool.reads, pool.checked) == ([], [1, 2], [1])


def test_a_closed_pool_ends_the_consumer() -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(5, 600), Bounds(4, 100_000, 1000)), pool)
    pool.closed = True
    pool.run()
    assert next(outcomes) is MissReason.ABSENT
    with pytest.raises(StoreClosed):
        next(outcomes)


def test_a_read_that_raises_is_the_consumers_to_see() -> None:
    pool = Pool()
    outcomes = started(ahead_of(pool, row(2, 600), Bounds(4, 100_000, 1000)), pool)
    pool.reads = cast("list[int]", None)  # makes the next read raise
    pool.run()
    with pytest.raises(TypeError):
        next(outcomes)


# -- blocks that have to be decoded ------------------------------------------------------------------

SIZE = _PIECE_BYTES


def encoded(count: int, size: int = SIZE) -> list[Located]:
    return [b._replace(content=b.content._replace(codec=2)) for b in row(count, size)]


def whole(pool: Pool, *batches: Batch) -> ReadAhead:
    return ReadAhead(batches, pool.fetch, pool.check, pool.submit, Bounds(9, 1 << 40, 1))


def test_the_next_read_comes_before_what_is_to_be_decoded() -> None:
    pool = Pool()
    blocks = encoded(6)
    ahead = whole(pool, blocks[:3], blocks[3:])
    ahead._launch()
    pool.run()
    assert (pool.reads, pool.checked, len(pool.waiting)) == ([1, 2, 3], [], 1 + 3)
    pool.run()
    assert (pool.reads, pool.checked) == ([1, 2, 3, 4, 5, 6], [])


def test_a_consumer_decodes_rather_than_wait() -> None:
    pool = Pool()
    ahead = whole(pool, encoded(3))
    outcomes = ahead.outcomes()
    ahead._launch()
    pool.run()
    for checked in ([1], [1, 2], [1, 2, 3]):
        assert next(outcomes) is MissReason.ABSENT
        assert pool.checked == checked
    while pool.waiting:
        pool.run()
    assert pool.checked == [1, 2, 3], "nothing is left to do"


def test_a_consumer_that_waits_takes_what_comes_meanwhile() -> None:
    """Its own piece is held up by another thread until the consumer has decoded the one after it."""
    pool = Pool()
    first_begun, second_done = threading.Event(), threading.Event()
    threads_of: dict[int, int] = {}

    def check(raw: Raw, some: slice) -> list[Outcome]:
        (block,) = raw.batch[some]
        threads_of[block.wanted.block_id] = threading.get_ident()
        if block.wanted.block_id == 1:
            first_begun.set()
            assert second_done.wait(60)
        else:
            second_done.set()
        return [MissReason.ABSENT]

    ahead = ReadAhead([encoded(2)], pool.fetch, check, pool.submit, Bounds(9, 1 << 40, 1))
    ahead._launch()
    pool.run()
    with ThreadPoolExecutor(1) as other:
        other.submit(pool.run)
        assert first_begun.wait(60)
        assert list(ahead.outcomes()) == [MissReason.ABSENT] * 2
    assert threads_of[2] == threading.get_ident() != threads_of[1]


def test_small_blocks_are_decoded_together() -> None:
    pool = Pool()
    pieces: list[int] = []

    def check(raw: Raw, some: slice) -> list[Outcome]:
        pieces.append(len(raw.batch[some]))
        return pool.check(raw, some)

    ahead = ReadAhead([encoded(10, SIZE // 4)], pool.fetch, check, pool.submit, Bounds(9, 1 << 40, 1))
    ahead._launch()
    pool.run()
    assert list(ahead.outcomes()) == [MissReason.ABSENT] * 10
    assert pieces == [4, 4, 2]


def test_the_consumers_order_is_kept_over_pieces() -> None:
    def check(raw: Raw, some: slice) -> list[Outcome]:
        return [RamBlock(b"", b.wanted.key, 0, b"", ()) for b in raw.batch[some]]

    with ThreadPoolExecutor(3) as threads:
        order = [5, 0, 4, 1, 3, 2]
        blocks = encoded(6)
        batches = [blocks[:4], blocks[4:]]
        ahead = ReadAhead(batches, Pool().fetch, check, threads.submit, Bounds(9, 1 << 40, 1 << 40), order)
        keys = [block.key for block in ahead.outcomes() if isinstance(block, RamBlock)]
    assert keys == [b"%d" % (order.index(i) + 1) for i in range(6)]


def test_what_was_read_is_let_go_once_all_of_it_is_decoded() -> None:
    pool = Pool()
    ahead = whole(pool, encoded(2))
    ahead._launch()
    pool.run()
    (job,) = ahead._jobs
    pool.run()
    assert job.raw is not None
    pool.run()
    assert job.raw is None


def test_nothing_more_is_decoded_for_a_consumer_that_went_away() -> None:
    pool = Pool()
    ahead = whole(pool, encoded(3))
    outcomes: Any = ahead.outcomes()
    ahead._launch()
    pool.run()
    next(outcomes)
    outcomes.close()
    while pool.waiting:
        pool.run()
    assert pool.checked == [1]


class Remembered(Pool):
    """All of its blocks are read into one piece of memory, which can grow when nobody refers to it any more."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = bytearray(9)

    def fetch(self, batch: Batch) -> Raw:
        return super().fetch(batch)._replace(stored=[memoryview(self.memory)])

    def check(self, raw: Raw, some: slice) -> list[Outcome]:
        view = raw.stored[0]
        if some.start == 1:
            raise ZeroDivisionError
        return [RamBlock(b"", b.wanted.key, 0, b"", (view,)) for b in raw.batch[some]]

    def is_free(self) -> bool:
        try:
            self.memory.append(0)
        except BufferError:
            return False
        return True


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("ran", [2, 3, 5])
def test_the_memory_of_a_consumer_that_went_away_is_free_at_once(no_gc: None, ran: int) -> None:
    pool = Remembered()
    ahead = whole(pool, encoded(1), encoded(3))
    outcomes: Any = ahead.outcomes()
    ahead._launch()
    for _ in range(ran):
        pool.run()
    next(outcomes)
    assert not pool.is_free()
    outcomes.close()
    while pool.waiting:
        pool.run()
    del ahead, outcomes
    assert pool.is_free()


@pytest.mark.parametrize("checked_by", ["pool", "consumer"])
def test_the_memory_of_a_failed_read_is_free_at_once(no_gc: None, checked_by: str) -> None:
    pool = Remembered()
    ahead = whole(pool, encoded(3))
    outcomes = ahead.outcomes()
    ahead._launch()
    pool.run()
    while checked_by == "pool" and pool.waiting:
        pool.run()
    next(outcomes)
    with suppress(ZeroDivisionError):
        next(outcomes)
    pool.waiting.clear()
    del ahead, outcomes
    assert pool.is_free()


def test_a_check_that_raises_is_the_consumers_to_see_and_no_other_piece_suffers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pool = Pool()

    def check(raw: Raw, some: slice) -> list[Outcome]:
        if some.start == 1:
            raise ZeroDivisionError
        return pool.check(raw, some)

    ahead = ReadAhead([encoded(3)], pool.fetch, check, pool.submit, Bounds(9, 1 << 40, 1))
    ahead._launch()
    while pool.waiting:
        pool.run()
    assert pool.checked == [1, 3]
    outcomes = ahead.outcomes()
    assert next(outcomes) is MissReason.ABSENT
    with pytest.raises(ZeroDivisionError):
        next(outcomes)
    assert "in check" in caplog.text, "where it was raised"


def test_what_was_read_as_the_pool_closed_is_decoded() -> None:
    pool = Pool()
    ahead = whole(pool, encoded(2))
    ahead._launch()
    pool.closed = True
    pool.run()
    assert pool.checked == [1, 2]


def test_an_error_that_cannot_even_be_logged_is_the_consumers_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    def out_of_memory(*_: object) -> list[str]:
        raise MemoryError

    monkeypatch.setattr(read_ahead, "format_exception", out_of_memory)
    pool = Remembered()
    ahead = whole(pool, encoded(2))
    ahead._launch()
    pool.run()
    pool.run()
    with pytest.raises(MemoryError):
        pool.run()
    with pytest.raises(ZeroDivisionError):
        list(ahead.outcomes())
