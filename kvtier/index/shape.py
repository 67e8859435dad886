"""Numbers as narrow as may be, of 1, 2, 4 or 8 bytes each, and the *shape* that says how wide: two bits for each."""

from __future__ import annotations

from collections.abc import Iterable

_CODES = "BHIQ"
_WIDTHS = (0,) * 9 + (1,) * 8 + (2,) * 16 + (3,) * 32  # by length in bits


def shape_of(numbers: Iterable[int]) -> int:
    """The narrowest one, the first number in its lowest bits. :class:`IndexError` if a number has more than 64 bits."""
    shape = at = 0
    for number in numbers:
        shape |= _WIDTHS[number.bit_length()] << at
        at += 2
    return shape


def codes_of(shape: int, count: int) -> list[str]:
    """How :mod:`struct` calls so many numbers."""
    return [_CODES[shape >> 2 * i & 3] for i in range(count)]
