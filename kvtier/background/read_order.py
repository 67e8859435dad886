"""In which order blocks are read for one consumer: neighbours on disk in one read, wherever they come in its order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from kvtier.tiers.reading import Located

Batch = list[Located]


def reading_order(located: Sequence[Located], window_bytes: int) -> list[int]:
    """The indices of the blocks, in the order in which to read them.

    Only blocks that are wanted within ``window_bytes`` of one another (or one block) change places. Of those, the
    ones that lie side by side are read as they lie, and of two such runs first the one that is wanted first.
    """
    order: list[int] = []
    window: list[int] = []
    size = 0
    for i, block in enumerate(located):
        if window and size + held_bytes(block) > window_bytes:
            order += _by_place(located, window)
            window, size = [], 0
        window.append(i)
        size += held_bytes(block)
    return order + _by_place(located, window)


def _by_place(located: Sequence[Located], window: Sequence[int]) -> list[int]:
    by_place = sorted(window, key=lambda i: located[i].place)
    runs = [by_place[:1]]
    for before, i in pairwise(by_place):
        if follows(located[before], located[i]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return [i for run in sorted(runs, key=lambda run: min(run, default=0)) for i in run]


def follows(before: Located, block: Located) -> bool:
    """Whether one read can bring both: in one segment, forward, with no gap that is longer than the disk likes."""
    if (before.tier, before.content.segment_no) != (block.tier, block.content.segment_no):
        return False
    return 0 <= block.extent.offset - before.extent.end <= block.tier.habits.gap_bytes


def coalesce(located: Sequence[Located], bytes_max: int, first_bytes_max: int | None = None) -> list[Batch]:
    """Cut a sequence of blocks, in order, into runs that one read can bring.

    Each block :func:`follows` the one before it, and a run reads at most ``bytes_max`` (or one block), gaps counted,
    and decodes to no more. With ``first_bytes_max`` the first run is that short and each further one twice as long, so
    that a consumer has something to work on while the next run is read.
    """
    batches: list[Batch] = []
    limit = min(bytes_max, first_bytes_max or bytes_max)
    decoded = 0
    for block in located:
        decoded += block.entry.nbytes
        if batches and follows(batches[-1][-1], block) and max(_span(batches[-1][0], block), decoded) <= limit:
            batches[-1].append(block)
        else:
            if batches:
                limit = min(bytes_max, 2 * limit)
            batches.append([block])
            decoded = block.entry.nbytes
    return batches


def _span(first: Located, last: Located) -> int:
    return last.extent.end - first.extent.offset


def held_bytes(block: Located) -> int:
    """The memory that one block needs: as it is read, or as it is once decoded."""
    return max(block.content.head_len + block.content.stored_len, block.entry.nbytes)


def size_of(batch: Batch) -> int:
    """The memory that a batch needs: as it is read, gaps included, or as it is once decoded."""
    return max(_span(batch[0], batch[-1]), sum(b.entry.nbytes for b in batch))
