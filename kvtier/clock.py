"""Injected time: wall time for people, monotonic time for back-off; recency uses neither.

Recency is a logical counter kept by the index, so that a clock that jumps cannot reorder it.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Where the store gets its time from; tests inject their own."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""

    def time(self) -> float:
        """Seconds since 1970 (UTC); may jump."""


class SystemClock:
    """The operating system's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def time(self) -> float:
        return time.time()
