"""Long reads past the system's cache (``O_DIRECT``), in the largest requests that a disk takes.

The pages of the system's cache lie anywhere in memory, and a request to a disk names only so many places: 128 pages, or
half a megabyte, with most. A disk that counts requests, as throttled volumes do, is slow by that, and a fast one waits
for the copy from there. So long reads go into huge pages, aligned as such reads must be: a read that is aligned itself
straight to where it is wanted, others by way of a buffer. What is in the cache comes from the cache.

Linux only, and nothing that must work: what is not read here is left to the caller, which reads it as always. A direct
read sees all that was written before, synced or not: the kernel sees to that.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress

from kvtier import _platform
from kvtier.buffers import advance

#: Shorter reads are one request anyway.
LEAST_BYTES = 1 << 20
#: Shorter ones that could go straight to where they are wanted, too, are left to the cache and what it reads ahead.
LEAST_ALIGNED_BYTES = 256 << 10
PAGE = 4096  # what addresses, positions and lengths must be multiples of: enough for all but the most unusual disks
_BUFFER_BYTES = 10 << 20
_BUFFERS_KEPT = 2
_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class DirectReads:
    """Second descriptors of files, to read past the cache with. Any thread, but a file is not forgotten while it is
    read."""

    def __init__(self) -> None:
        self._twins: dict[int, int] = {}
        self._always: set[int] = set()
        self._refused: set[int] = set()
        self._buffers: list[mmap.mmap] = []

    def add(self, fd: int) -> None:
        """Read all that is long of this file so from now on, where its file system can; otherwise only what is aligned
        as such reads must be."""
        self._always.add(fd)
        self._twin(fd)

    def forget(self, fd: int) -> None:
        """The file is about to be closed."""
        self._always.discard(fd)
        self._refused.discard(fd)
        twin = self._twins.pop(fd, None)
        if twin is not None:
            os.close(twin)

    def fill(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from the first on, as far as that can be done here: how many bytes. :class:`OSError` if the
        disk fails."""
        size = sum(view.nbytes for view in views)
        if size < LEAST_ALIGNED_BYTES or fd in self._refused:
            return 0
        is_aligned = len(views) == 1 and _is_aligned(views[0], offset)
        is_long = size >= LEAST_BYTES and fd in self._always
        if not (is_aligned or is_long) or self._is_cached(fd, offset, size):
            return 0
        twin = self._twin(fd)
        if twin is None:
            return 0
        read = self._straight if is_aligned else self._piece
        left, first, done = list(views), 0, 0
        try:
            while done < size and (count := read(twin, left[first:], offset + done, size - done)):
                done += count
                first = advance(left, first, count)
                if is_aligned and count % PAGE:
                    break  # the end of the file
        except OSError as e:
            if e.errno not in _REFUSALS:
                raise
            self._refused.add(fd)
        return done

    def _twin(self, fd: int) -> int | None:
        """Made when it is first asked for. None where there can be none."""
        twin = self._twins.get(fd)
        if twin is None and fd not in self._refused:
            made = _platform.reopen_direct(fd)
            if made is None:
                self._refused.add(fd)
                return None
            twin = self._twins.setdefault(fd, made)
            if twin != made:  # another thread was first
                os.close(made)
        return twin

    def _is_cached(self, fd: int, offset: int, size: int) -> bool:
        """Whether reading as always is quicker; if that is not known, a disk that is always to be read so is believed
        to be the slow one."""
        cached = _platform.cached_bytes(fd, offset, size)
        return fd not in self._always if cached is None else 2 * cached >= size

    def _straight(self, twin: int, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Read to where it is wanted; 0 at the end of the file."""
        count: int = _platform.preadv(twin, views[:1], offset)
        return count

    def _piece(self, twin: int, views: Sequence[memoryview], offset: int, size: int) -> int:
        """Read as much as a buffer holds, and copy it where it belongs; 0 at the end of the file."""
        buffer = self._take()
        try:
            skip = offset % PAGE
            with memoryview(buffer) as whole:
                length = min(len(whole), -(-(skip + size) // PAGE) * PAGE)
                with whole[:length] as part:
                    count: int = min(_platform.preadv(twin, [part], offset - skip) - skip, size)
                if count > 0:
                    with whole[skip : skip + count] as found:
                        _copy(found, views)
            return max(0, count)
        finally:
            if len(self._buffers) < _BUFFERS_KEPT:
                self._buffers.append(buffer)

    def _take(self) -> mmap.mmap:
        with suppress(IndexError):
            return self._buffers.pop()
        buffer = mmap.mmap(-1, _BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
        return buffer


def _is_aligned(view: memoryview, offset: int) -> bool:
    address = ctypes.addressof(ctypes.c_ubyte.from_buffer(view))
    return not (offset | view.nbytes | address) % PAGE


def _copy(source: memoryview, targets: Sequence[memoryview]) -> None:
    """Fill the targets from the first on, until the source ends."""
    at = 0
    for target in targets:
        count = min(target.nbytes, source.nbytes - at)
        target[:count] = source[at : at + count]
        at += count
        if at == source.nbytes:
            return
