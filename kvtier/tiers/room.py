"""How much a tier may use of its disk: its cap, or less while others have filled the disk up to the floor.

What counts on a disk is what its tiers have there and what is free, together: only others change that sum. It is asked
for anew once a second, and before every append that may come near the floor; in between, the tiers' own bytes are
accounted for, those of all tiers on the disk. Appends are made one after another, each once its own bytes were found to
fit, so that two tiers do not take the same room. The sum may go down at any time; while a tier is kept below its cap it
goes up again only after a minute in which it did not have to go down further, so that room that comes and goes costs no
more blocks than the first time.

Threads: the store's background worker only, except where it says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from kvtier.clock import Clock
from kvtier.events import Signals, TierGrown, TierShrunk

_ASK_AGAIN_S = 1.0
#: What others may write in that time: with less room than that, each append asks.
_SURE_BYTES = 4 << 30
_CALM_S = 60.0


class NoRoom(Exception):
    """A tier cannot make room: everything in it is held, or the write is larger than its cap."""


class DiskFull(NoRoom):
    """It cannot since others have filled its disk, which :class:`TierShrunk` has told."""


class Disk:
    """The space that the tiers on one disk may count on."""

    def __init__(self, ask: Callable[[], int], clock: Clock, signals: Signals) -> None:
        """``ask``: how many bytes are free."""
        self._ask = ask
        self._clock = clock
        self._signals = signals
        self._tiers: list[Callable[[], int]] = []
        self._sum: int | None = None
        self._asked_at = self._short_at = 0.0
        self.short: set[str] = set()  # the tiers that are kept below their caps

    def add(self, used: Callable[[], int]) -> None:
        """Account for a tier, which has as many bytes there as ``used`` says."""
        self._tiers.append(used)

    def left(self) -> int | None:
        """Bytes that are free, as far as may be counted on; None if it is not known. Any thread."""
        total = self._sum
        return None if total is None else total - self._used()

    def free(self) -> int | None:
        """Bytes that are free at this moment; None if that cannot be had. Any thread."""
        try:
            return self._ask()
        except OSError:
            return None

    def look(self, need: int) -> None:
        """Ask how much is free, unless that is known well enough for one who needs ``need`` bytes."""
        now, left = self._clock.monotonic(), self.left()
        if left is not None and 0 <= now - self._asked_at < _ASK_AGAIN_S and left - need > _SURE_BYTES:
            return
        free = self.free()
        if free is None:  # nothing shrinks for what is not known
            self._signals.count("free_space_errors")
            return
        self._asked_at = now
        self._take(free + self._used(), now)

    def _take(self, total: int, now: float) -> None:
        if self._sum is None or total < self._sum:
            self._sum, self._short_at = total, now
        elif not self.short or not 0 <= now - self._short_at < _CALM_S:
            self._sum = total

    def _used(self) -> int:
        return sum(used() for used in self._tiers)


class Floor(NamedTuple):
    """So much of a disk stays free."""

    disk: Disk
    free_bytes_min: int


class Room:
    """What one tier may use."""

    def __init__(self, name: str, bytes_max: int, signals: Signals) -> None:
        self._name = name
        self._bytes_max = bytes_max
        self._signals = signals
        self.floor: Floor | None = None

    @property
    def has_floor(self) -> bool:
        return self.floor is not None and self.floor.free_bytes_min > 0

    def cap(self, used: int) -> int:
        """The most that the tier may use, of which it uses ``used`` bytes now. Any thread."""
        left = self.floor.disk.left() if self.floor else None
        if self.floor is None or left is None or not self.floor.free_bytes_min:
            return self._bytes_max
        return max(0, min(self._bytes_max, used + left - self.floor.free_bytes_min))

    def missing(self, need: int) -> int:
        """How many bytes its disk has too few above the floor for one who needs ``need``; 0 or less: none."""
        left = self.floor.disk.left() if self.floor and self.has_floor else None
        return 0 if self.floor is None or left is None else need + self.floor.free_bytes_min - left

    def shares_disk(self, other: Room) -> bool:
        return self.floor is not None and other.floor is not None and self.floor.disk is other.floor.disk

    def look(self, used: int, need: int) -> int:
        """:meth:`cap`, of what the disk has now, for one who is about to write ``need`` bytes."""
        if self.floor is None or not self.floor.free_bytes_min:
            return self._bytes_max
        disk, floor = self.floor
        disk.look(need + floor)
        cap = self.cap(used)
        if self.is_short and cap >= self._bytes_max:
            disk.short.remove(self._name)
            self._signals.emit(TierGrown(self._name))
        elif not self.is_short and cap < self._bytes_max and used + need > cap:
            disk.short.add(self._name)
            self._signals.count("tiers_shrunk")
            self._signals.emit(TierShrunk(self._name, cap, disk.left() or 0))
        return cap

    @property
    def is_short(self) -> bool:
        """Whether the tier is kept below its cap. Any thread."""
        return self.floor is not None and self._name in self.floor.disk.short

    def free_bytes(self) -> int | None:
        """What is free on the tier's disk; None if that cannot be had. Any thread."""
        return self.floor.disk.free() if self.floor else None

    def refusal(self, message: str) -> NoRoom:
        """What to raise where there is no room."""
        return DiskFull(f"{message}: others have filled its disk") if self.is_short else NoRoom(message)
