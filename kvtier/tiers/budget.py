"""How much may be written to a tier: so many bytes a day, however often the store is opened."""

from __future__ import annotations

import threading

from kvtier.clock import Clock

_DAY_S = 86_400.0


class Budget:
    """A token bucket that fills evenly and holds what a day gives; a tier begins with a full one.

    While the store is open it fills by the monotonic clock. What it held is kept in the index; from then to the next
    opening it fills by the wall clock, whose jumps can give a day's bytes at most and take none away.
    """

    def __init__(self, bytes_a_day: int, clock: Clock) -> None:
        self.bytes_a_day = bytes_a_day
        self._clock = clock
        self._lock = threading.Lock()
        self._left = float(bytes_a_day)
        self._at = clock.monotonic()
        self._told_at: float | None = None

    @property
    def left(self) -> int:
        """Bytes that may be written now; below 0 if more than that were."""
        with self._lock:
            now = self._clock.monotonic()
            self._fill(now - self._at)
            self._at = now
            return int(self._left)

    def spend(self, nbytes: int) -> None:
        """So many were written."""
        with self._lock:
            self._left = max(self._left - nbytes, float(-self.bytes_a_day))

    def resume(self, left: int, when: int) -> None:
        """Go on from what was :attr:`left` at a time of the wall clock, in seconds since 1970."""
        self._left = float(min(left, self.bytes_a_day))
        self._fill(self._clock.time() - when)

    def is_news(self) -> bool:
        """Whether a day has passed since this was asked."""
        now = self._clock.monotonic()
        if self._told_at is not None and 0 <= now - self._told_at < _DAY_S:
            return False
        self._told_at = now
        return True

    def _fill(self, seconds: float) -> None:
        gained = self.bytes_a_day * min(max(seconds, 0.0), _DAY_S) / _DAY_S
        self._left = min(self._left + gained, float(self.bytes_a_day))
