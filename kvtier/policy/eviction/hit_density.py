"""Hit density: evict the leaf whose space earns the fewest hits, as learned from what comes back and when.

A block's class is how often its conversation has come back, and whether it never had a child (the cut-off end of a
request). What a class is worth at an age is learned (:mod:`kvtier.policy.eviction.return_times`). The worst of some
leaves drawn at random goes, and with it those above it of the same class, one call each. While leaf-LRU would have had
more hits, as told by the ages of the sample, the order is leaf-LRU's.
"""

from __future__ import annotations

import random
import time
from array import array
from collections.abc import Callable

from kvtier.policy.base import Hint
from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import LeafPolicy
from kvtier.policy.eviction.return_times import AGES, ReturnTimes
from kvtier.policy.eviction.table import BlockTable

_TURNS = 12
_CANDIDATES = 32
_KEPT = 4
_RATE = 8
_ENDED = -128
_LEAST_PERIOD = 1024
_LATEST = 4e9  # tenths of a second


class HitDensity(LeafPolicy):
    """See the module. ``now``: the clock, in seconds, that :attr:`Hint.returns_at` is of."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._learned_at = now()
        self._clocks = column("Q")
        self._classes = column("B")  # turn, and whether it never had a child
        self._levels = column("b")  # priority; ended
        self._dues = column("I")  # tenths of a second after `began`, from 1; 0: not known
        self._places = column("I")  # in the leaves of its level, from 1; 0: parked
        super().__init__(BlockTable((self._clocks, self._classes, self._levels, self._dues, self._places)))
        self._leaves: dict[int, array[int]] = {}
        self._times = ReturnTimes()
        self._random = random.Random(0)
        self._clock = 0
        self._learned_clock = 0
        self._tick_rate = 0.0
        self._next_learn = _LEAST_PERIOD
        self._mask = 0
        self._group: list[int] = []
        self._run = NONE
        self._ran = 0
        self._pool: list[tuple[int, int]] = []
        self._lru_age = 0
        self._own_hits = self._lru_hits = 0.0
        self._lru_mode = 0
        self._patience = 8

    @property
    def nbytes(self) -> int:
        return self._table.nbytes + self._times.nbytes + sum(each.__sizeof__() for each in self._leaves.values())

    def hint(self, block: int, hint: Hint) -> None:
        slot = self._table.find(block)
        if not slot:
            return
        level = _ENDED if hint.ended else max(-100, min(100, hint.priority))
        self._set_level(slot, level)
        if hint.returns_at is None:
            self._dues[slot] = 0
        else:
            self._dues[slot] = int(max(1.0, min(_LATEST, (hint.returns_at - self._began) * 10)))

    # algorithm

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        self._clocks[slot] = self._clock = clock
        self._levels[slot] = self._dues[slot] = self._places[slot] = 0
        table, group = self._table, self._group
        if group and table.parents[group[-1]] != slot:
            group.clear()
        self._classes[slot] = 2 | (not group and not table.pins[slot])
        group.append(slot)
        parent = table.parents[slot]
        if not table.pins[slot]:
            self._back(slot)
        if not parent or table.here[parent]:
            self._complete(parent)

    def _complete(self, parent: int) -> None:
        """Blocks came in behind ``parent``, end first: the turn is one more than what is known of it or of them."""
        table, classes, times, group, mask = self._table, self._classes, self._times, self._group, self._mask
        ids = table.ids
        turn = 1
        if parent:
            class_ = classes[parent]
            turn = class_ >> 1
            if turn == _TURNS:
                turn = 0
            if class_ & 1:
                classes[parent] = class_ - 1
                if not ids[parent] & mask:
                    times.correct(ids[parent], class_ - 1)
        sampled = [slot for slot in group if not ids[slot] & mask]
        for slot in sampled:
            past = times.recall(ids[slot])
            if past >= 0:
                turn = max(turn, min(_TURNS - 1, (past >> 1) + 1))
        for slot in group:
            classes[slot] = turn << 1 | classes[slot] & 1
        for slot in sampled:
            age = times.note(ids[slot], self._clocks[slot], classes[slot])
            if 0 <= age <= self._lru_age:
                self._lru_hits += 1
        group.clear()
        if self._clock >= self._next_learn:
            self._learn()

    def _use(self, slot: int, clock: int) -> None:
        self._clocks[slot] = self._clock = clock
        self._dues[slot] = 0
        if self._levels[slot] == _ENDED:
            self._set_level(slot, 0)
        class_ = self._classes[slot]
        if class_ < 2 * _TURNS:
            class_ += 2 if class_ > 1 else 4
            class_ = min(class_, 2 * _TURNS + (class_ & 1))
            self._classes[slot] = class_
        if slot == self._run:
            self._run = NONE
        block = self._table.ids[slot]
        if not block & self._mask:
            age = self._times.note(block, clock, class_)
            if age >= 0:
                self._own_hits += 1
                if age <= self._lru_age:
                    self._lru_hits += 1

    def _set_level(self, slot: int, level: int) -> None:
        if self._levels[slot] != level:
            placed = self._places[slot]
            if placed:
                self._take(slot)
            self._levels[slot] = level
            if placed:
                self._back(slot)

    def _is_in_order(self, slot: int) -> bool:
        return self._places[slot] != 0

    def _take(self, slot: int) -> None:
        leaves = self._leaves[self._levels[slot]]
        last = leaves.pop()
        if last != slot:
            leaves[self._places[slot] - 1] = last
            self._places[last] = self._places[slot]
        self._places[slot] = 0

    def _back(self, slot: int) -> None:
        leaves = self._leaves.setdefault(self._levels[slot], array("I"))
        leaves.append(slot)
        self._places[slot] = len(leaves)

    def _candidate(self) -> int:
        slot = self._choose()
        if slot:
            self._take(slot)
            parent = self._table.parents[slot]
            same = parent and self._classes[parent] == self._classes[slot]
            self._run = parent if same and self._levels[parent] == self._levels[slot] else NONE
        return slot

    def _choose(self) -> int:
        """The next victim, still among the leaves: the run, what was drawn with the last one, or a new draw."""
        table, places = self._table, self._places
        run, self._run = self._run, NONE
        if run and places[run] and not table.pins[run]:
            return run
        pool = self._pool
        while pool:
            clock, slot = pool.pop()
            if places[slot] and self._clocks[slot] == clock and not table.pins[slot]:
                return slot
        for level in sorted(self._leaves):
            while self._leaves[level]:
                slot = self._pick(self._leaves[level])
                if slot:
                    return slot
        return NONE

    def _pick(self, leaves: array[int]) -> int:
        """The worst of some leaves drawn at random; held ones are parked."""
        count = len(leaves)
        if count <= _CANDIDATES:
            drawn = set(leaves)
        else:
            draw = self._random.random
            drawn = {leaves[int(draw() * count)] for _ in range(_CANDIDATES)}
        pins = self._table.pins
        ranked = []
        clocks, dues, classes, clock, worth = self._clocks, self._dues, self._classes, self._clock, self._times.worth
        for slot in drawn:
            if pins[slot]:
                self._take(slot)
            elif self._lru_mode:
                ranked.append((0.0, clocks[slot], slot))
            elif dues[slot]:
                ranked.append((self._due_worth(slot), clocks[slot], slot))
            else:
                since = clocks[slot]
                ranked.append((worth[classes[slot] * AGES + (clock - since).bit_length()], since, slot))
        if not ranked:
            return NONE
        ranked.sort()
        kept = 1 if count <= _CANDIDATES else _KEPT
        self._pool = [(c, s) for _, c, s in ranked[1:kept]][::-1]
        return ranked[0][2]

    def _due_worth(self, slot: int) -> float:
        """Hits a tick of a block that is expected; one that is late is worth less the later it is."""
        left = self._dues[slot] - (self._now() - self._began) * 10
        age = self._clock - self._clocks[slot]
        ticks = left * self._tick_rate / 10
        if ticks < age * 0.5:
            ticks = max(age * 0.5, -2 * ticks)
        return 1 / max(ticks, 1.0)

    def _learn(self) -> None:
        """Bring worths, sampling rate and the age of what leaf-LRU would evict up to date."""
        now = self._now()
        if now > self._learned_at:
            self._tick_rate = (self._clock - self._learned_clock) / (now - self._learned_at)
        self._learned_at, self._learned_clock = now, self._clock
        size = len(self)
        bits = (size - 1).bit_length() - 2 if size > 8192 else min(12, size.bit_length())
        self._times.grow(bits)
        rate = 1
        while size > 512 * 2 * rate and rate < _RATE:
            rate *= 2
        if rate - 1 > self._mask:
            self._mask = rate - 1
            self._times.thin(self._mask)
        newest = self._times.newest(size // rate)
        self._lru_age = self._clock - newest
        self._times.learn(self._clock)
        self._judge()
        self._next_learn = self._clock + max(size // 2, _LEAST_PERIOD)

    def _judge(self) -> None:
        """Order as leaf-LRU for a while if that would have had more hits, and try again later."""
        if self._lru_mode:
            self._lru_mode -= 1
            self._own_hits = self._lru_hits = 0.0
        elif self._lru_hits > 200 and self._own_hits < self._lru_hits * 0.99:
            self._lru_mode = self._patience
            self._patience *= 2
        else:
            if self._own_hits > self._lru_hits * 1.02:
                self._patience = 8
            self._own_hits *= 0.8
            self._lru_hits *= 0.8
