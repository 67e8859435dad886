"""LMDB's file as a whole: ``index.lmdb_index.is_sound``, and what it lets through is read.

The input is patches of 6 bytes to a small index: where (4 bytes, taken modulo its length), and 2 bytes.
"""

from __future__ import annotations

import struct
from pathlib import Path

from kvtier.index.data_file import looks_cut
from kvtier.index.errors import IndexUnusable
from kvtier.index.lmdb_index import LmdbIndex, is_sound
from kvtier.index.schema import BlockEntry, ContentEntry, Departure, IndexDamaged, Reason, SegmentEntry
from tests.fuzz.parsers.scratch import new_folder
from tests.fuzz.parsers.target import Target

_PATCH = struct.Struct("<I2s")
_MAP_BYTES = 1 << 20
_BLOCKS = 60
_scratch = new_folder()


class Unsound(ValueError):
    """The audit refused the file."""


def made(folder: str) -> bytes:
    """The file of an index with some blocks, and some that left."""
    index = LmdbIndex(folder, map_bytes=_MAP_BYTES, read_only=False)
    content_id = bytes(range(16))
    for number in range(1, _BLOCKS):
        with index.write() as txn:
            place = 0, 64 * number, 64, 0, 1
            txn.put_block(number, BlockEntry(number, number, 0, *place, content_id, b"", b"key", bytes(200), (9,)))
            txn.put_content(0, number.to_bytes(16, "big"), ContentEntry(0, 0, 64 * number, 128, 9, 1))
            txn.put_segment(0, 0, SegmentEntry(64 * number, 64, False))
            txn.add_departures([Departure(number, 0, Reason.EVICTED, 0)])
            txn.del_block(number // 2)
            txn.set_complete()
    index.close()
    return (Path(folder) / "data.mdb").read_bytes()


_folder = _scratch / "made"
_folder.mkdir()
_file = made(str(_folder))


def parse(data: bytes) -> None:
    patched = bytearray(_file)
    for where, what in _PATCH.iter_unpack(data[: len(data) // _PATCH.size * _PATCH.size]):
        at = where % (len(patched) - 1)
        patched[at : at + 2] = what
    folder = _scratch
    (folder / "data.mdb").write_bytes(patched)
    if looks_cut(str(folder)) or not is_sound(str(folder)):
        raise Unsound
    read_through(str(folder))


def read_through(folder: str) -> None:
    """As a store that is opened and then asked for all that it has."""
    index = LmdbIndex(folder, map_bytes=_MAP_BYTES, read_only=True, lock=False)
    try:
        with index.read() as view:
            for block_id, _ in view.blocks():
                view.departure(block_id)
            list(view.contents(0))
            view.segments(0)
            view.is_complete()
    finally:
        index.close()


TARGET = Target(parse, (Unsound, IndexUnusable, IndexDamaged, OSError), spare=1 << 17)
