"""Reading ahead of one consumer: later batches are read while it works on earlier ones.

What was read is checked where it was read. Blocks that have to be decoded, which takes about as long as reading them,
are shared out in pieces instead: to whatever thread is free, once the next read has one, and to the consumer, which
checks a piece itself rather than wait for one. Once the consumer is gone, nothing more is read or checked.

Threads: one consumer; the reads run wherever ``submit`` runs them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from traceback import format_exception
from typing import Any, NamedTuple

from kvtier.background.read_order import Batch, size_of
from kvtier.blocks import MissReason
from kvtier.errors import StoreClosed, bare
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Raw

log = logging.getLogger("kvtier")

Outcome = RamBlock | MissReason

_PIECE_BYTES = 512 << 10  # decoded in a few tenths of a millisecond


class Bounds(NamedTuple):
    """How far ahead: batches and bytes that are held (read, being read, being consumed), and bytes read at once.
    ``first_bytes`` are held at first, and twice as many with each batch that the consumer has taken."""

    batches: int
    nbytes: int
    at_once_bytes: int
    first_bytes: int | None = None


class _Piece:
    """Blocks of a batch that are checked together, by whoever claims them first; and what came of them."""

    def __init__(self, some: slice) -> None:
        self.some = some
        self.outcomes: list[Outcome | None] | None = None
        self.failure: list[BaseException] | None = None  # one error, of all pieces that it befell

    @property
    def is_done(self) -> bool:
        return self.outcomes is not None or self.failure is not None

    def take(self, position: int) -> Outcome:
        """One block, or the error, forgotten as it is handed on, so that its buffer can be used again."""
        if self.failure is not None:
            raise self.failure.pop()
        assert self.outcomes is not None
        outcome, self.outcomes[position] = self.outcomes[position], None
        assert outcome is not None
        return outcome


class _Job:
    """A batch on its way: what was read, until all of it is checked, and how many of its blocks were not taken yet."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.raw: Raw | None = None
        self.left = len(batch)
        self.is_shared = any(block.is_encoded for block in batch)
        self.pieces = [_Piece(some) for some in _pieces(batch)]
        self.unchecked = len(self.pieces)


def _pieces(batch: Batch) -> list[slice]:
    """Cuts a batch where enough has to be decoded for a piece; so one that has not to be is one piece."""
    cuts, size = [0], 0
    for position, block in enumerate(batch):
        if size >= _PIECE_BYTES:
            cuts.append(position)
            size = 0
        size += block.entry.nbytes * block.is_encoded
    return [slice(first, end) for first, end in pairwise([*cuts, len(batch)])]


class ReadAhead:
    """Some batches in order, each read ahead as far as ``bounds`` allow, and what the consumer waits for at any rate.

    ``order`` says of each block, batch after batch, which one of the consumer's it is; without it they come as
    they lie in the batches. Short reads run side by side. A long one keeps a disk busy alone, and a second one
    would only take from its bandwidth what the consumer is waiting for: so the bytes that are read at once have a
    bound of their own.
    """

    def __init__(
        self,
        batches: Sequence[Batch],
        fetch: Callable[[Batch], Raw],
        check: Callable[[Raw, slice], list[Outcome]],
        submit: Callable[..., Any],
        bounds: Bounds,
        order: Sequence[int] | None = None,
    ) -> None:
        self._fetch = fetch
        self._check = check
        self._submit = submit
        self._bounds = bounds
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)  # for the consumer: there is something to take or to check
        self._jobs = [_Job(batch) for batch in batches]
        self._places = _places(self._jobs, order)
        self._unclaimed: deque[tuple[_Job, _Piece]] = deque()  # read, shared, and checked by nobody yet
        self._launched = 0
        self._held = self._held_bytes = 0
        self._ahead_bytes = min(bounds.nbytes, bounds.first_bytes or bounds.nbytes)
        self._reading_bytes = 0
        self._is_wanted = True

    def outcomes(self) -> Iterator[Outcome]:
        """Of all blocks, in the consumer's order."""
        try:
            for number, piece, position in self._places:
                if number >= self._launched:
                    self._launch(number)
                while (mine := self._claim_or_wait(piece)) is not None:
                    self._check_piece(*mine)
                job = self._jobs[number]
                job.left -= 1
                yield piece.take(position)
                if not job.left:
                    self._consumed(size_of(job.batch))
        finally:
            self._is_wanted = False  # without the lock: the garbage collector may end this wherever it runs

    def _consumed(self, nbytes: int) -> None:
        with self._lock:
            self._held -= 1
            self._held_bytes -= nbytes
            self._ahead_bytes = min(self._bounds.nbytes, 2 * self._ahead_bytes)
        self._launch()

    def _launch(self, needed: int = -1) -> None:
        """Begin what may be read ahead, and all up to the batch that is ``needed``."""
        with self._lock:
            while self._is_wanted and self._launched < len(self._jobs):
                job = self._jobs[self._launched]
                nbytes = size_of(job.batch)
                if self._launched > needed and not self._may_read(nbytes):
                    return
                self._launched += 1
                self._held += 1
                self._held_bytes += nbytes
                self._reading_bytes += nbytes
                try:
                    self._submit(self._run, job)
                except RuntimeError:  # the pool is closed
                    for piece in job.pieces:
                        piece.failure = [StoreClosed("the store is closed")]

    def _may_read(self, nbytes: int) -> bool:
        if self._held and (self._held >= self._bounds.batches or self._held_bytes + nbytes > self._ahead_bytes):
            return False
        return not self._reading_bytes or self._reading_bytes + nbytes <= self._bounds.at_once_bytes

    def _run(self, job: _Job) -> None:
        if not self._is_wanted:
            return
        try:
            try:
                job.raw = self._fetch(job.batch)
            finally:
                self._fetched(size_of(job.batch))
        except BaseException as error:
            self._failed(job, job.pieces, error)
        else:
            if job.is_shared:
                self._share(job)
            else:
                self._check_piece(job, job.pieces[0])

    def _fetched(self, nbytes: int) -> None:
        """The disk is free for the next one, while this one is checked."""
        with self._lock:
            self._reading_bytes -= nbytes
        self._launch()

    def _share(self, job: _Job) -> None:
        """Have the pieces checked by the next threads with nothing to read, or by the consumer."""
        with self._lock:
            self._unclaimed += ((job, piece) for piece in job.pieces)
            self._news.notify()
        for _ in job.pieces:
            with suppress(RuntimeError):  # the pool is closed
                self._submit(self._check_first)
                continue
            self._check_first()

    def _claim_or_wait(self, wanted: _Piece) -> tuple[_Job, _Piece] | None:
        """Wait until the piece is there, and then return None; or for one that the consumer can check meanwhile."""
        with self._lock:
            while not wanted.is_done:
                if self._unclaimed:
                    return self._unclaimed.popleft()
                self._news.wait()
            return None

    def _check_first(self) -> None:
        """The first piece that was read and that nobody has claimed."""
        with self._lock:
            claimed = self._unclaimed.popleft() if self._unclaimed else None
        if claimed is not None:
            self._check_piece(*claimed)

    def _check_piece(self, job: _Job, piece: _Piece) -> None:
        if not self._is_wanted:
            return
        assert job.raw is not None
        try:
            outcomes: list[Outcome | None] = [*self._check(job.raw, piece.some)]
        except BaseException as error:
            self._failed(job, [piece], error)
            if not isinstance(error, Exception):
                raise
        else:
            with self._lock:
                piece.outcomes = outcomes
                self._checked(job)

    def _failed(self, job: _Job, pieces: Sequence[_Piece], error: BaseException) -> None:
        try:
            log.error("reading ahead failed\n%s", "".join(format_exception(error)))
        finally:
            failure = [bare(error)]
            with self._lock:
                for piece in pieces:
                    piece.failure = failure
                    self._checked(job)

    def _checked(self, job: _Job) -> None:
        """One more piece of the batch is done with. Under the lock."""
        job.unchecked -= 1
        if not job.unchecked:
            job.raw = None
        self._news.notify()


def _places(jobs: Sequence[_Job], order: Sequence[int] | None) -> list[tuple[int, _Piece, int]]:
    """For each block of the consumer, in its order: the number of its batch, its piece, and its position there."""
    places = [
        (number, piece, position)
        for number, job in enumerate(jobs)
        for piece in job.pieces
        for position in range(piece.some.stop - piece.some.start)
    ]
    if order is None:
        return places
    by_consumer = places.copy()
    for place, index in zip(places, order, strict=True):
        by_consumer[index] = place
    return by_consumer
