"""How much memory there is, and how much of it is left: of the machine, or of the control group (the container) that
limits this process, whichever is less.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

try:
    import psutil
except ImportError:  # then asking fails, and nothing shrinks
    psutil = None

_PROC = Path("/proc/self/cgroup")
_ROOT = Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """In bytes. ``available``: what can be had without swapping, caches of files included."""

    total: int
    available: int


class _Names(NamedTuple):
    """What the files of a version of control groups are called, and the rows of its statistics."""

    limit: str
    used: str
    file_pages: tuple[str, str]


_V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file"))
_V2 = _Names("memory.max", "memory.current", ("active_file", "inactive_file"))


def memory() -> Memory:
    """What this process can count on now. :class:`OSError` if that cannot be had."""
    try:
        machine = psutil.virtual_memory()
    except Exception as e:  # of many kinds, by platform
        raise OSError(f"memory cannot be asked for: {e}") from e
    known = [Memory(machine.total, machine.available), *group_limits()]
    return Memory(min(m.total for m in known), min(m.available for m in known))


def give_back() -> None:
    """Have the allocator return what it holds unused, where it would keep that for later (glibc); nothing elsewhere."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):
        return
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    trim(0)


def group_limits(proc: Path = _PROC, root: Path = _ROOT) -> Iterator[Memory]:
    """What each limited control group that this process is in has; none where there are no such groups."""
    try:
        lines = os.fsdecode(proc.read_bytes()).splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if not controllers:
            yield from _limits_along(root, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _limits_along(root / "memory", path, _V1)


def _limits_along(base: Path, path: str, names: _Names) -> Iterator[Memory]:
    """Of the group at ``path`` and of those around it, as far as they can be seen from here."""
    inner = PurePosixPath(path.lstrip("/"))
    if ".." in inner.parts:  # outside what this process may see
        inner = PurePosixPath()
    for group in (inner, *inner.parents):
        if (limit := _limit_in(base / group, names)) is not None:
            yield limit


def _limit_in(folder: Path, names: _Names) -> Memory | None:
    try:
        total = int((folder / names.limit).read_text())
        used = int((folder / names.used).read_text())
        rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # not there, or "max"
        return None
    in_use = used - sum(int(rows.get(name, 0)) for name in names.file_pages)
    return Memory(total, max(0, total - max(0, in_use)))
