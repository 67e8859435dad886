"""The meta pages of LMDB's file: ``index.lmdb_index.looks_cut``.

The input: the heads of both meta pages (152 bytes each), and the length of the file (8 bytes).
"""

from __future__ import annotations

import struct

from kvtier.index.data_file import looks_cut
from tests.fuzz.parsers.scratch import new_folder
from tests.fuzz.parsers.target import Target, expect

META_BYTES = 152
_PAGE_AT, _LAST_AT = 40, 136
_FILE_BYTES_MAX = 1 << 40  # sparse
_scratch = new_folder()


class NotAFile(ValueError):
    """The input does not say what the file is."""


def parse(data: bytes) -> None:
    """A file that is as long as its metas say is not cut; one that lacks a byte of that is."""
    if len(data) != 2 * META_BYTES + 8:
        raise NotAFile
    first, second = data[:META_BYTES], data[META_BYTES : 2 * META_BYTES]
    (length,) = struct.unpack_from("<Q", data, 2 * META_BYTES)
    (page,) = struct.unpack_from("=I", first, _PAGE_AT)
    if length > _FILE_BYTES_MAX or page < META_BYTES:
        raise NotAFile
    file = _scratch / "data.mdb"
    with file.open("wb") as out:
        out.write(first)
        out.seek(page)
        out.write(second)
        out.truncate(length)
    metas = [meta for meta, end in ((first, META_BYTES), (second, page + META_BYTES)) if end <= length]
    needed = max((pages_end(meta) for meta in metas), default=0)
    expect(looks_cut(str(_scratch)) == (length < needed), f"{length} bytes of {needed}")


def pages_end(meta: bytes) -> int:
    """Where the last page that a meta page names ends; 0 if it is none."""
    (page,) = struct.unpack_from("=I", meta, _PAGE_AT)
    (last,) = struct.unpack_from("=Q", meta, _LAST_AT)
    return (last + 1) * page if meta[16:20] == struct.pack("=I", 0xBEEFC0DE) else 0


TARGET = Target(parse, (NotAFile,))
