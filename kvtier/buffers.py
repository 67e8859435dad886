"""Byte plumbing: views of what callers pass in, and copies between differently cut values."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from kvtier.blocks import BUFFERS_MAX, Buffer
from kvtier.errors import LimitError
from kvtier.pool import BufferPool


def byte_views(buffers: Buffer | Sequence[Buffer], value_bytes_max: int) -> tuple[memoryview, ...]:
    """The buffers as flat byte views, in order; :class:`LimitError` if too many, too big or not contiguous."""
    many: Sequence[Any] = buffers if isinstance(buffers, (list, tuple)) else [buffers]
    if not 1 <= len(many) <= BUFFERS_MAX:
        raise LimitError(f"a value has 1 to {BUFFERS_MAX} buffers, got {len(many)}")
    try:
        views = tuple(memoryview(b).cast("B") for b in many)
    except TypeError as e:
        raise LimitError(f"buffers must be contiguous bytes-like objects: {e}") from e
    total = sum(v.nbytes for v in views)
    if total > value_bytes_max:
        raise LimitError(f"value of {total} bytes is over the limit of {value_bytes_max}")
    return views


def owned(view: memoryview, pool: BufferPool) -> memoryview:
    """The bytes as ours alone: whole ``bytes`` objects as they are, anything else (slices too) copied once."""
    if isinstance(view.obj, bytes) and len(view.obj) == view.nbytes:
        return view
    return pool.copy_of(view)


def check_size(given: int, needed: int) -> None:
    """Raise :class:`LimitError` unless the caller's buffers are as large as the block."""
    if given != needed:
        raise LimitError(f"the buffers hold {given} bytes, the block has {needed}")


def copy_across(sources: Sequence[memoryview], targets: Sequence[memoryview]) -> None:
    """Copy one cut of a value into another; both have the same total size."""
    pending = deque(sources)
    for target in targets:
        at = 0
        while at < target.nbytes:
            source = pending.popleft()
            n = min(source.nbytes, target.nbytes - at)
            target[at : at + n] = source[:n]
            at += n
            if n < source.nbytes:
                pending.appendleft(source[n:])


def split(value: memoryview, lengths: Sequence[int]) -> tuple[memoryview, ...]:
    """A value cut into its buffers."""
    views, at = [], 0
    for n in lengths:
        views.append(value[at : at + n])
        at += n
    return tuple(views)


def cut(views: Sequence[memoryview], begin: int, end: int) -> list[memoryview]:
    """The bytes from ``begin`` to ``end``, or to the end, of what flat views hold one after another."""
    parts, at = [], 0
    for view in views:
        if begin < at + view.nbytes and at < end:
            parts.append(view[max(0, begin - at) : end - at])
        at += view.nbytes
    return parts


def flat_views(buffers: Iterable[memoryview | bytes]) -> list[memoryview]:
    """The buffers as flat byte views, in order, without empty ones."""
    return [view.cast("B") for b in buffers if (view := memoryview(b)).nbytes]


def advance(views: list[memoryview], first: int, count: int) -> int:
    """Skip ``count`` bytes from ``views[first]`` on; the new first (its view shortened in place). :class:`OSError` if
    there are not so many."""
    while first < len(views) and count >= views[first].nbytes:
        count -= views[first].nbytes
        first += 1
    if count and first == len(views):
        raise OSError(errno.EIO, "the system claims to have moved more than it was given")
    if count:
        views[first] = views[first][count:]
    return first
