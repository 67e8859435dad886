"""The file system as kvtier sees it: one protocol, two implementations, nothing platform-specific above.

:class:`OsFileSystem` uses positioned vector I/O, folder fsync, preallocation and hole punching, each
where the platform has it. :class:`PortableFileSystem` needs only what every Python has (seek, read,
write, fsync, replace) and runs everywhere, Linux included, so that both pass one contract suite.

What the syncs promise, and what no call can
--------------------------------------------
``sync_data(fd)``
    After it returns, bytes written through *any* descriptor of that file, and the size needed to read
    them back, survive a crash of the process or the kernel. They survive loss of power only if the
    device honours cache flushes: consumer drives and some virtual disks acknowledge early, and nothing
    here can tell. On macOS plain ``fsync`` does not flush the drive's cache, so ``F_FULLFSYNC`` is used
    (falling back to ``fsync`` on volumes that refuse it). Over a network file system the promise is the
    server's. It does **not** make the file's *name* durable: that is the folder's data.
    If it raises, the kernel may already have dropped the unwritten pages and marked them clean: a second
    sync may then *succeed without having written anything*. Never retry it; treat every byte written
    since the last success as lost.
``sync_dir(path)``
    Makes the names created, renamed and removed in that folder so far durable. Not recursive, and not
    the data of the files. Does nothing where folders cannot be synced (Windows, and the portable
    implementation): there, a new or renamed file may vanish in a power loss, even if its data was synced.
``rename(src, dst)``
    Atomic for readers and for a crash of the process. Without ``sync_dir`` either name may be found after
    a power loss; without ``sync_data(src)`` before it, the new name may even hold an empty file.
``reserve`` and ``punch``
    Change which blocks a file occupies, never its size. They need no sync to be correct: a lost ``punch``
    only gives old bytes back, so nothing may rely on a punched range reading as zeros after a crash.

All methods may be called from several threads at once, also on one descriptor. Failures raise
:class:`OSError` with its errno; nothing is retried except calls that a signal interrupted.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import shutil
import threading
from collections.abc import Sequence
from typing import Protocol

from kvtier import _platform
from kvtier.buffers import advance, cut, flat_views
from kvtier.direct import DirectFiles

__all__ = ["FileSystem", "OsFileSystem", "PortableFileSystem", "default_file_system", "replace_file"]


class FileSystem(Protocol):
    """Everything kvtier asks of a file system. Offsets and sizes are in bytes; paths are absolute.

    A descriptor is an opaque ``int``, valid from ``open`` until ``close`` on the same object.
    """

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        """Open a file: for reading, or with ``write`` for both. ``create`` makes a new one (mode 0600) for
        both; :class:`FileExistsError` if the name is taken. A symbolic link is never followed (where the
        platform can refuse it), and the descriptor is not inherited by child processes."""

    def close(self, fd: int) -> None:
        """Give the descriptor back. Says nothing about durability."""

    def size(self, fd: int) -> int:
        """Length of the file."""

    def disk_bytes(self, fd: int) -> int:
        """Space that the file occupies: holes left out, reserved blocks included; the size where unknown."""

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        """Write every byte of all buffers, in order, from ``offset``; return how many. On an error some
        leading part may have been written."""

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the (writable) buffers in order from ``offset``; return the bytes read, fewer than asked only
        at the end of the file."""

    def sync_data(self, fd: int) -> None:
        """Make the file's bytes and size durable; see the module's text. Never retry a failed one."""

    def sync_dir(self, path: str) -> None:
        """Make the folder's entries durable, where the platform can."""

    def truncate(self, fd: int, size: int) -> None:
        """Cut or extend (with zeros) the file to ``size`` bytes."""

    def reserve(self, fd: int, offset: int, length: int) -> None:
        """Allocate blocks for a range without changing the size, so that writes there find space;
        ``ENOSPC`` when there is none. Does nothing where unsupported."""

    def punch(self, fd: int, offset: int, length: int) -> bool:
        """Free the blocks of a range: it then reads as zeros, the size stays. Only whole file-system blocks
        inside the range are freed. False where this cannot be done here (the range is then unchanged)."""

    def drop_cache(self, fd: int) -> None:
        """Hint that the file's clean cached pages will not be needed."""

    def expect_jumps(self, fd: int) -> None:
        """Hint that nothing should be read beyond what is asked for: who reads knows better what comes next."""

    def bypass_cache(self, fd: int) -> None:
        """Hint that what is long need not go through the system's cache, whether written, or read where that is
        quicker."""

    def make_dir(self, path: str) -> None:
        """Make the folder and its missing parents, mode 0700, durably; fine if it exists."""

    def list_dir(self, path: str) -> list[str]:
        """Names in the folder, sorted."""

    def rename(self, src: str, dst: str) -> None:
        """Rename atomically, replacing ``dst`` if it is there."""

    def unlink(self, path: str) -> None:
        """Remove a file; :class:`FileNotFoundError` if there is none."""

    def exists(self, path: str) -> bool:
        """Whether the name is there, as anything at all (a dangling link too)."""

    def write_file_durably(self, path: str, data: bytes) -> None:
        """Replace a small file as a whole: after a crash it has its old content or the new, never a mix;
        the new once this returned. One writer a path at a time (``path + ".tmp"`` is used)."""

    def read_file(self, path: str, max_bytes: int) -> bytes:
        """A small file's content; ``EFBIG`` if it is longer than ``max_bytes``."""

    def lock(self, path: str) -> int:
        """Take the exclusive lock that the file ``path`` stands for, without waiting, and write our pid
        there; :class:`BlockingIOError` while anyone, this process included, holds it. Ends with ``unlock``
        or with the process. The file is never removed."""

    def unlock(self, fd: int) -> None:
        """Release a lock taken with ``lock``."""

    def lock_holder(self, path: str) -> int | None:
        """The pid last written by ``lock`` and not erased by ``unlock``: for messages; may be stale."""

    def disk_total(self, path: str) -> int:
        """Size of the disk that holds ``path``."""

    def disk_free(self, path: str) -> int:
        """Bytes that this user may still write there."""


def default_file_system() -> FileSystem:
    """The best implementation that this platform can run."""
    return OsFileSystem() if _platform.HAS_VECTOR_IO else PortableFileSystem()


def replace_file(fs: FileSystem, path: str, data: bytes) -> None:
    """``write_file_durably`` by the other methods: temporary file, sync, rename, sync of the folder."""
    temporary = path + ".tmp"
    if fs.exists(temporary):  # left by a crash: never valid
        fs.unlink(temporary)
    fd = fs.open(temporary, create=True)
    try:
        try:
            fs.write_at(fd, [data], 0)
            fs.sync_data(fd)
        finally:
            fs.close(fd)
        fs.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            fs.unlink(temporary)
        raise
    fs.sync_dir(os.path.dirname(path))


#: Descriptors of the locks held by this process. A forked child closes its copies: a lock lives as long as any of them.
_locks: set[int] = set()


def _drop_locks() -> None:
    for fd in _locks:
        with contextlib.suppress(OSError):
            os.close(fd)
    _locks.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_drop_locks)

_OPEN_ALWAYS = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)  # os.open() adds O_CLOEXEC itself


def _open(path: str, create: bool, write: bool) -> int:
    flags = os.O_RDWR if create or write else os.O_RDONLY
    return os.open(path, flags | (os.O_CREAT | os.O_EXCL if create else 0) | _OPEN_ALWAYS, 0o600)


def _progress(count: int) -> int:
    if count <= 0:
        raise OSError(errno.EIO, "a write made no progress")
    return count


def _write(fd: int, views: list[memoryview], offset: int) -> None:
    first = total = 0
    while first < len(views):
        count = _progress(_platform.pwritev(fd, views[first : first + _platform.IOV_MAX], offset + total))
        total += count
        first = advance(views, first, count)


class PortableFileSystem:
    """Runs anywhere: seek, read and write under a lock per descriptor; no holes, no folder sync."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[threading.Lock, io.FileIO]] = {}

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        fd = _open(path, create, write)
        try:
            self._files[fd] = (threading.Lock(), io.FileIO(fd, "rb", closefd=False))
        except OSError:  # a folder
            os.close(fd)
            raise
        return fd

    def close(self, fd: int) -> None:
        self._files.pop(fd, None)
        os.close(fd)

    def size(self, fd: int) -> int:
        return os.fstat(fd).st_size

    def disk_bytes(self, fd: int) -> int:
        stat = os.fstat(fd)
        blocks: int | None = getattr(stat, "st_blocks", None)
        return stat.st_size if blocks is None else blocks * 512

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        lock, _ = self._file(fd)
        total = 0
        with lock:
            os.lseek(fd, offset, os.SEEK_SET)
            for view in flat_views(buffers):
                done = 0
                while done < view.nbytes:
                    done += _progress(os.write(fd, view[done:]))
                total += done
        return total

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        lock, raw = self._file(fd)
        total = 0
        with lock:
            raw.seek(offset)
            for view in flat_views(buffers):
                done = 0
                while done < view.nbytes:
                    count = raw.readinto(view[done:])
                    if not count:
                        return total + done
                    done += count
                total += done
        return total

    def _file(self, fd: int) -> tuple[threading.Lock, io.FileIO]:
        try:
            return self._files[fd]
        except KeyError:
            raise OSError(errno.EBADF, "not a descriptor of this file system") from None

    def sync_data(self, fd: int) -> None:
        _platform.sync_file(fd)

    def sync_dir(self, path: str) -> None:
        pass

    def truncate(self, fd: int, size: int) -> None:
        os.ftruncate(fd, size)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        pass

    def punch(self, fd: int, offset: int, length: int) -> bool:
        return False

    def drop_cache(self, fd: int) -> None:
        pass

    def expect_jumps(self, fd: int) -> None:
        pass

    def bypass_cache(self, fd: int) -> None:
        pass

    def make_dir(self, path: str) -> None:
        if os.path.isdir(path):
            return
        parent = os.path.dirname(os.path.abspath(path))
        self.make_dir(parent)
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        self.sync_dir(parent)

    def list_dir(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def rename(self, src: str, dst: str) -> None:
        os.replace(src, dst)

    def unlink(self, path: str) -> None:
        os.unlink(path)

    def exists(self, path: str) -> bool:
        return os.path.lexists(path)

    def write_file_durably(self, path: str, data: bytes) -> None:
        replace_file(self, path, data)

    def read_file(self, path: str, max_bytes: int) -> bytes:
        fd = self.open(path)
        try:
            data = bytearray(min(self.size(fd), max_bytes) + 1)  # one more, to see that the file ends
            count = self.read_at(fd, [memoryview(data)], 0)
        finally:
            self.close(fd)
        if count > max_bytes:
            raise OSError(errno.EFBIG, f"longer than {max_bytes} bytes", path)
        return bytes(data[:count])

    def lock(self, path: str) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | _OPEN_ALWAYS, 0o600)
        try:
            _platform.lock_file(fd)
        except BaseException:
            os.close(fd)
            raise
        _locks.add(fd)
        with contextlib.suppress(OSError):  # the pid only informs; a full disk must not keep the store shut
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        return fd

    def unlock(self, fd: int) -> None:
        with contextlib.suppress(OSError):
            os.ftruncate(fd, 0)
        _platform.unlock_file(fd)
        _locks.discard(fd)
        os.close(fd)

    def lock_holder(self, path: str) -> int | None:
        try:
            return int(self.read_file(path, 64))
        except (OSError, ValueError):
            return None

    def disk_total(self, path: str) -> int:
        return shutil.disk_usage(path).total

    def disk_free(self, path: str) -> int:
        return shutil.disk_usage(path).free


class OsFileSystem(PortableFileSystem):
    """POSIX: positioned vector I/O without locks, folder sync, and on Linux preallocation, holes, and direct I/O."""

    def __init__(self) -> None:
        super().__init__()
        self._direct = DirectFiles()

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        return _open(path, create, write)

    def close(self, fd: int) -> None:
        try:
            self._direct.forget(fd)
        finally:
            os.close(fd)

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        views = flat_views(buffers)
        size = sum(view.nbytes for view in views)
        begin, end = self._direct.write(fd, views, offset)
        if begin < end:
            _write(fd, cut(views, 0, begin - offset), offset)
            _write(fd, cut(views, end - offset, size), end)
        else:
            _write(fd, views, offset)
        return size

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        views = flat_views(buffers)
        total = self._direct.read(fd, views, offset)
        first = advance(views, 0, total)
        while first < len(views):
            count = _platform.preadv(fd, views[first : first + _platform.IOV_MAX], offset + total)
            if count == 0:
                break
            total += count
            first = advance(views, first, count)
        return total

    def sync_dir(self, path: str) -> None:
        _platform.sync_folder(path)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        _platform.allocate(fd, _platform.KEEP_SIZE, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        return _platform.allocate(fd, _platform.KEEP_SIZE | _platform.PUNCH_HOLE, offset, length)

    def drop_cache(self, fd: int) -> None:
        _platform.drop_cached_pages(fd)

    def expect_jumps(self, fd: int) -> None:
        _platform.expect_jumps(fd)
        self._direct.expect_jumps(fd)

    def bypass_cache(self, fd: int) -> None:
        self._direct.add(fd)
