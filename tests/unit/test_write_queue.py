"""The write queue: order, bound, replacement, and what counts as durable."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from kvtier.background.write_behind import Pending, WriteQueue
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock


def block(size: int, key: bytes = b"k") -> RamBlock:
    return RamBlock(b"", key, 0, b"", (memoryview(bytes(size)),))


def queue(bytes_max: int = 1 << 20, first_seq: int = 1) -> WriteQueue:
    return WriteQueue(bytes_max, threading.Lock(), first_seq)


def done(q: WriteQueue, group: Sequence[Pending], error: Exception | None = None) -> None:
    with q.changed:
        q.done(group, error)


def test_groups_are_the_oldest_and_bounded() -> None:
    q = queue(first_seq=7)
    for i in range(6):
        q.add(i, block(100))
    assert [p.seq for p in q.oldest(10**9, 100)] == [7, 8, 9, 10, 11, 12]
    assert [p.block_id for p in q.oldest(10**9, 2)] == [0, 1]
    assert [p.block_id for p in q.oldest(3 * (100 + OVERHEAD_BYTES), 100)] == [0, 1, 2]
    assert [p.block_id for p in q.oldest(1, 100)] == [0]  # one at least
    assert queue().oldest(10, 10) == []


def test_a_replaced_put_goes_to_the_end_and_frees_its_bytes() -> None:
    q = queue()
    q.add(1, block(100))
    q.add(2, block(100))
    q.add(1, block(300))
    assert [(p.block_id, p.seq) for p in q.oldest(10**9, 9)] == [(2, 2), (1, 3)]
    assert q.bytes_used == 400 + 2 * OVERHEAD_BYTES
    assert q.bytes_peak == 400 + 2 * OVERHEAD_BYTES
    q.add(1, None)
    assert q.find(1) is not None
    assert q.find(1).block is None  # type: ignore[union-attr]
    assert q.bytes_used == 100 + 2 * OVERHEAD_BYTES
    assert len(q) == 2


def test_one_block_fits_into_an_empty_queue_whatever_its_size() -> None:
    q = queue(1000 + OVERHEAD_BYTES)
    assert q.has_room(10**9)
    q.add(1, block(500))
    assert not q.has_room(500)
    q = queue(1000 + 2 * OVERHEAD_BYTES)
    q.add(1, block(500))
    assert q.has_room(500)
    assert not q.has_room(501)


def test_what_was_replaced_while_it_was_written_stays_queued() -> None:
    q = queue()
    q.add(1, block(1))
    group = q.oldest(10**9, 9)
    q.add(1, block(2))
    done(q, group)
    assert [p.seq for p in q.oldest(10**9, 9)] == [2]
    assert q.is_durable_to(1)
    assert not q.is_durable_to(2)


def test_what_was_replaced_before_it_was_written_is_durable_with_what_took_its_place() -> None:
    """Else ``flush`` would acknowledge a key of which a crash leaves nothing."""
    q = queue()
    for block_id in (1, 2):
        q.add(block_id, block(1))
    first = q.oldest(10**9, 1)
    for _ in range(2):
        q.add(2, block(2))  # replaces one that nobody had begun to write
    done(q, first)
    assert q.is_durable_to(1)
    assert not q.is_durable_to(2)
    group = q.oldest(10**9, 9)
    q.add(2, block(3))
    done(q, group)
    assert q.is_durable_to(4)
    assert not q.is_durable_to(5)
    done(q, q.oldest(10**9, 9))
    assert q.is_durable_to(5)


def test_failures_are_counted_until_asked_for() -> None:
    q = queue()
    for i in range(3):
        q.add(i, block(1))
    first, second = OSError("first"), OSError("second")
    done(q, q.oldest(10**9, 2), first)
    done(q, q.oldest(10**9, 2), second)
    assert q.take_failures() == (3, first)
    assert q.take_failures() == (0, None)


class Machine(RuleBasedStateMachine):
    """Against a list of all puts, each with whether something at least as new was written."""

    def __init__(self) -> None:
        super().__init__()
        self.q = queue()
        self.puts: list[tuple[int, int]] = []  # (block id, seq)
        self.written: dict[int, int] = {}  # block id: newest seq that is durable
        self.group: list[Pending] = []

    @rule(block_id=st.integers(0, 3), size=st.integers(0, 10))
    def put(self, block_id: int, size: int) -> None:
        self.q.add(block_id, block(size))
        self.puts.append((block_id, self.q.last_seq))

    @rule(count=st.integers(1, 3))
    def begin(self, count: int) -> None:
        if not self.group:
            self.group = self.q.oldest(10**9, count)

    @rule()
    def end(self) -> None:
        done(self.q, self.group)
        self.written |= {p.block_id: p.seq for p in self.group}
        self.group = []

    @invariant()
    def durable_means_written(self) -> None:
        for upto in range(self.q.last_seq + 1) if not self.group else (self.q.last_seq,):
            truth = all(self.written.get(b, 0) >= seq for b, seq in self.puts if seq <= upto)
            assert self.q.is_durable_to(upto) == truth

    @invariant()
    def bytes_add_up(self) -> None:
        assert self.q.bytes_used == sum(p.nbytes for p in map(self.q.find, range(4)) if p)


TestMachine = Machine.TestCase


@given(st.lists(st.integers(0, 5), min_size=1))
def test_sequence_numbers_rise_for_ever(block_ids: list[int]) -> None:
    q = queue(first_seq=100)
    for i, block_id in enumerate(block_ids):
        q.add(block_id, None)
        assert q.last_seq == 100 + i
        assert q.find(block_id).seq == 100 + i  # type: ignore[union-attr]
