"""Doubly linked lists of slots, in two columns."""

from __future__ import annotations

from kvtier.policy.eviction.idmap import NONE, column


class Lists:
    """Lists whose heads are reserved slots: ``after[head]`` is the oldest, ``before[head]`` the newest, and the head
    itself where there is none. ``after`` of a slot that is in no list is :data:`NONE`.

    The columns must have grown to the heads before :meth:`open`.
    """

    def __init__(self) -> None:
        self.before = column("I")
        self.after = column("I")

    def open(self, head: int) -> None:
        """Make an empty list."""
        self.before[head] = self.after[head] = head

    def first(self, head: int) -> int:
        """The oldest; :data:`NONE` if the list is empty."""
        slot = self.after[head]
        return NONE if slot == head else slot

    def link(self, slot: int, after: int) -> None:
        """Put ``slot``, which is in no list, before ``after``; before a head is the newest end."""
        before = self.before[after]
        self.before[slot], self.after[slot] = before, after
        self.after[before] = self.before[after] = slot

    def put_back(self, slot: int, head: int) -> None:
        """Put ``slot``, which is in no list, at the oldest end."""
        self.link(slot, self.after[head])

    def unlink(self, slot: int) -> None:
        """Take ``slot`` out of its list."""
        before, after = self.before[slot], self.after[slot]
        self.after[before], self.before[after] = after, before
        self.after[slot] = NONE
