"""The index in LMDB: the only module that imports ``lmdb``.

Durability: ``sync=True, metasync=False``: a commit that returned survives the process; a power loss costs
at most the last commit and never the file. ``sync=False`` is never used. The engine version is pinned
(0.9.x) because py-lmdb bundles two with incompatible files.

Threads: any thread may read; one thread at a time writes (the store's background worker).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import lmdb
import lmdb.verify

from kvtier.errors import StoreClosed
from kvtier.index.errors import IndexBusy, IndexCorrupt, IndexUnusable
from kvtier.index.gate import Gate
from kvtier.index.schema import FORM, Form
from kvtier.index.views import View, WriteTxn

__all__ = ["ENGINE", "IndexFull", "LmdbError", "LmdbIndex", "View", "WriteTxn", "is_sound"]

ENGINE = "lmdb-0.9"
LmdbError = lmdb.Error
_READERS_MAX = 1024
_MAP_BYTES_MAX = 1 << 40
_DAMAGE = (
    lmdb.BadDbiError,
    lmdb.BadTxnError,
    lmdb.CorruptedError,
    lmdb.CursorFullError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.NotFoundError,
    lmdb.PageFullError,
    lmdb.PageNotFoundError,
    lmdb.VersionMismatchError,
)


class IndexFull(Exception):
    """The map is full: the commit was rolled back whole."""


class LmdbIndex:
    """The open LMDB environment of one store."""

    def __init__(self, folder: str, *, map_bytes: int, read_only: bool, lock: bool = True) -> None:
        """Open (creating if needed and not ``read_only``). Raises :class:`IndexUnusable`, :class:`IndexBusy`."""
        if lmdb.version()[0] != 0:
            raise IndexUnusable(f"py-lmdb runs engine {lmdb.version()}, not 0.9.x", is_damaged=False)
        self._gate = Gate()
        self._read_only = read_only
        self._is_closed = self._is_dead = self._is_full = self.met_damage = False
        self._folder, self._map_bytes = folder, map_bytes
        self._env: Any = None
        try:
            self._open(lock)
        except lmdb.Error as e:
            if self._env is not None:
                self._env.close()
            kind = IndexBusy if "already open" in str(e) else IndexUnusable
            raise kind(str(e), is_damaged=isinstance(e, _DAMAGE) or "data format" in str(e)) from e

    def _open(self, lock: bool) -> None:
        self._env = lmdb.open(
            self._folder,
            map_size=self._map_bytes,
            max_dbs=8,
            max_readers=_READERS_MAX,
            metasync=False,
            mode=0o600,
            readonly=self._read_only,
            create=not self._read_only,
            lock=lock,
            max_spare_txns=32,
            meminit=True,  # else unused parts of pages take to the disk what memory held before
        )
        if lock:
            self._env.reader_check()
        db = partial(self._env.open_db, create=not self._read_only)
        self.blocks = db(b"blocks")
        self.contents = db(b"contents")
        self.segments = db(b"segments")
        self.meta = db(b"meta")
        self.departures: Any = None
        self.namespaces: Any = None
        self.expiries: Any = None
        self.expiry_order: Any = None
        with suppress(lmdb.NotFoundError):  # only if read only: the store's last writer did not know them yet
            self.departures = db(b"departures")
            self.namespaces = db(b"namespaces")
            self.expiries = db(b"expiries")
            self.expiry_order = db(b"expiry_order")

    @contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """What LMDB raises inside leaves as an :class:`OSError`."""
        try:
            yield
        except lmdb.Error as e:
            raise self._os_error(e) from e

    def _os_error(self, error: Exception) -> OSError:
        if isinstance(error, _DAMAGE):
            self.met_damage = True
            return IndexCorrupt(f"index: {error}")
        return OSError(f"index: {error}")

    @contextmanager
    def read(self) -> Iterator[View]:
        """:class:`OSError` if the index cannot be read, :class:`StoreClosed` if it was closed."""
        self._enter()
        try:
            with self._as_os_error(), self._begin() as txn:
                yield View(self, txn)
        finally:
            self._gate.leave()

    def form_of(self, txn: Any) -> Form:
        """How a transaction sees blocks and contents. Who writes makes an older index anew before anything else."""
        return FORM

    def _enter(self) -> None:
        self._gate.enter()
        if self._is_closed:
            self._gate.leave()
            raise StoreClosed("the store is closed")

    def _begin(self) -> Any:
        try:
            return self._env.begin()
        except lmdb.MapResizedError:  # the writer, in another process, has grown it
            self._gate.leave()
            try:
                with self._gate.closed():
                    self._env.set_mapsize(0)
            finally:
                self._gate.enter()
            if self._is_closed:
                raise StoreClosed("the store is closed") from None
            return self._env.begin()

    def grow(self) -> bool:
        """Double the map, once no read is under way; False if it cannot be. Not inside a transaction."""
        try:
            size = int(self._env.info()["map_size"]) * 2
            if size > _MAP_BYTES_MAX:
                return False
            with self._gate.closed():
                self._env.set_mapsize(size)
        except lmdb.Error:
            return False
        self._map_bytes, self._is_full = size, False
        return True

    @contextmanager
    def write(self) -> Iterator[WriteTxn]:
        """Commit on leaving the block, durably; roll back on an exception. Not inside ``read``. :class:`IndexFull` if
        the map is full, which has grown by the next time; :class:`OSError` if the disk fails."""
        try:
            self.ensure_alive()
            if self._is_full:
                self.grow()
            self._env.reader_check()  # one that was killed would keep old pages from being used again
            with self._env.begin(write=True) as txn:
                yield WriteTxn(self, txn)
        except (lmdb.MapFullError, lmdb.TxnFullError) as e:
            self._is_full = isinstance(e, lmdb.MapFullError)
            raise IndexFull(str(e)) from e
        except lmdb.Error as e:
            with suppress(OSError):
                self._is_dead = self._refuses()
                self.ensure_alive()
            raise self._os_error(e) from e

    def ensure_alive(self) -> None:
        """Open the index anew if an error left it dead: until then every read fails. Writing thread only, and not
        inside ``read``. :class:`OSError` if it cannot be; the next call tries again."""
        if self._is_dead and not self._is_closed:
            with self._as_os_error(), self._gate.closed():
                self._env.close()
                self._open(lock=True)
            self._is_dead = False

    def _refuses(self) -> bool:
        """Whether LMDB refuses everything until it is opened anew, as it does after an error inside a commit."""
        try:
            self._env.begin().abort()
        except lmdb.Error:
            return True
        return False

    def disk_bytes(self) -> int:
        """Bytes of the map in use (pages handed out so far: it never shrinks). Raises as :meth:`read` does."""
        self._enter()
        try:
            with self._as_os_error():
                return int(self._env.info()["last_pgno"] + 1) * int(self._env.stat()["psize"])
        finally:
            self._gate.leave()

    def close(self) -> None:
        """Make the last commit proof against a loss of power too, and close, once no read is under way."""
        with self._gate.closed():
            if not self._read_only:
                with suppress(lmdb.Error):
                    self._env.sync(True)
            self._env.close()
            self._is_closed = True


def is_sound(folder: str) -> bool:
    """Offline audit of an index after the machine went down, without opening it through the C library."""
    try:
        return not lmdb.verify.verify(folder, subdir=True)  # type: ignore[no-untyped-call]
    except (lmdb.verify.VerifyError, OSError):
        return False
