"""Make the next read of some files come from the disk."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

_DROP_ALL = Path("/proc/sys/vm/drop_caches")


def drop(paths: Iterable[Path]) -> str:
    """Drop the cached pages of these files, and of all files in these folders; the means that worked.

    ``"drop_caches"`` (the kernel's switch, for root), ``"posix_fadvise"`` (advice, which Linux follows for
    pages that are written and not mapped), or ``"none"``: reads may come from memory. The files are synced
    first; their owner may be using them.
    """
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file()]
    advised = [_advise(file) for file in files]
    try:
        _DROP_ALL.write_text("1\n", encoding="ascii")
    except OSError:
        return "posix_fadvise" if all(advised) else "none"
    return "drop_caches"


def _advise(file: Path) -> bool:
    advise = getattr(os, "posix_fadvise", None)
    if advise is None:
        return False
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        advise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)
    return True
