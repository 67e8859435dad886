"""What many threads note, each without waiting, and one works off for all: counts, and that blocks were used.

A lock around each note would be held for a microsecond, and cost far more: a thread that the interpreter switches away
from while it has the lock leaves it to one that waits for it, which gives up the interpreter for that, and from then on
every note passes both from thread to thread (a lock convoy), as long as there are two that have work.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

_T = TypeVar("_T")

_NOTES_MAX = 256


class Backlog(Generic[_T]):
    """Notes, in the order in which they were taken: ``work`` gets them under ``lock``, and must not raise.

    Threads: any. Nothing is said of what is noted while :meth:`settled` begins; all that was noted before it is worked
    off inside. Nothing here relies on a global interpreter lock: each step on the notes is one atomic call of a deque.
    """

    def __init__(self, lock: threading.Lock, work: Callable[[Sequence[_T]], None]) -> None:
        self._lock = lock
        self._work = work
        self._notes: deque[_T] = deque()
        self._owner: int | None = None  # the thread that has the lock, once it worked off the notes

    def note(self, notes: Iterable[_T], *, soon: bool = False) -> None:
        """Take notes. Past 256 of them, or with ``soon``, all are worked off now if nobody has the lock; else by the
        next one who takes it, or one more note."""
        self._notes.extend(notes)
        if (soon or len(self._notes) >= _NOTES_MAX) and self._lock.acquire(blocking=False):
            try:
                self.work_off()
            finally:
                self._owner = None
                self._lock.release()

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Inside, the lock is held and nothing is left to be worked off."""
        with self._lock:
            try:
                self.work_off()
                yield
            finally:
                self._owner = None

    def settle(self) -> None:
        """Have all worked off that was noted; not on a thread that has the lock, where it is done already but for what
        was noted since: what is called under the lock, a user's policy or a listener, may call this."""
        if self._owner != threading.get_ident():
            with self.settled():
                pass

    def work_off(self) -> None:
        """Work off what there is. The lock must be held; to be called also when it was let go of and taken again."""
        self._owner = threading.get_ident()
        if self._notes:
            self._work([self._notes.popleft() for _ in range(len(self._notes))])
