"""The memory front: the RAM tier and the write queue under one lock, so that they never disagree.

A reader that finds a block in neither may rely on the index: a block leaves the queue only after its
commit. Threads: any thread, except :meth:`Front.next_group` and :meth:`Front.finish` (the worker's).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

from kvtier.background.write_behind import Pending, WriteQueue
from kvtier.blocks import PutOutcome
from kvtier.errors import StoreClosed
from kvtier.tiers.ram import RamBlock, RamTier
from kvtier.tiers.reading import Wanted

_GROUP_BYTES_MAX = 32 << 20
_GROUP_BLOCKS_MAX = 4096


class InMemory(NamedTuple):
    """What memory knows of a block: itself, or (None) that it was deleted."""

    block: RamBlock | None
    place: str


class Front:
    """See the module."""

    def __init__(self, ram: RamTier, queue_bytes_max: int, first_seq: int) -> None:
        self._lock = threading.Lock()
        self.ram = ram
        self.queue = WriteQueue(queue_bytes_max, self._lock, first_seq)
        self.ram_hits = 0
        self.queue_hits = 0
        self.forgotten = 0
        self._pins: dict[int, int] = {}
        self._closed = False

    # -- reading ------------------------------------------------------------------------------------

    def find(self, wanted: Wanted, *, use: bool = True) -> InMemory | None:
        """The block if memory knows it. ``use``: it counts as a hit and becomes recent."""
        with self._lock:
            return self._find(wanted, use)

    def find_many(self, wanted: Sequence[Wanted], *, use: bool) -> list[InMemory | None]:
        """``find`` for several, at one moment; used from last to first, so that a chain's start is most recent."""
        with self._lock:
            return [self._find(w, use) for w in reversed(wanted)][::-1]

    def _find(self, wanted: Wanted, use: bool) -> InMemory | None:
        pending = self.queue.find(wanted.block_id)
        if pending is not None and pending.block is None:
            return InMemory(None, "queue")
        block = self.ram.get(wanted.block_id) if use else self.ram.peek(wanted.block_id)
        if block is not None and block.names(wanted.namespace, wanted.key):
            self.ram_hits += use
            return InMemory(block, "ram")
        if pending is not None and pending.block is not None and pending.block.names(wanted.namespace, wanted.key):
            self.queue_hits += use
            return InMemory(pending.block, "queue")
        return None

    # -- writing ------------------------------------------------------------------------------------

    def put(
        self,
        block_id: int,
        block: RamBlock,
        *,
        skip_when_full: bool,
        is_new: Callable[[], bool],
        wait: Callable[[threading.Condition], None],
    ) -> PutOutcome:
        """Take a block in. If the queue is full: ``wait`` for it to change, or skip.

        A skipped block stays in RAM only if ``is_new()``: else an older value would come back after it.
        """
        with self._lock:
            while not self.queue.has_room(block.nbytes) and not self._closed:
                if skip_when_full:
                    if is_new() and self.queue.find(block_id) is None and self.ram.peek(block_id) is None:
                        self.ram.put(block_id, block)
                    return PutOutcome.SKIPPED
                wait(self.queue.changed)
            if self._closed:
                raise StoreClosed("the store was closed while the block waited")
            self.queue.add(block_id, block)
            self.ram.put(block_id, block)
            return PutOutcome.QUEUED

    def put_in_ram(self, block_id: int, block: RamBlock) -> None:
        """Take a block in where there is no disk tier."""
        with self._lock:
            self.ram.put(block_id, block, needs_parent=True)

    def delete(self, block_id: int, *, on_disk: bool) -> None:
        """Forget a block now, and on disk as soon as its turn comes."""
        with self._lock:
            self.ram.remove(block_id)
            if on_disk:
                self.queue.add(block_id, None)

    def keep(self, block_id: int, block: RamBlock, since: int, is_current: Callable[[], bool]) -> None:
        """Cache a block that was read from disk, unless memory or the index knows something newer, or all was
        forgotten ``since``, which is what :attr:`forgotten` was."""
        with self._lock:
            is_new = self.queue.find(block_id) is None and self.ram.peek(block_id) is None
            if is_new and self.forgotten == since and is_current():
                self.ram.put(block_id, block)

    def forget(self, block_id: int) -> None:
        """Drop a block from RAM; one that is still to be written stays readable in the queue."""
        with self._lock:
            self.ram.remove(block_id)

    def forget_all(self) -> None:
        """Drop everything from RAM; what is still to be written stays readable in the queue."""
        with self._lock:
            self.forgotten += 1
            self.ram.clear()

    # -- pins ---------------------------------------------------------------------------------------

    def pin(self, block_ids: Sequence[int]) -> list[int]:
        """Hold blocks in RAM if they are there; returns the ids to hold on disk too."""
        with self._lock:
            for block_id in block_ids:
                self._pins[block_id] = self._pins.get(block_id, 0) + 1
                self.ram.policy.hold(block_id)
            return list(block_ids)

    def unpin(self, block_ids: Sequence[int]) -> list[int]:
        """Undo one pin each; ids that were not pinned are ignored and not returned."""
        with self._lock:
            pinned = []
            for block_id in block_ids:
                left = self._pins.pop(block_id, 0) - 1
                if left >= 0:
                    pinned.append(block_id)
                    self.ram.policy.release(block_id)
                if left > 0:
                    self._pins[block_id] = left
            return pinned

    @property
    def pinned(self) -> int:
        return len(self._pins)

    # -- the worker's side --------------------------------------------------------------------------

    def next_group(self) -> list[Pending]:
        """The oldest blocks to write together: at most 32 MiB and 4,096 blocks, or one."""
        with self._lock:
            return self.queue.oldest(_GROUP_BYTES_MAX, _GROUP_BLOCKS_MAX)

    def finish(self, group: Sequence[Pending], error: BaseException | None) -> None:
        """The group is durable, or was lost to ``error``."""
        with self._lock:
            self.queue.done(group, error)

    # -- waiting ------------------------------------------------------------------------------------

    def drain(self, wait: Callable[[threading.Condition], None]) -> tuple[int, BaseException | None]:
        """Wait until all that is queued now is durable or failed; returns the failures since last asked."""
        with self._lock:
            target = self.queue.last_seq
            while not self.queue.is_durable_to(target):
                wait(self.queue.changed)
            return self.queue.take_failures()

    def close(self) -> None:
        """Wake everyone who waits for room."""
        with self._lock:
            self._closed = True
            self.queue.changed.notify_all()
