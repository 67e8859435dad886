"""Blocks and contents in an index of the first format, which is only read: who writes to the store makes it anew."""

from __future__ import annotations

import struct

from kvtier.index.schema import BlockEntry, ContentEntry, Form, IndexDamaged, checked_body

_BLOCK = struct.Struct("<QQQQQQBB16sBBHB")
_CONTENT = struct.Struct("<QQHQQB16sI")


def content_key(tier_no: int, content_id: bytes) -> bytes:
    return bytes((tier_no,)) + content_id


def decode_block(key: bytes, value: bytes) -> BlockEntry:
    body = checked_body(key, value)
    try:
        clock, seq, parent_id, segment_no, offset, record_len, *rest = _BLOCK.unpack_from(body)
        tier_no, kind, content_id, ns_len, key_len, meta_len, buffers = rest
        names = struct.Struct(f"<{ns_len}s{key_len}s{meta_len}s{buffers}Q")
        namespace, name, meta, *lengths = names.unpack(body[_BLOCK.size :])
    except struct.error as e:
        raise IndexDamaged(f"index entry {key.hex()}: {e}") from e
    place = segment_no, offset, record_len, tier_no
    return BlockEntry(clock, seq, parent_id, *place, kind, content_id, namespace, name, meta, tuple(lengths))


def decode_content(key: bytes, value: bytes) -> ContentEntry:
    body = checked_body(key, value, _CONTENT.size)
    segment_no, offset, head_len, stored_len, record_len, codec, _, refs = _CONTENT.unpack(body)
    entry = ContentEntry(codec, segment_no, offset, head_len, stored_len, refs)
    if entry.record_len != record_len:
        raise IndexDamaged(f"index entry {key.hex()}: a record of {record_len} bytes has {entry.record_len}")
    return entry


#: The first format.
FORM = Form("complete", 0, content_key, decode_block, decode_content)
