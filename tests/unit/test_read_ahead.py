"""What is read at once and held at once, counted; reads happen when the test says so."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, cast

import pytest

from kvtier import StoreClosed
from kvtier.background.read_ahead import Bounds, Outcome, ReadAhead
from kvtier.background.read_order import Batch
from kvtier.blocks import MissReason
from kvtier.tiers.reading import Located, Raw
from tests.unit.test_prefetcher import HEAD, row


class Pool:
    """Runs what was submitted when told to."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], None]] = []
        self.reads: list[int] = []
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
    assert (pool.waiting, pool.reads) == ([], [1, 2])


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
