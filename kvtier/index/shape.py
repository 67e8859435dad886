"""Numbers as narrow as may be, of 1, 2, 4 or 8 bytes each, and the *shape* that says how wide: two bits for each."""

from __future__ import annotations

_CODES = "BHIQ"
_WIDTHS = (0,) * 9 + (1,) * 8 + (2,) * 16 + (3,) * 32  # by length in bits


def shape_of(a: int, b: int, c: int, d: int, e: int, f: int = 0) -> int:
    """The narrowest one, the first number in its lowest bits. :class:`IndexError` if a number has more than 64 bits."""
    low = _WIDTHS[a.bit_length()] | _WIDTHS[b.bit_length()] << 2 | _WIDTHS[c.bit_length()] << 4
    return low | _WIDTHS[d.bit_length()] << 6 | _WIDTHS[e.bit_length()] << 8 | _WIDTHS[f.bit_length()] << 10


def codes_of(shape: int, count: int) -> list[str]:
    """How :mod:`struct` calls so many numbers."""
    return [_CODES[shape >> 2 * i & 3] for i in range(count)]
