"""Leaf-first least-recently-used.

Plain LRU over the blocks that have no child in the tier. With whole chains touched at once this is the
request-atomic, tail-first LRU of the prefix-cache literature: a chain is eaten from its end, and a shared
prefix outlives every branch on it. Parents that form a ring are followed only as far as they do not close it.

The order is exact: a list sorted by clock, to whose end a used block goes. Blocks that come with an older clock (moved
from another tier, loaded from an index, no longer parked) wait in a heap, which is merged into the list when it grows
large: O(1) touch, O(log n) pop at worst.
"""

from __future__ import annotations

import heapq

from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import ListPolicy

_LIST = 1  # its head; sorted by clock
_SLOT_BITS = 32
_SLOT_MASK = (1 << _SLOT_BITS) - 1
_LATE_BYTES = 44  # of an entry: a number of up to 96 bits, and its place in the list
_LATE_MIN = 64
_LATE_SHARE = 16


class LeafLru(ListPolicy):
    """See the module."""

    def __init__(self) -> None:
        self._clocks = column("Q")
        super().__init__(self._clocks, lists=1)
        self._late: list[int] = []  # a heap of clock and slot; what is in the list again, or gone, is void

    @property
    def nbytes(self) -> int:
        return super().nbytes + _LATE_BYTES * len(self._late)

    def _use(self, slot: int, clock: int, nbytes: int = 0) -> None:
        lists, clocks = self._lists, self._clocks
        before, after = lists.before, lists.after
        clocks[slot] = clock
        if next_ := after[slot]:  # unlink and link, in place: most calls of a policy end here
            prev = before[slot]
            after[prev], before[next_] = next_, prev
        last = before[_LIST]
        if clock >= clocks[last]:
            before[slot], after[slot] = last, _LIST
            after[last] = before[_LIST] = slot
        else:
            after[slot] = NONE
            self._back(slot)

    _place = _use

    def pop(self) -> int | None:
        slot, table = self._candidate(), self._table
        if not slot:
            return None
        block = table.ids[slot]
        parent = table.leave(slot)
        if parent and not self._lists.after[parent]:
            self._back(parent)
        return block

    def _candidate(self) -> int:
        """The leaf that goes next, out of the order; what comes up before it is parked."""
        lists, clocks, late, table = self._lists, self._clocks, self._late, self._table
        before, after, here, pins = lists.before, lists.after, table.here, table.pins
        while True:
            first = after[_LIST]
            if late and (first == _LIST or late[0] >> _SLOT_BITS <= clocks[first]):
                entry = heapq.heappop(late)
                slot = entry & _SLOT_MASK
                if not here[slot] or after[slot] or clocks[slot] != entry >> _SLOT_BITS:
                    continue
            elif first != _LIST:
                slot = first
                after[_LIST] = next_ = after[slot]  # unlink, in place
                before[next_], after[slot] = _LIST, NONE
            else:
                return NONE
            if not pins[slot]:
                return slot

    def _back(self, slot: int) -> None:
        heapq.heappush(self._late, self._clocks[slot] << _SLOT_BITS | slot)
        if len(self._late) > _LATE_MIN + self._table.count // _LATE_SHARE:
            self._merge()

    def _waits(self, entry: int) -> bool:
        slot = entry & _SLOT_MASK
        waits = self._table.here[slot] and not self._lists.after[slot]
        return bool(waits) and self._clocks[slot] == entry >> _SLOT_BITS

    def _merge(self) -> None:
        """Put those that wait where they belong in the list."""
        at = self._lists.after[_LIST]
        for entry in sorted(self._late):
            if self._waits(entry):
                clock = entry >> _SLOT_BITS
                while at != _LIST and self._clocks[at] < clock:
                    at = self._lists.after[at]
                self._lists.link(entry & _SLOT_MASK, at)
        self._late.clear()
