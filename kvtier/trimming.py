"""The file of an index without its free pages: a copy takes its place while nobody writes, when the store is closed.

LMDB uses free pages again and never gives one back, and a large commit leaves as many as the index has. The copy is
written beside the index, synced, and put in its place by two renames: between them the index has its old place's name,
which :func:`settle` gives back. Readers in other processes take the new folder as they take an index made anew.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from kvtier.errors import StoreError
from kvtier.fs import FileSystem
from kvtier.index.data_file import INDEX_FOLDER
from kvtier.index.errors import IndexUnusable
from kvtier.index.lmdb_index import IndexFull, LmdbIndex
from kvtier.tiers.census import carry_over

_NEW, _OLD = "index.tmp", "index.old"
_FREE_BYTES_MIN = 128 << 10
_FREE_SHARE = 16  # of a file that is quickly copied
_QUICK_BYTES_MAX = 64 << 20
_BESIDE_BYTES = 128 << 10  # LMDB's lock file, and the pages of one commit


def settle(fs: FileSystem, root: str) -> None:
    """Undo, or end, what an earlier process did not come to the end of. Before the index is opened."""
    index, new, old = (os.path.join(root, name) for name in (INDEX_FOLDER, _NEW, _OLD))
    if fs.exists(old):
        if not fs.exists(index):
            fs.rename(old, index)
        fs.sync_dir(root)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def is_worthwhile(total_bytes: int, free_bytes: int) -> bool:
    """Whether a file is to be copied: it has many free pages, beside what the copy takes."""
    used = total_bytes - free_bytes
    is_much = free_bytes > used if used > _QUICK_BYTES_MAX else free_bytes * _FREE_SHARE >= total_bytes
    return is_much and free_bytes >= _FREE_BYTES_MIN


class Trimmer:
    """Closes the index of the store in ``root``, without its free pages if they are many. If that fails, it is as it
    was. ``has_room`` says whether so many bytes may be written beside it; nothing is before it is set.
    """

    def __init__(self, fs: FileSystem, root: str, index: LmdbIndex, map_bytes: int) -> None:
        self._fs, self._root, self._index, self._map_bytes = fs, root, index, map_bytes
        self.has_room: Callable[[int], bool] = lambda nbytes: False

    def close(self) -> None:
        is_copied = self._copy()
        self._index.close()
        if is_copied:
            _swap(self._fs, self._root)

    def _copy(self) -> bool:
        index, folder = self._index, os.path.join(self._root, _NEW)
        try:
            total, free = index.disk_bytes(), index.free_bytes()
            if index.met_damage or not is_worthwhile(total, free) or not self.has_room(total - free + _BESIDE_BYTES):
                return False
            self._fs.make_dir(folder)
            index.copy_to(folder)
            copy = LmdbIndex(folder, map_bytes=self._map_bytes, read_only=False)
            try:
                with index.read() as view:
                    carry_over(view, copy)
            finally:
                copy.close()  # which makes it durable
            self._fs.sync_dir(folder)
        except (OSError, StoreError, IndexFull, IndexUnusable):
            shutil.rmtree(folder, ignore_errors=True)
            return False
        return True


def _swap(fs: FileSystem, root: str) -> None:
    index, new, old = (os.path.join(root, name) for name in (INDEX_FOLDER, _NEW, _OLD))
    try:
        fs.rename(index, old)
        try:
            fs.rename(new, index)
        except OSError:
            fs.rename(old, index)
            raise
        fs.sync_dir(root)  # before anything goes: a loss of power may undo the renames
    except OSError:  # what is left, the next opening settles
        shutil.rmtree(new, ignore_errors=True)
        return
    shutil.rmtree(old, ignore_errors=True)
