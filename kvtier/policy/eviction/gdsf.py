"""GreedyDual-Size-Frequency by the cost of computing a block again.

Source: L. Cherkasova, "Improving WWW Proxies Performance with Greedy-Dual-Size-Frequency Caching Policy", HP
Laboratories report HPL-98-69, 1998: the least of inflation + uses * cost / bytes goes, and becomes the inflation, so
that what is not used falls behind. A block's cost grows with its depth in its chain, as every token attends to all
before it. Leaf form: see :mod:`kvtier.policy.eviction.leaves`.
"""

from __future__ import annotations

from array import array

from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import LeafPolicy
from kvtier.policy.eviction.slot_heap import SlotHeap
from kvtier.policy.eviction.table import BlockTable

_USES_MAX = (1 << 16) - 1
_DEPTH_MAX = (1 << 16) - 1
_BYTES_MAX = (1 << 32) - 1


class Gdsf(LeafPolicy):
    """See the module. ``cost``: of a block at the beginning of a chain, in any unit; ``cost_a_block``: what each block
    before it adds. The defaults suit blocks of 512 tokens and models of 7 to 8 billion parameters.

    Where a tier holds only the end of a chain, depth counts from where that begins.
    """

    def __init__(self, cost: float = 1.0, cost_a_block: float = 1 / 64) -> None:
        self._cost, self._cost_a_block = cost, cost_a_block
        self._bytes = column("I")
        self._uses = column("H")
        self._depths = column("H")  # 1 at the beginning of a chain; 0: not known yet
        self._clocks = column("Q")
        self._priorities: array[float] = array("d")
        self._heap = SlotHeap(self._priorities, self._clocks)
        self._inflation = 0.0
        columns = (self._bytes, self._uses, self._depths, self._clocks, self._priorities, self._heap.places)
        super().__init__(BlockTable(columns))

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._heap.nbytes

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._bytes[slot] = min(max(nbytes, 1), _BYTES_MAX)
        self._uses[slot] = 1
        self._clocks[slot] = clock
        parent = self._table.parents[slot]
        above = self._depths[parent]
        self._depths[slot] = min(above + 1, _DEPTH_MAX) if above or not parent else 0
        self._weigh(slot)
        self._heap.put(slot)

    def _use(self, slot: int, clock: int) -> None:
        self._uses[slot] = min(self._uses[slot] + 1, _USES_MAX)
        self._clocks[slot] = clock
        self._find_depth(slot)
        self._weigh(slot)
        if self._heap.places[slot]:
            self._heap.moved(slot)

    def _candidate(self) -> int:
        while (slot := self._heap.first()) and not self._depths[slot]:
            self._find_depth(slot)
            self._weigh(slot)
            self._heap.moved(slot)
        if slot:
            self._heap.take(slot)
            if not self._table.pins[slot]:  # it is given away
                self._inflation = max(self._inflation, self._priorities[slot])
        return slot

    def _is_in_order(self, slot: int) -> bool:
        return self._heap.places[slot] != NONE

    def _take(self, slot: int) -> None:
        self._heap.take(slot)

    def _back(self, slot: int) -> None:
        self._heap.put(slot)

    def _gone(self, slot: int) -> None:
        self._depths[slot] = 0

    def _weigh(self, slot: int) -> None:
        cost = self._cost + self._cost_a_block * max(self._depths[slot] - 1, 0)
        self._priorities[slot] = self._inflation + self._uses[slot] * cost / self._bytes[slot]

    def _find_depth(self, slot: int) -> None:
        """Count from the first ancestor whose depth is known, or the topmost that is here."""
        unknown, here, depths = [], self._table.here, self._depths
        while here[slot] and not depths[slot]:
            unknown.append(slot)
            slot = self._table.parents[slot]
        depth = depths[slot]
        for below in reversed(unknown):
            depth = min(depth + 1, _DEPTH_MAX)
            depths[below] = depth
