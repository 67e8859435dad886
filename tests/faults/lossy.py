"""A FUSE file system that loses what was not synced: a backing folder, seen through the undo log of
:mod:`kvtier.testing.power_loss`.

Every change goes to the backing folder at once, and the log remembers how to undo it until the file, or for names the
folder, is synced. The file system dies before its n-th change or sync: it kills the process that asked for it. Once it
is unmounted, what is in the log is undone by chance, page by page and name by name. The index is no exception: LMDB's
own writes and syncs pass through here too, and its memory map is fed from here.

Folders are taken as durable, and LMDB's lock file as lost: it is made anew at every opening.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from mfusepy import FUSE, Operations, fuse_get_context

from kvtier import _platform
from kvtier.fs import OsFileSystem
from kvtier.testing.power_loss import UndoLog
from tests.faults.power import Loss

MOUNTED = "mounted"
_LOCK_FILE = "lock.mdb"
_STAT = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_ino")
_STATVFS = ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail", "f_namemax")


class LossyFs(Operations):  # type: ignore[misc]
    """See the module. One thread; dies at step ``die_at`` (0: never)."""

    use_ns = True
    flag_nopath = flag_nullpath_ok = True  # so that a file that was removed while open stays usable

    def __init__(self, backing: str, die_at: int, on_mount: Callable[[], None]) -> None:
        self._backing = backing
        self._die_at = die_at
        self._on_mount = on_mount
        self._log = UndoLog(OsFileSystem())
        self._volatile: set[int] = set()
        self._folders: list[str] = []
        self._steps = 0
        self._dead = False

    def init(self, path: str) -> None:
        self._on_mount()

    def lose(self, seed: int, keep_probability: float) -> Loss:
        """The power fails: what was not synced is undone as chance has it. Only once nothing is mounted."""
        return Loss(self._steps, self._dead, self._log.lose(seed, keep_probability))

    def _step(self, fh: int | None = None) -> None:
        """Before every change and sync of what matters: die here, if it is time."""
        if fh in self._volatile:
            return
        self._steps += 1
        if self._steps == self._die_at:
            self._dead = True
            os.kill(fuse_get_context()[2], signal.SIGKILL)
        if self._dead:
            raise OSError(errno.EIO, "the power is off")

    def _at(self, path: str) -> str:
        return self._backing + path.rstrip("/")

    # -- files --------------------------------------------------------------------------------------

    def create(self, path: str, mode: int) -> int:
        if not path.endswith(_LOCK_FILE):
            self._step()
        fh = os.open(self._at(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)
        return self._opened(fh, path, created=True)

    def open(self, path: str, flags: int) -> int:
        writes = flags & os.O_ACCMODE != os.O_RDONLY
        return self._opened(os.open(self._at(path), os.O_RDWR if writes else os.O_RDONLY), path, created=False)

    def _opened(self, fh: int, path: str, *, created: bool) -> int:
        if path.endswith(_LOCK_FILE):
            self._volatile.add(fh)
        else:
            self._log.after_open(fh, self._at(path), created)
        return fh

    def release(self, path: str, fh: int) -> int:
        self._volatile.discard(fh)
        self._log.after_close(fh)
        os.close(fh)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        return os.pread(fh, size, offset)

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        self._step(fh)
        self._before_change(fh, offset, offset + len(data))
        return os.pwrite(fh, data, offset)

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        assert fh is not None
        self._step(fh)
        self._before_change(fh, length, os.fstat(fh).st_size)
        os.ftruncate(fh, length)
        return 0

    def fallocate(self, path: str, mode: int, offset: int, size: int, fh: int) -> int:
        self._step(fh)
        if mode & _platform.PUNCH_HOLE:
            self._before_change(fh, offset, offset + size)
        if not _platform.allocate(fh, mode, offset, size):
            raise OSError(errno.EOPNOTSUPP, "the backing folder cannot")
        return 0

    def _before_change(self, fh: int, start: int, end: int) -> None:
        if fh not in self._volatile:
            self._log.before_change(fh, start, end)

    def fsync(self, path: str, datasync: int, fh: int) -> int:
        self._step(fh)
        if fh not in self._volatile:
            self._log.after_sync(fh)
        return 0

    # -- names --------------------------------------------------------------------------------------

    def rename(self, old: str, new: str) -> int:
        self._step()
        taken = self._log.save(self._at(new))
        os.rename(self._at(old), self._at(new))
        self._log.after_rename(self._at(old), self._at(new), taken)
        return 0

    def unlink(self, path: str) -> int:
        if path.endswith(_LOCK_FILE):
            os.unlink(self._at(path))
            return 0
        self._step()
        taken = self._log.save(self._at(path))
        os.unlink(self._at(path))
        self._log.after_unlink(self._at(path), taken)
        return 0

    def mkdir(self, path: str, mode: int) -> int:
        self._step()
        os.mkdir(self._at(path), mode)
        return 0

    def rmdir(self, path: str) -> int:
        self._step()
        os.rmdir(self._at(path))
        self._log.after_sync_dir(self._at(path))
        return 0

    def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
        self._step()
        self._log.after_sync_dir(self._folders[fh])
        return 0

    # -- looking ------------------------------------------------------------------------------------

    def getattr(self, path: str | None, fh: int | None = None) -> dict[str, Any]:
        st = os.lstat(self._at(path)) if path is not None else os.fstat(fh or 0)
        times = {"st_atime": st.st_atime_ns, "st_mtime": st.st_mtime_ns, "st_ctime": st.st_ctime_ns}
        return {name: getattr(st, name) for name in _STAT} | times

    def opendir(self, path: str) -> int:
        self._folders.append(self._at(path))
        return len(self._folders) - 1

    def releasedir(self, path: str, fh: int) -> int:
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        return [".", "..", *os.listdir(self._folders[fh])]

    def statfs(self, path: str) -> dict[str, int]:
        st = os.statvfs(self._at(path))
        return {name: getattr(st, name) for name in _STATVFS}

    def chmod(self, path: str, mode: int) -> int:
        os.chmod(self._at(path), mode)
        return 0


class _Fuse(FUSE):  # type: ignore[misc]
    """Cuts open files by their handle; the binding drops it, and with ``flag_nopath`` there is no path."""

    def truncate_fuse_3(self, path: bytes | None, length: int, info: Any) -> int:
        assert isinstance(self.operations, LossyFs)
        return self.operations.truncate("", length, info.contents.fh)


def serve(backing: str, mount: str, die_at: int, seed: int, keep_probability: float, pipe: Connection) -> None:
    """Until it is unmounted; then lose what chance says, and tell the :class:`Loss`."""
    fs = LossyFs(backing, die_at, lambda: pipe.send(MOUNTED))
    _Fuse(fs, mount, foreground=True, nothreads=True, hard_remove=True, attr_timeout=0)
    pipe.send(fs.lose(seed, keep_probability))
