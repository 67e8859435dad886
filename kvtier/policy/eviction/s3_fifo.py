"""S3-FIFO: a small queue through which new blocks pass, a main queue for those that were used there or come again soon
after they left, and a ghost queue that remembers who has left.

Source: J. Yang, Y. Zhang, Z. Qiu, Y. Yue, K. V. Rashmi, "FIFO Queues are All You Need for Cache Eviction", SOSP 2023,
with its parameters: 10 % for the small queue, two bits a block. Ghosts are ids, as many as the main queue has room for.
Leaf form (see :mod:`kvtier.policy.eviction.leaves`): a block that is no longer parked is the oldest of its queue.
"""

from __future__ import annotations

from kvtier.policy.eviction.ghost import Ghost
from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import ListPolicy

_SMALL, _MAIN = 1, 2
_USES_MAX = 3


class S3Fifo(ListPolicy):
    """See the module. ``small`` and ``ghost``: shares of the capacity. ``threshold``: uses that take a block from the
    small to the main queue. ``capacity``: in blocks, if it is known before the first eviction."""

    def __init__(self, small: float = 0.1, ghost: float = 0.9, threshold: int = 2, capacity: int | None = None) -> None:
        self._queue = column("B")
        self._uses = column("B")
        super().__init__(self._queue, self._uses, lists=2)
        self._sizes = [0, 0, 0]  # by queue, parked ones included
        self._ghost = Ghost()
        self._small_share, self._ghost_share, self._threshold = small, ghost, threshold
        self._uses_max = max(_USES_MAX, threshold)
        self._capacity = capacity
        self._is_filling = capacity is not None

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._ghost.nbytes

    def pop(self) -> int | None:
        self._capacity = len(self)
        self._is_filling = False
        return super().pop()

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._uses[slot] = 0
        comes_again = self._ghost.discard(self._table.ids[slot])
        self._ghost.trim(int((self._capacity or 0) * self._ghost_share))
        fills_main = self._is_filling and self._sizes[_SMALL] >= self._room(_SMALL)
        self._put(slot, _MAIN if comes_again or fills_main else _SMALL)

    def _use(self, slot: int, clock: int) -> None:
        if self._uses[slot] < self._uses_max:
            self._uses[slot] += 1

    def _candidate(self) -> int:
        while True:
            if self._sizes[_MAIN] > self._room(_MAIN) or not self._lists.first(_SMALL):
                return self._from_main() or self._from_small()
            if slot := self._from_small():
                return slot

    def _from_small(self) -> int:
        """The first that was used too little there; those before it move to the main queue."""
        while slot := self._lists.first(_SMALL):
            self._lists.unlink(slot)
            if self._uses[slot] < self._threshold:
                if not self._table.pins[slot]:  # it is given away
                    self._ghost.add(self._table.ids[slot])
                return slot
            self._sizes[_SMALL] -= 1
            self._put(slot, _MAIN)
            self._uses[slot] = 0
        return NONE

    def _from_main(self) -> int:
        """The first that was not used; those before it go round once more."""
        while slot := self._lists.first(_MAIN):
            self._lists.unlink(slot)
            if not self._uses[slot]:
                return slot
            self._uses[slot] = min(self._uses[slot], _USES_MAX) - 1
            self._lists.link(slot, _MAIN)
        return NONE

    def _back(self, slot: int) -> None:
        self._lists.put_back(slot, self._queue[slot])

    def _gone(self, slot: int) -> None:
        self._sizes[self._queue[slot]] -= 1

    def _put(self, slot: int, queue: int) -> None:
        self._queue[slot] = queue
        self._sizes[queue] += 1
        self._lists.link(slot, queue)

    def _room(self, queue: int) -> int:
        small = int((self._capacity or 0) * self._small_share)
        return small if queue == _SMALL else (self._capacity or 0) - small
