"""What leaf-LRU would have of a tier, beside the policy that runs it, and how much may be risked against it.

Leaf-LRU has the blocks that were used last, as many as fit. A block that it would not have is a *win* when it is used;
one that was given away and that it would have is a *ghost*, and a *loss* when it comes in again. A ghost can cost one
hit, so a policy that makes ghosts only while ::

    losses + ghosts - wins < GRACE + SHARE * hits of leaf-LRU

never has fewer hits than leaf-LRU by more than that, whatever comes next. What leaf-LRU has is told by clocks, counted
in buckets; the oldest bucket counts as a whole, so that leaf-LRU is overrated by a 64th of the tier.

Ghosts that were made on advice can be lost as well, but are no risk: whether more advice is taken depends on what has
been lost. Where there are too many to know, a loss stands for those that are not known.
"""

from __future__ import annotations

from bisect import bisect_right

from kvtier.policy.eviction.idmap import IdMap, column

GRACE = 16
SHARE = 0.0095
_BUCKETS = 64
_BUCKETS_MAX = 4 * _BUCKETS
_ROOM_SHARE = 5  # ghosts are known up to a fifth of the tier
_ROOM_MIN = 512
_UNKNOWN = 1 << 62  # the tier is not full yet


class LruShadow:
    """See the module. Told of every use, arrival and departure; clocks only rise, but for blocks that come in."""

    def __init__(self) -> None:
        self.edge = 0  #: leaf-LRU has what was used at this clock or later
        self.recent = 0  #: the start of the newest bucket
        self.wins = self.hits = 0  #: ``hits``: of leaf-LRU
        self.losses = 0.0
        self._advised = self._advised_known = 1  # ghosts made on advice, and those of them that found room
        self._capacity = _UNKNOWN
        self._size = 0  # of all buckets
        self._starts = [0]  # of buckets, the oldest first
        self._counts = [0]  # blocks, ghosts among them
        self._risks = [0]  # ghosts that were not advised
        self._risk = 0  # their sum
        self._clocks = column("Q")  # of a ghost: twice its last use, and one if it is a risk
        self._ghosts = IdMap((self._clocks,))
        self._known = self._room = 0
        self._hand = 0

    @property
    def nbytes(self) -> int:
        return self._ghosts.nbytes

    @property
    def balance(self) -> float:
        """What may still be lost."""
        return GRACE + SHARE * self.hits + self.wins - self.losses

    def can_risk(self) -> bool:
        """Whether one more ghost can be afforded."""
        return self._risk < self.balance and self._has_room()

    def resize(self, capacity: int) -> None:
        """Leaf-LRU would have so many blocks."""
        self._capacity = capacity
        self._room = max(_ROOM_MIN, capacity // _ROOM_SHARE)
        self.trim()

    def used(self, before: int, clock: int) -> None:
        """A block is used, whose last use, at ``before``, was not ``recent``."""
        if before >= self.edge:
            self._counts[bisect_right(self._starts, before) - 1] -= 1
            self._counts[-1] += 1
            self.hits += 1
        else:
            self.wins += 1
            self._size += 1
            self._counts[-1] += 1
        if self._counts[-1] * _BUCKETS > self._size:
            self._open(clock)

    def came(self, block: int, clock: int, now: int) -> None:
        """A block comes in, last used at ``clock``; nothing has been used after ``now``."""
        if self._known and (slot := self._ghosts.seek(block)):
            entry = self._clocks[slot]
            self._forget(slot)
            if entry >> 1 >= self.edge:
                self.losses += 1 if entry & 1 else self._advised / self._advised_known
                self.hits += 1
                self._leave(entry >> 1, entry & 1)
        if clock >= self.edge:
            self._counts[bisect_right(self._starts, clock) - 1] += 1
            self._size += 1
            if self._counts[-1] * _BUCKETS > self._size:
                self._open(now)

    def gone(self, block: int, before: int, *, in_order: bool, advised: bool) -> None:
        """A block, last used at ``before``, is given away. ``in_order``: it is the oldest that there is, which leaf-LRU
        gives away as well unless it has many that are older. ``advised``: a server said so."""
        if before < self.edge:
            return
        if in_order and (len(self._starts) == 1 or before < self._starts[1]):
            self._leave(before, 0)
            return
        self._advised += advised
        if self._has_room():
            self._advised_known += advised
            self._clocks[self._ghosts.reserve(block)] = before << 1 | (not advised)
            self._known += 1
            if not advised:
                self._risks[bisect_right(self._starts, before) - 1] += 1
                self._risk += 1
            self._sweep()

    def removed(self, before: int) -> None:
        """A block, last used at ``before``, is deleted."""
        if before >= self.edge:
            self._leave(before, 0)

    def _leave(self, before: int, risk: int) -> None:
        at = bisect_right(self._starts, before) - 1
        self._counts[at] -= 1
        self._risks[at] -= risk
        self._risk -= risk
        self._size -= 1

    def trim(self) -> None:
        """A request, or a part of it, is done: drop the oldest buckets without which leaf-LRU is still full."""
        while len(self._counts) > 1 and self._size - self._counts[0] >= self._capacity:
            self._size -= self._counts.pop(0)
            self._risk -= self._risks.pop(0)
            self._starts.pop(0)
            self.edge = self._starts[0]

    def _open(self, clock: int) -> None:
        if len(self._starts) >= _BUCKETS_MAX:
            self._merge()
        self.recent = clock + 1
        self._starts.append(self.recent)
        self._counts.append(0)
        self._risks.append(0)

    def _merge(self) -> None:
        """Make one bucket of neighbours that have become small."""
        buckets = list(zip(self._starts, self._counts, self._risks, strict=True))
        merged = [buckets[0]]
        for start, count, risk in buckets[1:]:
            above_start, above_count, above_risk = merged[-1]
            if (above_count + count) * _BUCKETS <= self._size:
                merged[-1] = (above_start, above_count + count, above_risk + risk)
            else:
                merged.append((start, count, risk))
        self._starts, self._counts, self._risks = ([bucket[i] for bucket in merged] for i in range(3))

    def _has_room(self) -> bool:
        if self._known >= self._room:
            self._sweep()
        return self._known < self._room

    def _sweep(self) -> None:
        """Look at two more ghosts, and forget those that leaf-LRU would not have any more."""
        for _ in range(2):
            self._hand = self._hand + 1 if self._hand + 1 < len(self._clocks) else 1
            if self._ghosts.ids[self._hand] and self._clocks[self._hand] >> 1 < self.edge:
                self._forget(self._hand)

    def _forget(self, slot: int) -> None:
        self._ghosts.drop(slot)
        self._known -= 1
