"""Time for tests."""

from __future__ import annotations


class HandClock:
    """Time that passes when told to; the wall clock may be set to anything."""

    def __init__(self, wall: float = 1_000_000_000.0, *, now: float = 1000.0) -> None:
        self.now, self.wall = now, wall

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall

    def advance(self, seconds: float) -> None:
        """Let both clocks go on."""
        self.now += seconds
        self.wall += seconds
