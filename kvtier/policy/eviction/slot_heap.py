"""A binary heap of slots, in compact arrays, from whose middle slots can be taken."""

from __future__ import annotations

from array import array

from kvtier.policy.eviction.idmap import NONE, column


class SlotHeap:
    """The slot with the least key comes first, of equal keys that with the least tie-breaker. Keys are the caller's:
    :meth:`put` and :meth:`moved` follow them. ``places`` is a column: a slot's place, 0 if it is not in the heap."""

    def __init__(self, keys: array[float], ties: array[int]) -> None:
        self._keys = keys
        self._ties = ties
        self.places = column("I")
        self._slots = array("I", [NONE])  # from 1 on: those of a place's children are at its double

    @property
    def nbytes(self) -> int:
        """Memory of the heap, without the columns."""
        return self._slots.__sizeof__()

    def first(self) -> int:
        """The first slot; :data:`NONE` if there is none."""
        return self._slots[1] if len(self._slots) > 1 else NONE

    def put(self, slot: int) -> None:
        """Add a slot that is not there."""
        self._slots.append(slot)
        self._up(slot, len(self._slots) - 1)

    def moved(self, slot: int) -> None:
        """The key of a slot that is there has grown."""
        self._down(slot, self.places[slot])

    def take(self, slot: int) -> None:
        """Take a slot out."""
        place = self.places[slot]
        self.places[slot] = 0
        last = self._slots.pop()
        if last != slot:
            self._up(last, place)
            self._down(last, self.places[last])

    def _before(self, one: int, other: int) -> bool:
        keys = self._keys
        if keys[one] != keys[other]:
            return keys[one] < keys[other]
        return self._ties[one] < self._ties[other]

    def _up(self, slot: int, place: int) -> None:
        slots, places = self._slots, self.places
        while place > 1 and self._before(slot, above := slots[place >> 1]):
            slots[place], places[above] = above, place
            place >>= 1
        slots[place], places[slot] = slot, place

    def _down(self, slot: int, place: int) -> None:
        slots, places, count = self._slots, self.places, len(self._slots)
        while (child := place << 1) < count:
            if child + 1 < count and self._before(slots[child + 1], slots[child]):
                child += 1
            below = slots[child]
            if not self._before(below, slot):
                break
            slots[place], places[below] = below, place
            place = child
        slots[place], places[slot] = slot, place
