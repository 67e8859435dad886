"""The index in LMDB: the only module that imports ``lmdb``.

Durability: ``sync=True, metasync=False``: a commit that returned survives the process; a power loss costs
at most the last commit and never the file. ``sync=False`` is never used. The engine version is pinned
(0.9.x) because py-lmdb bundles two with incompatible files.

Threads: any thread may read; one thread at a time writes (the store's background worker).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice, takewhile
from typing import Any

import lmdb
import lmdb.verify

from kvtier.errors import StoreClosed
from kvtier.index import schema
from kvtier.index.errors import IndexBusy, IndexCorrupt, IndexUnusable
from kvtier.index.gate import Gate
from kvtier.index.schema import BlockEntry, ContentEntry, Departure, IndexDamaged, NamespaceEntry, SegmentEntry

ENGINE = "lmdb-0.9"
LmdbError = lmdb.Error
_READERS_MAX = 1024
_COMPLETE = "complete"
_DEPARTURES = "departures"
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


class View:
    """One consistent read of the index. Use inside ``with index.read()``, on one thread."""

    def __init__(self, index: LmdbIndex, txn: Any) -> None:
        self._ix = index
        self._txn = txn

    def block(self, block_id: int) -> BlockEntry | None:
        """The entry, or None; a damaged entry reads as None and is counted by the caller's miss."""
        key = schema.block_key(block_id)
        value = self._txn.get(key, db=self._ix.blocks)
        return None if value is None else self._checked(schema.decode_block, key, value)

    def is_damaged(self, block_id: int) -> bool:
        """Whether there is an entry, for a block that :meth:`block` did not give."""
        return self._txn.get(schema.block_key(block_id), db=self._ix.blocks) is not None

    def content(self, tier_no: int, content_id: bytes) -> ContentEntry | None:
        key = schema.content_key(tier_no, content_id)
        value = self._txn.get(key, db=self._ix.contents)
        return None if value is None else self._checked(schema.decode_content, key, value)

    def _checked(self, decode: Any, key: bytes, value: bytes) -> Any:
        """The entry, or None if it is damaged."""
        try:
            return decode(key, value)
        except IndexDamaged:
            self._ix.met_damage = True
            return None

    def segment(self, tier_no: int, segment_no: int) -> SegmentEntry | None:
        """The entry, or None; :class:`IndexDamaged`: it is there, but what it says is not known."""
        key = schema.segment_key(tier_no, segment_no)
        value = self._txn.get(key, db=self._ix.segments)
        return None if value is None else schema.decode_segment(key, value)

    def blocks(self, after: int = 0) -> Iterator[tuple[int, BlockEntry]]:
        """Every sound block entry with a higher id, in id order."""
        cursor = self._txn.cursor(db=self._ix.blocks)
        if not cursor.set_range(schema.block_key(after + 1)):
            return
        for key, value in cursor:
            entry = self._checked(schema.decode_block, key, value)
            if entry is not None:
                yield int.from_bytes(key, "big"), entry

    def contents(self, tier_no: int) -> Iterator[tuple[bytes, ContentEntry]]:
        """Every sound content entry of a tier, by content id."""
        for key, value in self._rows(self._ix.contents, tier_no):
            entry = self._checked(schema.decode_content, key, value)
            if entry is not None:
                yield key[1:], entry

    def segments(self, tier_no: int) -> dict[int, SegmentEntry]:
        """All segments of a tier, by number. :class:`IndexDamaged` if an entry does not pass its checksum."""
        rows = self._rows(self._ix.segments, tier_no)
        return {schema.split_segment_key(key)[1]: schema.decode_segment(key, value) for key, value in rows}

    def _rows(self, db: Any, tier_no: int) -> Iterator[tuple[bytes, bytes]]:
        cursor = self._txn.cursor(db=db)
        if cursor.set_range(bytes((tier_no,))):
            yield from takewhile(lambda row: row[0][:1] == bytes((tier_no,)), cursor)

    def departure(self, block_id: int) -> Departure | None:
        """The newest departure of a block that is remembered."""
        if self._ix.departures is None:
            return None
        found = []
        for key, value in self._txn.cursor(db=self._ix.departures):
            row_at = schema.split_row_key(key) * schema.DEPARTURES_A_ROW
            for slot, departure in schema.departures_of(block_id, self._checked(schema.decode_row, key, value) or b""):
                found.append((self._age(row_at + slot), departure))
        return min(found)[1] if found else None

    def _age(self, place: int) -> int:
        """How many departures are newer than the one in this place of the ring."""
        return (self.counter(_DEPARTURES) - 1 - place) % schema.DEPARTURES_MAX

    def damaged(self) -> int:
        """How many entries of blocks, contents and segments do not pass their checksums."""
        return sum(
            self._checked(schema.checked_body, key, value) is None
            for db in (self._ix.blocks, self._ix.contents, self._ix.segments)
            for key, value in self._txn.cursor(db=db)
        )

    def counter(self, name: str) -> int:
        value = self._txn.get(name.encode(), db=self._ix.meta)
        return int.from_bytes(value, "little") if value else 0

    def is_complete(self) -> bool:
        """Whether the index was ever made to agree with the segments."""
        return bool(self.counter(_COMPLETE))

    @property
    def number(self) -> int:
        """Of the commit that this sees, or that it will be."""
        return int(self._txn.id())

    def namespace(self, namespace: bytes) -> NamespaceEntry:
        """What a namespace has. :class:`IndexDamaged` if its entry does not pass its checksum."""
        key = schema.namespace_key(namespace)
        value = self._txn.get(key, db=self._ix.namespaces)
        return NamespaceEntry(0, 0) if value is None else schema.decode_namespace(key, value)

    def namespaces(self, count_max: int) -> dict[bytes, NamespaceEntry]:
        """The first that have blocks, short names first. :class:`IndexDamaged` as :meth:`namespace`."""
        rows = islice(self._txn.cursor(db=self._ix.namespaces), count_max) if self._ix.namespaces else ()
        return {schema.split_namespace_key(key): schema.decode_namespace(key, value) for key, value in rows}

    def count_blocks(self) -> int:
        return int(self._txn.stat(self._ix.blocks)["entries"])


class WriteTxn(View):
    """A read-write transaction: all of it becomes durable, or none. Use inside ``with index.write()``."""

    def put_block(self, block_id: int, entry: BlockEntry) -> None:
        key = schema.block_key(block_id)
        self._txn.put(key, schema.encode_block(key, entry), db=self._ix.blocks)

    def del_block(self, block_id: int) -> bool:
        """Whether there was an entry."""
        return bool(self._txn.delete(schema.block_key(block_id), db=self._ix.blocks))

    def put_content(self, tier_no: int, content_id: bytes, entry: ContentEntry) -> None:
        key = schema.content_key(tier_no, content_id)
        self._txn.put(key, schema.encode_content(key, entry), db=self._ix.contents)

    def del_content(self, tier_no: int, content_id: bytes) -> None:
        self._txn.delete(schema.content_key(tier_no, content_id), db=self._ix.contents)

    def put_segment(self, tier_no: int, segment_no: int, entry: SegmentEntry) -> None:
        key = schema.segment_key(tier_no, segment_no)
        self._txn.put(key, schema.encode_segment(key, entry), db=self._ix.segments)

    def del_segment(self, tier_no: int, segment_no: int) -> None:
        self._txn.delete(schema.segment_key(tier_no, segment_no), db=self._ix.segments)

    def add_departures(self, departures: Iterable[Departure], rows_max: int = schema.DEPARTURE_ROWS_MAX) -> None:
        """Remember these, in order, each in place of the oldest one once there are as many as may be."""
        count = self.counter(_DEPARTURES)
        rows: dict[int, bytearray] = {}
        for departure in departures:
            row_no, slot = divmod(count % schema.DEPARTURES_MAX, schema.DEPARTURES_A_ROW)
            if row_no not in rows:
                rows[row_no] = self._row(row_no)
            schema.set_departure(rows[row_no], slot, departure)
            count += 1
        for row_no, row in rows.items():
            oldest = (row_no - rows_max) % schema.DEPARTURE_ROWS_MAX  # this row itself, if that is how many there are
            self._txn.delete(schema.row_key(oldest), db=self._ix.departures)
            key = schema.row_key(row_no)
            self._txn.put(key, schema.encode_row(key, row), db=self._ix.departures)
        self.set_counter(_DEPARTURES, count)

    def _row(self, row_no: int) -> bytearray:
        key = schema.row_key(row_no)
        value = self._txn.get(key, db=self._ix.departures)
        row = None if value is None else self._checked(schema.decode_row, key, value)
        return schema.empty_row() if row is None else bytearray(row)

    def put_namespace(self, namespace: bytes, entry: NamespaceEntry) -> None:
        """An entry without blocks is removed."""
        key = schema.namespace_key(namespace)
        if entry.blocks:
            self._txn.put(key, schema.encode_namespace(key, entry), db=self._ix.namespaces)
        else:
            self._txn.delete(key, db=self._ix.namespaces)

    def clear_namespaces(self) -> None:
        self._txn.drop(self._ix.namespaces, delete=False)

    def set_counter(self, name: str, value: int) -> None:
        self._txn.put(name.encode(), value.to_bytes(8, "little"), db=self._ix.meta)

    def set_complete(self) -> None:
        """From now on the index agrees with the segments."""
        self.set_counter(_COMPLETE, 1)

    def clear(self) -> None:
        """Forget everything."""
        ix = self._ix
        for db in (ix.blocks, ix.contents, ix.segments, ix.departures, ix.namespaces, ix.meta):
            self._txn.drop(db, delete=False)


class LmdbIndex:
    """The open LMDB environment of one store."""

    def __init__(self, folder: str, *, map_bytes: int, read_only: bool, lock: bool = True) -> None:
        """Open (creating if needed and not ``read_only``). Raises :class:`IndexUnusable`, :class:`IndexBusy`."""
        if lmdb.version()[0] != 0:
            raise IndexUnusable(f"py-lmdb runs engine {lmdb.version()}, not 0.9.x", is_damaged=False)
        self._gate = Gate()
        self._read_only = read_only
        self._is_closed = self._is_dead = self.met_damage = False
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
            max_dbs=6,
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
        with suppress(lmdb.NotFoundError):  # only if read only: the store's last writer did not know them yet
            self.departures = db(b"departures")
            self.namespaces = db(b"namespaces")

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
        self._map_bytes = size
        return True

    @contextmanager
    def write(self) -> Iterator[WriteTxn]:
        """Commit on leaving the block, durably; roll back on an exception. Not inside ``read``. :class:`IndexFull` if
        the map is full, :class:`OSError` if the disk fails."""
        try:
            self.ensure_alive()
            self._env.reader_check()  # one that was killed would keep old pages from being used again
            with self._env.begin(write=True) as txn:
                yield WriteTxn(self, txn)
        except (lmdb.MapFullError, lmdb.TxnFullError) as e:
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
