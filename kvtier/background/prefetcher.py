"""The pool that reads ahead: of one consumer, or because it was asked to bring blocks up. Bytes in flight are bounded.

Threads: all of it may be called from any thread. Reads run on the pool's threads, and what they bring is
handed to ``deliver`` there.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import count
from operator import eq

from kvtier import planes
from kvtier.background.read_ahead import Bounds, Outcome, ReadAhead
from kvtier.background.read_order import Batch, coalesce, reading_order, size_of
from kvtier.pool import BufferPool
from kvtier.segment.format import PAGE
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock
from kvtier.tiers.reading import DiskReader, Located, Raw

_QUEUE_BLOCKS_MAX = 1 << 16
_FIRST_READS = 8  # of the first one's size: as far ahead as that before the consumer has taken anything


def slabs(threads: int, coalesce_bytes_max: int, *, decodes: bool) -> list[int]:
    """The sizes of what is in use at once when blocks pass through: being read, waiting, and at the consumer; and, if
    they are decoded, what they are decoded from."""
    return [_slab_bytes(coalesce_bytes_max)] * (threads + 2 + (threads + 1) * decodes)


def _slab_bytes(coalesce_bytes_max: int) -> int:
    """For a batch and the rest of the pages that it begins and ends in."""
    return coalesce_bytes_max + 2 * PAGE


class Prefetcher:
    """A small pool of reading threads with a bound on the bytes they hold.

    ``deliver(located, block, prefetched)`` is told of each block that came, and whether a prefetch asked for it.
    """

    def __init__(
        self,
        reader: DiskReader,
        deliver: Callable[[Located, RamBlock, bool], None],
        buffers: BufferPool,
        *,
        threads: int,
        bytes_max: int,
        coalesce_bytes_max: int,
    ) -> None:
        self._reader = reader
        self._deliver = deliver
        self._bytes_max = bytes_max
        self._coalesce_bytes_max = min(coalesce_bytes_max, bytes_max)
        self._threads = threads
        self._buffers = buffers
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="kvtier-read")
        self._lock = threading.Lock()
        self._queue: deque[tuple[Batch, Future[None]]] = deque()
        self._queued_bytes = self._flying_bytes = 0
        self._flying: dict[int, Future[None]] = {}  # blocks that wait or are being read; a batch has one future
        self._sizes: dict[int, int] = {}  # of these
        self._wishes: dict[int, int] = {}  # by block that waits or is being read: requests that want it
        self._closed = False

    # -- ahead of one consumer ----------------------------------------------------------------------

    def warm(self, *, decodes: bool) -> None:
        """Make ready what :meth:`read_ahead` without ``keep`` needs, on a thread of the pool."""
        if decodes:
            self._pool.submit(planes.prepare)
        self._pool.submit(self._buffers.stock, slabs(self._threads, self._coalesce_bytes_max, decodes=decodes))

    def read_ahead(self, located: Sequence[Located], *, keep: bool) -> Iterator[Outcome]:
        """The blocks in order, later ones being read while the consumer works on earlier ones.

        ``keep``: they are delivered too; else they go through a few buffers that are used again.
        """
        if not located:
            return iter(())
        order = reading_order(located, self._bytes_max // 2)
        habits = located[0].tier.habits
        batches = coalesce([located[i] for i in order], self._coalesce_bytes_max, habits.first_bytes)
        in_order = all(map(eq, order, count()))
        decoders = self._threads + any(b.is_encoded for b in located)  # the consumer too, where there is such work
        held = decoders + 1 if in_order and not keep else len(batches)
        at_once = 1 if habits.one_at_a_time else self._coalesce_bytes_max
        bounds = Bounds(held, self._bytes_max, at_once, _FIRST_READS * habits.first_bytes)
        memory = None if keep else self._slab if in_order else partial(self._buffers.take, is_brief=True)
        fetch, check = partial(self._reader.fetch, memory=memory), partial(self._check, keep=keep)
        return ReadAhead(batches, fetch, check, self._pool.submit, bounds, order).outcomes()

    def _slab(self, nbytes: int) -> memoryview:
        """Memory for a batch that passes through: of one size for all, so that any serves the next one."""
        return self._buffers.take(max(nbytes, _slab_bytes(self._coalesce_bytes_max)), is_brief=True)[:nbytes]

    def _check(self, raw: Raw, some: slice, keep: bool, prefetched: bool = False) -> list[Outcome]:
        outcomes = self._reader.blocks(raw, some)
        if keep:
            for located, outcome in zip(raw.batch[some], outcomes, strict=True):
                if isinstance(outcome, RamBlock):
                    self._deliver(located, outcome, prefetched)
        return outcomes

    # -- ahead of everyone --------------------------------------------------------------------------

    def request(self, located: Sequence[Located], room_bytes: int) -> int:
        """Bring blocks up in the background, about in this order; returns how many were taken on.

        Blocks that are on their way already are not asked for twice, but are wanted once more. Past ``room_bytes`` on
        their way, or 65,536 blocks, the rest is not taken on.
        """
        with self._lock:
            once = {b.wanted.block_id: b for b in located if b.wanted.block_id not in self._flying}
            fresh = self._that_fit(list(once.values()), room_bytes)
            order = reading_order(fresh, self._bytes_max)
            for batch in coalesce([fresh[i] for i in order], self._coalesce_bytes_max):
                future: Future[None] = Future()
                self._queue.append((batch, future))
                self._flying.update((b.wanted.block_id, future) for b in batch)
                self._sizes.update((b.wanted.block_id, b.entry.nbytes) for b in batch)
                self._queued_bytes += sum(b.entry.nbytes for b in batch)
            for block in located:
                if (block_id := block.wanted.block_id) in self._flying:
                    self._wishes[block_id] = self._wishes.get(block_id, 0) + 1
            self._launch()
        return len(fresh)

    def _that_fit(self, fresh: Sequence[Located], room_bytes: int) -> Sequence[Located]:
        left = room_bytes - self._queued_bytes
        fresh = fresh[: max(0, _QUEUE_BLOCKS_MAX - len(self._flying))]
        for taken, block in enumerate(fresh):
            left -= block.entry.nbytes + OVERHEAD_BYTES
            if left < 0:
                return fresh[:taken]
        return fresh

    def cancel(self, block_ids: Iterable[int]) -> int:
        """Undo one request of each; returns how many blocks are dropped: those that nobody wants any more and that
        are not being read yet."""
        with self._lock:
            unwanted = set()
            for block_id in block_ids:
                if (wishes := self._wishes.get(block_id, 0)) > 1:
                    self._wishes[block_id] = wishes - 1
                elif wishes:
                    unwanted.add(block_id)
            return self._drop(unwanted)

    def take_over(self, block_ids: Iterable[int]) -> int:
        """Drop what waits to be read: someone reads it now, whoever else wants it. Returns how many blocks."""
        with self._lock:
            return self._drop(set(block_ids) & self._wishes.keys()) if self._queue else 0

    def _drop(self, block_ids: set[int]) -> int:
        """Those of the blocks that wait to be read; their batches are read without them."""
        waiting = [b for b in block_ids if (future := self._flying.get(b)) is not None and not future.running()]
        self._forget(waiting)
        return len(waiting)

    def is_flying(self, block_id: int) -> bool:
        """Whether the block is being read, and not only waiting to be."""
        future = self._flying.get(block_id)
        return future is not None and future.running()

    def flying(self, block_ids: Iterable[int]) -> set[int]:
        """Those of the blocks that are being read."""
        return {b for b in block_ids if self.is_flying(b)} if self._flying else set()

    def wait_for(self, block_id: int) -> bool:
        """If the block is being read, wait until it came (or failed to) and return True."""
        future = self._flying.get(block_id)
        if future is None or not (future.running() or future.done()):
            return False
        future.result()
        return True

    def _launch(self) -> None:
        while self._queue and not self._closed:
            whole, future = self._queue[0]
            batch = [b for b in whole if self._flying.get(b.wanted.block_id) is future]
            size = size_of(batch) if batch else 0
            if self._flying_bytes and self._flying_bytes + size > self._bytes_max:
                return
            self._queue.popleft()
            if not batch:
                future.set_result(None)
                continue
            self._flying_bytes += size
            future.set_running_or_notify_cancel()
            try:
                self._pool.submit(self._bring, batch, future)
            except RuntimeError:  # the interpreter is going down
                self._closed = True
                self._forget(b.wanted.block_id for b in batch)
                future.set_result(None)

    def _bring(self, batch: Batch, future: Future[None]) -> None:
        try:
            self._check(self._reader.fetch(batch), slice(None), keep=True, prefetched=True)
        finally:
            with self._lock:
                self._flying_bytes -= size_of(batch)
                self._forget(b.wanted.block_id for b in batch)
            future.set_result(None)
            with self._lock:
                self._launch()

    def _forget(self, block_ids: Iterable[int]) -> None:
        for block_id in block_ids:
            self._queued_bytes -= self._sizes.pop(block_id)
            del self._flying[block_id]
            self._wishes.pop(block_id, None)

    def close(self) -> None:
        """Give up what has not begun, wait for what has."""
        with self._lock:
            self._closed = True
            abandoned, self._queue = list(self._queue), deque()
            self._forget([b for b, future in self._flying.items() if not future.running()])
        for _, future in abandoned:
            future.set_result(None)
        self._pool.shutdown(wait=True)
