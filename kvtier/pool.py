"""Memory for values, used again once nobody sees it any more.

The first touch of new memory costs several times the copy into it: a page fault for every 4 KiB, and large values get
new memory from the system each time. So what held a value is kept for the next one of about its size, as soon as the
last view of it is gone: whoever keeps a block keeps its bytes. What was taken and did not come back is made ready anew
by :meth:`BufferPool.restock`, in the background, so that the next turn of a conversation finds memory that was touched.

Memory is lent as views of an object that is weakly referenced; when no view is left, that object goes, and the memory
comes back. The garbage collector tells of that before it runs finalizers, which may still see it: so memory is lent
again only once nothing refers to it any more, which its reference count says.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import threading
import weakref
from collections import Counter, deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

#: Smaller values get memory from Python's allocator, which uses it again by itself.
LEAST_BYTES = 128 << 10
#: What addresses, positions and lengths must be multiples of, for most disks to move bytes without a copy.
PAGE = 4096
_MAPPED_BYTES_MIN = 2 << 20  # a huge page
_MAPPINGS_MAX = 1 << 14  # a process may have 65,530, by Linux's default


class _Memory:
    """So many bytes, whole pages, from the beginning of one. ``may_map``: as a mapping of its own, where that is of
    use."""

    def __init__(self, nbytes: int, may_map: bool) -> None:
        self.nbytes = nbytes
        self.is_owed = False  # while it is lent, and is to be made ready anew if it does not come back
        self.map = _new(nbytes, may_map)
        self._begin = -ctypes.addressof(ctypes.c_ubyte.from_buffer(self.map)) % PAGE
        self._kind = ctypes.c_ubyte * nbytes
        self._references = sys.getrefcount(self.map)

    @property
    def is_seen(self) -> bool:
        """Whether anything refers to it still."""
        return sys.getrefcount(self.map) > self._references

    def lend(self) -> ctypes.Array[ctypes.c_ubyte]:
        """What stands for it, until the last view of that is gone."""
        return self._kind.from_buffer(self.map, self._begin)

    def touch(self) -> None:
        """Have the system provide its pages now. Other Python threads go on meanwhile."""
        ctypes.memset(ctypes.addressof(self.lend()), 0, self.nbytes)


def _new(nbytes: int, may_map: bool) -> mmap.mmap | bytearray:
    """A private mapping, in huge pages where there are any; a ``bytearray`` where there is no such mapping, with room
    to begin where a page does."""
    if not may_map or nbytes < _MAPPED_BYTES_MIN:
        return bytearray(nbytes + PAGE)
    try:
        mapped = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (AttributeError, OSError):
        return bytearray(nbytes + PAGE)
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
        self._may_spare = True
        self._mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._spare: list[_Memory] = []  # the latest to come back last
        self._returned: deque[_Memory] = deque()
        self._lent: dict[int, weakref.ref[Any]] = {}
        self._owed: Counter[int] = Counter()  # by size: taken, not come back, and not made anew

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
            memory = self._made(_in_pages(nbytes))
        memory.is_owed = not is_brief
        with self._lock:
            self._owed[memory.nbytes] += memory.is_owed
        view = memoryview(self._lend(memory)).cast("B")[:nbytes]
        self._settle()
        return view

    def copy_of(self, view: memoryview) -> memoryview:
        """The same bytes in memory of the pool, read-only."""
        if view.nbytes < LEAST_BYTES:
            return memoryview(bytes(view))
        copy = self.take(view.nbytes)
        copy[:] = view
        return copy.toreadonly()

    def restock(self) -> bool:
        """Make one piece of memory ready in the place of one that was taken and did not come back, as far as it may be
        spare; whether there was one."""
        while (size := self._next_owed()) is not None:
            if self.stock([size]):
                return True
            with self._lock:
                self._owed.pop(size, None)
        return False

    def _next_owed(self) -> int | None:
        with self._lock:
            self._collect()
            self._owed = +self._owed
            size = next(iter(self._owed), None)
            if size is not None:
                self._owed[size] -= 1
            return size

    def stock(self, sizes: Iterable[int]) -> bool:
        """Make memory of these sizes ready, as far as it may be spare; whether all of it may."""
        for size in map(_in_pages, sizes):
            if not self._may_spare or self.spare_bytes + size > self._spare_bytes_max:
                return False
            memory = self._made(size)
            memory.touch()
            self._give_back(memory)
        return True

    def keep_spare(self, may_spare: bool) -> None:
        """Whether memory that nobody uses is kept; if not, it goes back to the system, now and as it comes back."""
        self._may_spare = may_spare
        self._settle(also_if_empty=True)

    def _made(self, nbytes: int) -> _Memory:
        memory = _Memory(nbytes, len(self._mappings) < _MAPPINGS_MAX)
        if isinstance(memory.map, mmap.mmap):
            self._mappings.add(memory.map)
        return memory

    def _lend(self, memory: _Memory) -> ctypes.Array[ctypes.c_ubyte]:
        lent = memory.lend()
        key = id(lent)

        def gone(_: object) -> None:
            self._lent.pop(key, None)
            self._give_back(memory)

        self._lent[key] = weakref.ref(lent, gone)
        return lent

    def _give_back(self, memory: _Memory) -> None:
        """If the lock cannot be had now, whoever has it finds the memory before long."""
        self._returned.append(memory)
        self._settle()

    def _settle(self, *, also_if_empty: bool = False) -> None:
        """Take in what came back, also while another thread held the lock."""
        while (self._returned or also_if_empty) and self._lock.acquire(blocking=False):
            also_if_empty = False
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
        dropped, most = 0, self._spare_bytes_max if self._may_spare else 0
        while self.spare_bytes > most:
            self.spare_bytes -= self._spare[dropped].nbytes
            dropped += 1
        del self._spare[:dropped]

    def _fitting(self, nbytes: int) -> _Memory | None:
        """Spare memory of that size, or up to an eighth more."""
        for at in range(len(self._spare) - 1, -1, -1):
            memory = self._spare[at]
            if nbytes <= memory.nbytes <= nbytes + nbytes // 8 + mmap.PAGESIZE and not memory.is_seen:
                del self._spare[at]
                self.spare_bytes -= memory.nbytes
                return memory
        return None
