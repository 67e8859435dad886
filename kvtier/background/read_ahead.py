"""Reading ahead of one consumer: neighbours on disk in one read, later ones read while it works on earlier ones.

Threads: one consumer; the reads run wherever ``submit`` runs them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from kvtier.blocks import MissReason
from kvtier.errors import StoreClosed
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Located, Raw

Outcome = RamBlock | MissReason
Batch = list[Located]
GAP_BYTES_MAX = 64 << 10


def coalesce(located: Sequence[Located], bytes_max: int, first_bytes_max: int | None = None) -> list[Batch]:
    """Cut a sequence of blocks, in order, into runs that one read can bring.

    A run stays in one segment, goes forward, skips at most 64 KiB between two blocks, and reads at most
    ``bytes_max`` (or one block). With ``first_bytes_max`` the first run is that short and each further one twice
    as long, so that a consumer has something to work on while the next run is read.
    """
    batches: list[Batch] = []
    limit = min(bytes_max, first_bytes_max or bytes_max)
    for block in located:
        if batches and _continues(batches[-1], block, limit):
            batches[-1].append(block)
        else:
            if batches:
                limit = min(bytes_max, 2 * limit)
            batches.append([block])
    return batches


def _continues(batch: Batch, block: Located, bytes_max: int) -> bool:
    last = batch[-1]
    if (last.tier, last.content.segment_no) != (block.tier, block.content.segment_no):
        return False
    gap = block.extent.offset - last.extent.end
    return 0 <= gap <= GAP_BYTES_MAX and block.extent.end - batch[0].extent.offset <= bytes_max


def size_of(batch: Batch) -> int:
    """The memory that a batch needs: as it is read, or as it is once decoded."""
    return max(batch[-1].extent.end - batch[0].extent.offset, sum(b.entry.nbytes for b in batch))


class Bounds(NamedTuple):
    """How far ahead: batches and bytes that are held (read, being read, being consumed), and bytes read at once."""

    batches: int
    nbytes: int
    at_once_bytes: int


class ReadAhead:
    """Some batches in order, each read ahead as far as ``bounds`` allow; one is always allowed.

    Short reads run side by side. A long one keeps a disk busy alone, and a second one would only take from its
    bandwidth what the consumer is waiting for: so the bytes that are read at once have a bound of their own.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        fetch: Callable[[Batch], Raw],
        check: Callable[[Raw], deque[Outcome]],
        submit: Callable[..., Any],
        bounds: Bounds,
    ) -> None:
        self._fetch = fetch
        self._check = check
        self._submit = submit
        self._bounds = bounds
        self._lock = threading.Lock()
        self._batches = deque((batch, Future[deque[Outcome]]()) for batch in batches)
        self._waiting = deque(self._batches)
        self._held = self._held_bytes = 0
        self._reading_bytes = 0
        self._is_wanted = True

    def outcomes(self) -> Iterator[Outcome]:
        """Of all blocks, in order."""
        try:
            self._launch()
            while self._batches:
                batch, future = self._batches.popleft()
                yield from _drained(future.result())
                self._consumed(size_of(batch))
        finally:
            self._is_wanted = False  # without the lock: the garbage collector may end this wherever it runs

    def _consumed(self, nbytes: int) -> None:
        with self._lock:
            self._held -= 1
            self._held_bytes -= nbytes
        self._launch()

    def _launch(self) -> None:
        with self._lock:
            while self._is_wanted and self._waiting and self._may_read(size_of(self._waiting[0][0])):
                batch, future = self._waiting.popleft()
                nbytes = size_of(batch)
                self._held += 1
                self._held_bytes += nbytes
                self._reading_bytes += nbytes
                try:
                    self._submit(self._run, batch, future)
                except RuntimeError:  # the pool is closed
                    future.set_exception(StoreClosed("the store is closed"))

    def _may_read(self, nbytes: int) -> bool:
        if self._held and (self._held >= self._bounds.batches or self._held_bytes + nbytes > self._bounds.nbytes):
            return False
        return not self._reading_bytes or self._reading_bytes + nbytes <= self._bounds.at_once_bytes

    def _run(self, batch: Batch, future: Future[deque[Outcome]]) -> None:
        try:
            try:
                raw = self._fetch(batch)
            finally:
                self._fetched(size_of(batch))
            future.set_result(self._check(raw))
        except BaseException as error:
            future.set_exception(error)

    def _fetched(self, nbytes: int) -> None:
        """The disk is free for the next one, while this one is checked."""
        with self._lock:
            self._reading_bytes -= nbytes
        self._launch()


def _drained(outcomes: deque[Outcome]) -> Iterator[Outcome]:
    """The outcomes, each forgotten as it is handed on, so that its buffer can be used again."""
    while outcomes:
        yield outcomes.popleft()
