"""The two byte planes of a value: its bytes at odd offsets (the high halves of 16-bit numbers), and those at even ones.

With NumPy, where it is installed, merging is several times as quick, and other Python threads go on meanwhile; it is
imported when the first value is split or merged, or by :func:`prepare`. Without it, slices do the same.

Threads: any.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from kvtier.blocks import Buffer


@cache
def _numpy() -> Any:
    """The module, or None."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


def prepare() -> None:
    """Import what is needed, so that the first value need not wait for it."""
    _numpy()


def split(value: Buffer) -> tuple[Buffer, Buffer]:
    """The high and the low plane of ``n`` bytes: copies of ``n // 2`` and ``(n + 1) // 2`` bytes."""
    np = _numpy()
    if np is None:
        whole = value if isinstance(value, bytes) else bytes(value)
        return whole[1::2], whole[0::2]
    view = memoryview(value)
    half = view.nbytes // 2
    numbers = np.frombuffer(view[: 2 * half], "<u2")
    high, low = np.empty(half, np.uint8), np.empty(view.nbytes - half, np.uint8)
    np.right_shift(numbers, 8, out=high, casting="unsafe")
    np.copyto(low[:half], numbers, casting="unsafe")
    memoryview(low)[half:] = view[2 * half :]
    return memoryview(high), memoryview(low)


def merge(high: memoryview, low: memoryview, value: memoryview) -> None:
    """Fill ``value``, of ``2 * n`` bytes, from ``n`` bytes of either plane."""
    np = _numpy()
    if np is None:
        both = bytearray(value.nbytes)
        both[1::2] = high
        both[0::2] = low
        value[:] = both
        return
    numbers = np.frombuffer(value, "<u2")
    np.left_shift(np.frombuffer(high, np.uint8), 8, out=numbers, dtype="<u2")
    np.bitwise_or(numbers, np.frombuffer(low, np.uint8), out=numbers)
