"""Slots of which some can be drawn at random, by level."""

from __future__ import annotations

import random
from array import array
from collections.abc import Collection

from kvtier.policy.eviction.idmap import NONE
from kvtier.policy.eviction.lists import Lists

#: Stands for the next one of a slot that is in a pool; a reserved slot. ``before`` is its place there.
POOL = 1


class Pools:
    """Pools for slots that are in none of the ``lists``, whose columns they share."""

    def __init__(self, lists: Lists) -> None:
        self._lists = lists
        self._pools: dict[int, array[int]] = {}
        self._random = random.Random(0)

    @property
    def nbytes(self) -> int:
        return sum(pool.__sizeof__() for pool in self._pools.values())

    def levels(self) -> list[int]:
        """Those of pools that are not empty, the lowest first."""
        return sorted(level for level, pool in self._pools.items() if pool)

    def put(self, slot: int, level: int) -> None:
        pool = self._pools.setdefault(level, array("I"))
        self._lists.before[slot], self._lists.after[slot] = len(pool), POOL
        pool.append(slot)

    def take(self, slot: int, level: int) -> None:
        """Take out a slot that is in the pool of this level."""
        pool, place = self._pools[level], self._lists.before[slot]
        last = pool.pop()
        if last != slot:
            pool[place] = last
            self._lists.before[last] = place
        self._lists.after[slot] = NONE

    def draw(self, level: int, count: int) -> Collection[int]:
        """About ``count`` different ones, or all if there are no more."""
        pool = self._pools.get(level, ())
        if len(pool) <= count:
            return tuple(pool)
        draw, size = self._random.random, len(pool)
        return {pool[int(draw() * size)] for _ in range(count)}
