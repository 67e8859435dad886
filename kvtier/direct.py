"""Long reads and writes past the system's cache (``O_DIRECT``), in large requests to the disk.

What goes through the system's cache is copied there, page by page, and lies anywhere in memory: a request to a disk
names only so many places, 128 pages or half a megabyte with most. A disk that counts requests, as throttled volumes do,
is slow by that, and a fast one waits for the processor. So long ones pass by it, where that was asked for: whole pages
of the caller's memory straight to or from the disk where memory and file are aligned alike, the rest by way of a
buffer.

Linux only, and nothing that must work: what is not done here is left to the caller, who does it as always. What is in
the cache is read from there. The kernel keeps both ways in step: a direct read sees all that was written before, and a
direct write is seen by all reads after it. The pages at the two ends of a write, which may have other bytes in them,
are left to the caller too.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

from kvtier import _platform
from kvtier.buffers import copy_across, cut
from kvtier.pool import PAGE

#: Shorter ones are as quick through the cache.
LEAST_BYTES = 256 << 10
#: Reads in jumps of which more than half has to be copied from here are direct from this length on: shorter ones are
#: one request anyway.
LEAST_COPIED_BYTES = 1 << 20
#: Other reads of which some has to be copied are direct from this length on, if that is little: what the system reads
#: ahead helps shorter ones more.
LEAST_AHEAD_BYTES = 4 << 20
#: At most so much in one call: on some file systems readers of a file wait while one writes to it.
CALL_BYTES_MAX = 8 << 20
_LEAST_RUN_BYTES = 64 << 10  # shorter runs of whole pages are copied: a request names only so many places
_BUFFERS_KEPT = 4
_ADDED, _JUMPS, _REFUSED = 1, 2, 4
_NEVER = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_NOT_NOW = {errno.EFAULT, errno.ENOMEM}  # memory that cannot be held in place for the disk


class _Run(NamedTuple):
    """Whole pages of a file, from ``begin`` to ``end``; ``memory``: where they belong, if that is aligned alike."""

    begin: int
    end: int
    memory: memoryview | None

    @property
    def nbytes(self) -> int:
        return self.end - self.begin

    def split(self, nbytes: int) -> tuple[_Run, _Run | None]:
        """The first so many bytes of it, and what is left."""
        middle = self.begin + nbytes
        if middle >= self.end:
            return self, None
        first, last = (None, None) if self.memory is None else (self.memory[:nbytes], self.memory[nbytes:])
        return _Run(self.begin, middle, first), _Run(middle, self.end, last)


class DirectFiles:
    """Second descriptors of files, to read and write past the cache with. Any thread, but a file is not forgotten
    while it is used."""

    def __init__(self) -> None:
        self._known = bytearray()  # what is known of each descriptor, by its number
        self._twins: dict[int, int] = {}
        self._buffers: list[mmap.mmap] = []

    def add(self, fd: int) -> None:
        """Write what is long of this file so from now on, where its file system can, and read what can be read without
        a copy, or very long with few: other reads gain more from what the system reads ahead of them."""
        self._note(fd, _ADDED)

    def expect_jumps(self, fd: int) -> None:
        """Nothing is read ahead of this file: if it is added, all that is long is read so."""
        self._note(fd, _JUMPS)

    def forget(self, fd: int) -> None:
        """The file is about to be closed."""
        if fd < len(self._known):
            self._known[fd] = 0
        twin = self._twins.pop(fd, None)
        if twin is not None:
            os.close(twin)

    def read(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from the first on, as far as that can be done here: how many bytes. :class:`OSError` if the
        disk fails."""
        size = sum(view.nbytes for view in views)
        if not self._takes(fd, size):
            return 0
        cached = _platform.cached_bytes(fd, offset, size)
        if cached is not None and 2 * cached >= size:
            return 0
        runs = list(_runs(views, offset, _down(offset), _up(offset + size)))
        copied = sum(run.nbytes for run in runs if run.memory is None)
        is_long = size >= LEAST_AHEAD_BYTES and 16 * copied <= size
        is_quicker = size >= LEAST_COPIED_BYTES or 2 * copied < size if self._is(fd, _JUMPS) else is_long or not copied
        if not is_quicker:
            return 0
        return min(max(0, self._move(fd, views, offset, runs, is_write=False) - offset), size)

    def write(self, fd: int, views: Sequence[memoryview], offset: int) -> tuple[int, int]:
        """Write whole pages of the file, as far as that can be done here; from where to where in it. :class:`OSError`
        if the disk fails."""
        end = offset + sum(view.nbytes for view in views)
        begin, last = _up(offset), _down(end)
        if not self._takes(fd, last - begin):
            return offset, offset
        return begin, self._move(fd, views, offset, list(_runs(views, offset, begin, last)), is_write=True)

    def _takes(self, fd: int, size: int) -> bool:
        return size >= LEAST_BYTES and self._is(fd, _ADDED) and not self._is(fd, _REFUSED)

    def _is(self, fd: int, what: int) -> bool:
        return fd < len(self._known) and bool(self._known[fd] & what)

    def _note(self, fd: int, what: int) -> None:
        self._known.extend(bytes(max(0, fd + 1 - len(self._known))))
        self._known[fd] |= what

    def _move(self, fd: int, views: Sequence[memoryview], offset: int, runs: Sequence[_Run], *, is_write: bool) -> int:
        """Read or write runs that follow one another, up to the end of the file; where in the file that ended."""
        at, twin = runs[0].begin, self._twin(fd)
        if twin is None:
            return at
        try:
            for step in _steps(runs):
                with self._memory(step) as memory:
                    if is_write:
                        _copy_in(views, offset, step, memory)
                        at += _platform.pwritev(twin, memory, at)
                    else:
                        at += _platform.preadv(twin, memory, at)
                        _copy_out(views, offset, step, memory, at)
                if at < step[-1].end:
                    break
        except OSError as e:
            if e.errno in _NEVER:
                self._note(fd, _REFUSED)
            elif e.errno not in _NOT_NOW:
                raise
        return at

    def _twin(self, fd: int) -> int | None:
        """Made when it is first asked for. None where there can be none."""
        twin = self._twins.get(fd)
        if twin is None and not self._is(fd, _REFUSED):
            made = _platform.reopen_direct(fd)
            if made is None:
                self._note(fd, _REFUSED)
                return None
            twin = self._twins.setdefault(fd, made)
            if twin != made:  # another thread was first
                os.close(made)
        return twin

    @contextmanager
    def _memory(self, step: Sequence[_Run]) -> Iterator[list[memoryview]]:
        """What the disk is to read from or write to, run by run: a part of a buffer where a run has none."""
        if all(run.memory is not None for run in step):
            yield [run.memory for run in step if run.memory is not None]
            return
        buffer = self._take()
        try:
            yield _laid_out(step, memoryview(buffer))
        finally:
            if len(self._buffers) < _BUFFERS_KEPT:
                self._buffers.append(buffer)

    def _take(self) -> mmap.mmap:
        with suppress(IndexError):
            return self._buffers.pop()
        buffer = mmap.mmap(-1, CALL_BYTES_MAX, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
        return buffer


def _runs(views: Sequence[memoryview], offset: int, begin: int, end: int) -> Iterator[_Run]:
    """The pages from ``begin`` to ``end`` of a file, in which the views' bytes start at ``offset``."""
    at, place = begin, offset
    for view in views:
        first, last = max(at, _up(place)), min(end, _down(place + view.nbytes))
        if last - first >= _LEAST_RUN_BYTES and _is_aligned(view, place):
            if at < first:
                yield _Run(at, first, None)
            yield _Run(first, last, view[first - place : last - place])
            at = last
        place += view.nbytes
    if at < end:
        yield _Run(at, end, None)


def _steps(runs: Iterable[_Run]) -> Iterator[list[_Run]]:
    """The runs that one call moves, cut where it has enough."""
    step: list[_Run] = []
    left = CALL_BYTES_MAX
    for run in runs:
        rest: _Run | None = run
        while rest is not None:
            part, rest = rest.split(left)
            step.append(part)
            left -= part.nbytes
            if not left or len(step) == _platform.IOV_MAX:
                yield step
                step, left = [], CALL_BYTES_MAX
    if step:
        yield step


def _laid_out(step: Sequence[_Run], buffer: memoryview) -> list[memoryview]:
    memory, used = [], 0
    for run in step:
        if run.memory is None:
            memory.append(buffer[used : used + run.nbytes])
            used += run.nbytes
        else:
            memory.append(run.memory)
    return memory


def _copy_in(views: Sequence[memoryview], offset: int, step: Sequence[_Run], memory: Sequence[memoryview]) -> None:
    for run, target in zip(step, memory, strict=True):
        if run.memory is None:
            copy_across(cut(views, run.begin - offset, run.end - offset), [target])


def _copy_out(
    views: Sequence[memoryview], offset: int, step: Sequence[_Run], memory: Sequence[memoryview], end: int
) -> None:
    """What was read, up to ``end`` in the file, as far as it was wanted."""
    for run, found in zip(step, memory, strict=True):
        if run.memory is None:
            begin = max(run.begin, offset)
            wanted = cut(views, begin - offset, min(run.end, end) - offset)
            skip = begin - run.begin
            copy_across([found[skip : skip + sum(view.nbytes for view in wanted)]], wanted)


def _is_aligned(view: memoryview, place: int) -> bool:
    address = _platform.address_of(view)
    return address is not None and not (address - place) % PAGE


def _down(place: int) -> int:
    return place // PAGE * PAGE


def _up(place: int) -> int:
    return -(-place // PAGE) * PAGE
