"""Hit density: evict the block whose space is expected to earn the fewest hits, as far as leaf-LRU's hits are safe.

A block's class is how often it has been used, which is remembered for a while after it has left
(:mod:`kvtier.policy.eviction.use_memory`); blocks used once are told apart by whether they begin a conversation, go on
with one, or are the end of a request, which may have been cut off. What a class is worth at an age is learned
(:mod:`kvtier.policy.eviction.return_times`). Every class is a list in order of use, so that the worst of it is its
oldest, and the worst of those goes. It must be one that leaf-LRU would not have, or one that may be risked
(:mod:`kvtier.policy.eviction.lru_shadow`); else the oldest of all goes, as in leaf-LRU.

Blocks on which a server has said something, and those that come with an old clock, are in pools instead, by priority:
the worst of some drawn at random stands for a pool.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

from kvtier.policy.base import Hint
from kvtier.policy.eviction.idmap import NONE, column
from kvtier.policy.eviction.leaves import LeafPolicy
from kvtier.policy.eviction.lists import Lists
from kvtier.policy.eviction.lru_shadow import LruShadow
from kvtier.policy.eviction.pools import POOL, Pools
from kvtier.policy.eviction.return_times import AGES, CLASSES, ReturnTimes
from kvtier.policy.eviction.table import BlockTable
from kvtier.policy.eviction.use_memory import UseMemory

_END, _FIRST, _MORE, _AGAIN = 0, 1, 2, 3  # classes; from the last one on, by uses
_LAST = CLASSES - 1
_LISTS = POOL + 1  # the heads, by class
_RUN = 8  # victims of one list before lists are compared again
_DRAWN = 32  # of a pool at once
_KEPT = 4  # of those, how many go
_ENDED = -128  # a level below all priorities
_LEAST_PERIOD = 2048  # ticks between two lessons
_SAMPLE_MIN = 64  # blocks
_RATE = 8  # one block in so many is sampled, in all but small tiers
_MEMORY = 4  # cells a block
_GROUP = 16  # victims at once, at most
_SAMPLE_BITS = 11  # of a table of samples, at least where the tier has as many blocks
_NEVER = 1 << 63
_COST = 64  # of computing a block, in what each block before it adds
_DEPTH_MAX = (1 << 16) - 1
_LATEST = 4e9  # tenths of a second


class _Victim(NamedTuple):
    worth: float
    clock: int
    slot: int


class HitDensity(LeafPolicy):
    """See the module. ``now``: the clock, in seconds, that :attr:`Hint.returns_at` is of."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._began = self._learned_at = now()
        self._lists = Lists()
        self._clocks = column("Q")
        self._classes = column("B")
        self._levels = column("b")  # priority; ended
        self._dues = column("I")  # tenths of a second after `began`, from 1; 0: not known
        self._depths = column("H")  # in blocks; from the first ancestor that was there when it came
        lists = self._lists
        columns = (lists.before, lists.after, self._clocks, self._classes, self._levels, self._dues, self._depths)
        super().__init__(BlockTable(columns, reserved=_LISTS + CLASSES))
        for class_ in range(CLASSES):
            self._lists.open(_LISTS + class_)
        self._pools = Pools(self._lists)  # by level; leaves only
        self._times = ReturnTimes()
        self._shadow = LruShadow()
        self._memory = UseMemory()
        self._capacity = 0
        self._clock = self._learned_clock = 0
        self._next_learn = _LEAST_PERIOD
        self._tick_rate = 0.0
        self._mask = 0  # of ids: what has none of its bits is sampled
        self._head = self._run = self._until = 0  # the list that victims are taken of, how many more, up to which clock
        self._in_order = False  # whether that is because it has the oldest
        self._group: list[int] = []  # came in, and has no place yet
        self._drawn: list[_Victim] = []  # next victims of the pool

    @property
    def nbytes(self) -> int:
        return sum(each.nbytes for each in (self._table, self._pools, self._times, self._shadow, self._memory))

    def hint(self, block: int, hint: Hint) -> None:
        slot = self._table.find(block)
        if not slot:
            return
        if self._group:
            self._place_group()
        level = _ENDED if hint.ended else max(-100, min(100, hint.priority))
        due = 0
        if hint.returns_at is not None:
            due = int(max(1.0, min(_LATEST, (hint.returns_at - self._began) * 10)))
        self._dues[slot] = due
        if self._levels[slot] != level or (due and self._lists.after[slot] > POOL):
            self._take(slot)
            self._levels[slot] = level
            if not self._table.pins[slot]:
                self._pools.put(slot, level)

    def pop(self) -> int | None:
        if not 0 <= self._capacity - len(self) <= max(_GROUP, self._capacity >> 4):  # victims go before others come
            self._capacity = len(self)
            self._shadow.resize(self._capacity)
            self._memory.grow(_MEMORY * self._capacity)
        return super().pop()

    def remove(self, block: int) -> None:
        slot = self._table.find(block)
        if slot:
            if self._group:
                self._place_group()
            self._shadow.removed(self._clocks[slot])
        super().remove(block)

    # algorithm

    def _place(self, slot: int, clock: int, nbytes: int) -> None:
        """Blocks that come in one behind the other, end first, are a group, which is placed as a whole."""
        table = self._table
        if self._group and table.parents[self._group[-1]] != slot:
            self._place_group()
        group = self._group
        self._clocks[slot] = clock
        self._levels[slot] = self._dues[slot] = 0
        self._classes[slot] = _FIRST if group or table.pins[slot] else _END
        group.append(slot)
        parent = table.parents[slot]
        if not parent or table.here[parent]:
            self._place_group()

    def _place_group(self) -> None:
        table, classes, clocks, mask = self._table, self._classes, self._clocks, self._mask
        group, self._group = self._group, []
        first, parent, depth = _FIRST, table.parents[group[-1]], len(group)
        latest = clocks[group[-1]]
        is_late = latest <= self._clock
        self._clock = max(self._clock, latest)
        if parent and table.here[parent]:
            if classes[parent] == _END:
                self._extended(parent)
            elif classes[parent] >= _AGAIN:
                first = _MORE
            if latest - len(self) < clocks[parent] < latest:  # used by the same request: what extends it goes first
                latest = clocks[parent]
            depth += self._depths[parent]
        for slot in group:
            self._depths[slot] = min(depth, _DEPTH_MAX)
            depth -= 1
            block = table.ids[slot]
            uses = self._memory.recall(block)
            class_ = _END if classes[slot] == _END else first
            if uses:
                class_ = min(_AGAIN + uses - 1, _LAST)
            since = min(clocks[slot], latest)
            classes[slot], clocks[slot] = class_, since
            self._shadow.came(block, since, self._clock)
            if not block & mask:
                self._times.note(block, since, class_)
            if not is_late:
                self._lists.link(slot, _LISTS + class_)
            elif not table.pins[slot]:
                self._pools.put(slot, 0)
        self._shadow.trim()
        if self._clock >= self._next_learn:
            self._learn()

    def _extended(self, slot: int) -> None:
        """A block that was the end of a request is not."""
        self._classes[slot] = _FIRST
        if self._lists.after[slot] > POOL:
            self._lists.unlink(slot)
            self._lists.link(slot, _LISTS + _FIRST)
        if not self._table.ids[slot] & self._mask:
            self._times.correct(self._table.ids[slot], _FIRST)

    def _use(self, slot: int, clock: int) -> None:
        if self._group:
            self._place_group()
        shadow, clocks, classes = self._shadow, self._clocks, self._classes
        since = clocks[slot]
        if since >= shadow.recent:
            shadow.hits += 1
        else:
            shadow.used(since, clock)
            if not self._table.parents[slot]:
                shadow.trim()
        clocks[slot] = self._clock = clock
        class_ = classes[slot]
        if class_ != _LAST:
            class_ = class_ + 1 if class_ >= _AGAIN else _AGAIN
            classes[slot] = class_
        block = self._table.ids[slot]
        if not block & self._mask:
            self._times.note(block, clock, class_)
        before, after = self._lists.before, self._lists.after
        if (next_ := after[slot]) > POOL:  # unlink and link, in place: most calls of a policy end here
            prev = before[slot]
            after[prev], before[next_] = next_, prev
        elif self._levels[slot] or self._dues[slot] or next_:
            self._use_advised(slot)
            return
        head = _LISTS + class_
        last = before[head]
        before[slot], after[slot] = last, head
        after[last] = before[head] = slot

    def _use_advised(self, slot: int) -> None:
        """What was said of a block holds until it is used, but for its priority."""
        self._take(slot)
        self._dues[slot] = 0
        if self._levels[slot] == _ENDED:
            self._levels[slot] = 0
        if not self._levels[slot]:
            self._lists.link(slot, _LISTS + self._classes[slot])
        elif not self._table.pins[slot]:
            self._pools.put(slot, self._levels[slot])

    def _is_in_order(self, slot: int) -> bool:
        if self._group:
            self._place_group()
        return self._lists.after[slot] != NONE

    def _take(self, slot: int) -> None:
        """Out of its list or pool, if it is in one."""
        if self._lists.after[slot] == POOL:
            self._pools.take(slot, self._levels[slot])
        elif self._lists.after[slot]:
            self._lists.unlink(slot)

    def _back(self, slot: int) -> None:
        if not self._levels[slot] and not self._dues[slot]:
            head = _LISTS + self._classes[slot]
            first = self._lists.after[head]
            if first == head or self._clocks[slot] <= self._clocks[first]:
                self._lists.link(slot, first)
                return
        self._pools.put(slot, self._levels[slot])

    def _gone(self, slot: int) -> None:
        self._memory.store(self._table.ids[slot], max(1, self._classes[slot] - _AGAIN + 2))

    # victims

    def _candidate(self) -> int:
        if self._group:
            self._place_group()
        slot = self._next() or self._choose()
        if slot:
            advised = self._levels[slot] != 0 or self._dues[slot] != 0
            self._shadow.gone(
                self._table.ids[slot], self._clocks[slot], in_order=self._in_order and not advised, advised=advised
            )
            self._take(slot)
        return slot

    def _next(self) -> int:
        """Another one from where the last victim was; :data:`NONE`: choose anew."""
        pins, clocks, after = self._table.pins, self._clocks, self._lists.after
        while self._drawn:
            _, clock, slot = self._drawn.pop()
            if after[slot] == POOL and clocks[slot] == clock and not pins[slot]:
                return slot
        if self._run:
            self._run -= 1
            slot = after[self._head]
            may_go = self._in_order or clocks[slot] < self._shadow.edge or self._shadow.can_risk()
            if slot != self._head and not pins[slot] and clocks[slot] <= self._until and may_go:
                return slot
            self._run = 0
        return NONE

    def _choose(self) -> int:
        """The lowest level first; of the usual one, the worst that may go."""
        self._in_order = False
        self._shadow.trim()
        trusts = self._shadow.balance > 0
        levels = self._pools.levels()
        for level in levels:
            if level < 0 and (trusts or level != _ENDED) and (slot := self._worst_of(self._sample(level))):
                return slot
        if slot := self._choose_usual(trusts):
            return slot
        for level in levels:
            if level > 0 and (slot := self._worst_of(self._sample(level))):
                return slot
        return NONE

    def _choose_usual(self, trusts: bool) -> int:
        """Of the lists and the pool without priority: the worst if it may go, else the oldest."""
        worst = oldest = _Victim(math.inf, _NEVER, NONE)
        until = _NEVER  # the second oldest
        clocks, clock, worth = self._clocks, self._clock, self._times.worth
        for class_ in range(CLASSES):
            if slot := self._first(_LISTS + class_):
                since = clocks[slot]
                found = _Victim(worth[class_ * AGES + (clock - since).bit_length()], since, slot)
                if found < worst:
                    worst = found
                if since < oldest.clock:
                    oldest, until = found, oldest.clock
                elif since < until:
                    until = since
        drawn = self._sample(0) if trusts else self._sample(0) + self._sample(_ENDED)
        if drawn:
            worst = min(worst, drawn[0])
            first = min(drawn, key=lambda victim: victim.clock)
            if first.clock < oldest.clock:
                oldest, until = first, oldest.clock
            else:
                until = min(until, first.clock)
        if worst.slot and not self._may_go(worst, trusts):
            worst = oldest
        if self._lists.after[worst.slot] == POOL:
            return self._worst_of(drawn) if worst is drawn[0] else worst.slot
        self._in_order = worst.slot == oldest.slot
        self._head, self._run = _LISTS + self._classes[worst.slot], _RUN
        self._until = until if self._in_order else _NEVER
        return worst.slot

    def _may_go(self, victim: _Victim, trusts: bool) -> bool:
        if victim.clock < self._shadow.edge:
            return True
        return trusts if self._dues[victim.slot] else self._shadow.can_risk()

    def _first(self, head: int) -> int:
        """The oldest leaf of a list; what is older and no leaf is parked."""
        lists, pins = self._lists, self._table.pins
        slot = lists.first(head)
        while pins[slot]:
            lists.unlink(slot)
            slot = lists.first(head)
        return slot

    def _sample(self, level: int) -> list[_Victim]:
        """Some of a pool, the worst first; held ones are parked."""
        pins, clocks = self._table.pins, self._clocks
        victims: list[_Victim] = []
        while not victims and (drawn := self._pools.draw(level, _DRAWN)):
            for slot in drawn:
                if pins[slot]:
                    self._take(slot)
                else:
                    victims.append(_Victim(self._worth(slot), clocks[slot], slot))
        victims.sort()
        return victims

    def _worst_of(self, drawn: list[_Victim]) -> int:
        """The first, if there is one; some that come after it are the next victims, if there were many to draw from."""
        self._drawn = drawn[1:_KEPT][::-1] if len(drawn) > _DRAWN // 2 else []
        return drawn[0].slot if drawn else NONE

    # worth

    def _worth(self, slot: int) -> float:
        """Hits a tick."""
        age = self._clock - self._clocks[slot]
        if self._dues[slot]:
            return self._due_worth(slot, age)
        return self._times.worth[self._classes[slot] * AGES + age.bit_length()] if age > 0 else math.inf

    def _due_worth(self, slot: int, age: int) -> float:
        """Of a block that is expected, by its cost; one that is late is worth less the later it is."""
        ticks = (self._dues[slot] - (self._now() - self._began) * 10) * self._tick_rate / 10
        if ticks < age * 0.5:
            ticks = max(age * 0.5, -2 * ticks)
        return (1 + self._depths[slot] / _COST) / max(ticks, 1.0)

    def _learn(self) -> None:
        """Bring worths, the sampling rate and the speed of the clock up to date."""
        now = self._now()
        if now > self._learned_at:
            self._tick_rate = (self._clock - self._learned_clock) / (now - self._learned_at)
        self._learned_at, self._learned_clock = now, self._clock
        size = len(self)
        self._times.grow(min(_SAMPLE_BITS, size.bit_length()) if size <= 16 << _SAMPLE_BITS else size.bit_length() - 4)
        rate = 1
        while size > 2 * _SAMPLE_MIN * rate and rate < _RATE:
            rate *= 2
        if rate - 1 > self._mask:
            self._mask = rate - 1
            self._times.thin(self._mask)
        self._times.learn(self._clock)
        self._next_learn = self._clock + max(size, _LEAST_PERIOD)
