"""How fast something in the background may go."""

from __future__ import annotations

from kvtier.clock import Clock


class Throttle:
    """A token bucket of one second: what was taken beyond what there was has to be waited for, by whoever is next."""

    def __init__(self, bytes_per_s: int, clock: Clock) -> None:
        self._rate = bytes_per_s
        self._clock = clock
        self._left = float(bytes_per_s)
        self._at = clock.monotonic()

    def wait_s(self) -> float:
        """In how many seconds more may be taken; 0: now."""
        now = self._clock.monotonic()
        self._left = min(self._left + max(0.0, now - self._at) * self._rate, float(self._rate))
        self._at = now
        return max(0.0, -self._left / self._rate)

    def take(self, nbytes: int) -> None:
        self._left -= nbytes
