"""In which order blocks are read, and what one read brings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from kvtier.background.read_order import coalesce, reading_order, size_of
from kvtier.tiers.habits import HABITS
from kvtier.tiers.reading import Located
from tests.unit.test_prefetcher import HEAD, Disk, located

SIZE = HEAD + 900
HDD = Disk("hdd")


def at(places: list[int], tier: Disk = HDD) -> list[Located]:
    """Blocks of 1,000 bytes, wanted in this order, that stand so many thousands of bytes into a segment."""
    return [located(i + 1, 1000 * place, tier=tier) for i, place in enumerate(places)]


def batches(blocks: list[Located], window_bytes: int = 10**9) -> list[list[int]]:
    order = reading_order(blocks, window_bytes)
    return [[b.wanted.block_id for b in batch] for batch in coalesce([blocks[i] for i in order], 10**9)]


def test_neighbours_are_read_together_in_whatever_order_they_are_wanted() -> None:
    assert batches(at([2, 0, 1, 3])) == [[2, 3, 1, 4]]


def test_of_two_runs_the_one_that_is_wanted_first_is_read_first() -> None:
    far = 10_000
    assert batches(at([far, 0, far + 1, 1])) == [[1, 3], [2, 4]]


def test_only_what_is_wanted_soon_is_read_out_of_turn() -> None:
    assert batches(at([5, 4, 1, 0]), window_bytes=2 * SIZE) == [[2, 1], [4, 3]]
    assert batches(at([1, 0]), window_bytes=1) == [[1], [2]]


def test_a_gap_is_read_through_where_a_second_read_takes_longer() -> None:
    gap = 100
    assert batches(at([0, gap])) == [[1, 2]]
    assert batches(at([0, gap], Disk("ssd"))) == [[1], [2]]
    assert batches(at([0, 2 + HABITS["hdd"].gap_bytes // 1000])) == [[1], [2]]


def test_memory_for_the_gaps_counts() -> None:
    assert size_of(at([0, 100])) == 101_000


@given(st.lists(st.integers(0, 3000), max_size=40), st.integers(1, 40_000))
def test_every_block_is_read_once(places: list[int], window_bytes: int) -> None:
    blocks = at(places)
    assert sorted(reading_order(blocks, window_bytes)) == list(range(len(blocks)))


def test_a_run_decodes_to_no_more_than_it_may_read() -> None:
    small = [b._replace(entry=b.entry._replace(lengths=(5 * SIZE,))) for b in at([0, 1, 2, 3, 4])]
    assert [len(batch) for batch in coalesce(small, 10 * SIZE)] == [2, 2, 1]
    assert [len(batch) for batch in coalesce(small, SIZE)] == [1] * 5
