"""A file system that counts, fails, crashes and loses power on demand.

Typical use, for every crash gap of a workload::

    counting = FaultyFileSystem(OsFileSystem())
    workload(counting)
    for n in range(1, counting.calls + 1):
        fs = FaultyFileSystem(OsFileSystem(), power_loss=True)
        fs.crash_at(n)
        with contextlib.suppress(SimulatedCrash):
            workload(fs)
        fs.lose_unsynced(seed=n, keep_probability=0.5)
        check_what_is_left(OsFileSystem())
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import NoReturn

from kvtier.fs import FileSystem, replace_file
from kvtier.testing.power_loss import UndoLog

#: Calls that change something and are therefore numbered, as :attr:`FaultyFileSystem.trace` shows them.
MUTATING = frozenset(
    {
        "create",
        "write_at",
        "sync_data",
        "truncate",
        "reserve",
        "punch",
        "make_dir",
        "rename",
        "unlink",
        "sync_dir",
    }
)


class SimulatedCrash(BaseException):
    """The process is dead. Not an :class:`Exception`, so that no handler survives it."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call: ``path`` is its file's or folder's, in full; ``nbytes`` what it writes, reads or cuts to."""

    op: str
    path: str
    offset: int = 0
    nbytes: int = 0


@dataclass(frozen=True, slots=True)
class _Fault:
    nth: int
    op: str | None
    code: int | None
    """The errno to raise; None for a crash."""
    written: int = 0
    lasting: bool = False


class FaultyFileSystem:
    """Wraps a file system; every call is counted, and the N-th can be made to go wrong.

    Calls in :data:`MUTATING` are numbered from 1 in the order made (``open(create=True)`` counts as
    ``create``; ``write_file_durably`` as its inner steps; ``lock`` is not numbered). ``trace`` lists them,
    ``counts`` counts every method by name, reads included.

    Thread-safe; calls run one at a time. ``on_call``, if set, runs before each call (outside the lock, so
    that a test can hold one thread at a chosen call).
    """

    def __init__(self, inner: FileSystem, *, power_loss: bool = False) -> None:
        self.trace: list[Call] = []
        self.counts: Counter[str] = Counter()
        self.bytes_written = 0
        self.bytes_read = 0
        self.on_call: Callable[[Call], None] | None = None
        self._inner = inner
        self._undo = UndoLog(inner) if power_loss else None
        self._mutex = threading.RLock()
        self._faults: list[_Fault] = []
        self._paths: dict[int, str] = {}
        self._locks: set[int] = set()
        self._crashed = False

    # Planning

    @property
    def calls(self) -> int:
        """Mutating calls made so far."""
        return len(self.trace)

    @property
    def crashed(self) -> bool:
        return self._crashed

    def fail_at(self, n: int, code: int, *, op: str | None = None, lasting: bool = False) -> None:
        """Call ``n`` raises ``OSError(code)`` and does nothing. ``n`` numbers the mutating calls, or with
        ``op`` the calls of that name (``read_at`` and ``open`` too). ``lasting``: so do all later ones."""
        self._faults.append(_Fault(n, op, code, lasting=lasting))

    def short_write_at(self, n: int, nbytes: int, code: int) -> None:
        """The ``n``-th ``write_at`` writes its first ``nbytes`` bytes, then raises ``OSError(code)``."""
        self._faults.append(_Fault(n, "write_at", code, written=nbytes))

    def crash_at(self, n: int, *, op: str | None = None, written: int = 0) -> None:
        """The process dies in call ``n`` (numbered as in ``fail_at``): it and all later calls raise
        :class:`SimulatedCrash`. It does nothing, but for the first ``written`` bytes of a ``write_at``."""
        self._faults.append(_Fault(n, op, None, written=written))

    def crash(self) -> None:
        """The process dies now."""
        with self._mutex:
            self._crashed = True

    def heal(self) -> None:
        """Forget all planned faults: the disk is well again."""
        with self._mutex:
            self._faults.clear()

    # After a crash

    def reap(self) -> None:
        """What the kernel does for a dead process: close its files, release its locks."""
        with self._mutex:
            self._crashed = True
            for fd in self._paths:
                with suppress(OSError):
                    self._inner.close(fd)
            for fd in self._locks:
                with suppress(OSError):
                    self._inner.unlock(fd)
            self._paths, self._locks = {}, set()

    def lose_unsynced(self, seed: int, keep_probability: float = 0.5) -> list[str]:
        """The power fails (after :meth:`reap`): each thing not synced is lost with probability
        ``1 - keep_probability``, by the model in :mod:`kvtier.testing.power_loss`. Returns what was lost."""
        if self._undo is None:
            raise ValueError("FaultyFileSystem was not made with power_loss=True")
        self.reap()
        return self._undo.lose(seed, keep_probability)

    # The machinery

    @contextmanager
    def _call(
        self,
        op: str,
        path: str,
        offset: int = 0,
        nbytes: int = 0,
        begin: Callable[[int], object] | None = None,
    ) -> Iterator[None]:
        """Count the call, then let it run, or fail it, ``begin`` doing the part that is still to be done."""
        call = Call(op, path, offset, nbytes)
        if self.on_call is not None and not self._crashed:
            self.on_call(call)
        with self._mutex:
            if self._crashed:
                raise SimulatedCrash
            self.counts[op] += 1
            if op in MUTATING:
                self.trace.append(call)
            fault = self._fault_of(op)
            if fault is not None:
                if begin is not None:
                    begin(fault.written)
                self._raise(fault, path)
            yield

    def _fault_of(self, op: str) -> _Fault | None:
        for fault in self._faults:
            if fault.op is None and op in MUTATING:
                at = len(self.trace)
            elif fault.op == op:
                at = self.counts[op]
            else:
                continue
            if at == fault.nth or (fault.lasting and at > fault.nth):
                return fault
        return None

    def _raise(self, fault: _Fault, path: str) -> NoReturn:
        if fault.code is None:
            self._crashed = True
            raise SimulatedCrash
        raise OSError(fault.code, os.strerror(fault.code), path)

    # Descriptors

    def open(self, path: str, *, create: bool = False, write: bool = False) -> int:
        path = os.path.abspath(path)
        with self._call("create" if create else "open", path):
            fd = self._inner.open(path, create=create, write=write)
            self._paths[fd] = path
            if self._undo is not None:
                self._undo.after_open(fd, path, create)
            return fd

    def close(self, fd: int) -> None:
        with self._call("close", self._path_of(fd)):
            self._paths.pop(fd, None)
            if self._undo is not None:
                self._undo.after_close(fd)
            self._inner.close(fd)

    def size(self, fd: int) -> int:
        with self._call("size", self._path_of(fd)):
            return self._inner.size(fd)

    def disk_bytes(self, fd: int) -> int:
        with self._call("disk_bytes", self._path_of(fd)):
            return self._inner.disk_bytes(fd)

    def drop_cache(self, fd: int) -> None:
        with self._call("drop_cache", self._path_of(fd)):
            self._inner.drop_cache(fd)

    def expect_jumps(self, fd: int) -> None:  # no call that could fail: advice
        self._inner.expect_jumps(fd)

    def bypass_cache(self, fd: int) -> None:  # no call that could fail: advice
        self._inner.bypass_cache(fd)

    # Contents

    def write_at(self, fd: int, buffers: Sequence[memoryview | bytes], offset: int) -> int:
        total = sum(memoryview(b).nbytes for b in buffers)

        def write(nbytes: int) -> int:
            part = list(buffers) if nbytes >= total else [b"".join(buffers)[:nbytes]]
            if self._undo is not None:
                self._undo.before_change(fd, offset, offset + min(nbytes, total))
            count = self._inner.write_at(fd, part, offset)
            self.bytes_written += count
            return count

        with self._call("write_at", self._path_of(fd), offset, total, begin=write):
            return write(total)

    def read_at(self, fd: int, buffers: Sequence[memoryview], offset: int) -> int:
        total = sum(b.nbytes for b in buffers)
        with self._call("read_at", self._path_of(fd), offset, total):
            count = self._inner.read_at(fd, buffers, offset)
            self.bytes_read += count
            return count

    def sync_data(self, fd: int) -> None:
        try:
            with self._call("sync_data", self._path_of(fd)):
                self._inner.sync_data(fd)
                if self._undo is not None:
                    self._undo.after_sync(fd)
        except OSError:
            if self._undo is not None:
                with self._mutex:
                    self._undo.after_failed_sync(fd)
            raise

    def truncate(self, fd: int, size: int) -> None:
        with self._call("truncate", self._path_of(fd), nbytes=size):
            if self._undo is not None:
                self._undo.before_change(fd, size, self._inner.size(fd))
            self._inner.truncate(fd, size)

    def reserve(self, fd: int, offset: int, length: int) -> None:
        with self._call("reserve", self._path_of(fd), offset, length):
            self._inner.reserve(fd, offset, length)

    def punch(self, fd: int, offset: int, length: int) -> bool:
        with self._call("punch", self._path_of(fd), offset, length):
            if self._undo is not None:
                self._undo.before_change(fd, offset, offset + length)
            return self._inner.punch(fd, offset, length)

    # Names

    def make_dir(self, path: str) -> None:
        with self._call("make_dir", os.path.abspath(path)):
            self._inner.make_dir(path)

    def list_dir(self, path: str) -> list[str]:
        with self._call("list_dir", os.path.abspath(path)):
            return self._inner.list_dir(path)

    def rename(self, src: str, dst: str) -> None:
        src, dst = os.path.abspath(src), os.path.abspath(dst)
        with self._call("rename", dst):
            if self._undo is None:
                self._inner.rename(src, dst)
                return
            taken = self._undo.save(dst)
            self._inner.rename(src, dst)
            self._undo.after_rename(src, dst, taken)

    def unlink(self, path: str) -> None:
        path = os.path.abspath(path)
        with self._call("unlink", path):
            if self._undo is None:
                self._inner.unlink(path)
                return
            taken = self._undo.save(path)
            self._inner.unlink(path)
            self._undo.after_unlink(path, taken)

    def exists(self, path: str) -> bool:
        with self._call("exists", os.path.abspath(path)):
            return self._inner.exists(path)

    def sync_dir(self, path: str) -> None:
        path = os.path.abspath(path)
        with self._call("sync_dir", path):
            self._inner.sync_dir(path)
            if self._undo is not None:
                self._undo.after_sync_dir(path)

    def write_file_durably(self, path: str, data: bytes) -> None:
        replace_file(self, path, data)

    def read_file(self, path: str, max_bytes: int) -> bytes:
        with self._call("read_file", os.path.abspath(path)):
            data = self._inner.read_file(path, max_bytes)
            self.bytes_read += len(data)
            return data

    # Locks and space

    def lock(self, path: str) -> int:
        with self._call("lock", os.path.abspath(path)):
            fd = self._inner.lock(path)
            self._locks.add(fd)
            return fd

    def unlock(self, fd: int) -> None:
        with self._call("unlock", ""):
            self._locks.discard(fd)
            self._inner.unlock(fd)

    def lock_holder(self, path: str) -> int | None:
        with self._call("lock_holder", os.path.abspath(path)):
            return self._inner.lock_holder(path)

    def disk_total(self, path: str) -> int:
        with self._call("disk_total", os.path.abspath(path)):
            return self._inner.disk_total(path)

    def disk_free(self, path: str) -> int:
        with self._call("disk_free", os.path.abspath(path)):
            return self._inner.disk_free(path)

    def _path_of(self, fd: int) -> str:
        return self._paths.get(fd, "")
