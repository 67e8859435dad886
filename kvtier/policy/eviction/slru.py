"""Segmented LRU: new blocks are on probation; each use moves a block one segment up, and the oldest of a segment that
is too large goes one down.

Source: R. Karedla, J. S. Love, B. G. Wherry, "Caching Strategies to Improve Disk System Performance", IEEE Computer
27(3), 1994: two segments, the protected one with 60 to 80 % of the cache. Leaf form (see
:mod:`kvtier.policy.eviction.leaves`): a block that is no longer parked is the oldest of its segment.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.policy.eviction.idmap import column
from kvtier.policy.eviction.leaves import ListPolicy
from kvtier.policy.eviction.segments import Segments


class Slru(ListPolicy):
    """See the module. ``shares``: of the segments, lowest first. ``capacity``: in blocks, if it is known before the
    first eviction; else the segments are bounded only from then on."""

    def __init__(self, shares: Sequence[float] = (1, 4), capacity: int | None = None) -> None:
        of = column("B")
        super().__init__(of, lists=len(shares))
        self._segments = Segments(self._lists, of, 1, shares)
        self._capacity = capacity
        if capacity is not None:
            self._segments.resize(capacity)

    def pop(self) -> int | None:
        if len(self) != self._capacity:
            self._capacity = len(self)
            self._segments.resize(self._capacity)
        return super().pop()

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._segments.place(slot)

    def _use(self, slot: int, clock: int) -> None:
        self._segments.use(slot)

    def _candidate(self) -> int:
        slot = self._segments.first()
        if slot:
            self._lists.unlink(slot)
        return slot

    def _back(self, slot: int) -> None:
        self._segments.back(slot)

    def _gone(self, slot: int) -> None:
        self._segments.leave(slot)
