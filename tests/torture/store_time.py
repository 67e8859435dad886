"""What time it is for a store, by which its blocks expire: kept beside it, from what it has promised of clocks."""

from __future__ import annotations

from tests.torture.simulated import SimulatedClock

_CLOSED_S_MAX = 7 * 86_400.0
_SECONDS_MAX = float((1 << 32) - 1)


class StoreTime:
    """While the store is open it passes by the monotonic clock; from the last commit to the next opening by the wall
    clock, not backwards, and by seven days at most. Which commit is the last is not always known after a crash."""

    def __init__(self, clock: SimulatedClock) -> None:
        self._clock = clock
        self._start = self._since = 0.0
        self._last = {0}  # what the last commit may have saved; 0: there is none
        self._before = {0}  # and the one before it

    def now(self) -> float:
        return self._start + (self._clock.monotonic() - self._since)

    def after(self, ttl: float) -> int:
        """When a block expires that lives for so many seconds; 0: for ever."""
        return int(min(-(-(self.now() + ttl) // 1), _SECONDS_MAX)) if ttl else 0

    # -- commits ------------------------------------------------------------------------------------

    def may_commit(self) -> None:
        """A commit begins."""
        self._before = set(self._last)
        self._last.add(int(self.now()))

    def committed(self) -> None:
        self._last = {int(self.now())}

    def lost_the_last_commit(self) -> None:
        """It may be lost."""
        self._last |= self._before

    def lost_the_index(self) -> None:
        self._last = {0}

    # -- openings -----------------------------------------------------------------------------------

    def may_have_opened(self) -> None:
        """An opening may have committed something, or nothing: then the commit before it is still the last."""
        self._before |= self._last
        self._last |= {int(self._opened_at(last)) for last in self._last}

    def opened(self, store_now: float) -> None:
        """The store says what time it is, which has to be one of the possible times."""
        possible = {last: self._opened_at(last) for last in self._last}
        assert store_now in possible.values(), f"{store_now}, not one of {sorted(possible.values())}"
        self._before |= self._last  # as above
        self._last = {last for last, then in possible.items() if then == store_now} | {int(store_now)}
        self._start, self._since = store_now, self._clock.monotonic()

    def _opened_at(self, last: int) -> float:
        wall = min(max(self._clock.time(), 1.0), _SECONDS_MAX)
        return min(max(wall, float(last)), last + _CLOSED_S_MAX) if last else wall
