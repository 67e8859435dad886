"""Reusable read buffers for blocks that pass through once.

Memory that was never touched costs more than the copy into it (a page fault for every 4 KiB), so a restore
that streams through a few warm buffers is faster than one that fills new ones, and needs no more memory
however long it is. A buffer is used again only when nobody can see it any more: a ``bytearray`` that is
exported to a view refuses to change its size, and that is what is asked. A reader that keeps a block keeps
its buffer, and gets right bytes for as long as it does.

Threads: all of it may be called from any thread.
"""

from __future__ import annotations

import threading


class Slabs:
    """At most ``count`` buffers that are kept for reuse, each of at least ``slab_bytes``."""

    def __init__(self, slab_bytes: int, count: int) -> None:
        self._slab_bytes = slab_bytes
        self._count = count
        self._lock = threading.Lock()
        self._slabs: list[bytearray] = []

    def warm(self) -> None:
        """Allocate (and so touch) the buffers ahead of their first use."""
        with self._lock:
            while len(self._slabs) < self._count:
                self._slabs.append(bytearray(self._slab_bytes))

    def take(self, nbytes: int) -> memoryview:
        """A writable view of ``nbytes`` that no one else sees, until it and all views of it are gone."""
        with self._lock:
            free = [s for s in self._slabs if not _is_exported(s)]
            for slab in free:
                if len(slab) >= nbytes:
                    return memoryview(slab)[:nbytes]
            slab = bytearray(max(nbytes, self._slab_bytes))
            if free and len(self._slabs) >= self._count:
                smallest = min(free, key=len)
                self._slabs = [s for s in self._slabs if s is not smallest]
            if len(self._slabs) < self._count:
                self._slabs.append(slab)
            return memoryview(slab)[:nbytes]


def _is_exported(slab: bytearray) -> bool:
    """Whether any view of the buffer exists. Shrinking by a byte and growing back moves no memory."""
    try:
        slab.append(slab.pop())
    except BufferError:
        return True
    return False
