"""A map from 64-bit ids to slots, in compact arrays.

Linear hashing (W. Litwin, "Linear Hashing: a new tool for file and table addressing", VLDB 1980) with chains through
the slots: it grows by one bucket at a time, so that no call stops for a rehash, and arrays grow by a sixteenth. Slots
are recycled; memory is not given back.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TypeAlias

Column: TypeAlias = "array[int] | array[float]"

#: No slot: "not there" where a slot is asked for, and the end of chains.
NONE = 0

_CHUNK = 64  # slots added at once
_PRIME = (1 << 30) - 35  # spreads ids that have a pattern


def column(code: str) -> array[int]:
    """A new column, for one number a slot; ``code`` as in :mod:`array`."""
    return array(code)


class IdMap:
    """Ids by slot, in ``ids``. ``columns`` are what else there is by slot: they grow with it.

    The first ``reserved`` slots never name anything (at least one, slot 0): they are heads of lists.
    """

    def __init__(self, columns: Iterable[Column] = (), *, reserved: int = 1) -> None:
        self.ids = column("Q")
        self._chain = column("I")  # the next slot in the bucket, or in the free list
        self._columns = [self.ids, self._chain, *columns]
        self._free = NONE
        self._fresh = reserved  # the first slot that has never been used
        self._heads = array("I", [NONE])
        self._low, self._mask = 0, 1  # of this round of splits: bits that all buckets have, and one more
        self._used = 0
        self._extend()

    @property
    def nbytes(self) -> int:
        """Memory of the arrays, spare room at their ends included."""
        return sum(each.__sizeof__() for each in (*self._columns, self._heads))

    def seek(self, key: int) -> int:
        """The slot of an id; :data:`NONE` if it has none."""
        bucket = key % _PRIME & self._mask
        if bucket >= len(self._heads):
            bucket &= self._low
        slot, ids = self._heads[bucket], self.ids
        while ids[slot] != key:
            if not slot:
                return NONE
            slot = self._chain[slot]
        return slot

    def reserve(self, key: int) -> int:
        """The slot of an id, a new one if it has none. What the columns hold of it is left from before."""
        return self.seek(key) or self.insert(key)

    def insert(self, key: int) -> int:
        """A slot for an id that has none."""
        slot = self._free
        if slot:
            self._free = self._chain[slot]
        else:
            slot = self._fresh
            self._fresh += 1
            if self._fresh > len(self.ids):
                self._extend()
        self.ids[slot] = key
        bucket = key % _PRIME & self._mask
        if bucket >= len(self._heads):
            bucket &= self._low
        self._chain[slot] = self._heads[bucket]
        self._heads[bucket] = slot
        self._used += 1
        if self._used > len(self._heads):
            self._split()
        return slot

    def drop(self, slot: int) -> None:
        """Take a slot out of the map, for others."""
        chain = self._chain
        bucket = self.ids[slot] % _PRIME & self._mask
        if bucket >= len(self._heads):
            bucket &= self._low
        before = self._heads[bucket]
        if before == slot:
            self._heads[bucket] = chain[slot]
        else:
            while chain[before] != slot:
                before = chain[before]
            chain[before] = chain[slot]
        self.ids[slot] = 0
        chain[slot], self._free = self._free, slot
        self._used -= 1

    def _extend(self) -> None:
        for each in self._columns:
            each.frombytes(bytes(each.itemsize * _CHUNK))

    def _split(self) -> None:
        """One bucket more: it takes those of an older one whose ids say so."""
        new = len(self._heads)
        old = new & self._low
        slot = self._heads[old]
        self._heads[old] = NONE
        self._heads.append(NONE)
        while slot:
            after = self._chain[slot]
            bucket = old if self.ids[slot] % _PRIME & self._mask == old else new
            self._chain[slot], self._heads[bucket] = self._heads[bucket], slot
            slot = after
        if new == self._mask:
            self._low, self._mask = self._mask, self._mask << 1 | 1
