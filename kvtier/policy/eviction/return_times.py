"""How soon blocks of a class are used again, learned from a sample, and what it is worth to keep them for it.

A sample is a block's last use. Samples live in a direct-mapped table by block id, whether the block is in the tier or
not: one ends when its block is used again (a *return*), or when another takes its place, which says no more than that
it had not come back so far. Counted are, for each class and age, the samples that came to it and those that returned
before it had doubled, of late more than of old: a life table. The worth of a block is then its Gittins index (J. C.
Gittins, "Bandit Processes and Dynamic Allocation Indices", 1979): the most hits a tick that keeping it for some time
gives, a return being one hit. It is the hit density of LHD (N. Beckmann, H. Chen, A. Cidon, NSDI 2018) with the best
time to give up instead of the average one.
"""

from __future__ import annotations

from array import array

CLASSES = 9
AGES = 64  # an age is told by its number of bits
_DECAY = 0.97  # of what was counted, at every lesson
_TRUST = 4.0  # returns a class must show to count as much as all classes together do for it
_USUAL = 0.5  # the share that comes back, before anything is known: older is worse, as in LRU
_LEAST_BITS = 8


class ReturnTimes:
    """See the module. ``worth[class * AGES + age.bit_length()]`` is up to date as of the last :meth:`learn`."""

    def __init__(self) -> None:
        self.worth = array("f", bytes(4 * CLASSES * AGES))
        self._returns = array("f", bytes(4 * CLASSES * AGES))
        self._entered = array("f", bytes(4 * CLASSES * AGES))
        self._learned = 0
        self._make(_LEAST_BITS)
        self.learn(0)

    @property
    def nbytes(self) -> int:
        """Memory of the arrays."""
        tables = (self._ids, self._clocks, self._classes, self.worth, self._returns, self._entered)
        return sum(each.__sizeof__() for each in tables)

    def note(self, block: int, clock: int, class_: int) -> None:
        """``block`` is used, and of this class from now on."""
        at = self._at(block)
        if since := self._clocks[at]:
            before = self._classes[at]
            self._enter(since, clock, before)
            cell = before * AGES + (clock - since).bit_length()
            if self._ids[at] == block:
                self._returns[cell] += 1
            else:
                self._entered[cell] -= 0.5  # it was there for half of that age, as far as anybody knows
        self._ids[at], self._clocks[at], self._classes[at] = block, clock, class_

    def _enter(self, since: int, clock: int, class_: int) -> None:
        """Count the ages that a sample has come to since the last time."""
        row = class_ * AGES
        known = self._learned - since
        first = known.bit_length() + 1 if known >= 0 else 0
        for age in range(row + first, row + (clock - since).bit_length() + 1):
            self._entered[age] += 1

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

    def learn(self, clock: int) -> None:
        """Bring ``worth`` up to date."""
        for since, class_ in zip(self._clocks, self._classes, strict=True):
            if since:
                self._enter(since, clock, class_)
        self._learned = clock
        ages = min(AGES, clock.bit_length() + 1)  # no sample is older
        rows = [slice(c * AGES, c * AGES + ages) for c in range(CLASSES)]
        came = [self._entered[r].tolist() for r in rows]
        back = [self._returns[r].tolist() for r in rows]
        usual = _shares(
            [sum(each) for each in zip(*back, strict=True)],
            [sum(each) for each in zip(*came, strict=True)],
            [_USUAL] * ages,
        )
        for row, returned, entered in zip(rows, back, came, strict=True):
            self.worth[row] = array("f", _worths(_shares(returned, entered, usual)))
        for table in (self._returns, self._entered):
            for row in rows:
                table[row] = array("f", [number * _DECAY for number in table[row]])

    def _make(self, bits: int) -> None:
        self._bits = bits
        self._ids = array("Q", bytes(8 << bits))
        self._clocks = array("Q", bytes(8 << bits))
        self._classes = array("B", bytes(1 << bits))

    def _at(self, block: int) -> int:
        return (block * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF) >> (64 - self._bits)


def _shares(back: list[float], came: list[float], usual: list[float]) -> list[float]:
    """By age: of those that get there, the share that is back before the next."""
    return [min(1.0, (b + _TRUST * u) / (max(c, b) + _TRUST)) for b, c, u in zip(back, came, usual, strict=True)]


def _worths(shares: list[float]) -> list[float]:
    """By age: the most hits a tick, over all times to give up.

    Times to give up further off than nine doublings of the age are not looked at.
    """
    worths = []
    for first in range(len(shares)):
        alive, hits, ticks, best, width = 1.0, 0.0, 0.0, 0.0, (1 << first) / 2
        for share in shares[first : first + 9]:
            back = alive * share
            hits += back
            ticks += (alive - back / 2) * width
            alive -= back
            width += width
            if hits > best * ticks:
                best = hits / ticks
        worths.append(best)
    return worths
