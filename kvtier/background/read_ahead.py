"""Reading ahead of one consumer: later batches are read while it works on earlier ones.

Threads: one consumer; the reads run wherever ``submit`` runs them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

from kvtier.background.read_order import Batch, size_of
from kvtier.blocks import MissReason
from kvtier.errors import StoreClosed
from kvtier.tiers.ram import RamBlock
from kvtier.tiers.reading import Raw

Outcome = RamBlock | MissReason


class Bounds(NamedTuple):
    """How far ahead: batches and bytes that are held (read, being read, being consumed), and bytes read at once.
    ``first_bytes`` are held at first, and twice as many with each batch that the consumer has taken."""

    batches: int
    nbytes: int
    at_once_bytes: int
    first_bytes: int | None = None


class _Job:
    """A batch on its way: what came of it, and how many of its blocks were not taken yet."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.future: Future[list[Outcome | None]] = Future()
        self.left = len(batch)

    def take(self, position: int) -> Outcome:
        """One block, forgotten as it is handed on, so that its buffer can be used again. Waits for it."""
        outcomes = self.future.result()
        outcome, outcomes[position] = outcomes[position], None
        self.left -= 1
        assert outcome is not None
        return outcome


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
        check: Callable[[Raw], list[Outcome]],
        submit: Callable[..., Any],
        bounds: Bounds,
        order: Sequence[int] | None = None,
    ) -> None:
        self._fetch = fetch
        self._check = check
        self._submit = submit
        self._bounds = bounds
        self._lock = threading.Lock()
        self._jobs = [_Job(batch) for batch in batches]
        self._places = _places(self._jobs, order)
        self._launched = 0
        self._held = self._held_bytes = 0
        self._ahead_bytes = min(bounds.nbytes, bounds.first_bytes or bounds.nbytes)
        self._reading_bytes = 0
        self._is_wanted = True

    def outcomes(self) -> Iterator[Outcome]:
        """Of all blocks, in the consumer's order."""
        try:
            for number, position in self._places:
                if number >= self._launched:
                    self._launch(number)
                job = self._jobs[number]
                yield job.take(position)
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
                    job.future.set_exception(StoreClosed("the store is closed"))

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
            job.future.set_result([*self._check(raw)])
        except BaseException as error:
            job.future.set_exception(error)

    def _fetched(self, nbytes: int) -> None:
        """The disk is free for the next one, while this one is checked."""
        with self._lock:
            self._reading_bytes -= nbytes
        self._launch()


def _places(jobs: Sequence[_Job], order: Sequence[int] | None) -> list[tuple[int, int]]:
    """For each block of the consumer, in its order: the number of its batch, and its position there."""
    places = [(n, i) for n, job in enumerate(jobs) for i in range(job.left)]
    if order is None:
        return places
    by_consumer = places.copy()
    for place, index in zip(places, order, strict=True):
        by_consumer[index] = place
    return by_consumer
