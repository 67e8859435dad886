"""What keeps a store from taking the last memory, and the last space of its disks, from others.

Once a second it looks at what is left, and has the RAM tier and the disk tiers shrink if that is too little.
"""

from __future__ import annotations

from kvtier.back import Back
from kvtier.background.watch import Watch
from kvtier.events import Signals
from kvtier.front import Front
from kvtier.memory import give_back
from kvtier.pool import BufferPool


class Headroom:
    """See the module."""

    def __init__(
        self, front: Front, back: Back | None, pool: BufferPool, signals: Signals, *, background: bool
    ) -> None:
        self._front = front
        self._back = back
        self._pool = pool
        self._signals = signals
        self._watch: Watch | None = None
        if background and (front.ram.pressure is not None or (back is not None and back.has_floors)):
            self._watch = Watch(self.look)

    def look(self) -> bool:
        """Look at memory, and have the worker look at the disks; whether there is more to do soon. One thread at a
        time."""
        if (pressure := self._front.ram.pressure) is not None:
            evicted = self._front.keep_ram_to(pressure.look(self._front.ram.bytes_used))
            self._signals.count("ram_pressure_evictions", evicted)
            self._pool.keep_spare(self._front.ram.cap >= self._front.ram.bytes_max)
            if evicted:
                give_back()  # else the next look would find as little, and evict as much again
        return self._back.look() if self._back is not None else False

    def close(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.stop()
