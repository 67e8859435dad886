"""The memory front: RAM and queue as one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtier.blocks import PutOutcome
from kvtier.clock import StoreTime, SystemClock
from kvtier.errors import StoreClosed
from kvtier.front import Front
from kvtier.policy.eviction.leaf_lru import LeafLru
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock, RamTier
from kvtier.tiers.reading import Wanted

W = Wanted(1, b"", b"k", b"k")


def block(data: bytes = b"x", key: bytes = b"k") -> RamBlock:
    return RamBlock(b"", key, 0, b"", (memoryview(data),))


def front(ram: int = 1 << 20, queue: int = 1 << 20) -> Front:
    return Front(RamTier(ram, LeafLru()), queue, 1, StoreTime(SystemClock()))


def never(changed: threading.Condition) -> None:
    raise AssertionError("nothing to wait for")


def put(
    f: Front,
    block_id: int,
    b: RamBlock,
    *,
    skip: bool = False,
    is_new: bool = True,
    wait: Callable[[threading.Condition], None] = never,
) -> PutOutcome:
    return f.put(block_id, b, skip_when_full=skip, is_new=lambda: is_new, wait=wait)


def seen(f: Front, wanted: Wanted = W) -> tuple[bytes | None, str] | None:
    found = f.find(wanted)
    if found is None:
        return None
    return (bytes(found.block.buffers[0]) if found.block else None), found.place


def test_ram_comes_before_the_queue() -> None:
    f = front()
    put(f, 1, block())
    assert seen(f) == (b"x", "ram")
    f.forget(1)
    assert seen(f) == (b"x", "queue")
    f.finish(f.next_group(), None)
    assert seen(f) is None
    assert (f.ram_hits, f.queue_hits) == (1, 1)


def test_looking_is_no_use() -> None:
    f = front()
    put(f, 1, block())
    assert f.find(W, use=False) is not None
    assert (f.ram_hits, f.queue_hits) == (0, 0)


def test_what_was_used_stays_longer_however_many_uses_wait_to_be_noted() -> None:
    f = front(ram=3 * (1 + OVERHEAD_BYTES))
    for block_id in (1, 2, 3):
        put(f, block_id, block())
    f.find(W)
    put(f, 4, block())
    assert [f.ram.peek(block_id) is not None for block_id in (1, 2, 3, 4)] == [True, False, True, True]


def test_a_chain_used_at_once_goes_from_its_end() -> None:
    f = front(ram=3 * (1 + OVERHEAD_BYTES))
    for block_id in (3, 2, 1):  # no parents: only the order counts
        put(f, block_id, block())
    assert None not in f.find_many([W._replace(block_id=block_id) for block_id in (1, 2, 3)], use=True)
    put(f, 4, block())
    assert f.ram.peek(3) is None
    assert f.ram_hits == 3


def test_what_no_disk_tier_took_in_is_queued_as_soon_as_it_is_used_again() -> None:
    f = Front(RamTier(1 << 20, LeafLru()), 1 << 20, 1, StoreTime(SystemClock()), lambda block_id, cost: True)
    woken: list[bool] = []
    f.wake = lambda: woken.append(True)
    for find in (lambda: f.find(W), lambda: f.find_many([W], use=True)):
        put(f, 1, block())
        f.finish(f.next_group(), None, refused=[1])
        assert f.find(W, use=False) is not None
        assert (len(f.queue), woken) == (0, [])
        find()
        assert (len(f.queue), woken) == (1, [True])
        f.finish(f.next_group(), None)
        woken.clear()


def test_what_is_in_ram_is_found_while_another_thread_has_the_lock() -> None:
    class Slow(LeafLru):
        """Of which a thread comes back only when told to."""

        def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
            if block == 2:
                inside.set()
                assert go_on.wait(60)
            super().add(block, parent, clock, nbytes)

    inside, go_on = threading.Event(), threading.Event()
    f = Front(RamTier(1 << 20, Slow()), 1 << 20, 1, StoreTime(SystemClock()))
    put(f, 1, block())
    with ThreadPoolExecutor(3) as threads:
        try:
            putting = threads.submit(put, f, 2, block())
            assert inside.wait(60)
            assert threads.submit(seen, f).result(60) == (b"x", "ram")
            assert None not in threads.submit(f.find_many, [W, W], use=True).result(60)
        finally:
            go_on.set()
        assert putting.result(60) is PutOutcome.QUEUED
    assert f.ram_hits == 3


def test_a_deletion_hides_the_block_until_it_is_durable() -> None:
    f = front()
    put(f, 1, block())
    f.delete(b"", 1, on_disk=True)
    assert seen(f) == (None, "queue")
    f.keep(1, block(b"old"), 0, lambda: True)  # a late reader
    assert seen(f) == (None, "queue")
    f.finish(f.next_group(), None)
    assert seen(f) is None


def test_an_id_that_two_names_share_gives_neither_the_other() -> None:
    f = front()
    put(f, 1, block(key=b"other"))
    assert seen(f) is None
    f.forget(1)
    assert seen(f) is None


def test_what_was_read_is_kept_only_if_nothing_newer_is_known() -> None:
    f = front()
    f.keep(1, block(b"read"), 0, lambda: False)
    assert seen(f) is None
    f.keep(1, block(b"read"), 0, lambda: True)
    assert seen(f) == (b"read", "ram")
    f.keep(1, block(b"again"), 0, lambda: True)
    assert seen(f) == (b"read", "ram")
    f.forget(1)
    put(f, 1, block(b"put"))
    f.forget(1)
    f.keep(1, block(b"read"), 0, lambda: True)
    assert seen(f) == (b"put", "queue")


def test_a_chain_is_used_from_its_end_so_that_its_start_stays() -> None:
    f = front(ram=3 * (1 + OVERHEAD_BYTES))
    for i in (1, 2, 3):
        f.put_in_ram(i, block(key=b"%d" % i))
    f.find_many([Wanted(i, b"", b"%d" % i, b"%d" % i) for i in (1, 2, 3)], use=True)
    for i in (4, 5):
        f.put_in_ram(i, block(key=b"%d" % i))
    assert [f.ram.peek(i) is not None for i in (1, 2, 3)] == [True, False, False]


def test_find_many_answers_in_order() -> None:
    f = front()
    put(f, 2, block(b"two", key=b"2"))
    f.delete(b"", 3, on_disk=True)
    found = f.find_many([Wanted(i, b"", b"%d" % i, b"%d" % i) for i in (1, 2, 3)], use=True)
    assert [x and (x.block and bytes(x.block.buffers[0]), x.place) for x in found] == [
        None,
        (b"two", "ram"),
        (None, "queue"),
    ]


def test_a_full_queue_waits_until_there_is_room() -> None:
    f = front(queue=2 * (1 + OVERHEAD_BYTES))
    for i in (1, 2):
        put(f, i, block())
    waits = 0

    def wait(changed: threading.Condition) -> None:
        nonlocal waits
        waits += 1
        changed.release()
        f.finish(f.next_group()[:1], None)
        changed.acquire()

    assert put(f, 3, block(), wait=wait) is PutOutcome.QUEUED
    assert waits == 1


@pytest.mark.parametrize(("is_new", "kept"), [(True, True), (False, False)])
def test_a_skipped_block_stays_in_ram_only_if_it_hides_no_older_one(is_new: bool, kept: bool) -> None:
    f = front(queue=1 + OVERHEAD_BYTES)
    put(f, 9, block())
    assert put(f, 1, block(), skip=True, is_new=is_new) is PutOutcome.SKIPPED
    assert (seen(f) is not None) is kept
    assert len(f.queue) == 1


def test_who_waits_for_room_is_sent_away_by_close() -> None:
    f = front(queue=1)
    put(f, 1, block())
    waiting = threading.Event()
    outcome: list[BaseException] = []

    def wait(changed: threading.Condition) -> None:
        waiting.set()
        assert changed.wait(60)

    def putter() -> None:
        try:
            put(f, 2, block(), wait=wait)
        except StoreClosed as e:
            outcome.append(e)

    thread = threading.Thread(target=putter)
    thread.start()
    assert waiting.wait(60)
    f.close()
    thread.join(60)
    assert len(outcome) == 1
    assert f.queue.find(2) is None


def test_pins_count_and_only_what_was_pinned_is_unpinned() -> None:
    f = front()
    assert f.pin([1, 2, 1]) == [1, 2, 1]
    assert f.pinned == 2
    assert f.unpin([1, 3, 2]) == [1, 2]
    assert f.pinned == 1
    f.put_in_ram(1, block())
    assert f.ram.policy.pop() is None
    assert f.unpin([1, 1]) == [1]
    assert f.ram.policy.pop() == 1


def test_draining_waits_for_its_own_and_reports_failures_once() -> None:
    f = front()
    put(f, 1, block())
    error = OSError("mine")

    def fail(changed: threading.Condition) -> None:
        group = f.queue.oldest(10**9, 9)
        f.queue.done(group, error)
        f.queue.add(2, block())  # a later put

    assert f.drain(fail) == (1, error)
    assert len(f.queue) == 1
    f.finish(f.next_group(), None)
    assert f.drain(never) == (0, None)
