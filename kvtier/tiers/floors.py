"""Which tiers share a disk: those keep its floor together."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kvtier.clock import Clock
from kvtier.events import Signals
from kvtier.fs import FileSystem
from kvtier.tiers.disk import DiskTier
from kvtier.tiers.room import Disk, Floor
from kvtier.units import nearest_existing


def keep_floors(tiers: Sequence[tuple[DiskTier, int]], fs: FileSystem, clock: Clock, signals: Signals) -> None:
    """Have each tier leave so many bytes of its disk free."""
    disks: dict[int | str, Disk] = {}
    for tier, free_bytes_min in tiers:
        name = _disk_of(tier.setup.folder)
        if name not in disks:
            disks[name] = Disk(_asker(fs, tier.setup.folder), clock, signals)
        tier.room.floor = Floor(disks[name], free_bytes_min)
        disks[name].add(_user(tier))


def _disk_of(folder: str) -> int | str:
    try:
        return os.stat(nearest_existing(Path(folder))).st_dev
    except OSError:
        return folder


def _asker(fs: FileSystem, folder: str) -> Callable[[], int]:
    return lambda: fs.disk_free(folder)


def _user(tier: DiskTier) -> Callable[[], int]:
    return lambda: tier.disk_bytes
