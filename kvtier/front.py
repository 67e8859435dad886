"""The memory front: the RAM tier and the write queue under one lock, so that they never disagree.

A reader that finds a block in neither may rely on the index: a block leaves the queue only after its
commit. Threads: any thread, except :meth:`Front.next_group` and :meth:`Front.finish` (the worker's).

A block in RAM is found without the lock, by one look into a dict. Its value is the latest one, or was when the call
began: what was replaced or deleted is not in RAM any more when the call that did so returns. Whatever is not found so
is looked for again under the lock. That a block was used is noted, and worked off before all else under the lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from kvtier.background.write_behind import Pending, WriteQueue
from kvtier.backlog import Backlog
from kvtier.blocks import PutOutcome
from kvtier.clock import StoreTime
from kvtier.errors import StoreClosed
from kvtier.policy.base import Hint
from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock, RamTier
from kvtier.tiers.reading import Wanted

_GROUP_BYTES_MAX = 32 << 20
_GROUP_BLOCKS_MAX = 4096


#: The place of a block whose time is up.
EXPIRED = "expired"


class InMemory(NamedTuple):
    """What memory knows of a block: itself, or (None) that it was deleted, or has expired."""

    block: RamBlock | None
    place: str


class Front:
    """See the module."""

    def __init__(
        self,
        ram: RamTier,
        queue_bytes_max: int,
        first_seq: int,
        passing: StoreTime,
        ask_again: Callable[[int, int], bool] = lambda block_id, cost: False,
        *,
        write_back: bool = False,
    ) -> None:
        """``passing``: the time by which blocks expire. ``ask_again`` is told that a block was read which no disk tier
        has taken in, and what that would cost in bytes (0: it is not to be asked now), and says whether one may.
        ``write_back``: blocks are queued when they leave RAM, not when they are put."""
        lock = threading.Lock()
        self._uses: Backlog[int] = Backlog(lock, self._use)
        self._locked = self._uses.settled
        self.ram = ram
        self.ram.write = self._write
        self.queue = WriteQueue(queue_bytes_max, lock, first_seq)
        self._write_back = write_back
        self._ram_hits = 0
        self.queue_hits = 0
        self.forgotten = 0
        self.time = passing
        self._ask_again = ask_again
        self._again: list[tuple[int, RamBlock]] = []
        self.wake: Callable[[], None] = lambda: None  # who writes what is queued
        self._pins: dict[int, int] = {}
        self._closed = False

    # -- reading ------------------------------------------------------------------------------------

    def find(self, wanted: Wanted, *, use: bool = True) -> InMemory | None:
        """The block if memory knows it. ``use``: it counts as a hit and becomes recent."""
        found = self._in_ram(wanted)
        if found is None:
            with self._locked():
                return self._find(wanted, use)
        if use:
            self._uses.note((wanted.block_id,), soon=wanted.block_id in self.ram.waiting)
        return found

    def find_many(self, wanted: Sequence[Wanted], *, use: bool) -> list[InMemory | None]:
        """``find`` for several; used from last to first, so that a chain's start is most recent."""
        found = [self._in_ram(w) for w in wanted]
        if use:
            used = [w.block_id for w, f in zip(wanted, found, strict=True) if f is not None]
            self._uses.note(reversed(used), soon=not self.ram.waiting.keys().isdisjoint(used))
        if None in found:
            with self._locked():
                return [f or self._find(w, use) for w, f in zip(reversed(wanted), reversed(found), strict=True)][::-1]
        return found

    def _in_ram(self, wanted: Wanted) -> InMemory | None:
        """The block if RAM has it and its time is not up. Needs no lock."""
        block = self.ram.peek(wanted.block_id)
        if block is None or not block.names(wanted.namespace, wanted.key) or self._is_over(block):
            return None
        return InMemory(block, "ram")

    def _find(self, wanted: Wanted, use: bool) -> InMemory | None:
        pending = self.queue.find(wanted.block_id)
        if pending is not None and pending.block is None:
            return InMemory(None, "queue")
        known = self.ram.peek(wanted.block_id) or (pending.block if pending is not None else None)
        if known is not None and self._is_over(known):
            self.ram.remove(wanted.block_id)
            return InMemory(None, EXPIRED)
        if (found := self._in_ram(wanted)) is not None:  # since it was not
            if use:
                self._use([wanted.block_id])
            return found
        if pending is not None and pending.block is not None and pending.block.names(wanted.namespace, wanted.key):
            self.queue_hits += use
            return InMemory(pending.block, "queue")
        return None

    def _is_over(self, block: RamBlock) -> bool:
        return bool(block.expires_at) and self.time.now() >= block.expires_at

    def _use(self, block_ids: Sequence[int]) -> None:
        """Blocks were found in RAM, where they may be no more, or others under the same names."""
        self._ram_hits += len(block_ids)
        for block_id in block_ids:
            block = self.ram.get(block_id)
            if block is not None and (self.ram.waiting or self.ram.unwritten):
                self._note_use(block_id, block)
        self._put_again()

    @property
    def ram_hits(self) -> int:
        self.settle()
        return self._ram_hits

    def settle(self) -> None:
        """Count what was found until now: in this, in the RAM tier, and by its policy."""
        self._uses.settle()

    def _note_use(self, block_id: int, block: RamBlock) -> None:
        if block_id in self.ram.waiting:
            if self._ask_again(block_id, block.nbytes + OVERHEAD_BYTES):
                self._again.append((block_id, block))
        elif block_id in self.ram.unwritten:
            self._ask_again(block_id, 0)

    def _put_again(self) -> None:
        """Queue what may be taken in now, ancestors first, as far as there is room."""
        queued = False
        while self._again:
            block_id, block = self._again.pop()
            if not self._closed and self.queue.has_room(block.nbytes) and self.ram.waiting.pop(block_id, 0):
                self.queue.add(block_id, block)
                queued = True
        if queued:
            self.wake()

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

        A skipped block stays in RAM only if ``is_new()``: else an older value would come back after it. One that is to
        be written back waits as well: what it displaces is queued.
        """
        with self._locked():
            while not self.queue.has_room(block.nbytes) and not self._closed:
                if skip_when_full:
                    is_unknown = self.queue.find(block_id) is None and self.ram.peek(block_id) is None
                    if not self._write_back and is_unknown and is_new():
                        self.ram.put(block_id, block)
                    return PutOutcome.SKIPPED
                wait(self.queue.changed)
                self._uses.work_off()
            if self._closed:
                raise StoreClosed("the store was closed while the block waited")
            may_wait = self._write_back and self.queue.find(block_id) is None  # what is queued must not come after it
            if not may_wait:
                self.queue.add(block_id, block)
            self.ram.put(block_id, block, write_back=may_wait)
            return PutOutcome.QUEUED

    def _write(self, block_id: int, block: RamBlock) -> None:
        """A block leaves RAM, or is wanted on disk: queue it. If its time is up it takes an older value with it."""
        self.queue.add(block_id, None if self._is_over(block) else block)
        self.wake()

    def put_in_ram(self, block_id: int, block: RamBlock) -> None:
        """Take a block in where there is no disk tier."""
        with self._locked():
            self.ram.put(block_id, block, needs_parent=True)

    def delete(self, namespace: bytes, block_id: int, *, on_disk: bool) -> None:
        """Forget a block now, and on disk as soon as its turn comes."""
        with self._locked():
            self.ram.discard(block_id)
            self.ram.forget_hint(namespace, block_id)
            if on_disk:
                self.queue.add(block_id, None)

    def keep(
        self, block_id: int, block: RamBlock, since: int, is_current: Callable[[], bool], *, prefetched: bool = False
    ) -> None:
        """Cache a block that was read from disk, unless memory or the index knows something newer, or all was
        forgotten ``since``, which is what :attr:`forgotten` was."""
        if block.nbytes + OVERHEAD_BYTES > self.ram.cap:
            return  # and the index need not be asked
        with self._locked():
            is_new = self.queue.find(block_id) is None and self.ram.peek(block_id) is None
            may_displace = not self.ram.unwritten or self.queue.has_room(block.nbytes)
            if is_new and may_displace and self.forgotten == since and is_current():
                self.ram.put(block_id, block)
                if prefetched and self.ram.peek(block_id) is not None:
                    self.ram.brought.came(block_id, block.nbytes)

    def forget(self, block_id: int) -> None:
        """Drop a block from RAM; one that is still to be written stays readable in the queue."""
        with self._locked():
            self.ram.remove(block_id)

    def forget_all(self) -> None:
        """Drop everything from RAM; what is still to be written stays readable in the queue."""
        with self._locked():
            self.forgotten += 1
            self.ram.clear()

    def keep_ram_to(self, cap: int) -> int:
        """Use ``cap`` bytes of RAM at most from now on; returns how many blocks had to leave for it."""
        evicted = 0
        while self.queue.bytes_used <= self.queue.bytes_max:  # else what leaves is not free before it is written
            with self._locked():
                some = self.ram.keep_to(cap)
            if not some:
                break
            evicted += some
        return evicted

    # -- hints and pins -----------------------------------------------------------------------------

    def hint(self, namespace: bytes, block_ids: Sequence[int], hint: Hint) -> None:
        """Advise the RAM tier's policy on blocks, there yet or not."""
        with self._locked():
            self.ram.hint(namespace, block_ids, hint)

    def pin(self, block_ids: Sequence[int]) -> list[int]:
        """Hold blocks in RAM if they are there; returns the ids to hold on disk too."""
        with self._locked():
            for block_id in block_ids:
                self._pins[block_id] = self._pins.get(block_id, 0) + 1
                self.ram.policy.hold(block_id)
            return list(block_ids)

    def unpin(self, block_ids: Sequence[int]) -> list[int]:
        """Undo one pin each; ids that were not pinned are ignored and not returned."""
        with self._locked():
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
        with self._locked():
            return self.queue.oldest(_GROUP_BYTES_MAX, _GROUP_BLOCKS_MAX)

    def queued(self) -> list[Pending]:
        """The oldest queued blocks: those of a group, and of the one that may follow it."""
        with self._locked():
            return self.queue.first(2 * _GROUP_BYTES_MAX, 2 * _GROUP_BLOCKS_MAX)

    def finish(
        self,
        group: Sequence[Pending],
        error: BaseException | None,
        refused: Collection[int] = (),
        pulled: Collection[int] = (),
    ) -> None:
        """The group is durable, or was lost to ``error``. ``refused``: those that no disk tier took in, but may later.
        ``pulled``: what was taken in with the group, by :meth:`waiting`."""
        with self._locked():
            self.queue.done(group, error)
            for item in group:
                if item.block_id in refused and self.ram.peek(item.block_id) is item.block is not None:
                    self.ram.waiting[item.block_id] = item.seq
            for block_id in pulled:
                self.ram.waiting.pop(block_id, None)

    def waiting(self, block_id: int) -> Pending | None:
        """A block that no disk tier has taken in, if RAM has it."""
        with self._locked():
            seq, block = self.ram.waiting.get(block_id), self.ram.peek(block_id)
            return None if seq is None else Pending(block_id, seq, block)

    # -- waiting ------------------------------------------------------------------------------------

    def drain(self, wait: Callable[[threading.Condition], None]) -> tuple[int, BaseException | None]:
        """Wait until all that is queued now is durable or failed; returns the failures since last asked."""
        with self._locked():
            self.ram.write_all()
            target = self.queue.last_seq
            while not self.queue.is_durable_to(target):
                wait(self.queue.changed)
            return self.queue.take_failures()

    def close(self) -> None:
        """Queue what is still to be written, and wake everyone who waits for room."""
        with self._locked():
            self._closed = True
            self.ram.write_all()
            self.queue.changed.notify_all()
