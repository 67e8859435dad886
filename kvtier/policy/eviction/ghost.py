"""The ids of blocks that were evicted not long ago."""

from __future__ import annotations

from kvtier.policy.eviction.idmap import NONE, IdMap
from kvtier.policy.eviction.lists import Lists

_QUEUE = 1


class Ghost:
    """Ids in order of arrival."""

    def __init__(self) -> None:
        self._lists = Lists()
        self._map = IdMap((self._lists.before, self._lists.after), reserved=2)
        self._lists.open(_QUEUE)
        self._count = 0

    @property
    def nbytes(self) -> int:
        return self._map.nbytes

    def add(self, block: int) -> None:
        if not self._map.seek(block):
            self._lists.link(self._map.insert(block), _QUEUE)
            self._count += 1

    def discard(self, block: int) -> bool:
        """Forget an id; False: it is not known."""
        slot = self._map.seek(block)
        if slot:
            self._drop(slot)
        return slot != NONE

    def trim(self, limit: int) -> None:
        """Forget the oldest until no more than ``limit`` are left."""
        while self._count > limit:
            self._drop(self._lists.first(_QUEUE))

    def _drop(self, slot: int) -> None:
        self._lists.unlink(slot)
        self._map.drop(slot)
        self._count -= 1
