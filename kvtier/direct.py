"""Long reads and writes past the system's cache (``O_DIRECT``), in the largest requests that a disk takes.

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from kvtier import _platform
from kvtier.buffers import copy_across, cut

PAGE = 4096  # what addresses, positions and lengths must be multiples of: enough for all but the most unusual disks
#: Shorter ones are one request anyway.
LEAST_BYTES = 1 << 20
#: Shorter ones are left to the cache also if nothing of them has to be copied.
LEAST_ALIGNED_BYTES = 256 << 10
_LEAST_RUN_BYTES = 64 << 10  # shorter runs of whole pages are copied: a request names only so many places
_BUFFER_BYTES = 10 << 20
_BUFFERS_KEPT = 2
_REFUSALS = {errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}


class _Run(NamedTuple):
    """Whole pages of a file, from ``begin`` to ``end``; ``memory``: where they belong, if that is aligned alike."""

    begin: int
    end: int
    memory: memoryview | None

    @property
    def nbytes(self) -> int:
        return self.end - self.begin


class DirectFiles:
    """Second descriptors of files, to read and write past the cache with. Any thread, but a file is not forgotten
    while it is used."""

    def __init__(self) -> None:
        self._files: set[int] = set()
        self._twins: dict[int, int] = {}
        self._refused: set[int] = set()
        self._buffers: list[mmap.mmap] = []

    def add(self, fd: int) -> None:
        """Read and write what is long of this file so from now on, where its file system can."""
        self._files.add(fd)

    def forget(self, fd: int) -> None:
        """The file is about to be closed."""
        self._files.discard(fd)
        self._refused.discard(fd)
        twin = self._twins.pop(fd, None)
        if twin is not None:
            os.close(twin)

    def takes(self, fd: int, size: int) -> bool:
        """Whether so many bytes of this file may be read or written here."""
        return size >= LEAST_ALIGNED_BYTES and fd in self._files and fd not in self._refused

    def read(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Fill the views from the first on, as far as that can be done here: how many bytes. :class:`OSError` if the
        disk fails."""
        size = sum(view.nbytes for view in views)
        runs = list(_runs(views, offset, _down(offset), _up(offset + size)))
        cached = _platform.cached_bytes(fd, offset, size)
        if not _is_worth_it(runs, size) or (cached is not None and 2 * cached >= size):
            return 0
        return min(max(0, self._move(_read, fd, _Part(views, offset), runs) - offset), size)

    def write(self, fd: int, views: Sequence[memoryview], offset: int) -> int:
        """Write the views from the first on, as far as that can be done here: how many bytes. ``offset`` is a multiple
        of :data:`PAGE`. :class:`OSError` if the disk fails."""
        size = sum(view.nbytes for view in views)
        runs = list(_runs(views, offset, offset, _down(offset + size)))
        return self._move(_write, fd, _Part(views, offset), runs) - offset if _is_worth_it(runs, size) else 0

    def _move(self, move: _Move, fd: int, part: _Part, runs: Sequence[_Run]) -> int:
        """Move runs that follow one another, up to the end of the file; where in the file that ended."""
        at, twin = runs[0].begin, self._twin(fd)
        if twin is None:
            return at
        buffer = self._take()
        try:
            with memoryview(buffer) as memory:
                for step in _steps(runs):
                    at = step[0].begin + move(twin, part, step, memory)
                    if at < step[-1].end:
                        break
        except OSError as e:
            if e.errno not in _REFUSALS:
                raise
            self._refused.add(fd)
        finally:
            if len(self._buffers) < _BUFFERS_KEPT:
                self._buffers.append(buffer)
        return at

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

    def _take(self) -> mmap.mmap:
        with suppress(IndexError):
            return self._buffers.pop()
        buffer = mmap.mmap(-1, _BUFFER_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(AttributeError, OSError):
            buffer.madvise(mmap.MADV_HUGEPAGE)
        return buffer


class _Part(NamedTuple):
    """Bytes of a file from ``offset`` on, and where the caller has them."""

    views: Sequence[memoryview]
    offset: int

    def within(self, run: _Run) -> tuple[int, list[memoryview]]:
        """What of the run is the caller's: how far behind its beginning that starts, and where he has it."""
        skip = max(0, self.offset - run.begin)
        return skip, cut(self.views, run.begin + skip - self.offset, run.end - self.offset)


#: Reads or writes runs that follow one another, by way of a buffer where they have no memory; how many bytes.
_Move = Callable[[int, _Part, Sequence[_Run], memoryview], int]


def _read(twin: int, part: _Part, step: Sequence[_Run], buffer: memoryview) -> int:
    memory = _memory(step, buffer)
    count: int = _platform.preadv(twin, memory, step[0].begin)
    for run, found in zip(step, memory, strict=True):
        if run.memory is None:
            skip, mine = part.within(run)
            here = found[skip : max(skip, min(run.nbytes, step[0].begin + count - run.begin))]
            copied = cut(mine, 0, here.nbytes)
            copy_across([here[: sum(view.nbytes for view in copied)]], copied)
    return count


def _write(twin: int, part: _Part, step: Sequence[_Run], buffer: memoryview) -> int:
    memory = _memory(step, buffer)
    for run, target in zip(step, memory, strict=True):
        if run.memory is None:
            copy_across(part.within(run)[1], [target])
    count: int = _platform.pwritev(twin, memory, step[0].begin)
    return count


def _memory(step: Sequence[_Run], buffer: memoryview) -> list[memoryview]:
    """What the disk is to read from or write to."""
    memory, used = [], 0
    for run in step:
        if run.memory is None:
            memory.append(buffer[used : used + run.nbytes])
            used += run.nbytes
        else:
            memory.append(run.memory)
    return memory


def _runs(views: Sequence[memoryview], offset: int, begin: int, end: int) -> Iterator[_Run]:
    """The pages from ``begin`` to ``end`` of a file, in which the views' bytes start at ``offset``, cut into runs."""
    at, place = begin, offset
    for view in views:
        first, last = max(at, _up(place)), min(end, _down(place + view.nbytes))
        if last - first >= _LEAST_RUN_BYTES and _is_aligned(view, place):
            yield from _without_memory(at, first)
            yield _Run(first, last, view[first - place : last - place])
            at = last
        place += view.nbytes
    yield from _without_memory(at, end)


def _without_memory(begin: int, end: int) -> Iterator[_Run]:
    for at in range(begin, end, _BUFFER_BYTES):
        yield _Run(at, min(at + _BUFFER_BYTES, end), None)


def _is_worth_it(runs: Sequence[_Run], size: int) -> bool:
    straight = sum(run.nbytes for run in runs if run.memory is not None)
    return size >= LEAST_BYTES or 2 * straight >= size


def _steps(runs: Sequence[_Run]) -> Iterator[list[_Run]]:
    """The runs that one call moves, one buffer being enough for all of them."""
    step: list[_Run] = []
    copied = 0
    for run in runs:
        more = run.nbytes if run.memory is None else 0
        if step and (copied + more > _BUFFER_BYTES or len(step) == _platform.IOV_MAX):
            yield step
            step, copied = [], 0
        step.append(run)
        copied += more
    yield step


def _is_aligned(view: memoryview, place: int) -> bool:
    address = _platform.address_of(view)
    return address is not None and not (address - place) % PAGE


def _down(place: int) -> int:
    return place // PAGE * PAGE


def _up(place: int) -> int:
    return -(-place // PAGE) * PAGE
