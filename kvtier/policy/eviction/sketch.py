"""How often ids were seen lately, roughly."""

from __future__ import annotations

_ROWS = 4
_WIDTH_MIN = 64
_COUNT_MAX = 255
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)
_SHIFT = 32
_HALVES = bytes(i >> 1 for i in range(256))


class Sketch:
    """A count-min sketch with conservative update and 8-bit counters, which are halved at times so that it forgets.

    Sources: G. Cormode, S. Muthukrishnan, "An improved data stream summary: the count-min sketch and its applications",
    J. Algorithms 55(1), 2005; C. Estan, G. Varghese, "New directions in traffic measurement and accounting", SIGCOMM
    2002 (conservative update); Einziger et al. (see :mod:`kvtier.policy.eviction.w_tinylfu`; halving).
    """

    def __init__(self) -> None:
        self._mask = _WIDTH_MIN - 1
        self._rows = [bytearray(_WIDTH_MIN) for _ in range(_ROWS)]

    @property
    def nbytes(self) -> int:
        return sum(row.__sizeof__() for row in self._rows)

    @property
    def width(self) -> int:
        return self._mask + 1

    def add(self, key: int) -> None:
        """One more of ``key``."""
        least = _COUNT_MAX
        cells = []
        for row, multiplier in zip(self._rows, _MULTIPLIERS, strict=True):
            at = key * multiplier >> _SHIFT & self._mask
            cells.append((row, at))
            if row[at] < least:
                least = row[at]
        if least < _COUNT_MAX:
            for row, at in cells:
                if row[at] == least:
                    row[at] += 1

    def count(self, key: int) -> int:
        """How many there were of ``key``: too many, if others fell on the same counters."""
        pairs = zip(self._rows, _MULTIPLIERS, strict=True)
        return min(row[key * multiplier >> _SHIFT & self._mask] for row, multiplier in pairs)

    def halve(self) -> None:
        """Halve all counts."""
        self._rows = [row.translate(_HALVES) for row in self._rows]

    def widen(self) -> None:
        """Twice as many counters; what has been counted is not lost."""
        self._rows = [row + row for row in self._rows]
        self._mask = self._mask << 1 | 1
