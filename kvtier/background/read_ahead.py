"""Reading ahead of one consumer: later batches are read while it works on earlier ones.

What was read is checked where it was read. Blocks that have to be decoded, which takes about as long as reading them,
are shared out in pieces instead: to whatever thread is free, once the next read has one, and to the consumer, which
checks a piece itself rather than wait for one.

Threads: one consumer; the reads run wherever ``submit`` runs them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, NamedTuple

from kvtier.background.read_order import Batch, size_of
from kvtier.blocks import MissReason
from kvtier.errors import StoreClosed
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Raw

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

    def __init__(self, job: _Job, some: slice) -> None:
        self.job = job
        self.some = some
        self.outcomes: list[Outcome | None] | None = None
        self.error: BaseException | None = None

    @property
    def is_done(self) -> bool:
        return self.outcomes is not None or self.error is not None

    def take(self, position: int) -> Outcome:
        """One block, forgotten as it is handed on, so that its buffer can be used again."""
        if self.error is not None:
            raise self.error
        assert self.outcomes is not None
        outcome, self.outcomes[position] = self.outcomes[position], None
        self.job.left -= 1
        assert outcome is not None
        return outcome


class _Job:
    """A batch on its way: what was read, until all of it is checked, and how many of its blocks were not taken yet."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.raw: Raw | None = None
        self.left = len(batch)
        self.is_shared = any(block.is_encoded for block in batch)
        self.pieces = [_Piece(self, some) for some in _pieces(batch)]
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
        self._unclaimed: deque[_Piece] = deque()  # read, and checked by nobody yet
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
                    self._check_piece(mine)
                yield piece.take(position)
                if not piece.job.left:
                    self._consumed(size_of(piece.job.batch))
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
                        piece.error = StoreClosed("the store is closed")

    def _may_read(self, nbytes: int) -> bool:
        if self._held and (self._held >= self._bounds.batches or self._held_bytes + nbytes > self._ahead_bytes):
            return False
        return not self._reading_bytes or self._reading_bytes + nbytes <= self._bounds.at_once_bytes

    def _run(self, job: _Job) -> None:
        try:
            try:
                raw = self._fetch(job.batch)
            finally:
                self._fetched(size_of(job.batch))
        except BaseException as error:
            self._failed(job.pieces, error)
        else:
            with self._lock:
                job.raw = raw
                self._unclaimed += job.pieces
                if job.is_shared:
                    self._news.notify()
            for _ in job.pieces:
                self._have_one_checked(is_shared=job.is_shared)

    def _fetched(self, nbytes: int) -> None:
        """The disk is free for the next one, while this one is checked."""
        with self._lock:
            self._reading_bytes -= nbytes
        self._launch()

    def _claim_or_wait(self, wanted: _Piece) -> _Piece | None:
        """Wait until the piece is there, and then return None; or for one that the consumer can check meanwhile."""
        with self._lock:
            while not wanted.is_done:
                if (piece := self._claim()) is not None:
                    return piece
                self._news.wait()
            return None

    def _claim(self) -> _Piece | None:
        """The first piece that was read and that nobody checks yet. Under the lock."""
        return self._unclaimed.popleft() if self._unclaimed else None

    def _have_one_checked(self, *, is_shared: bool) -> None:
        """The first piece that nobody has claimed: here, or ``is_shared``, by the next thread with nothing to read."""
        if is_shared:
            with suppress(RuntimeError):  # the pool is closed
                self._submit(self._check_first)
                return
        self._check_first()

    def _check_first(self) -> None:
        with self._lock:
            piece = self._claim()
        if piece is not None:
            self._check_piece(piece)

    def _check_piece(self, piece: _Piece) -> None:
        job = piece.job
        assert job.raw is not None
        try:
            outcomes: list[Outcome | None] = [*self._check(job.raw, piece.some)]
        except BaseException as error:
            self._failed([piece], error)
            if not isinstance(error, Exception):
                raise
        else:
            with self._lock:
                job.unchecked -= 1
                if not job.unchecked:
                    job.raw = None
                piece.outcomes = outcomes
                self._news.notify()

    def _failed(self, pieces: Sequence[_Piece], error: BaseException) -> None:
        with self._lock:
            for piece in pieces:
                piece.error = error
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
