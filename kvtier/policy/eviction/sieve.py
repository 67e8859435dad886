"""SIEVE: a queue in order of arrival, from which a hand takes what was not used since it last passed.

Source: Y. Zhang, J. Yang, Y. Yue, Y. Vigfusson, K. V. Rashmi, "SIEVE is Simpler than LRU: an Efficient Turn-Key
Eviction Algorithm for Web Caches", NSDI 2024. Leaf form (see :mod:`kvtier.policy.eviction.leaves`): a block that is no
longer parked comes back where the hand is, so that a chain is eaten from its end to its beginning.
"""

from __future__ import annotations

from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import ListPolicy

_QUEUE = 1


class Sieve(ListPolicy):
    """See the module."""

    def __init__(self) -> None:
        self._used = column("B")  # since the hand passed
        super().__init__(self._used, lists=1)
        self._hand = _QUEUE  # what it looks at next; the head: the oldest

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._used[slot] = 0
        self._lists.link(slot, _QUEUE)

    def _use(self, slot: int, clock: int) -> None:
        self._used[slot] = 1

    def _candidate(self) -> int:
        after, used, slot = self._lists.after, self._used, self._hand
        if after[_QUEUE] == _QUEUE:
            return NONE
        while slot == _QUEUE or used[slot]:
            used[slot] = 0
            slot = after[slot]
        self._hand = slot
        self._take(slot)
        return slot

    def _take(self, slot: int) -> None:
        if self._hand == slot:
            self._hand = self._lists.after[slot]
        self._lists.unlink(slot)

    def _back(self, slot: int) -> None:
        self._lists.link(slot, self._hand)
        self._hand = slot
