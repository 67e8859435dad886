"""Calls that some platform lacks, each looked up once by capability, never by the platform's name.

Only :mod:`kvtier.fs` uses this. What is missing is either emulated here in the plainest way that keeps
the promise, or reported as missing (``None``, ``False``).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import importlib
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

KEEP_SIZE, PUNCH_HOLE = 0x01, 0x02  # linux/falloc.h

_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
_LOCKED_BYTE = 1 << 30  # msvcrt locks bar reading too, so it is one far past the file's few bytes


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _libc_fallocate() -> Callable[[int, int, int, int], int] | None:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        call: Any = getattr(libc, "fallocate64", None) or libc.fallocate  # musl has the latter only, 64-bit
    except (AttributeError, OSError, TypeError):
        return None
    call.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    call.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = call
    return found


def _libc_syscall() -> Any:
    if sys.platform != "linux":
        return None
    try:
        call: Any = ctypes.CDLL(None).syscall
    except (AttributeError, OSError):
        return None
    call.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long]
    call.restype = ctypes.c_long
    return call


_CACHESTAT = 451  # on every architecture; no C library has a name for it yet
_syscall = _libc_syscall()
_fcntl = _module("fcntl")
_msvcrt = _module("msvcrt")
_fallocate = _libc_fallocate()
_fdatasync: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)
_fadvise: Any = getattr(os, "posix_fadvise", None)

#: Positioned vector I/O; used only where ``HAS_VECTOR_IO``.
preadv: Any = getattr(os, "preadv", None)
pwritev: Any = getattr(os, "pwritev", None)
HAS_VECTOR_IO = preadv is not None and pwritev is not None


def _iov_max() -> int:
    try:
        return max(16, os.sysconf("SC_IOV_MAX"))
    except (AttributeError, OSError, ValueError):
        return 16  # the least that POSIX allows


IOV_MAX = _iov_max()


def sync_file(fd: int) -> None:
    """Flush the file's bytes and size to the device, and the device's cache where it must be asked for."""
    if hasattr(_fcntl, "F_FULLFSYNC"):
        try:
            _fcntl.fcntl(fd, _fcntl.F_FULLFSYNC)
            return
        except OSError as e:  # a volume that cannot; any other error is a failed sync
            if e.errno not in _UNSUPPORTED | {errno.EINVAL, errno.ENOTTY}:
                raise
    _fdatasync(fd)


def sync_folder(path: str) -> None:
    """fsync(2) of a folder; nothing on a file system that cannot."""
    fd = os.open(path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
    try:
        os.fsync(fd)
    except OSError as e:
        if e.errno not in _UNSUPPORTED | {errno.EINVAL}:
            raise
    finally:
        os.close(fd)


def allocate(fd: int, mode: int, offset: int, length: int) -> bool:
    """fallocate(2); False where this platform or file system has none. An empty range is done already."""
    while _fallocate is not None:
        if length == 0 or _fallocate(fd, mode, offset, length) == 0:
            return True
        code = ctypes.get_errno()
        if code in _UNSUPPORTED:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return False


def drop_cached_pages(fd: int) -> None:
    if _fadvise is not None:
        _fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def expect_jumps(fd: int) -> None:
    if _fadvise is not None:
        _fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)


def reopen_direct(fd: int) -> int | None:
    """A second descriptor of the open file, for the same, whose reads and writes pass by the system's cache; None where
    there can be none."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None or _fcntl is None:
        return None
    try:
        mode = _fcntl.fcntl(fd, _fcntl.F_GETFL) & os.O_ACCMODE
        return os.open(f"/proc/self/fd/{fd}", mode | flag)
    except OSError:
        return None


class _PyBuffer(ctypes.Structure):
    """``Py_buffer``, of Python's stable interface."""

    _fields_ = (
        ("buf", ctypes.c_void_p),
        ("obj", ctypes.c_void_p),
        ("len", ctypes.c_ssize_t),
        ("itemsize", ctypes.c_ssize_t),
        ("readonly", ctypes.c_int),
        ("ndim", ctypes.c_int),
        ("format", ctypes.c_void_p),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("suboffsets", ctypes.c_void_p),
        ("internal", ctypes.c_void_p),
    )


_pythonapi: Any = getattr(ctypes, "pythonapi", None)


def address_of(view: memoryview) -> int | None:
    """Where contiguous bytes lie in memory, also if they are read-only; None where Python does not say."""
    if not hasattr(_pythonapi, "PyObject_GetBuffer"):
        return None
    buffer = _PyBuffer()
    _pythonapi.PyObject_GetBuffer(ctypes.py_object(view), ctypes.byref(buffer), 0)
    try:
        return buffer.buf or 0
    finally:
        _pythonapi.PyBuffer_Release(ctypes.byref(buffer))


def cached_bytes(fd: int, offset: int, length: int) -> int | None:
    """How much of a range of the file the system's cache holds; None where it does not say (Linux before 6.5)."""
    found = (ctypes.c_uint64 * 5)()
    where = (ctypes.c_uint64 * 2)(offset, length)
    if _syscall is None or _syscall(_CACHESTAT, fd, where, found, 0) != 0:
        return None
    return int(found[0]) * mmap.PAGESIZE


def lock_file(fd: int) -> None:
    """Lock the open file for this descriptor alone; :class:`BlockingIOError` while another has it."""
    if _fcntl is not None:
        _fcntl.flock(fd, _fcntl.LOCK_EX | _fcntl.LOCK_NB)
    elif _msvcrt is not None:
        try:
            _msvcrt_locking(fd, _msvcrt.LK_NBLCK)
        except PermissionError as e:
            raise BlockingIOError(errno.EWOULDBLOCK, "locked") from e
    else:
        raise OSError(errno.ENOTSUP, "this platform has no file locks")


def unlock_file(fd: int) -> None:
    """Release the lock now, even if a forked child still holds a copy of the descriptor."""
    with contextlib.suppress(OSError):  # the caller closes fd, which releases it too
        if _fcntl is not None:
            _fcntl.flock(fd, _fcntl.LOCK_UN)
        elif _msvcrt is not None:
            _msvcrt_locking(fd, _msvcrt.LK_UNLCK)


def _msvcrt_locking(fd: int, mode: int) -> None:
    os.lseek(fd, _LOCKED_BYTE, os.SEEK_SET)
    try:
        _msvcrt.locking(fd, mode, 1)
    finally:
        os.lseek(fd, 0, os.SEEK_SET)
