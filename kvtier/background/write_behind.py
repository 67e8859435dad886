"""The write queue: blocks that are readable but not durable yet, bounded in bytes.

Guarded by the lock it is given (the store's); ``changed`` is a condition on that lock.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from kvtier.tiers.ram import OVERHEAD_BYTES, RamBlock


@dataclass(frozen=True, slots=True, eq=False)
class Pending:
    """A put (``block``) or a deletion (None) that is not durable yet. ``seq`` orders them."""

    block_id: int
    seq: int
    block: RamBlock | None

    @property
    def nbytes(self) -> int:
        return OVERHEAD_BYTES + (self.block.nbytes if self.block else 0)


class WriteQueue:
    """Pending blocks by id, oldest first. All methods need the lock held."""

    def __init__(self, bytes_max: int, lock: threading.Lock, first_seq: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.bytes_peak = 0
        self.failed = 0  # since the last flush
        self.first_error: BaseException | None = None
        self.changed = threading.Condition(lock)
        self._items: dict[int, Pending] = {}
        self._since: dict[int, int] = {}  # of blocks that replaced one that nobody wrote: the oldest such put
        self._writing: set[Pending] = set()
        self._next_seq = first_seq

    def __len__(self) -> int:
        return len(self._items)

    def find(self, block_id: int) -> Pending | None:
        return self._items.get(block_id)

    def has_room(self, nbytes: int) -> bool:
        """Whether ``nbytes`` more fit; one block always fits into an empty queue."""
        return not self._items or self.bytes_used + nbytes + OVERHEAD_BYTES <= self.bytes_max

    def add(self, block_id: int, block: RamBlock | None) -> None:
        """Queue a put or a deletion; it takes the place of one for the same block."""
        old = self._items.get(block_id)
        since = self._since.get(block_id, old.seq) if old else 0
        self._drop(block_id)
        if old and old not in self._writing:
            self._since[block_id] = since
        item = Pending(block_id, self._next_seq, block)
        self._next_seq += 1
        self._items[block_id] = item
        self.bytes_used += item.nbytes
        self.bytes_peak = max(self.bytes_peak, self.bytes_used)

    def oldest(self, bytes_max: int, count_max: int) -> list[Pending]:
        """The next group to write, oldest first: at least one if there is any. They stay queued and readable.

        ``done`` must follow before the next call.
        """
        group = self.first(bytes_max, count_max)
        self._writing.update(group)
        return group

    def first(self, bytes_max: int, count_max: int) -> list[Pending]:
        """As many, oldest first, as are within these limits: at least one if there is any."""
        found: list[Pending] = []
        size = 0
        for item in self._items.values():
            if found and (size + item.nbytes > bytes_max or len(found) >= count_max):
                break
            found.append(item)
            size += item.nbytes
        return found

    def done(self, group: Sequence[Pending], error: BaseException | None = None) -> None:
        """The group is durable, or failed; what was replaced meanwhile stays queued."""
        for item in group:
            if self._items.get(item.block_id) is item:
                self._drop(item.block_id)
        self._writing.difference_update(group)
        if error is not None:
            self.failed += len(group)
            self.first_error = self.first_error or error
        self.changed.notify_all()

    def is_durable_to(self, seq: int) -> bool:
        """Whether nothing queued at or before ``seq`` is left, nor what took its place before it was written.

        To be asked of the latest ``seq``, or after ``done``.
        """
        oldest = next(iter(self._items.values())).seq if self._items else seq + 1
        return oldest > seq and all(since > seq for since in self._since.values())

    @property
    def last_seq(self) -> int:
        return self._next_seq - 1

    def take_failures(self) -> tuple[int, BaseException | None]:
        """How many writes failed since last asked, and the first reason."""
        failures = (self.failed, self.first_error)
        self.failed, self.first_error = 0, None
        return failures

    def _drop(self, block_id: int) -> None:
        item = self._items.pop(block_id, None)
        self._since.pop(block_id, None)
        if item is not None:
            self.bytes_used -= item.nbytes
