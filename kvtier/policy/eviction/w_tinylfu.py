"""W-TinyLFU: new blocks pass through a small LRU window; whichever of its oldest and the oldest of the main cache, a
segmented LRU, was used less often lately goes.

Source: G. Einziger, R. Friedman, B. Manes, "TinyLFU: A Highly Efficient Cache Admission Policy", ACM Transactions on
Storage 13(4), 2017: a window of 1 %, a main cache of 20 % probation and 80 % protected, all counts halved after as many
uses as ten capacities. Without its doorkeeper: counters have eight bits. Leaf form (see
:mod:`kvtier.policy.eviction.leaves`): both of those that are compared are leaves; a block that is no longer parked is
the oldest where it was.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import ListPolicy
from kvtier.policy.eviction.segments import Segments
from kvtier.policy.eviction.sketch import Sketch

# Heads of lists: of the window, and of the main cache's segments from _MAIN on.
_WINDOW = 1
_MAIN = 2

_COUNTERS_A_BLOCK = 2  # at least, in each row of the sketch
_PERIOD_MIN = 64  # blocks


class WTinyLfu(ListPolicy):
    """See the module. ``window``: share of the capacity; ``shares``: of the main cache's segments, lowest first;
    ``period``: uses after which counts are halved, in capacities."""

    def __init__(self, window: float = 0.01, shares: Sequence[float] = (1, 4), period: int = 10) -> None:
        self._of = column("B")  # the head of the list where it is; 0: nowhere
        super().__init__(self._of, lists=1 + len(shares))
        self._segments = Segments(self._lists, self._of, _MAIN, shares)
        self._window_share, self._period = window, period
        self._capacity = 0
        self._main_room = 0
        self._sketch = Sketch()
        self._uses = 0

    @property
    def nbytes(self) -> int:
        return super().nbytes + self._sketch.nbytes

    def pop(self) -> int | None:
        if len(self) != self._capacity:
            self._capacity = len(self)
            self._main_room = self._capacity - int(self._capacity * self._window_share)
            self._segments.resize(self._main_room)
        return super().pop()

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._count(slot)
        self._of[slot] = _WINDOW
        self._lists.link(slot, _WINDOW)

    def _use(self, slot: int, clock: int) -> None:
        self._count(slot)
        if self._of[slot] != _WINDOW:
            self._segments.use(slot)
            return
        if self._lists.after[slot]:
            self._lists.unlink(slot)
        self._lists.link(slot, _WINDOW)

    def _candidate(self) -> int:
        while slot := self._lists.first(_WINDOW):
            if len(self._segments) >= self._main_room:
                return self._duel(slot, self._segments.first())
            self._move(slot)
        return self._lose(self._segments.first())

    def _duel(self, slot: int, other: int) -> int:
        """The one of the oldest in the window and ``other`` in the main cache that goes, or is no leaf."""
        pins, ids = self._table.pins, self._table.ids
        if pins[slot] or not other:
            return self._lose(slot)
        if not pins[other] and self._sketch.count(ids[slot]) > self._sketch.count(ids[other]):
            self._lose(other)
            self._gone(other)
            self._move(slot)
            return other
        return self._lose(other if pins[other] else slot)

    def _move(self, slot: int) -> None:
        """From the window to the main cache."""
        self._lists.unlink(slot)
        self._segments.place(slot)

    def _lose(self, slot: int) -> int:
        if slot:
            self._lists.unlink(slot)
        return slot

    def _back(self, slot: int) -> None:
        self._lists.put_back(slot, self._of[slot])

    def _gone(self, slot: int) -> None:
        if self._of[slot] >= _MAIN:
            self._segments.leave(slot)
        self._of[slot] = NONE

    def _count(self, slot: int) -> None:
        self._sketch.add(self._table.ids[slot])
        self._uses += 1
        if len(self) * _COUNTERS_A_BLOCK > self._sketch.width:
            self._sketch.widen()
        if self._uses >= self._period * max(len(self), _PERIOD_MIN):
            self._uses = 0
            self._sketch.halve()
