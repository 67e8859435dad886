"""What all leaf policies share: which blocks are leaves.

An algorithm made for independent objects becomes one for chains ("leaf form") in one way for all: it orders all blocks,
but only leaves can be given away. A block that comes up while it has children or is held is *parked*, out of the order,
and is a candidate again when its last child has left or the last hold is released.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array

from kvtier.policy.base import Hint
from kvtier.policy.eviction.idmap import NONE
from kvtier.policy.eviction.lists import Lists
from kvtier.policy.eviction.table import BlockTable


class LeafPolicy(ABC):
    """An :class:`~kvtier.policy.base.EvictionPolicy` over a table of blocks. Not thread-safe: the tier that owns it
    serialises calls."""

    def __init__(self, table: BlockTable) -> None:
        self._table = table

    def __len__(self) -> int:
        return self._table.count

    @property
    def nbytes(self) -> int:
        """Memory of its state."""
        return self._table.nbytes

    def add(self, block: int, parent: int, clock: int, nbytes: int) -> None:
        table = self._table
        slot = table.near
        if table.ids[slot] != block:
            slot = table.seek(block)
        if table.here[slot]:
            self._offer(table.adopt(slot, parent))
            self._use(slot, clock)
        else:
            self._place(table.enter(slot, block, parent), clock, nbytes)

    def touch(self, block: int, clock: int) -> None:
        table = self._table
        slot = table.near
        if table.ids[slot] != block:
            slot = table.seek(block)
        if table.here[slot]:
            table.near = table.parents[slot]
            self._use(slot, clock)

    def remove(self, block: int) -> None:
        slot = self._table.find(block)
        if slot:
            if self._is_in_order(slot):
                self._take(slot)
            self._gone(slot)
            self._offer(self._table.leave(slot))

    def pop(self) -> int | None:
        table = self._table
        while slot := self._candidate():
            if not table.pins[slot]:
                block = table.ids[slot]
                self._gone(slot)
                if parent := table.leave(slot):
                    self._offer(parent)
                return block
        return None

    def hold(self, block: int) -> None:
        self._table.hold(block)

    def release(self, block: int) -> None:
        self._offer(self._table.release(block))

    def hint(self, block: int, hint: Hint) -> None:  # noqa: B027 - most have no use for it
        """Hints are ignored."""

    def _offer(self, slot: int) -> None:
        if slot and not self._is_in_order(slot):
            self._back(slot)

    # -- the algorithm ------------------------------------------------------------------------------

    @abstractmethod
    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        """A block came in: put it where it belongs."""

    @abstractmethod
    def _use(self, slot: int, clock: int) -> None:
        """A block was used. It may be parked."""

    @abstractmethod
    def _candidate(self) -> int:
        """Take the block that would go next, leaf or not, out of the order; :data:`NONE`: there is none."""

    @abstractmethod
    def _is_in_order(self, slot: int) -> bool:
        """Whether the block is in the order: not parked."""

    @abstractmethod
    def _take(self, slot: int) -> None:
        """Take a block out of the order."""

    @abstractmethod
    def _back(self, slot: int) -> None:
        """A parked block is a leaf now: it is to come up again soon."""

    def _gone(self, slot: int) -> None:  # noqa: B027 - most need not know
        """A block leaves, which is out of the order already."""


class ListPolicy(LeafPolicy):
    """One whose order is lists, with the slots 1 to ``lists`` as heads."""

    def __init__(self, *columns: array[int], lists: int) -> None:
        self._lists = Lists()
        super().__init__(BlockTable((self._lists.before, self._lists.after, *columns), reserved=1 + lists))
        for head in range(1, lists + 1):
            self._lists.open(head)

    def _is_in_order(self, slot: int) -> bool:
        return self._lists.after[slot] != NONE

    def _take(self, slot: int) -> None:
        self._lists.unlink(slot)
