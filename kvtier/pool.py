"""Memory for values, used again once nobody sees it any more.

The first touch of new memory costs several times the copy into it: a page fault for every 4 KiB, and large values get
new memory from the system each time. So what held a value is kept for the next one of about its size, as soon as the
last view of it is gone: whoever keeps a block keeps its bytes. What was taken and did not come back is made ready anew
by :meth:`BufferPool.restock`, in the background, so that the next turn of a conversation finds memory that was touched.

Memory is lent as views of an object that is weakly referenced; when no view is left, that object goes, and the memory
comes back.
"""

from __future__ import annotations

import ctypes
import mmap
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

#: Smaller values get memory from Python's allocator, which uses it again by itself.
LEAST_BYTES = 128 << 10


class _Memory:
    """So many bytes, whole pages."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self.is_owed = False  # while it is lent, and is to be made ready anew if it does not come back
        self._map = _new(nbytes)
        self._kind = ctypes.c_ubyte * nbytes

    def lend(self) -> ctypes.Array[ctypes.c_ubyte]:
        """What stands for it, until the last view of that is gone."""
        return self._kind.from_buffer(self._map)

    def touch(self) -> None:
        """Have the system provide its pages now. Other Python threads go on meanwhile."""
        ctypes.memset(ctypes.addressof(self.lend()), 0, self.nbytes)


def _new(nbytes: int) -> mmap.mmap | bytearray:
    """A private mapping, in huge pages where there are any; a ``bytearray`` where there is no such mapping."""
    try:
        mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (AttributeError, OSError):
        return bytearray(nbytes)
    with suppress(AttributeError, OSError):
        mapped.madvise(mmap.MADV_HUGEPAGE)
    return mapped


def _in_pages(nbytes: int) -> int:
    return -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE


class BufferPool:
    """Memory for values. At most ``spare_bytes_max`` are kept that nobody uses.

    Threads: all of it may be called from any thread. Memory may come back wherever the last view of it goes, also in
    the garbage collector: that never waits for a lock.
    """

    def __init__(self, spare_bytes_max: int) -> None:
        self.spare_bytes = 0
        self._spare_bytes_max = spare_bytes_max
        self._lock = threading.Lock()
        self._spare: list[_Memory] = []  # the latest to come back last
        self._returned: deque[_Memory] = deque()
        self._lent: dict[int, weakref.ref[Any]] = {}
        self._owed: Counter[int] = Counter()  # by size: taken since the last restocking, and not come back

    def take(self, nbytes: int, *, is_brief: bool = False) -> memoryview:
        """A writable view of ``nbytes``, whose contents are undefined and which no one else sees.

        ``is_brief``: it comes back soon, and is not made ready anew meanwhile.
        """
        if nbytes < LEAST_BYTES:
            return memoryview(bytearray(nbytes))
        with self._lock:
            self._collect()
            memory = self._fitting(nbytes)
        if memory is None:
            memory = _Memory(_in_pages(nbytes))
        memory.is_owed = not is_brief
        with self._lock:
            self._owed[memory.nbytes] += memory.is_owed
        return memoryview(self._lend(memory)).cast("B")[:nbytes]

    def copy_of(self, view: memoryview) -> memoryview:
        """The same bytes in memory of the pool, read-only."""
        if view.nbytes < LEAST_BYTES:
            return memoryview(bytes(view))
        copy = self.take(view.nbytes)
        copy[:] = view
        return copy.toreadonly()

    def restock(self) -> bool:
        """Make as much memory ready as was taken since last time and did not come back, as far as it may be spare;
        whether it was any."""
        with self._lock:
            self._collect()
            owed, self._owed = +self._owed, Counter()
        self.stock(owed.elements())
        return bool(owed)

    def stock(self, sizes: Iterable[int]) -> None:
        """Make memory of these sizes ready, as far as it may be spare."""
        for size in map(_in_pages, sizes):
            if self.spare_bytes + size > self._spare_bytes_max:
                break
            memory = _Memory(size)
            memory.touch()
            self._give_back(memory)

    def trim(self) -> None:
        """Give all spare memory back to the system."""
        with self._lock:
            self._spare.clear()
            self.spare_bytes = 0

    def _lend(self, memory: _Memory) -> ctypes.Array[ctypes.c_ubyte]:
        lent = memory.lend()
        key = id(lent)

        def gone(_: object) -> None:
            self._lent.pop(key, None)
            self._give_back(memory)

        self._lent[key] = weakref.ref(lent, gone)
        return lent

    def _give_back(self, memory: _Memory) -> None:
        """If the lock cannot be had now, whoever takes it next finds the memory."""
        self._returned.append(memory)
        if self._lock.acquire(blocking=False):
            try:
                self._collect()
            finally:
                self._lock.release()

    def _collect(self) -> None:
        while self._returned:
            memory = self._returned.popleft()
            self._spare.append(memory)
            self.spare_bytes += memory.nbytes
            if memory.is_owed and self._owed[memory.nbytes]:
                self._owed[memory.nbytes] -= 1
            memory.is_owed = False
        dropped = 0
        while self.spare_bytes > self._spare_bytes_max:
            self.spare_bytes -= self._spare[dropped].nbytes
            dropped += 1
        del self._spare[:dropped]

    def _fitting(self, nbytes: int) -> _Memory | None:
        """Spare memory of that size, or up to an eighth more."""
        for at in range(len(self._spare) - 1, -1, -1):
            if nbytes <= self._spare[at].nbytes <= nbytes + nbytes // 8 + mmap.PAGESIZE:
                memory = self._spare.pop(at)
                self.spare_bytes -= memory.nbytes
                return memory
        return None
