"""The index as another process than its writer reads it."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from kvtier.index import format1
from kvtier.index.data_file import DATA_FILE, looks_cut
from kvtier.index.lmdb_index import LmdbError, LmdbIndex, View
from kvtier.index.schema import Form

_BEING_MADE = "index: it is being made anew"


class FollowingIndex(LmdbIndex):
    """Reads only, and follows the writer: an index that was made anew is another file, and is opened in place of the
    old one as soon as it is complete. What the old one says may be long out of date: until then, nothing is read."""

    def __init__(self, folder: str, *, map_bytes: int, lock: bool) -> None:
        self._lock = lock
        self._file = _file_id(folder)  # before it is opened: a file that comes in between is noticed
        super().__init__(folder, map_bytes=map_bytes, read_only=True, lock=lock)

    def disk_bytes(self) -> int:
        """0 while there is none."""
        with suppress(OSError):
            return super().disk_bytes()
        return 0

    def form_of(self, txn: Any) -> Form:
        """An older index is read until it is made anew, which may be in the same file."""
        is_older = bool(txn.get(format1.FORM.complete.encode(), db=self.meta))
        return format1.FORM if is_older else super().form_of(txn)

    def _enter(self) -> None:
        if self._is_dead or _file_id(self._folder) != self._file:
            self._follow()
        super()._enter()
        if self._is_dead:  # another thread found, meanwhile, that there is no complete one
            self._gate.leave()
            raise OSError(_BEING_MADE)

    def _follow(self) -> None:
        """:class:`OSError` if there is no complete index now; the next read tries again."""
        with self._gate.closed():
            file = _file_id(self._folder)
            if self._is_closed or (file == self._file and not self._is_dead):
                return  # another thread was quicker
            self._is_dead = True
            self._env.close()
            if file is None or looks_cut(self._folder):
                raise OSError(_BEING_MADE)
            try:
                self._open(self._lock)
                with self._env.begin() as txn:
                    is_complete = View(self, txn).is_complete()
            except LmdbError as e:
                raise OSError(f"index: {e}") from e
            if not is_complete:
                raise OSError(_BEING_MADE)
            self._file, self._is_dead = file, False


def _file_id(folder: str) -> tuple[int, int] | None:
    with suppress(OSError):
        found = os.stat(os.path.join(folder, DATA_FILE))
        return found.st_dev, found.st_ino
    return None
