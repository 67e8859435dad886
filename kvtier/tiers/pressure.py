"""How much the RAM tier may use while memory is short.

Its cap follows what is available above the floor: down at once, so that memory is given back when it falls below; up
again only after a while in which it did not, and slowly.

Threads: one at a time.
"""

from __future__ import annotations

from collections.abc import Callable

from kvtier.clock import Clock
from kvtier.events import RamGrown, RamShrunk, Signals
from kvtier.memory import Memory

_CALM_S = 10.0
_STEPS_UP = 32  # to grow from nothing to the whole cap


class Pressure:
    """See the module."""

    def __init__(
        self,
        bytes_max: int,
        floor: Callable[[int], int],
        ask: Callable[[], Memory],
        signals: Signals,
        clock: Clock,
    ) -> None:
        """``floor``: how much of so much memory has to stay available. ``ask`` raises :class:`OSError` if it is not
        known."""
        self._bytes_max = bytes_max
        self._floor = floor
        self._ask = ask
        self._signals = signals
        self._clock = clock
        self._short_at = 0.0
        self._is_short = False
        self._cap = bytes_max

    def look(self, used: int) -> int:
        """Ask how much is available; the cap from now on, for a tier that uses ``used`` bytes."""
        try:
            total, available = self._ask()
        except OSError:  # nothing shrinks for what is not known
            self._signals.count("memory_errors")
            return self._cap
        left = available - self._floor(total)
        self._cap = max(0, min(self._bytes_max, used + left, self._highest(left)))
        if self._is_short and self._cap >= self._bytes_max:
            self._is_short = False
            self._signals.emit(RamGrown())
        elif left < 0 and not self._is_short:
            self._is_short = True
            self._signals.count("ram_shrunk")
            self._signals.emit(RamShrunk(self._cap, available))
        return self._cap

    def _highest(self, left: int) -> int:
        """What the cap may rise to, with ``left`` bytes available above the floor."""
        now = self._clock.monotonic()
        if left < 0:
            self._short_at = now
        if not self._is_short:
            return self._bytes_max
        is_calm = not 0 <= now - self._short_at < _CALM_S
        return self._cap + is_calm * max(1, self._bytes_max // _STEPS_UP)
