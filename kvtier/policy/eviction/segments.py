"""A segmented LRU of slots: lists of bounded size, one above the other."""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence

from kvtier.policy.eviction.idmap import NONE
from kvtier.policy.eviction.lists import Lists


class Segments:
    """Segments whose list heads are the slots from ``first`` on, the lowest first; ``of`` says by slot in which one it
    is, by its head. Sizes count blocks, parked ones included."""

    def __init__(self, lists: Lists, of: array[int], first: int, shares: Sequence[float]) -> None:
        self._lists = lists
        self._of = of
        self._first = first
        self._shares = [share / sum(shares) for share in shares]
        self._rooms: list[float] = [math.inf for _ in shares]
        self._sizes = [0 for _ in shares]

    def __len__(self) -> int:
        return sum(self._sizes)

    def resize(self, capacity: int) -> None:
        """Divide ``capacity`` blocks among the segments."""
        self._rooms = [int(share * capacity) for share in self._shares]
        for i in reversed(range(1, len(self._sizes))):
            self._cool(i)

    def place(self, slot: int) -> None:
        """Put in what is in no segment: into the lowest that has room, the lowest of all if none has."""
        sizes = enumerate(zip(self._sizes, self._rooms, strict=True))
        self._put(slot, next((i for i, (size, room) in sizes if size < room), 0))

    def use(self, slot: int) -> None:
        """Move a slot to the newest end of the next segment; what that one has too much goes down again."""
        i = self._of[slot] - self._first
        up = min(i + 1, len(self._sizes) - 1)
        if self._lists.after[slot]:
            self._lists.unlink(slot)
        self.leave(slot)
        self._put(slot, up)
        for j in range(up, 0, -1):
            self._cool(j)

    def back(self, slot: int) -> None:
        """Put a parked slot at the oldest end of its segment."""
        self._lists.put_back(slot, self._of[slot])

    def leave(self, slot: int) -> None:
        """A slot is in no list any more: nor is it in a segment."""
        self._sizes[self._of[slot] - self._first] -= 1

    def first(self) -> int:
        """The oldest of the lowest segment that has any."""
        for i in range(len(self._sizes)):
            if slot := self._lists.first(self._first + i):
                return slot
        return NONE

    def _put(self, slot: int, i: int) -> None:
        self._of[slot] = self._first + i
        self._sizes[i] += 1
        self._lists.link(slot, self._first + i)

    def _cool(self, i: int) -> None:
        while self._sizes[i] > self._rooms[i] and (slot := self._lists.first(self._first + i)):
            self._lists.unlink(slot)
            self.leave(slot)
            self._put(slot, i - 1)
