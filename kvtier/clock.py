"""Injected time: wall time for people, monotonic time for back-off; recency uses neither.

Recency is a logical counter kept by the index, so that a clock that jumps cannot reorder it.
"""

from __future__ import annotations

import math
import time
from typing import Protocol

from kvtier.errors import LimitError

_CLOSED_S_MAX = 7 * 86_400.0
_SECONDS_MAX = float((1 << 32) - 1)


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


class StoreTime:
    """Seconds since 1970 as a store counts them, by which blocks expire: they never go back, whatever clocks do.

    While the store is open they pass by the monotonic clock. From its last commit to the next opening they pass by the
    wall clock, but not backwards, and seven days at most: so a wall clock that is wrong can neither keep blocks for
    ever nor take at once what is to live longer than that. Any thread.
    """

    def __init__(self, clock: Clock, last: int = 0) -> None:
        """``last``: the time at the last commit; 0: there was none."""
        self._clock = clock
        wall = min(max(clock.time(), 1.0), _SECONDS_MAX)
        self._start = min(max(wall, float(last)), last + _CLOSED_S_MAX) if last else wall
        self._since = clock.monotonic()
        self._latest = self._start

    def now(self) -> float:
        passed = self._clock.monotonic() - self._since
        self._latest = max(self._latest, self._start + passed)
        return self._latest

    def after(self, ttl: float) -> int:
        """When something expires that lives for ``ttl`` seconds from now; 0 for never, which 0 seconds mean.

        Raises :class:`kvtier.LimitError`.
        """
        if not 0 <= ttl < math.inf:
            raise LimitError(f"ttl must be a number of seconds from 0 on, got {ttl!r}")
        return int(min(math.ceil(self.now() + ttl), _SECONDS_MAX)) if ttl else 0
