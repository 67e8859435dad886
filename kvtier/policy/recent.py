"""Ids that were seen lately, in memory that never grows."""

from __future__ import annotations

from array import array

_SLOTS = 1 << 17


class RecentIds:
    """A direct-mapped table of 131,072 ids (1 MiB): an id is forgotten when another one falls on its slot.

    Of ids that are spread evenly, as block ids are, one is still known with a probability of ``exp(-n / 131072)`` after
    ``n`` other ones. An id that is known was seen: ids are kept whole. Thread-safe: each step reads or writes one slot.
    """

    def __init__(self) -> None:
        self._slots = array("Q", bytes(8 * _SLOTS))

    @property
    def nbytes(self) -> int:
        return self._slots.__sizeof__()

    def add(self, block: int) -> bool:
        """Remember an id; whether it was known."""
        at = block % _SLOTS
        known = self._slots[at] == block
        self._slots[at] = block
        return known

    def discard(self, block: int) -> bool:
        """Forget an id; whether it was known."""
        at = block % _SLOTS
        known = self._slots[at] == block
        if known:
            self._slots[at] = 0
        return known

    def __contains__(self, block: int) -> bool:
        return self._slots[block % _SLOTS] == block
