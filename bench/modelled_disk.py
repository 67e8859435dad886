"""A hard disk as a formula: a read takes the way of the head, unless it goes on where the last one ended, and then its
bytes.

It stands in the place of the store's file system. Its own clock, ``busy_s``, says how long such a disk would have been
busy, whatever the machine under it: the same in every run. With ``sleeps`` a read also takes that time.
One read at a time, as there is one head.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from kvtier.fs import OsFileSystem

BYTES_PER_S = 160_000_000
SEEK_S = 0.010
_PAGE = 4096


class ModelledDisk(OsFileSystem):
    """Segments in ``folder`` are on the hard disk; everything else is as quick as it is. Thread-safe."""

    def __init__(
        self, folder: Path, *, sleeps: bool = False, bytes_per_s: float = BYTES_PER_S, seek_s: float = SEEK_S
    ) -> None:
        super().__init__()
        self._folder = os.path.join(folder, "")
        self._sleeps = sleeps
        self._bytes_per_s = bytes_per_s
        self._seek_s = seek_s
        self._lock = threading.Lock()
        self._slow: dict[int, str] = {}
        self._head: tuple[str, int] = ("", 0)
        self.reads = self.seeks = self.bytes_read = 0
        self.busy_s = 0.0

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        fd = super().open(path, create=create, write=write)
        if path.startswith(self._folder):
            self._slow[fd] = path
        return fd

    def close(self, fd: int) -> None:
        self._slow.pop(fd, None)
        super().close(fd)

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        path = self._slow.get(fd)
        if path is None:
            return super().read_at(fd, buffers, offset)
        with self._lock:
            count = super().read_at(fd, buffers, offset)
            way_s = self._way_s(path, offset)
            took = way_s + count / self._bytes_per_s
            self._head = path, offset + count
            self.reads += 1
            self.seeks += way_s >= self._seek_s
            self.bytes_read += count
            self.busy_s += took
            if self._sleeps:
                time.sleep(took)
            return count

    def _way_s(self, path: str, offset: int) -> float:
        """Until the head is there: over a short gap it waits for the disk to turn.

        The page that was read last, with the rest of which the next read may begin, is in the drive's memory.
        """
        gap = offset - self._head[1]
        if path != self._head[0] or gap < -_PAGE:
            return self._seek_s
        return min(self._seek_s, max(0, gap) / self._bytes_per_s)
