"""The file of an index without its free pages: a copy takes its place while nobody writes, when the store is closed.

LMDB uses free pages again and never gives one back, and a large commit leaves as many as the index has. The copy is
written beside the index, synced, and put in its place by two renames: between them the index has its old place's name,
which :func:`settle` gives back. Readers in other processes take the new folder as they take an index made anew.
"""

from __future__ import annotations

import os
import shutil

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


def settle(fs: FileSystem, root: str) -> None:
    """Undo, or end, what an earlier process did not come to the end of. Before the index is opened."""
    index, new, old = (os.path.join(root, name) for name in (INDEX_FOLDER, _NEW, _OLD))
    if fs.exists(old):
        if not fs.exists(index):
            fs.rename(old, index)
        fs.sync_dir(root)
        shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(new, ignore_errors=True)


def close_trimmed(fs: FileSystem, root: str, index: LmdbIndex, map_bytes: int) -> None:
    """Close the index of the store in ``root``, without its free pages if they are many. If that fails, it is as it
    was."""
    is_copied = _copied(fs, root, index, map_bytes)
    index.close()
    if is_copied:
        _swap(fs, root)


def is_worthwhile(total_bytes: int, free_bytes: int) -> bool:
    """Whether a file is to be copied: it has many free pages, beside what the copy takes."""
    used = total_bytes - free_bytes
    is_much = free_bytes > used if used > _QUICK_BYTES_MAX else free_bytes * _FREE_SHARE >= total_bytes
    return is_much and free_bytes >= _FREE_BYTES_MIN


def _copied(fs: FileSystem, root: str, index: LmdbIndex, map_bytes: int) -> bool:
    folder = os.path.join(root, _NEW)
    try:
        if index.met_damage or not is_worthwhile(index.disk_bytes(), index.free_bytes()):
            return False
        fs.make_dir(folder)
        index.copy_to(folder)
        copy = LmdbIndex(folder, map_bytes=map_bytes, read_only=False)
        try:
            with index.read() as view:
                carry_over(view, copy)
        finally:
            copy.close()  # which makes it durable
        fs.sync_dir(folder)
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
    except OSError:
        return  # the next opening settles it
    shutil.rmtree(old, ignore_errors=True)
