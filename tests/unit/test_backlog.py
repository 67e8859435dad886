"""Notes are taken without waiting, and worked off in order, each once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from kvtier.backlog import Backlog

MANY = 256


def test_notes_are_worked_off_in_order_once_the_lock_is_taken() -> None:
    done: list[int] = []
    backlog = Backlog(threading.Lock(), done.extend)
    backlog.note([1, 2])
    backlog.note([3])
    assert done == []
    with backlog.settled():
        assert done == [1, 2, 3]
    with backlog.settled():
        assert done == [1, 2, 3]


@pytest.mark.parametrize(("count", "soon"), [(MANY, False), (1, True)])
def test_many_notes_or_a_pressing_one_are_worked_off_at_once(count: int, soon: bool) -> None:
    done: list[int] = []
    lock = threading.Lock()
    backlog = Backlog(lock, done.extend)
    backlog.note(range(count - 1))
    assert done == []
    backlog.note([count - 1], soon=soon)
    assert done == list(range(count))
    assert not lock.locked()


def test_nobody_waits_for_who_has_the_lock() -> None:
    done: list[int] = []
    lock = threading.Lock()
    backlog = Backlog(lock, done.extend)
    with lock:
        backlog.note(range(MANY))
        backlog.note([MANY], soon=True)
        assert done == []
    backlog.note([MANY + 1])
    assert done == list(range(MANY + 2))


def test_every_note_of_every_thread_is_worked_off_once() -> None:
    done: list[int] = []
    backlog = Backlog(threading.Lock(), done.extend)

    def work(thread: int) -> None:
        for n in range(20 * MANY):
            backlog.note([thread * 1_000_000 + n])

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(work, range(4)))
    with backlog.settled():
        assert sorted(done) == [t * 1_000_000 + n for t in range(4) for n in range(20 * MANY)]
    for thread in range(4):
        mine = [n for n in done if n // 1_000_000 == thread]
        assert mine == sorted(mine)


def test_what_is_called_under_the_lock_may_have_all_worked_off() -> None:
    done: list[int] = []
    lock = threading.Lock()

    def work(notes: Sequence[int]) -> None:
        done.extend(notes)
        backlog.settle()  # as a listener that is told of a failing policy may

    backlog: Backlog[int] = Backlog(lock, work)
    backlog.note([1])
    with backlog.settled():
        backlog.settle()
        lock.release()  # as who waits for a condition does, and others take it meanwhile
        with backlog.settled():
            backlog.note([2])
        lock.acquire()
        backlog.work_off()
        backlog.settle()
    backlog.note([3], soon=True)
    backlog.note([4])
    backlog.settle()
    assert (done, lock.locked()) == ([1, 2, 3, 4], False)
