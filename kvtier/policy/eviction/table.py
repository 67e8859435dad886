"""The blocks of a policy: their parents, and what each is needed for.

A block that is not in the tier has a slot all the same while it is held or has children here: what they need of it must
be known when it comes.
"""

from __future__ import annotations

from collections.abc import Iterable

from kvtier.policy.eviction.idmap import NONE, Column, IdMap, column


class BlockTable(IdMap):
    """Blocks by id; see :class:`IdMap` for slots, ``columns`` and ``reserved``."""

    def __init__(self, columns: Iterable[Column] = (), *, reserved: int = 1) -> None:
        self.here = column("B")  # whether the block is in the tier
        self.parents = column("I")  # slots
        self.pins = column("I")  # children in the tier, and one if it is held: what has none is a leaf
        self.count = 0  # blocks in the tier
        self.near = NONE  # the slot of the block that probably comes next: chains are used block by block
        self._holds: dict[int, int] = {}  # by block id
        super().__init__((self.here, self.parents, self.pins, *columns), reserved=reserved)

    def find(self, block: int) -> int:
        """The slot of a block that is in the tier; :data:`NONE`: it is not."""
        slot = self.seek(block)
        return slot if self.here[slot] else NONE

    def enter(self, slot: int, block: int, parent: int) -> int:
        """``block``, which is not in the tier, comes in; ``slot`` is where :meth:`seek` finds it. Returns its slot."""
        if not slot:
            slot = self.insert(block)
        self.here[slot] = 1
        self.count += 1
        if parent:
            self._link(slot, parent)
        return slot

    def adopt(self, slot: int, parent: int) -> int:
        """The block in ``slot`` has this parent from now on; returns its former one, if that is a leaf now."""
        former = self.parents[slot]
        if self.ids[former] == parent:
            return NONE
        self.parents[slot] = NONE
        if parent:
            self._link(slot, parent)
        return self._unpin(former) if former else NONE

    def leave(self, slot: int) -> int:
        """The block in ``slot`` leaves the tier; returns its parent's slot, if that is a leaf now."""
        parents, pins = self.parents, self.pins
        parent = parents[slot]
        parents[slot] = NONE
        self.here[slot] = 0
        self.count -= 1
        if not pins[slot]:
            self.drop(slot)
        if pins[parent] > 1:  # what _unpin would find
            pins[parent] -= 1
            return NONE
        return self._unpin(parent) if parent else NONE

    def hold(self, block: int) -> None:
        """Protect ``block``, in the tier or not."""
        holds = self._holds.get(block, 0)
        self._holds[block] = holds + 1
        if not holds:
            self.pins[self.reserve(block)] += 1

    def release(self, block: int) -> int:
        """Undo one ``hold``, if there was one; returns the slot of ``block`` if it is a leaf now."""
        holds = self._holds.pop(block, 0)
        if holds > 1:
            self._holds[block] = holds - 1
        return self._unpin(self.seek(block)) if holds == 1 else NONE

    def _link(self, slot: int, parent: int) -> None:
        above, pins, parents = self.near, self.pins, self.parents
        if self.ids[above] != parent:
            above = self.seek(parent)
        self.near = slot  # which the next one extends, or
        if not above:
            self.near = above = self.insert(parent)  # that is it
        if above != slot and not (pins[slot] and parents[above] and self._descends(above, slot)):
            parents[slot] = above
            pins[above] += 1

    def _descends(self, slot: int, ancestor: int) -> bool:
        """Whether a link from ``ancestor`` to ``slot`` would close a ring, in which nobody is ever a leaf. Only a
        block that has children or is held can be in one: a chain that grows at its end costs no walk."""
        while slot not in (NONE, ancestor):
            slot = self.parents[slot]
        return slot == ancestor

    def _unpin(self, slot: int) -> int:
        """One less needs ``slot``; returns it if it is a leaf now."""
        pins = self.pins[slot] - 1
        self.pins[slot] = pins
        if pins:
            return NONE
        if self.here[slot]:
            return slot
        self.drop(slot)
        return NONE
