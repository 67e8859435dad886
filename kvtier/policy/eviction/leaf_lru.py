"""Leaf-first least-recently-used.

Plain LRU over the blocks that have no child in the tier. With whole chains touched at once this is the
request-atomic, tail-first LRU of the prefix-cache literature: a chain is eaten from its end, and a shared
prefix outlives every branch on it. Parents that form a ring are followed only as far as they do not close it.

O(1) touch, O(log n) pop: a lazy heap holds at most one entry per leaf, and a leaf that was touched since
its entry was pushed is pushed again with its new clock when it comes up.
"""

from __future__ import annotations

import heapq

from kvtier.policy.base import NO_PARENT

_HEAP_SLACK = 1024


class LeafLru:
    """See the module. Not thread-safe: the tier that owns it serialises calls."""

    def __init__(self) -> None:
        self._clock: dict[int, int] = {}
        self._parent: dict[int, int] = {}
        self._holders: dict[int, int] = {}  # children in the tier, plus holds
        self._heap: list[tuple[int, int]] = []
        self._queued: set[int] = set()

    def __len__(self) -> int:
        return len(self._clock)

    def add(self, block: int, parent: int, clock: int) -> None:
        if block in self._clock:
            if parent == self._parent.get(block, NO_PARENT):  # no walk along its ancestors, of which there may be many
                return self.touch(block, clock)
            self.remove(block)
        self._clock[block] = clock
        if parent not in (NO_PARENT, block) and not self._descends(parent, block):
            self._parent[block] = parent
            self.hold(parent)
        self._offer(block)

    def touch(self, block: int, clock: int) -> None:
        if block in self._clock:
            self._clock[block] = clock

    def remove(self, block: int) -> None:
        if self._clock.pop(block, None) is not None:
            parent = self._parent.pop(block, NO_PARENT)
            if parent != NO_PARENT:
                self.release(parent)

    def pop(self) -> int | None:
        while self._heap:
            clock, block = heapq.heappop(self._heap)
            self._queued.discard(block)
            if block not in self._clock or block in self._holders:
                continue
            if self._clock[block] != clock:
                self._offer(block)
                continue
            self.remove(block)
            return block
        return None

    def hold(self, block: int) -> None:
        self._holders[block] = self._holders.get(block, 0) + 1

    def release(self, block: int) -> None:
        left = self._holders.get(block, 0) - 1
        if left > 0:
            self._holders[block] = left
        else:
            self._holders.pop(block, None)
            self._offer(block)

    def _descends(self, block: int, ancestor: int) -> bool:
        """Whether a link from ``ancestor`` to ``block`` would close a ring, in which nobody is ever a leaf. Only a
        block that has children or is held can be in one: a chain that grows at its end costs no walk."""
        if ancestor not in self._holders:
            return False
        while block not in (NO_PARENT, ancestor):
            block = self._parent.get(block, NO_PARENT)
        return block == ancestor

    def _offer(self, block: int) -> None:
        """Queue ``block`` as a candidate if it is a leaf of the tier and not queued yet."""
        if block in self._clock and block not in self._holders and block not in self._queued:
            self._queued.add(block)
            heapq.heappush(self._heap, (self._clock[block], block))
            if len(self._heap) > 2 * len(self._clock) + _HEAP_SLACK:
                self._rebuild()

    def _rebuild(self) -> None:
        """Leave out of the heap what has left the tier."""
        self._heap = [(self._clock[b], b) for _, b in self._heap if b in self._clock]
        self._queued = {b for _, b in self._heap}
        heapq.heapify(self._heap)
