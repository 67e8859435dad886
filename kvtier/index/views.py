"""What a transaction of the index shows, and what it changes.

Threads: each object is used on one thread, inside its transaction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any

from kvtier.index import schema
from kvtier.index.schema import (
    BlockEntry,
    ContentEntry,
    Departure,
    ExpiryEntry,
    IndexDamaged,
    NamespaceEntry,
    SegmentEntry,
)

if TYPE_CHECKING:
    from kvtier.index.lmdb_index import LmdbIndex

_DEPARTURES = "departures"


class View:
    """One consistent read of the index. Use inside ``with index.read()``, on one thread."""

    def __init__(self, index: LmdbIndex, txn: Any) -> None:
        self._ix = index
        self._txn = txn
        self._form = index.form_of(txn)
        self._may_expire = self.count_expiries() > 0

    def block(self, block_id: int) -> BlockEntry | None:
        """The entry, or None; a damaged entry reads as None and is counted by the caller's miss."""
        key = schema.block_key(block_id)
        value = self._txn.get(key, db=self._ix.blocks)
        return None if value is None else self._decoded(key, value)

    def _decoded(self, key: bytes, value: bytes) -> BlockEntry | None:
        try:
            entry = self._form.decode_block(key, value)
        except IndexDamaged:
            self._ix.met_damage = True
            return None
        if self._may_expire and (expiry := self._expiry(key)) and expiry.seq == entry.seq:
            return entry._replace(expires_at=expiry.when)
        return entry

    def _expiry(self, key: bytes) -> ExpiryEntry | None:
        value = self._txn.get(key, db=self._ix.expiries)
        return None if value is None else self._checked(schema.decode_expiry, key, value)

    def count_expiries(self) -> int:
        """Blocks that expire."""
        return int(self._txn.stat(self._ix.expiries)["entries"]) if self._ix.expiries is not None else 0

    def expiring(self) -> Iterator[tuple[int, int]]:
        """When blocks expire, and which, the first ones first."""
        for key in self._txn.cursor(db=self._ix.expiry_order).iternext(values=False):
            yield schema.split_expiry_order_key(key)

    def is_damaged(self, block_id: int) -> bool:
        """Whether there is an entry, for a block that :meth:`block` did not give."""
        return self._txn.get(schema.block_key(block_id), db=self._ix.blocks) is not None

    def content(self, tier_no: int, content_id: bytes) -> ContentEntry | None:
        """The entry, or None. ``content_id``: what a key has of it will do."""
        key = self._form.content_key(tier_no, content_id)
        value = self._txn.get(key, db=self._ix.contents)
        if value is None:
            return None
        try:
            return self._form.decode_content(key, value)
        except IndexDamaged:
            self._ix.met_damage = True
            return None

    def content_key(self, tier_no: int, content_id: bytes) -> bytes:
        """What names a content in this index, of its id or of what :meth:`contents` gives of it."""
        return self._form.content_key(tier_no, content_id)

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
            entry = self._decoded(key, value)
            if entry is not None:
                yield int.from_bytes(key, "big"), entry

    def contents(self, tier_no: int) -> Iterator[tuple[bytes, ContentEntry]]:
        """Every sound content entry of a tier, by what its key has of the content id."""
        for key, value in self._rows(self._ix.contents, tier_no):
            entry = self._checked(self._form.decode_content, key, value)
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
        tables = ((self._ix.blocks, self._form.seed), (self._ix.contents, self._form.seed), (self._ix.segments, 0))
        return sum(
            self._checked(partial(schema.checked_body, seed=seed), key, value) is None
            for db, seed in tables
            for key, value in self._txn.cursor(db=db)
        )

    def counter(self, name: str) -> int:
        value = self._txn.get(name.encode(), db=self._ix.meta)
        return int.from_bytes(value, "little") if value else 0

    def is_complete(self) -> bool:
        """Whether the index was ever made to agree with the segments, by a kvtier that writes entries as this one."""
        return bool(self.counter(self._form.complete))

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
        self._put_expiry(block_id, key, ExpiryEntry(entry.expires_at, entry.seq))

    def del_block(self, block_id: int) -> bool:
        """Whether there was an entry."""
        key = schema.block_key(block_id)
        self._put_expiry(block_id, key, ExpiryEntry(0, 0))
        return bool(self._txn.delete(key, db=self._ix.blocks))

    def del_expiry(self, when: int, block_id: int) -> None:
        """Forget that a block, which is not there, expires."""
        self._txn.delete(schema.expiry_order_key(when, block_id), db=self._ix.expiry_order)

    def _put_expiry(self, block_id: int, key: bytes, new: ExpiryEntry) -> None:
        self._may_expire |= new.when > 0
        if not self._may_expire:
            return
        old = self._expiry(key)
        if old == new:
            return
        if old is not None:
            self.del_expiry(old.when, block_id)
        if new.when:
            self._txn.put(key, schema.encode_expiry(key, new), db=self._ix.expiries)
            place = schema.expiry_order_key(new.when, block_id)
            self._txn.put(place, schema.encode_expiry_order(place), db=self._ix.expiry_order)
        else:
            self._txn.delete(key, db=self._ix.expiries)

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
        self.set_counter(schema.FORM.complete, 1)

    def clear(self) -> None:
        """Forget everything."""
        ix = self._ix
        others = (ix.departures, ix.namespaces, ix.expiries, ix.expiry_order)
        for db in (ix.blocks, ix.contents, ix.segments, *others, ix.meta):
            self._txn.drop(db, delete=False)
