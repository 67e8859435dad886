"""How soon blocks of a class are used again, learned from a sample, and what it is worth to keep them for it.

A sample is a block's last use. Samples live in a direct-mapped table by block id, whether the block is in the tier or
not: one ends when its block is used again (a *return*), or when another takes its place, which says no more than that
it had not come back so far. From both follows, for each class and age, the share that comes back before its age has
doubled (a life table). The worth of a block is then its Gittins index (J. C. Gittins, "Bandit Processes and Dynamic
Allocation Indices", 1979): the most hits a tick that keeping it for some time gives, a return being one hit. It is the
hit density of LHD (N. Beckmann, H. Chen, A. Cidon, NSDI 2018) with the best time to give up instead of the average one.
"""

from __future__ import annotations

import math
from array import array

CLASSES = 32
AGES = 64  # an age is told by its number of bits
_DECAY = 0.9  # of what was learned, each time more is
_TRUST = 4.0  # returns a class must show to count as much as all classes together do for it
_USUAL = 0.5  # the share that comes back, before anything is known: older is worse, as in LRU
_LEAST_BITS = 8


class ReturnTimes:
    """See the module. ``worth[class * AGES + age.bit_length()]`` is up to date as of the last :meth:`learn`."""

    def __init__(self) -> None:
        self.worth = array("f", bytes(4 * CLASSES * AGES))
        self._returns = array("f", bytes(4 * CLASSES * AGES))
        self._losses = array("f", bytes(4 * CLASSES * AGES))
        self._make(_LEAST_BITS)
        self.learn(0)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        tables = (self._ids, self._clocks, self._classes, self.worth, self._returns, self._losses)
        return sum(each.__sizeof__() for each in tables)

    def recall(self, block: int) -> int:
        """The class of the sampled use of ``block``; -1: none."""
        at = self._at(block)
        return self._classes[at] if self._ids[at] == block else -1

    def note(self, block: int, clock: int, class_: int) -> int:
        """``block`` is used, and of this class from now on. Returns the ticks since its last use; -1: not known."""
        at, age = self._at(block), -1
        if self._clocks[at]:
            past = clock - self._clocks[at]
            cell = self._classes[at] * AGES + past.bit_length()
            if self._ids[at] == block:
                self._returns[cell] += 1
                age = past
            else:
                self._losses[cell] += 1
        self._ids[at], self._clocks[at], self._classes[at] = block, clock, class_
        return age

    def correct(self, block: int, class_: int) -> None:
        """The last use of ``block`` was of another class than noted."""
        at = self._at(block)
        if self._ids[at] == block:
            self._classes[at] = class_

    def grow(self, bits: int) -> None:
        """Room for ``1 << bits`` samples, if there is less."""
        if bits > self._bits:
            old = zip(self._ids, self._clocks, self._classes, strict=True)
            self._make(bits)
            for block, clock, class_ in old:
                at = self._at(block)
                self._ids[at], self._clocks[at], self._classes[at] = block, clock, class_

    def thin(self, mask: int) -> None:
        """Forget the samples of blocks whose ids have a bit of ``mask``."""
        for at, block in enumerate(self._ids):
            if block & mask:
                self._ids[at] = self._clocks[at] = 0

    def newest(self, count: int) -> int:
        """The clock of the ``count``-th youngest sample; 0 if there are fewer."""
        room = len(self._clocks)
        left = int(room * (1 - math.exp(-count / room)))  # what others have not replaced
        return sorted(self._clocks, reverse=True)[min(left, room - 1)]

    def learn(self, clock: int) -> None:
        """Bring ``worth`` up to date."""
        waiting = array("f", bytes(4 * CLASSES * AGES))
        for since, class_ in zip(self._clocks, self._classes, strict=True):
            if since:
                waiting[class_ * AGES + (clock - since).bit_length()] += 1
        rows = [slice(c * AGES, (c + 1) * AGES) for c in range(CLASSES)]
        lost = [[x + y for x, y in zip(self._losses[r], waiting[r], strict=True)] for r in rows]
        back = [self._returns[r].tolist() for r in rows]
        usual = _shares(
            [sum(each) for each in zip(*back, strict=True)],
            [sum(each) for each in zip(*lost, strict=True)],
            [_USUAL] * AGES,
        )
        usual_worths = array("f", _worths(usual))
        for row, came, stayed in zip(rows, back, lost, strict=True):
            seen = any(came) or any(stayed)
            self.worth[row] = array("f", _worths(_shares(came, stayed, usual))) if seen else usual_worths
        for table in (self._returns, self._losses):
            for cell, number in enumerate(table):
                if number:
                    table[cell] = number * _DECAY

    def _make(self, bits: int) -> None:
        self._bits = bits
        self._ids = array("Q", bytes(8 << bits))
        self._clocks = array("Q", bytes(8 << bits))
        self._classes = array("B", bytes(1 << bits))

    def _at(self, block: int) -> int:
        return (block * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> (64 - self._bits)


def _shares(back: list[float], lost: list[float], usual: list[float]) -> list[float]:
    """By age: of those that get there, the share that is back before the next."""
    shares, at_risk = [0.0] * AGES, 0.0
    for age in range(AGES - 1, -1, -1):
        at_risk += back[age] + lost[age]
        shares[age] = (back[age] + _TRUST * usual[age]) / (at_risk - lost[age] / 2 + _TRUST)
    return shares


def _worths(shares: list[float]) -> list[float]:
    """By age: the most hits a tick, over all times to give up.

    Times to give up further off than nine doublings of the age are not looked at.
    """
    worths = []
    for first in range(AGES):
        alive, hits, ticks, best = 1.0, 0.0, 0.0, 0.0
        for age in range(first, min(AGES, first + 9)):
            back = alive * shares[age]
            hits += back
            ticks += (alive - back / 2) * (1 << age) / 2
            alive -= back
            best = max(best, hits / ticks)
        worths.append(best)
    return worths
